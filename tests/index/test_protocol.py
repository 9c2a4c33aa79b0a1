"""The deletion protocol's steps as the index keeps them (design, section 9): what each may do, and what it refuses."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from lumina_vault import ids
from lumina_vault.errors import Damage, SessionFenced
from lumina_vault.index import ChunkRow, Index, locks
from lumina_vault.index.schema import (
    ACTIVE,
    CLOSED,
    CONDEMNED,
    FENCED,
    FORGOTTEN,
    LIVE,
    WRITING,
    packs,
    session_packs,
    sessions,
    snapshots,
)  # fmt: skip
from lumina_vault.store.session import Session

VAULT = bytes(16)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "index.db")


@pytest.fixture
def index(path):
    index = Index.create_temporary(path, VAULT, 1)
    yield index
    index.close()


def name(number):
    return bytes([number]) * 32


def rows(pack, *chunks):
    return [ChunkRow(chunk, pack, at, 64 + 10 * at, 10, 20, 1) for at, chunk in enumerate(chunks)]


def open_session(index, kind="writer"):
    """A session's id; its lock lives as long as the test."""
    session, lock = index.open_session(kind)
    LOCKS.append(lock)
    return session


LOCKS: list[locks.SessionLock] = []


@pytest.fixture(autouse=True)
def _locks():
    yield
    while LOCKS:
        LOCKS.pop().release()


def declare(index, session, number):
    return index.declare(session, name(number), 1, 1000, 0, bytes(32))


def live(index, number, *chunks, keep=None):
    """A live pack that no session holds any more (or one that `keep` holds); its row id."""
    session = keep or open_session(index)
    pack = declare(index, session, number)
    index.make_live(session, pack, rows(pack, *chunks))
    if keep is None:
        index.close_session(session)
        LOCKS.pop().release()
    return pack


def set_state(index, table, row, state):
    """What a later issue's steps (prune, forget, a remote fence) do."""
    column = table.c.seq if table is snapshots else table.c.id
    with index.transaction("test") as tx:
        tx.execute(table.update().where(column == row).values(state=state))


def state_of(index, table, row):
    with index._read() as rx:
        return rx.execute(table.select().where(table.c.id == row)).one().state


def held(index, session):
    with index._read() as rx:
        query = session_packs.select().where(session_packs.c.session == session)
        return {row.pack for row in rx.execute(query)}


# --- 1. open ----------------------------------------------------------------------------------------------------------


def test_a_session_is_active_and_its_lock_is_held(index):
    session, lock = index.open_session("writer")
    (opened,) = index.active_sessions()
    assert opened == (session, os.path.basename(lock.path), "writer")
    assert not locks.is_dead(index.lock_directory, opened[1])
    lock.release()
    assert locks.is_dead(index.lock_directory, opened[1])
    assert os.listdir(index.lock_directory) == []


def test_a_session_that_can_not_be_opened_leaves_no_lock(index):
    index.observer = lambda event: (_ for _ in ()).throw(RuntimeError(event))
    with pytest.raises(RuntimeError, match="before open session"):
        index.open_session("writer")
    assert os.listdir(index.lock_directory) == []
    index.observer = None
    assert index.active_sessions() == []


def test_a_closed_session_holds_nothing_and_does_nothing(index):
    pack = live(index, 1, name(9))
    session = open_session(index, "reader")
    index.register(session, [pack])
    index.close_session(session)
    assert held(index, session) == set()
    assert state_of(index, sessions, session) == CLOSED
    for call in every_step(index, session, pack):
        with pytest.raises(SessionFenced):
            call()


def every_step(index, session, pack):
    """What only an active session may do."""
    return (
        lambda: index.register(session, [pack]),
        lambda: index.register_snapshot(session, name(1)),
        lambda: declare(index, session, 200),
        lambda: index.make_live(session, pack, []),
        lambda: index.adopt(session, pack),
        lambda: index.commit(session, name(201), b"record", []),
    )


# --- 2. register ------------------------------------------------------------------------------------------------------


