"""The first names of hard links, in memory and on disk."""

from __future__ import annotations

import pytest

from lumina_vault.components import links
from lumina_vault.components.links import LinkTable


@pytest.fixture(params=["memory", "disk"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LinkTable:
    if request.param == "disk":
        monkeypatch.setattr(links, "_MOST", 0)
        monkeypatch.setattr(links, "_BUCKETS", 1)
    return LinkTable()


def test_the_first_name_is_remembered(table: LinkTable) -> None:
    with table:
        assert table.first(1, 2, 3, b"a") is None
        assert table.first(1, 3, 3, b"b") is None
        assert table.first(1, 2, 3, b"c") == b"a"
        assert table.first(1, 2, 3, b"d") == b"a"
        assert table.first(1, 3, 3, b"e") == b"b"


def test_a_name_that_was_forgotten_gives_way_to_the_next(table: LinkTable) -> None:
    with table:
        assert table.first(1, 2, 3, b"unreadable") is None
        table.forget(1, 2)
        assert table.first(1, 2, 3, b"b") is None
        assert table.first(1, 2, 3, b"c") == b"b"


def test_a_name_is_no_key_whatever_it_looks_like(table: LinkTable) -> None:
    with table:
        assert table.first(1, 2, 2, b"5:7") is None
        assert table.first(5, 7, 2, b"b") is None
        assert table.first(5, 7, 2, b"c") == b"b"
        assert table.first(1, 2, 2, b"d") == b"5:7"
