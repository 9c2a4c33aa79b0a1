"""Small objects that claim, or expand to, much: refused before the memory is spent.

All run in one process, each while its address space may grow by 256 MiB: running out of memory is a failure here, not
an error that anybody handles.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_PRELUDE = """
import io, json, resource, struct, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import zstandard
from golden import reference as ref
from lumina_vault import codec, crypto, ids, model
from lumina_vault.backends.memory import MemoryBackend
from lumina_vault.errors import Damage, VaultError, WrongKey
from lumina_vault.index import ChunkRow
from lumina_vault.model import *
from lumina_vault.store.keystore import list_slots
from lumina_vault.store.pack import open_chunk, parse_footer, read_table
from lumina_vault.testing.memory import VAULT, make_keys

keys = make_keys(False)

def sealed(type_, frame):
    data = ref.header(type_, False, 0, VAULT, bytes(32)) + struct.pack("<I", len(frame)) + frame
    return data + ids.object_hash(data)

def unseal(type_, data):
    return crypto.unseal(keys, type_, data, "it")

def frame_of(size, content_size=True, level=1):
    "A zstd frame of `size` zeros, made in pieces."
    out = io.BytesIO()
    made = zstandard.ZstdCompressor(level=level).stream_writer(out, size=size if content_size else -1, closefd=False)
    for _ in range(size >> 20):
        made.write(bytes(1 << 20))
    made.close()
    return out.getvalue()

def claims(size, window=None):
    "A frame header that states `size` bytes of content, and the window that a decoder would need."
    head = bytes([0xC0]) + bytes([(window - 10) << 3]) if window else bytes([0xE0])
    return struct.pack("<I", 0xFD2FB528) + head + struct.pack("<Q", size) + b"\\x03\\x00\\x00" + bytes(8)

def chunk(frame, plain):
    return open_chunk(None, crypto.DATA, ChunkRow(bytes(32), 0, 0, 64, len(frame), plain, codec.ZSTD), frame)

def many(prefix, element):
    "`prefix`, an array of as many elements as a chunk of 16 MiB can hold, and nothing more."
    count = ((16 << 20) - len(prefix) - 5) // len(element)
    return prefix + b"\\xdd" + struct.pack(">I", count) + element * count

def record(field, value):
    fields = {{"vault": VAULT, "time": 0, "end": 0, "host": "", "user": "", "program": "", "components": []}}
    fields.pop(field, None)
    head = bytes([0x80 | len(fields) + 1]) + b"".join(ref.canonical(k) + ref.canonical(v) for k, v in fields.items())
    return head + ref.canonical(field) + value

def limit():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))

