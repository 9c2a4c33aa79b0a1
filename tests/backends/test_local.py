"""The directory backend: the protocol's promises, and what hostile directories, umasks and full disks do to it."""

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile

import pytest

from lumina_vault.backends import local_path, open_backend
from lumina_vault.backends.local import LocalBackend
from lumina_vault.errors import BackendError, ObjectMissing, StoreFull, UsageError
from lumina_vault.testing.backends import ANNOTATION, OTHER_PACK, PACK, SLOT, SNAPSHOT, BackendConformance

NOBODY = 65534


@pytest.fixture
def backend(tmp_path):
    backend = LocalBackend(str(tmp_path / "vault"))
    backend.prepare()
    return backend


@pytest.fixture
def outside(tmp_path):
    """A directory that a symlink may point to, with one file whose bytes must stay as they are."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_bytes(b"not the vault's")
    return place


@pytest.fixture(autouse=True)
def _loud():
    """What hangs on a FIFO fails instead."""

    def hung(*_):
        raise AssertionError("the call did not return")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class TestLocalBackend(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path):
        return LocalBackend(str(tmp_path / "vault"))


# --- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["file:/srv/vault", "file:///srv/vault", "/srv/vault"])
def test_urls_of_one_directory(url):
    assert local_path(url) == "/srv/vault"
    assert open_backend(url).url == "file:/srv/vault"


@pytest.mark.parametrize("url", ["s3://bucket/vault", "file://host/vault", "http://x/y"])
def test_urls_of_no_directory_are_refused(url):
    with pytest.raises(UsageError):
        local_path(url)


# --- modes ------------------------------------------------------------------------------------------------------------


def modes(root):
    """Path below the root -> permission bits, the root's own under the empty path."""
    found = {"": stat.S_IMODE(os.lstat(root).st_mode)}
    for place, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(place, name)
            found[os.path.relpath(path, root)] = stat.S_IMODE(os.lstat(path).st_mode)
    return found


def fill(root):
    backend = LocalBackend(root)
    backend.prepare()
    for name in (PACK, SNAPSHOT, ANNOTATION, SLOT, "config"):
        backend.put(name, b"bytes")
    backend.compare_and_swap("gc", None, b"1")
    backend.compare_and_swap("gc", b"1", b"2")
    spool = backend.spool()
    spool.write(b"open")
    spool.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path, umask):
    root = str(tmp_path / "vault")
    before = os.umask(umask)
    try:
        fill(root)
    finally:
        os.umask(before)
    found = modes(root)
    spools = {path for path in found if path.startswith("tmp/")}
    objects = {path for path in found if os.path.isfile(os.path.join(root, path))} - spools
    assert {found[path] for path in spools} == {0o600}
    assert {found[path] for path in objects} == {0o400}
    assert {found[path] for path in found.keys() - spools - objects} == {0o700}
    assert len(objects) == 6


@pytest.mark.skipif(os.geteuid() != 0, reason="the case above is this one already when not root")
def test_a_hostile_umask_does_not_lock_an_ordinary_user_out():
    place = tempfile.mkdtemp(prefix="vault-test-")
    os.chown(place, NOBODY, NOBODY)
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.umask(0o777)
            fill(os.path.join(place, "vault"))
            status = 0
        os._exit(status)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert modes(os.path.join(place, "vault"))[PACK] == 0o400
    finally:
        subprocess.run(["rm", "-r", place], check=True)


def test_a_directory_with_anything_in_it_is_not_prepared(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BackendError, match="not empty"):
        LocalBackend(str(tmp_path)).prepare()
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_is_no_place_for_a_vault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError):
        LocalBackend(str(tmp_path / "file")).prepare()
    with pytest.raises(BackendError):
        LocalBackend(str(tmp_path / "file" / "below")).prepare()


# --- what somebody planted --------------------------------------------------------------------------------------------


def everything(backend, name):
    """Each call that reads or lists through `name`; none may return."""
    with pytest.raises(BackendError):
        backend.read(name)
    with pytest.raises(BackendError):
        backend.size(name)


