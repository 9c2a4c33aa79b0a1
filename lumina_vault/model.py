"""The structures of format.md as typed records: contents, trees, snapshot records, keys, annotations.

Everything here is frozen MessagePack: `encode` writes the canonical form, `decode` checks types while it reads.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from lumina_vault.errors import Damage, NewerFormat

FORMAT_VERSION: Final = 1
KNOWN_REQUIREMENTS: Final[frozenset[str]] = frozenset()
"""Names in `requires` that this version understands (format.md section 2)."""

INLINE_REFS: Final = 64

LARGE: Final = 1
SMALL: Final = 2
BUNDLE: Final = 3
"""Chunk profiles (format.md section 4): files, images, models; databases; small files joined."""

BUNDLE_BELOW: Final = 131_072
"""Files smaller than this (bytes), without holes, are joined with their neighbours into common chunks."""

SAFETY_TAG: Final = "safety"
"""Tag of the snapshot that a replacing restore takes of what it replaces; `latest` never means one."""

LINKED: Final = 1
"""`Entry.flags`: a further name of a hard link; `link` holds the first."""
CHANGED: Final = 2
"""`Entry.flags`: the file changed while it was read."""
MISSING: Final = 4
"""`Entry.flags`: the contents could not be read."""


# What no writer of format 1 ever writes is refused while it is decoded: sizes that no system call takes, and lists so
# long that one chunk of 16 MiB would become hundreds of megabytes of objects.
_U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Height = Annotated[int, msgspec.Meta(ge=0, le=8)]
_Root = msgspec.Meta(max_length=INLINE_REFS)
_Many = msgspec.Meta(max_length=65_536)
CONTENT_REFS: Final = 1024
"""Most refs of one node of contents."""
TREE_REFS: Final = 256
"""Most refs of one node of a tree."""
LEAF_ENTRIES: Final = 1024


class Ref(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run of logical bytes: an extent of a chunk, a hole (`chunk` empty), or a node with what is below it."""

    chunk: bytes
    offset: _U63
    length: _Positive


class Content(msgspec.Struct, frozen=True, array_like=True):
    """A byte stream of `size` bytes; `refs` are extents at height 0, nodes above."""

    size: _U63
    height: _Height
    refs: Annotated[list[Ref], _Root]


class ContentNode(msgspec.Struct, frozen=True, array_like=True):
    version: int
    height: _Height
    refs: Annotated[list[Ref], msgspec.Meta(max_length=CONTENT_REFS)]


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One name in a tree; field by field in format.md section 6."""

    path: bytes
    mode: _U32
    uid: _U32
    gid: _U32
    mtime: int
    ctime: int
    size: _U63
    ino: int
    nlink: int
    digest: bytes = b""
    profile: int = 0
    height: _Height = 0
    refs: Annotated[list[Ref], _Root] = []
    link: bytes = b""
    rdev: _U63 = 0
    xattrs: Annotated[list[tuple[bytes, bytes]], _Many] | None = None
    flags: int = 0

    @property
    def content(self) -> Content:
        return Content(self.size, self.height, self.refs)


class TreeRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A leaf or node of a tree: entries below it and the path of the first."""

    chunk: bytes
    count: _Positive
    first: bytes


class Tree(msgspec.Struct, frozen=True, array_like=True):
    """A sorted list of entries; `refs` are leaves at height 0, nodes above."""

    count: _U63
    height: _Height
    refs: Annotated[list[TreeRef], _Root]


class TreeNode(msgspec.Struct, frozen=True, array_like=True):
    version: int
    height: _Height
    refs: Annotated[list[TreeRef], msgspec.Meta(max_length=TREE_REFS)]


class Leaf(msgspec.Struct, frozen=True, array_like=True):
    version: int
    entries: Annotated[list[Entry], msgspec.Meta(max_length=LEAF_ENTRIES)]


class Component(msgspec.Struct, kw_only=True):
    """One exported thing in a snapshot record (format.md section 8)."""

    kind: str
    name: str
    status: str = "done"
    reason: str = ""
    complete: bool = True
    consistency: str = "live"
    source: bytes = b""
    profile: int = 0
    tree: Tree | None = None
    content: Content | None = None
    digests: Annotated[dict[str, Content], _Many] = {}
    files: int = 0
    dirs: int = 0
    size: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    left_out: int = 0
    notes: list[str] = []
    meta: dict[str, str] = {}

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.name}"


class Record(msgspec.Struct, kw_only=True):
    """A snapshot: the components of one moment and their root chunks."""

    version: int = FORMAT_VERSION
    requires: list[str] = []
    vault: bytes
    time: int
    end: int
    host: str
    user: str
    tags: list[str] = []
    program: str
    parent: bytes = b""
    components: Annotated[list[Component], _Many]
    meta: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        return all(c.status == "done" and c.complete for c in self.components)


class Config(msgspec.Struct, kw_only=True):
    version: int = FORMAT_VERSION
    requires: list[str] = []
    vault: bytes
    created: int
    encryption: str

    @property
    def encrypted(self) -> bool:
        return self.encryption != "none"


class Kdf(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    time: int = 0
    memory: int = 0
    lanes: int = 0


class KeySlot(msgspec.Struct, kw_only=True):
    version: int = FORMAT_VERSION
    kind: str
    vault: bytes
    slot: str
    label: str
    created: int
    kdf: Kdf
    salt: bytes
    nonce: bytes
    wrapped: bytes


class Keyring(msgspec.Struct, kw_only=True):
    version: int = FORMAT_VERSION
    vault: bytes
    config: bytes
    id_key: bytes
    epochs: Annotated[list[tuple[_U32, bytes, int]], _Many]

    def __repr__(self) -> str:  # a keyring in a traceback must not show keys
        return f"<Keyring of {self.vault.hex()}, {len(self.epochs)} epochs>"


class Annotation(msgspec.Struct, kw_only=True):
    version: int = FORMAT_VERSION
    vault: bytes
    target: str
    id: bytes
    kind: str
    time: int
    value: str = ""
    replaces: list[str] = []


class GcState(msgspec.Struct, kw_only=True):
    version: int = FORMAT_VERSION
    vault: bytes
    generation: int
    condemned: list[bytes] = []


T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder[msgspec.Struct]] = {}


def encode(value: msgspec.Struct) -> bytes:
    """The canonical encoding of a structure."""
    return _encoder.encode(value)


def decode(data: bytes | memoryview, kind: type[T], what: str) -> T:
    """The structure that `data` encodes; `what` names it in errors.

    Raises `Damage` when it is not one, `NewerFormat` when it needs something that this version does not know.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        value = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise Damage(f"{what} is not readable: {error}") from None
    version = getattr(value, "version", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise NewerFormat(
            f"{what} has format version {version}; this vault program reads up to {FORMAT_VERSION}: upgrade it"
        )
    unknown = set(getattr(value, "requires", ())) - KNOWN_REQUIREMENTS
    if unknown:
        raise NewerFormat(f"{what} needs {', '.join(sorted(unknown))}, which this version does not know: upgrade it")
    return value  # type: ignore[return-value]