def test_only_live_packs_are_registered(index):
    good, condemned = live(index, 1, name(11)), live(index, 2, name(12))
    set_state(index, packs, condemned, CONDEMNED)
    writing = declare(index, open_session(index), 3)
    session = open_session(index)
    assert index.register(session, [good, condemned, writing, 999]) == {good}
    assert held(index, session) == {good}
    assert index.register(session, [good]) == {good}
    assert index.register(session, []) == set()


def test_a_pack_that_was_registered_stays_relied_on(index):
    """Condemning one that a session holds is what prune may not do; if it were done, `commit` would refuse."""
    pack = live(index, 1, name(11))
    session = open_session(index)
    index.register(session, [pack])
    set_state(index, packs, pack, CONDEMNED)
    with pytest.raises(SessionFenced, match="no longer registered"):
        index.commit(session, name(200), b"record", [pack])


def test_many_packs_are_registered_at_once(index):
    session = open_session(index)
    made = [live(index, number % 250, keep=session) for number in range(250)]
    other = open_session(index)
    wanted = made * 5
    assert index.register(other, wanted) == set(made)


def test_find_says_which_packs_are_registered(index):
    first, second = live(index, 1, name(11), name(12)), live(index, 2, name(13))
    session = open_session(index)
    assert index.find([name(11), name(13), name(99)], session) == {name(11): (first, False), name(13): (second, False)}
    index.register(session, [second])
    assert index.find([name(12), name(13)], session) == {name(12): (first, False), name(13): (second, True)}
    other = open_session(index)
    assert index.find([name(13)], other) == {name(13): (second, False)}


def test_find_prefers_a_pack_that_is_registered(index):
    """Two packs may hold one chunk: to rely on a second one would cost another row for nothing."""
    first, second = live(index, 1, name(11)), live(index, 2, name(11))
    for chosen in (first, second):
        session = open_session(index)
        index.register(session, [chosen])
        assert index.find([name(11)], session) == {name(11): (chosen, True)}


@pytest.mark.parametrize("state", [WRITING, CONDEMNED])
def test_look_ups_see_live_packs_only(index, state):
    pack = live(index, 1, name(11))
    session = open_session(index)
    set_state(index, packs, pack, state)
    assert index.find([name(11)], session) == {}
    assert index.locate([name(11)]) == {}
    assert index.live_packs() == []
    assert index.totals()["packs"] == 0


def test_a_session_finds_and_registers_in_one_step(index):
    first = live(index, 1, name(11))
    with Session(index, "writer") as session:
        assert session.find([name(11), name(12)]) == {name(11): first}
        assert held(index, session.id) == {first}
        assert session.find([name(11)]) == {name(11): first}
    assert index.active_sessions() == []


def test_a_chunk_whose_pack_goes_between_look_up_and_registration_is_unknown(index):
    """Else the writer would rely on what prune has just condemned."""
    pack = live(index, 1, name(11))
    with Session(index, "writer") as session:
        index.observer = lambda event: with_no_observer() if event == "before register" else None

        def with_no_observer():
            index.observer = None
            other = Index(index.path)
            set_state(other, packs, pack, CONDEMNED)
            other.close()

        assert session.find([name(11)]) == {}


def test_a_snapshot_s_packs_are_registered_together(index):
    first, second, third = (live(index, number, name(10 + number)) for number in (1, 2, 3))
    writer = open_session(index)
    index.register(writer, [first, second])
    index.commit(writer, name(100), b"record", [first, second])
    reader = open_session(index, "reader")
    assert index.register_snapshot(reader, name(100))
    assert held(index, reader) == {first, second}
    set_state(index, packs, second, CONDEMNED)
    late = open_session(index, "reader")
    assert not index.register_snapshot(late, name(100))
    assert held(index, late) == {first}
    assert third not in held(index, reader)


# --- 3. declare, make live, adopt -------------------------------------------------------------------------------------