@pytest.mark.parametrize("part", ["packs", "packs/ab", "snapshots", "annotations", "keys"])
def test_a_planted_directory_link_is_not_followed(backend, outside, part):
    names = {"packs": PACK, "packs/ab": PACK, "snapshots": SNAPSHOT, "annotations": ANNOTATION, "keys": SLOT}
    name = names[part]
    top = part.split("/", maxsplit=1)[0]
    planted = os.path.join(backend.root, part)
    below = os.path.relpath(name, part)
    os.makedirs(os.path.dirname(outside / below), exist_ok=True)
    (outside / below).write_bytes(b"planted")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(planted)
    os.symlink(outside, planted)
    before = sorted(os.walk(outside))

    everything(backend, name)
    for call in (
        lambda: backend.put(name, b"new"),
        lambda: backend.delete(name),
        lambda: backend.compare_and_swap(name, None, b""),
    ):
        with pytest.raises(BackendError):
            call()
    listed = []
    with contextlib.suppress(BackendError):
        listed = list(backend.list(f"{top}/"))
    assert listed == []
    assert sorted(os.walk(outside)) == before
    assert (outside / below).read_bytes() == b"planted"
    assert os.listdir(os.path.join(backend.root, "tmp")) == []


def test_a_planted_link_for_tmp_is_not_followed(backend, outside):
    os.rmdir(os.path.join(backend.root, "tmp"))
    os.symlink(outside, os.path.join(backend.root, "tmp"))
    with pytest.raises(BackendError):
        backend.spool()
    with pytest.raises(BackendError):
        backend.put("gc", b"1")
    assert os.listdir(outside) == ["secret"]


@pytest.mark.parametrize("name", [PACK, SNAPSHOT, "config", "gc"])
@pytest.mark.parametrize("target", ["secret", "nothing there"])
def test_a_planted_object_link_is_not_followed(backend, outside, name, target):
    planted = os.path.join(backend.root, name)
    os.makedirs(os.path.dirname(planted), exist_ok=True)
    os.symlink(outside / target, planted)
    everything(backend, name)
    for expected in (None, b"not the vault's", b""):
        with pytest.raises(BackendError):
            backend.compare_and_swap(name, expected, b"new")
    assert list(backend.list("packs/")) + list(backend.list("snapshots/")) == []
    backend.put(name, b"new")  # the link is replaced, what it pointed to is not
    assert backend.read(name) == b"new"
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"not the vault's"


def test_deleting_a_planted_link_removes_the_link(backend, outside):
    os.symlink(outside / "secret", os.path.join(backend.root, SNAPSHOT))
    backend.delete(SNAPSHOT)
    assert not os.path.lexists(os.path.join(backend.root, SNAPSHOT))
    assert (outside / "secret").read_bytes() == b"not the vault's"


def test_the_root_itself_may_be_a_link(backend, tmp_path):
    backend.put("gc", b"1")
    os.symlink(backend.root, tmp_path / "link")
    linked = LocalBackend(str(tmp_path / "link"))
    assert linked.read("gc") == b"1"
    assert linked.compare_and_swap("gc", b"1", b"2")


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    before = os.getcwd()
    os.chdir(os.path.dirname(path))  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.basename(path))
    finally:
        os.chdir(before)


