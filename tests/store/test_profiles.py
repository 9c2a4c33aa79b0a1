"""Where streams are cut: by their bytes alone, however they arrive."""

import io
from concurrent.futures import Future

import pytest
from golden import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_vault.model import LARGE, SMALL
from lumina_vault.store.contents import BLOCK_BYTES, BlockReader, BufferPool, ContentWriter
from lumina_vault.store.profiles import Cutter, bundle_ends, leaf_ends, node_ends
from lumina_vault.store.uploader import Counter
from lumina_vault.testing.memory import make_keys

LOW, _, HIGH = ref.SIZES[SMALL]
STREAM = ref.noise("stream", 900_000) + bytes(400_000) + ref.text("stream", 500_000)
WHOLE = [bytes(chunk) for chunk in Cutter(SMALL).cut(memoryview(STREAM), last=True)]


def cut_in_pieces(data, sizes):
    """Chunks of `data` when it arrives in pieces of these sizes (the last one repeats)."""
    cutter, held, position, chunks = Cutter(SMALL), b"", 0, []
    sizes = iter([*sizes, None])
    size = next(sizes)
    while True:
        piece = data[position : position + size]
        position += len(piece)
        held += piece
        last = position == len(data)
        found = [bytes(chunk) for chunk in cutter.cut(memoryview(held), last)]
        held = held[sum(map(len, found)) :]
        chunks += found
        if last:
            return chunks, held
        size = next(sizes, None) or size


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    start=st.integers(0, len(STREAM)),
    length=st.integers(0, 800_000),
    sizes=st.lists(st.integers(1, 600_000), max_size=6),
)
def test_cuts_do_not_depend_on_how_a_stream_arrives(start, length, sizes):
    data = STREAM[start : start + length]
    chunks, rest = cut_in_pieces(data, [*sizes, 300_000])
    assert rest == b""
    assert b"".join(chunks) == data
    assert chunks == [bytes(chunk) for chunk in Cutter(SMALL).cut(memoryview(data), last=True)]
    assert [len(chunk) for chunk in chunks] == ref.cut(data, SMALL)
    assert all(LOW <= len(chunk) <= HIGH for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= HIGH for chunk in chunks[-1:])


def test_a_cutter_waits_while_a_cut_could_still_move():
    data = memoryview(bytes(HIGH * 3))
    for length in (0, 1, LOW, HIGH - 1):
        assert list(Cutter(SMALL).cut(data[:length], last=False)) == []
    assert [len(chunk) for chunk in Cutter(SMALL).cut(data[:HIGH], last=False)] == [HIGH]


@pytest.mark.parametrize(
    "edit", [lambda d: b"x" + d, lambda d: d[1:], lambda d: d[:700_000] + b"inserted" + d[700_000:]]
)
def test_an_edit_changes_the_chunks_around_it_alone(edit):
    chunks = [bytes(chunk) for chunk in Cutter(SMALL).cut(memoryview(edit(STREAM)), last=True)]
    assert len(set(chunks) - set(WHOLE)) <= 2
    assert len(WHOLE) > 15


class Trickle(io.RawIOBase):
    """A source that gives as few bytes as it likes at a time."""

    def __init__(self, data, sizes):
        self.data, self.sizes, self.position = data, sizes, 0

    def readinto(self, buffer):
        size = self.sizes[self.position % len(self.sizes)]
        piece = self.data[self.position : self.position + min(size, len(buffer))]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)


class Ids:
    """Takes the place of the uploader: ids at once, buffers free at once."""

    def __init__(self, keys):
        self.keys, self.chunks = keys, []

    def submit(self, chunks, type_, counter, done=None):
        future = Future()
        future.set_result([self.keys.chunk_id(chunk) for chunk in chunks])
        self.chunks += [bytes(chunk) for chunk in chunks]
        if done is not None:
            done()
        return future


@pytest.mark.parametrize("profile", [LARGE, SMALL])
@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 12_345])
def test_a_block_reader_cuts_as_if_the_stream_were_one_piece(profile, size):
    data = (STREAM * (size // len(STREAM) + 1))[:size]
    keys = make_keys(False)
    uploader, counter = Ids(keys), Counter()
    writer = ContentWriter(keys, uploader, counter)
    seen = []
    reader = BlockReader(uploader, BufferPool(3), counter)
    for sizes in ([1 << 30], [65_536, 1, 4095]):
        uploader.chunks.clear()
        got = reader.read(Trickle(data, sizes), profile, ContentWriter(keys, uploader, counter), seen.append)
        assert got == size
        assert b"".join(uploader.chunks) == data
        assert uploader.chunks == [bytes(chunk) for chunk in Cutter(profile).cut(memoryview(data), last=True)]
    assert sum(seen) == 2 * size
    assert writer.finish().size == 0


def test_a_source_that_fails_gives_its_buffers_back():
    class Broken(io.RawIOBase):
        def readinto(self, buffer):
            raise OSError("the cable")

    keys = make_keys(False)
    buffers, counter = BufferPool(1), Counter()
    for _ in range(3):  # with one buffer, the second round would wait for ever
        with pytest.raises(OSError, match="the cable"):
            BlockReader(Ids(keys), buffers, counter).read(Broken(), LARGE, ContentWriter(keys, Ids(keys), counter))
    assert len(buffers.take()) == BLOCK_BYTES


def test_bundles_leaves_and_nodes_end_where_the_format_says():
    assert not bundle_ends(262_143, b"\0")
    assert bundle_ends(262_144, b"\x10")
    assert not bundle_ends(1_048_575, b"\x11")
    assert bundle_ends(1_048_576, b"\x11")
    assert leaf_ends(b"p", 1024, 0)
    assert leaf_ends(b"p", 1, 262_144)
    assert not leaf_ends(b"p", 1023, 262_143)
    ends = [name for name in (b"%d" % i for i in range(5000)) if leaf_ends(name, 1, 1)]
    assert 5 < len(ends) < 60
    for count, chunk, most, expected in (
        (63, b"\0" * 32, 1024, False),
        (64, b"\0" * 32, 1024, True),
        (64, b"", 1024, True),
        (64, b"\0\2" + b"\1" * 30, 1024, True),
        (64, b"\0\1" + b"\0" * 30, 1024, False),
        (1023, b"\1" * 32, 1024, False),
        (1024, b"\1" * 32, 1024, True),
        (256, b"\1" * 32, 256, True),
    ):
        assert node_ends(chunk, count, most) is expected