results = {{}}
for name, (prepare, run, expected) in json.load(sys.stdin).items():
    setup = eval(prepare)
    limit()
    try:
        eval(run)
        results[name] = "accepted"
    except VaultError as error:
        results[name] = "refused" if type(error).__name__ == expected else repr(error)
    except BaseException as error:
        results[name] = repr(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        setup = None
print(json.dumps(results))
"""

GIB = 1 << 30
ENTRY = "b'\\x99\\xc4\\x00' + bytes(6) + bytes(2)"

BOMBS = {
    # zstd, as a chunk and as a sealed object
    "chunk claims 16 GiB": ("claims(16 << 30)", "chunk(setup, 16 << 30 & 0xFFFFFFFF)"),
    "chunk claims 16 GiB of its table's 4 GiB": ("claims(16 << 30)", "chunk(setup, 0xFFFFFFFF)"),
    "chunk claims 16 MiB and holds nothing": ("claims(16 << 20)", "chunk(setup, 16 << 20)"),
    "chunk with a window of 2 GiB": ("claims(16 << 20, window=31)", "chunk(setup, 16 << 20)"),
    "chunk expands to 1 GiB": (f"frame_of({GIB})", "chunk(setup, 100)"),
    "chunk expands to 1 GiB without saying so": (f"frame_of({GIB}, False)", "chunk(setup, 100)"),
    "chunk says 100 bytes and expands": (
        f"struct.pack('<I', 0xFD2FB528) + bytes([0x20, 100]) + frame_of({GIB}, False)[6:]",
        "chunk(setup, 100)",
    ),
    "record claims 16 GiB": ("sealed(crypto.SNAPSHOT, claims(16 << 30))", "unseal(crypto.SNAPSHOT, setup)"),
    "config expands to 1 GiB": (f"sealed(crypto.CONFIG, frame_of({GIB}))", "unseal(crypto.CONFIG, setup)"),
    "slot expands without saying so": (f"sealed(crypto.SLOT, frame_of({GIB}, False))", "unseal(crypto.SLOT, setup)"),
    "uncompressed chunk shorter than it claims": ("b''", "codec.decompress(codec.NONE, b'x', 16 << 20)"),
    # MessagePack that claims
    **{
        f"{kind} with an array of 2^32 elements": (
            f"{prefix} + b'\\xdd\\xff\\xff\\xff\\xff'",
            f"model.decode(setup, {kind}, 'it')",
        )
        for kind, prefix in (
            ("Leaf", "b'\\x92\\x01'"), ("ContentNode", "b'\\x93\\x01\\x00'"), ("TreeNode", "b'\\x93\\x01\\x00'"),
            ("Record", "b'\\x81\\xa4tags'"), ("Record", "b'\\x81\\xaacomponents'"), ("Keyring", "b'\\x81\\xa6epochs'"),
            ("GcState", "b'\\x81\\xa9condemned'"),
        )
    },
    "a map of 2^32 pairs": ("b'\\xdf\\xff\\xff\\xff\\xff'", "model.decode(setup, Record, 'it')"),
    "an unknown field that is deep": ("b'\\x81\\xa1x' + b'\\x91' * 1_000_000", "model.decode(setup, Record, 'it')"),
    "an unknown field of 4 GiB": ("b'\\x81\\xa1x\\xc6\\xff\\xff\\xff\\xff'", "model.decode(setup, KeySlot, 'it')"),
    "a path of 4 GiB": ("b'\\x92\\x01\\x91\\x99\\xc6\\xff\\xff\\xff\\xff'", "model.decode(setup, Leaf, 'it')"),
    # 16 MiB of the smallest elements there are
    "a content node of 3 million refs": (
        "many(b'\\x93\\x01\\x00', b'\\x93\\xc4\\x00\\x00\\x01')",
        "model.decode(setup, ContentNode, 'it')",
    ),
    "a tree node of 3 million refs": (
        "many(b'\\x93\\x01\\x00', b'\\x93\\xc4\\x00\\x01\\xc4\\x00')",
        "model.decode(setup, TreeNode, 'it')",
    ),
    "a leaf of a million entries": (f"many(b'\\x92\\x01', {ENTRY})", "model.decode(setup, Leaf, 'it')"),
    "a record of a million components": (
        "record('components', many(b'', b'\\x82\\xa4kind\\xa0\\xa4name\\xa0'))",
        "model.decode(setup, Record, 'it')",
    ),
    "a keyring of 3 million epochs": (
        "many(b'\\x81\\xa6epochs', b'\\x93\\x00\\xc4\\x00\\x00')",
        "model.decode(setup, Keyring, 'it')",
    ),
    # packs and slots
    "a table of 4 GiB": (
        "struct.pack('<QII', 64, (4 << 30) - 120, 1 << 20) + bytes(32) + b'LVTAIL\\0\\1'",
        "parse_footer(setup, 4 << 30, 'packs/it')",
    ),
    "a pack of 8 GiB": ("MemoryBackend()", "read_table(setup, keys, 'packs/it', 8 << 30)"),
}  # fmt: skip


KDFS = [
    (17, 64, 1), (1, (1 << 20) + 1, 1), (1, 1 << 40, 1), (1, 1024, 17), (0, 64, 1), (1, 7, 1), (1, 8, 2),
    (1 << 63, 64, 1), (-1, 64, 1), (1, -64, 1), (1, 64, 0),
]  # fmt: skip
"""Time, memory in KiB and lanes of a key derivation, out of bounds."""


def slot(time, memory, lanes):
    kdf = f"Kdf(name='argon2id', time={time}, memory={memory}, lanes={lanes})"
    made = "KeySlot(kind='passphrase', vault=VAULT, slot='0' * 16, label='', created=0, salt=bytes(32), nonce=bytes(12)"
    return f"{made}, wrapped=bytes(48), kdf={kdf})"


CASES = {
    **{name: (setup, run, "Damage") for name, (setup, run) in BOMBS.items()},
    **{f"kdf {kdf}": (slot(*kdf), "crypto.open_slot(setup, b'x')", "WrongKey") for kdf in KDFS},
    "the limit is one: 300 MiB": ("None", "bytes(300 << 20)", "Damage"),
    "the dearest kdf, in too little memory": (slot(1, 1 << 20, 1), "crypto.open_slot(setup, b'x')", "WrongKey"),
}


@pytest.fixture(scope="module")
def results():
    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", _PRELUDE.format(tests=tests)]
    done = subprocess.run(command, input=json.dumps(CASES), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(results, bomb):
    assert results[bomb] == "refused"


@pytest.mark.parametrize("kdf", KDFS)
def test_key_derivations_out_of_bounds_are_not_begun(results, kdf):
    assert results[f"kdf {kdf}"] == "refused"


def test_the_limit_is_one(results):
    """The harness itself: what takes 300 MiB fails in it."""
    assert "MemoryError" in results["the limit is one: 300 MiB"]


def test_a_key_derivation_that_finds_too_little_memory_says_so(results):
    assert results["the dearest kdf, in too little memory"] == "refused"