@pytest.mark.parametrize("plant", [_fifo, _socket, os.mkdir], ids=["fifo", "socket", "directory"])
@pytest.mark.parametrize("name", [PACK, SNAPSHOT, "config"])
def test_what_is_no_file_is_no_object_and_nothing_hangs(backend, plant, name):
    path = os.path.join(backend.root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    plant(path)
    everything(backend, name)
    assert list(backend.list("packs/")) + list(backend.list("snapshots/")) == []
    with pytest.raises(BackendError):
        backend.compare_and_swap(name, None, b"new")


def test_an_object_is_not_made_over_a_directory(backend):
    os.makedirs(os.path.join(backend.root, PACK, "below"))
    with pytest.raises(BackendError):
        backend.put(PACK, b"new")
    assert os.listdir(os.path.join(backend.root, PACK)) == ["below"]
    assert os.listdir(os.path.join(backend.root, "tmp")) == []


def test_foreign_files_and_directories_are_passed_over(backend):
    backend.put(PACK, b"1")
    backend.put(OTHER_PACK, b"22")
    for name in (
        "packs/README",
        "packs/ab/.nfs0001",
        "packs/lost+found/x",
        "packs/ab/ab12",
        "snapshots/.DS_Store",
        "index.db",
    ):
        path = os.path.join(backend.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"foreign")
    with open(os.fsencode(backend.root) + b"/packs/ab/\xff\xfe", "wb"):
        pass
    assert sorted(info.name for info in backend.list("packs/")) == sorted([PACK, OTHER_PACK])
    assert list(backend.list("snapshots/")) == []


# --- durable writes (law 4) -------------------------------------------------------------------------------------------


def test_bytes_then_name_then_directory_become_durable(backend, monkeypatch):
    steps = []

    def watch(call, real):
        def record(*arguments, **named):
            if call == "fsync":
                steps.append("fsync directory" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else "fsync file")
            else:
                steps.append(call)
            return real(*arguments, **named)

        monkeypatch.setattr(os, call, record)

    for call in ("fsync", "rename", "fchmod"):
        watch(call, getattr(os, call))
    backend.put("gc", b"1")
    assert [step for step in steps if step != "fchmod"] == ["fsync file", "rename", "fsync directory"]
    assert steps.index("rename") > max(at for at, step in enumerate(steps) if step == "fchmod")


def test_a_new_directory_is_durable_before_what_is_in_it(backend, monkeypatch):
    steps = []
    real_mkdir, real_rename, real_fsync = os.mkdir, os.rename, os.fsync

    def fsync(fd):
        real_fsync(fd)
        steps.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")

    monkeypatch.setattr(os, "mkdir", lambda *a, **k: (real_mkdir(*a, **k), steps.append("mkdir"))[0])
    monkeypatch.setattr(os, "rename", lambda *a, **k: (real_rename(*a, **k), steps.append("rename"))[0])
    monkeypatch.setattr(os, "fsync", fsync)
    backend.put(PACK, b"1")
    assert steps[1:] == ["mkdir", "fsync packs", "rename", "fsync ab"]


@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod"])
def test_what_did_not_become_durable_is_not_kept(backend, monkeypatch, call):
    spool = backend.spool()
    spool.write(b"pack")

    def fail(*_, **__):
        raise OSError(errno.EIO, "the disk is on fire")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BackendError, match="on fire"):
        backend.publish(spool, PACK, 4)
    monkeypatch.undo()
    with pytest.raises(ObjectMissing):
        backend.read(PACK)
    assert os.listdir(os.path.join(backend.root, "tmp")) == []


def test_a_short_write_is_refused_and_nothing_is_left(backend):
    spool = backend.spool()
    spool.write(b"half")
    with pytest.raises(BackendError, match="4 of 8 bytes"):
        backend.publish(spool, PACK, 8)
    assert os.listdir(os.path.join(backend.root, "tmp")) == []