def test_a_pack_is_found_once_it_is_live(index):
    session = open_session(index)
    pack = declare(index, session, 1)
    assert state_of(index, packs, pack) == WRITING
    assert held(index, session) == {pack}
    assert index.find([name(11)], session) == {}
    index.make_live(session, pack, rows(pack, name(11)))
    assert state_of(index, packs, pack) == LIVE
    assert index.find([name(11)], session) == {name(11): (pack, True)}
    assert index.pack_chunks(pack) == rows(pack, name(11))
    assert index.packs_by_id([pack, 99])[pack].name == name(1)


def test_a_pack_is_made_live_once(index):
    session = open_session(index)
    pack = declare(index, session, 1)
    index.make_live(session, pack, rows(pack, name(11)))
    with pytest.raises(SessionFenced):
        index.make_live(session, pack, rows(pack, name(12)))
    assert index.locate([name(12)]) == {}


def test_a_condemned_pack_does_not_become_live(index):
    session = open_session(index)
    pack = declare(index, session, 1)
    set_state(index, packs, pack, CONDEMNED)
    with pytest.raises(SessionFenced, match="condemned"):
        index.make_live(session, pack, rows(pack, name(11)))
    assert index.pack_chunks(pack) == []


def test_a_name_is_declared_once(index):
    session = open_session(index)
    declare(index, session, 1)
    with pytest.raises(Damage):
        declare(index, session, 1)


def test_a_fenced_session_does_nothing_more(index):
    session, other = open_session(index), open_session(index)
    pack, declared = live(index, 1, name(11)), declare(index, session, 2)
    index.register(session, [pack])
    set_state(index, sessions, session, FENCED)
    for call in every_step(index, session, declared):
        with pytest.raises(SessionFenced):
            call()
    assert state_of(index, packs, declared) == WRITING
    assert index.snapshot_ids() == set()
    assert index.register(other, [pack]) == {pack}


def test_what_a_dead_session_wrote_is_adopted_by_one(index):
    dead = open_session(index)
    pack = declare(index, dead, 1)
    assert index.adoptable() == []
    set_state(index, sessions, dead, FENCED)
    assert [row.id for row in index.adoptable()] == [pack]
    first, second = open_session(index), open_session(index)
    assert index.adopt(first, pack)
    assert not index.adopt(second, pack)
    assert index.adoptable() == []
    assert held(index, first) == {pack}
    assert held(index, dead) == set()
    index.make_live(first, pack, rows(pack, name(11)))
    assert index.find([name(11)], first) == {name(11): (pack, True)}
    index.commit(first, name(100), b"record", [pack])


def test_what_an_adopter_leaves_is_adopted_again(index):
    pack = declare(index, session := open_session(index), 1)
    for _ in range(3):
        index.close_session(session)
        session = open_session(index)
        assert index.adopt(session, pack)


def test_live_and_condemned_packs_are_not_adopted(index):
    session = open_session(index)
    for number, state in ((1, LIVE), (2, CONDEMNED)):
        pack = declare(index, dead := open_session(index), number)
        index.close_session(dead)
        set_state(index, packs, pack, state)
        assert not index.adopt(session, pack)
    assert not index.adopt(session, 999)
    assert held(index, session) == set()


# --- 4. commit --------------------------------------------------------------------------------------------------------


def test_a_commit_names_the_packs_used_and_ends_the_session(index):
    used, unused = live(index, 1, name(11)), live(index, 2, name(12))
    session = open_session(index)
    index.register(session, [used, unused])
    new = declare(index, session, 3)
    index.make_live(session, new, rows(new, name(13)))
    index.commit(session, name(100), b"record", [used, new, used])
    assert [row.name for row in index.snapshot_pack_rows(name(100))] == [name(1), name(3)]
    assert [(row.id, row.record) for row in index.snapshot_rows()] == [(name(100), b"record")]
    assert index.snapshot_ids() == {name(100)}
    assert held(index, session) == set()
    assert state_of(index, sessions, session) == CLOSED
    with pytest.raises(SessionFenced):
        index.commit(session, name(101), b"again", [])


