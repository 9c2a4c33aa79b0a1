"""The index as a database: its tables, its migrations, and what it does when it can't be used."""

import os
import sqlite3
import stat

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lumina_vault.errors import BackendError, Damage, NewerFormat, VaultError, VaultLocked
from lumina_vault.index import ChunkRow, Index, locks, migrate
from lumina_vault.index.schema import REVISION, metadata
from lumina_vault.store.repository import Repository
from lumina_vault.testing.memory import memory_vault

VAULT = bytes(range(16))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "index.db")


@pytest.fixture
def index(path):
    index = Index.create(path, VAULT, 7)
    yield index
    index.close()


# --- tables -----------------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_uses(index, path):
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION
    engine.dispose()


def tables(path):
    """Everything that SQLite knows of the tables: columns, keys, indexes, rowids, foreign keys."""
    with sqlite3.connect(path) as connection:
        found = {}
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master"):
            flags = [word for word in ("WITHOUT ROWID", "AUTOINCREMENT") if sql and word in sql]
            found[kind, name] = (
                flags,
                connection.execute(f"PRAGMA table_info({name})").fetchall(),
                sorted(connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()),
                connection.execute(f"PRAGMA index_list({name})").fetchall(),
            )
    connection.close()
    return found


def test_a_temporary_index_has_the_same_tables(index, path, tmp_path):
    (tmp_path / "other").mkdir()
    other = str(tmp_path / "other" / "index.db")
    Index.create_temporary(other, VAULT, 7).close()
    mine, theirs = tables(path), tables(other)
    theirs.pop(("index", "sqlite_autoindex_alembic_version_1"), None)
    mine.pop(("index", "sqlite_autoindex_alembic_version_1"), None)
    version = ("table", "alembic_version")
    assert mine.pop(version)[1][0][1:3] == theirs.pop(version)[1][0][1:3]
    assert mine == theirs


def test_the_newest_migration_is_the_one_the_code_expects():
    assert REVISION in migrate.known()
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(migrate._config("")).get_current_head() == REVISION


def test_it_is_private_and_remembers_its_vault(index, path):
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert index.get_info("vault") == VAULT.hex()
    assert index.get_info("generation") == "7"
    assert index.get_info("nothing") is None


def test_an_index_is_not_made_over_another(index, path):
    with pytest.raises(FileExistsError):
        Index.create(path, VAULT, 1)
    assert index.get_info("generation") == "7"


def test_commits_are_durable(index):
    for connection in (index._reader, index._writer):
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        connection.rollback()


def test_a_writer_holds_the_lock_from_its_first_statement(index, path):
    """BEGIN IMMEDIATE: a step never reads what it then finds changed when it writes."""
    with index.transaction("test"):
        other = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


# --- what can't be used -----------------------------------------------------------------------------------------------


def test_a_later_revision_is_told_as_such(index, path):
    with index.transaction("test") as tx:
        tx.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NewerFormat, match="index rebuild"):
        Index(path)


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0" + bytes(84) + b"\xff" * 4000, b""]
)
@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_no_index_is_told_as_such(path, content, readonly):
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(VaultError, match=r"index rebuild|can't be used"):
        Index(path, readonly=readonly)
    with open(path, "rb") as file:
        assert file.read() == content or not content


def test_a_database_without_our_tables_is_told_as_such(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    connection.close()
    with pytest.raises(Damage, match="index rebuild"):
        Index(path)


def test_a_missing_index_is_not_made_by_opening_it(path):
    with pytest.raises(BackendError):
        Index(path)
    assert not os.path.exists(path)


def test_an_index_open_for_reading_writes_nothing(index, path):
    reader = Index(path, readonly=True)
    assert reader.get_info("vault") == VAULT.hex()
    with pytest.raises(BackendError, match="reading only"):
        reader.mark_damaged([(b"", 1)])
    with pytest.raises(VaultError):
        reader.open_session("reader")
    reader.close()


def test_an_index_of_another_vault_is_refused(tmp_path):
    vault = memory_vault(tmp_path, encrypted=False)
    index = Index.create_temporary(str(tmp_path / "index.db"), bytes(16), 1)
    with pytest.raises(Damage, match="another vault"):
        Repository(vault.backend, vault.config, vault.keys, index)


def test_a_damaged_page_is_told_as_such(path):
    """Bytes of the file flipped while nobody has it open."""
    index = Index.create_temporary(path, VAULT, 1)
    for number in range(40):
        index.add_rebuilt_pack(
            bytes([number]) * 32,
            1,
            1000,
            0,
            bytes(32),
            [ChunkRow(bytes([n, number]) * 16, 0, n, 64, 9, 9, 0) for n in range(40)],
            False,
        )
    index.close()
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        for at in range(4096, size, 4096):
            file.seek(at)
            file.write(b"\xff" * 64)
    with pytest.raises(VaultError, match=r"index rebuild|can't be used"):
        Index(path).locate([bytes([n, 3]) * 16 for n in range(40)])


# --- locks ------------------------------------------------------------------------------------------------------------


def test_who_replaces_the_index_is_alone(tmp_path):
    directory = str(tmp_path / "sessions")
    first, second = locks.IndexLock(directory), locks.IndexLock(directory)
    with pytest.raises(VaultLocked):
        locks.IndexLock(directory, exclusive=True)
    first.release()
    with pytest.raises(VaultLocked):
        locks.IndexLock(directory, exclusive=True)
    second.release()
    second.release()
    alone = locks.IndexLock(directory, exclusive=True)
    with pytest.raises(VaultLocked):
        locks.IndexLock(directory)
    alone.release()
    locks.IndexLock(directory).release()


def test_a_sweep_takes_what_dead_sessions_left_and_nothing_else(tmp_path):
    directory = str(tmp_path)
    alive, dead = locks.SessionLock(directory, "a" * 32), locks.SessionLock(directory, "d" * 32)
    os.close(dead.fd)
    for foreign in ("README", "f" * 31):
        (tmp_path / foreign).touch()
    locks.sweep(directory)
    assert sorted(os.listdir(directory)) == ["README", "a" * 32, "f" * 31]
    alive.release()


def test_a_planted_link_for_a_session_s_file_is_not_followed(tmp_path):
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / ("a" * 32)).symlink_to(tmp_path / "outside")
    with pytest.raises(BackendError):
        locks.SessionLock(str(tmp_path / "sessions"), "a" * 32)
    assert (tmp_path / "outside").read_text() == "secret"