def test_writes_and_reads_that_the_kernel_cuts_short_go_on(backend, monkeypatch):
    real_write, real_pread = os.write, os.pread
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, memoryview(data)[:3]))
    backend.put("gc", b"0123456789")
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real_pread(fd, min(length, 4), offset))
    assert backend.read("gc") == b"0123456789"
    assert backend.read("gc", 1, 8) == b"12345678"


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_no_space_is_said_so_and_nothing_is_left(backend, monkeypatch, number, call):
    backend.put("gc", b"older")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreFull, match="nothing older is harmed"):
        backend.put("gc", b"newer")
    monkeypatch.undo()
    assert backend.read("gc") == b"older"
    assert os.listdir(os.path.join(backend.root, "tmp")) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte that belongs to this user."""
    place = tmp_path / "small"
    place.mkdir()
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size=1m,mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    try:
        done = subprocess.run(
            [*prefix, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
        )
        problem = done.stderr.decode() if done.returncode else ""
    except FileNotFoundError as error:
        problem = str(error)
    if problem:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must be able to mount a small file system: {problem}")
        pytest.skip(f"a small file system can't be mounted: {problem}")

    def remount(how):
        subprocess.run([*prefix, "mount", "-o", f"remount,{how}", str(place)], check=True)

    yield place, remount
    subprocess.run([*prefix, "umount", str(place)], check=True)


def test_a_full_disk_harms_nothing_older_and_works_again(small_disk):
    backend = LocalBackend(str(small_disk[0] / "vault"))
    backend.prepare()
    backend.put(PACK, b"older")
    backend.put(OTHER_PACK, bytes(300_000))
    for _ in range(2):
        with pytest.raises(StoreFull):
            backend.put(SNAPSHOT, os.urandom(900_000))
        spool = backend.spool()
        spool.write(os.urandom(400_000))
        with pytest.raises(StoreFull):
            spool.write(os.urandom(400_000))
        spool.discard()
    assert backend.read(PACK) == b"older"
    with pytest.raises(ObjectMissing):
        backend.read(SNAPSHOT)
    assert os.listdir(os.path.join(backend.root, "tmp")) == []
    backend.delete(OTHER_PACK)
    backend.put(SNAPSHOT, bytes(700_000))
    assert backend.size(SNAPSHOT) == 700_000


def test_a_read_only_disk_is_not_writable_and_can_be_read(small_disk):
    place, remount = small_disk
    backend = LocalBackend(str(place / "vault"))
    backend.prepare()
    backend.put(PACK, b"1")
    assert backend.writable
    remount("ro")
    assert not backend.writable
    assert backend.read(PACK) == b"1"
    assert [info.name for info in backend.list("packs/")] == [PACK]
    for call in (lambda: backend.put("gc", b"1"), lambda: backend.delete(PACK), backend.spool):
        with pytest.raises(BackendError):
            call()


def test_a_place_that_is_not_there_is_no_vault_and_not_writable(tmp_path):
    backend = LocalBackend(str(tmp_path / "gone"))
    assert not backend.exists()
    assert not backend.writable
    with pytest.raises(ObjectMissing):
        backend.read("config")
    assert list(backend.list("packs/")) == []


def test_no_descriptor_is_kept_open(backend, monkeypatch):
    """Neither by what succeeds nor by what fails."""

    def run():
        backend.put(PACK, b"1")
        backend.compare_and_swap("gc", None, b"1")
        backend.read(PACK)
        next(backend.list("packs/"))
        backend.spool().discard()
        os.symlink("/", os.path.join(backend.root, "snapshots", "3" * 64))
        os.mkfifo(os.path.join(backend.root, "config"))
        for call in (
            lambda: backend.read(SNAPSHOT),
            lambda: backend.read("snapshots/" + "3" * 64),
            lambda: backend.size("config"),
        ):
            with pytest.raises(BackendError):
                call()
        os.rename(os.path.join(backend.root, "tmp"), os.path.join(backend.root, "gone"))
        os.symlink("/", os.path.join(backend.root, "tmp"))
        with pytest.raises(BackendError):
            backend.spool()
        os.unlink(os.path.join(backend.root, "tmp"))
        monkeypatch.setattr("lumina_vault.backends.local._CREATE_FLAGS", os.O_RDONLY)
        with pytest.raises(BackendError):
            backend.spool()

    before = sorted(os.listdir("/proc/self/fd"))
    run()
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- processes --------------------------------------------------------------------------------------------------------

_ADD = """
import sys
from lumina_vault.backends.local import LocalBackend
backend = LocalBackend(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = 0
if backend.compare_and_swap("keyring", None, sys.argv[2].encode()):
    print("first")
for _ in range(25):
    while True:
        now = backend.read("gc")
        if backend.compare_and_swap("gc", now, b"%d" % (int(now) + 1)):
            break
"""


def test_no_swap_is_lost_between_processes(backend):
    backend.put("gc", b"0")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD, backend.root, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sorted(said) == ["", "", "", "first\n"]
    assert backend.read("keyring") == b"%d" % said.index("first\n")
    assert backend.read("gc") == b"100"