@pytest.mark.parametrize("what", ["unregistered", "writing", "condemned", "missing"])
def test_a_commit_that_relies_on_what_is_not_there_leaves_nothing(index, what):
    session = open_session(index)
    good = live(index, 1, name(11), keep=session)
    if what == "unregistered":
        bad = live(index, 2, name(12))
    elif what == "writing":
        bad = declare(index, session, 2)
    elif what == "condemned":
        bad = live(index, 2, name(12), keep=session)
        set_state(index, packs, bad, CONDEMNED)
    else:
        bad = 999
    with pytest.raises(SessionFenced, match="no longer registered"):
        index.commit(session, name(100), b"record", [good, bad])
    assert index.snapshot_ids() == set()
    assert index.snapshot_pack_rows(name(100)) == []
    assert held(index, session) >= {good}
    assert state_of(index, sessions, session) == ACTIVE
    index.commit(session, name(100), b"record", [good])


def test_a_snapshot_is_committed_once(index):
    index.commit(open_session(index), name(100), b"record", [])
    with pytest.raises(Damage):
        index.commit(open_session(index), name(100), b"record", [])
    assert len(list(index.snapshot_rows())) == 1


def test_snapshots_come_in_the_order_of_their_commits_and_back(index):
    names = [ids.object_hash(b"%d" % number) for number in range(405)]
    for snapshot in names:
        index.commit(open_session(index), snapshot, snapshot[:3], [])
        LOCKS.pop().release()
    assert [row.id for row in index.snapshot_rows()] == names
    assert [row.id for row in index.newest_snapshots()] == names[::-1]
    set_state(index, snapshots, 2, FORGOTTEN)
    assert names[1] not in [row.id for row in index.snapshot_rows()]
    assert names[1] not in [row.id for row in index.newest_snapshots()]
    assert names[1] in index.snapshot_ids()


def test_a_session_that_used_a_pack_commits_it(index):
    pack, unused = live(index, 1, name(11)), live(index, 2, name(12))
    with Session(index, "writer") as session:
        session.find([name(11), name(12)])
        session.use([pack])
        session.commit(name(100), b"record")
    assert [row.id for row in index.snapshot_pack_rows(name(100))] == [pack]
    assert unused not in held(index, session.id)
    assert os.listdir(index.lock_directory) == []


# --- 7. fence ---------------------------------------------------------------------------------------------------------


def test_a_session_whose_death_is_proved_is_fenced_and_others_are_not(index):
    alive, dead = open_session(index), open_session(index)
    pack = live(index, 1, name(11))
    index.register(dead, [pack])
    os.close(LOCKS[1].fd)  # as the kernel does when a process ends: the file stays
    LOCKS[1].fd = -1
    assert index.fence_dead_sessions() == 1
    assert state_of(index, sessions, dead) == FENCED
    assert held(index, dead) == set()
    assert [session for session, _, _ in index.active_sessions()] == [alive]
    assert os.listdir(index.lock_directory) == [os.path.basename(LOCKS[0].path)]
    assert index.fence_dead_sessions() == 0
    with pytest.raises(SessionFenced):
        index.commit(dead, name(100), b"record", [])
    index.commit(alive, name(100), b"record", [])


def test_a_session_without_its_file_is_dead(index):
    session = open_session(index)
    os.unlink(LOCKS[0].path)
    assert index.fence_dead_sessions() == 1
    assert state_of(index, sessions, session) == FENCED


def test_a_child_process_that_outlives_its_parent_does_not_hold_its_lock(index):
    """Descriptors are not inherited: a command started by a snapshot proves nothing about the snapshot."""
    open_session(index)
    assert not os.get_inheritable(LOCKS[0].fd)


