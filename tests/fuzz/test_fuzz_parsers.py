"""A short run of every target, the same on every machine; `run.py` makes long ones."""

import signal

import pytest
from fuzz_targets import TARGETS, accepts, cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHORT = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
CASES = 500


@pytest.fixture(autouse=True)
def _loud():
    def hung(*_):
        raise AssertionError("a parser did not return")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def named(targets):
    return [pytest.param(target, id=target.name) for target in targets]


@pytest.mark.parametrize("target", named(TARGETS))
def test_seeds_are_accepted(target):
    """Or else the mutations below test little more than the first check."""
    shy = {"tree nodes": 1, "content nodes": 3}
    accepted = [accepts(target, seed) for seed in target.seeds]
    assert sum(accepted) >= shy.get(target.name, len(accepted) - (target.name == "leaf"))


@pytest.mark.parametrize("target", named(TARGETS))
def test_mutations_of_what_was_written(target):
    accepted = sum(accepts(target, data) for data in cases(target, CASES, seed=1))
    assert accepted < CASES


@pytest.mark.parametrize("target", named(TARGETS))
def test_anything_at_all(target):
    @SHORT
    @given(st.binary(max_size=400))
    def run(data):
        accepts(target, data)

    run()


@pytest.mark.parametrize("target", named(TARGETS))
def test_every_cut(target):
    """Each seed, ended at every byte (at most 300 of them)."""
    for seed in target.seeds:
        for length in range(0, len(seed), max(1, len(seed) // 300)):
            accepts(target, seed[:length])


def test_a_foreign_exception_is_a_failure():
    """The harness itself: what no parser may raise comes out of it."""
    broken = TARGETS[0].__class__("broken", (b"",), lambda data: data[5])
    with pytest.raises(IndexError):
        accepts(broken, b"")