def test_a_new_session_fences_the_dead_ones_first(index):
    dead = open_session(index)
    os.unlink(LOCKS[0].path)
    with Session(index, "writer"):
        assert state_of(index, sessions, dead) == FENCED


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_chunk_is_unknown_and_its_other_copy_is_not(index):
    first, second = live(index, 1, name(11), name(12)), live(index, 2, name(11))
    session = open_session(index)
    index.mark_damaged([(name(11), first)])
    assert index.find([name(11), name(12)], session) == {name(11): (second, False), name(12): (first, False)}
    assert [row.pack for row in index.locate([name(11)])[name(11)]] == [second, first]
    index.mark_damaged([(name(11), second)])
    assert index.find([name(11)], session) == {}
    assert len(index.locate([name(11)])[name(11)]) == 2
    assert sorted(index.damaged_places()) == [(name(11), first), (name(11), second)]


def test_a_chunk_that_is_well_again_is_known_again(index):
    pack = live(index, 1, name(11))
    session = open_session(index)
    index.mark_damaged([(name(11), pack)])
    index.mark_damaged([(name(11), pack)], damaged=False)
    assert index.find([name(11)], session) == {name(11): (pack, False)}
    assert index.damaged_places() == []


def test_marking_nothing_takes_no_transaction(index):
    steps = []
    index.observer = steps.append
    index.mark_damaged([])
    assert steps == []


def test_totals_count_live_packs(index):
    live(index, 1, name(11), name(12))
    live(index, 2, name(13))
    assert index.totals() == {"packs": 2, "pack_bytes": 2000, "chunks": 3, "plain_bytes": 60, "stored_bytes": 30}


# --- transactions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["declare", "make live", "register", "commit", "adopt"])
def test_a_step_happens_whole_or_not_at_all(path, when, step):
    """Killed just before a transaction or just after it: a second process sees none of it, or all."""
    index = Index.create_temporary(path, VAULT, 1)
    pack = live(index, 1, name(11))
    orphan = declare(index, dead := open_session(index), 2)
    index.close_session(dead)
    session = open_session(index)
    index.register(session, [pack])
    mine = declare(index, session, 3)
    steps = {
        "declare": lambda: declare(index, session, 4),
        "make live": lambda: index.make_live(session, mine, rows(mine, name(13))),
        "register": lambda: index.register(session, [pack]),
        "commit": lambda: index.commit(session, name(100), b"record", [pack]),
        "adopt": lambda: index.adopt(session, orphan),
    }
    seen = {
        "declare": lambda other: len(other.adoptable()) + len(held(other, session)) == 4,
        "make live": lambda other: state_of(other, packs, mine) == LIVE and bool(other.locate([name(13)])),
        "register": lambda other: pack in held(other, session),
        "commit": lambda other: other.snapshot_ids() == {name(100)} and held(other, session) == set(),
        "adopt": lambda other: orphan in held(other, session),
    }
    if step == "register":
        index.close_session(session)
        session = open_session(index)

    def killed(event):
        if event == f"{when} {step}":
            raise KeyboardInterrupt

    index.observer = killed
    with pytest.raises(KeyboardInterrupt):
        steps[step]()
    index.close()
    other = Index(path)
    assert seen[step](other) is (when == "after")
    other.close()


def test_processes_take_turns(path):
    """Two handles on one file, as two processes have them: no step is lost and no name is taken twice."""
    Index.create_temporary(path, VAULT, 1).close()

    def work(number):
        index = Index(path)
        with Session(index, "writer") as session:
            for each in range(10):
                pack = declare(index, session.id, number * 10 + each)
                index.make_live(session.id, pack, rows(pack, name(number * 10 + each)))
                session.use([pack])
            session.commit(name(200 + number), b"record")
        index.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    index = Index(path)
    assert index.totals()["packs"] == index.totals()["chunks"] == 40
    for number in range(4):
        assert len(index.snapshot_pack_rows(name(200 + number))) == 10
    assert index.active_sessions() == []
    index.close()


def test_threads_share_one_handle(index):
    pack = live(index, 1, *(name(number) for number in range(100)))
    with Session(index, "writer") as session, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: session.find([name(number)]), range(100)))
    assert found == [{name(number): pack} for number in range(100)]
