"""Prefixes are shared as far as every group's queries look; forks share full pages only."""

import pytest

from rfjax.engine.page_keys import packed, page_keys, root_key, unpacked
from rfjax.engine.page_pool import allocate, make_pool, register, release
from rfjax.engine.page_table import CacheGroup, PageTable, fork, share_prefix
from rfjax.errors import ConfigError

KEYS = page_keys(root_key(), packed(range(24)), 4)


def cached(pool, keys):
    """The pool with one idle page a key."""
    pool, pages = allocate(pool, len(keys))
    pool = register(pool, zip(keys, pages, strict=True))
    return release(pool, zip(pages, keys, strict=True)), dict(zip(keys, pages, strict=True))


def test_a_key_depends_on_all_tokens_before_and_on_the_salt():
    assert len(KEYS) == 6
    assert page_keys(root_key(), packed(range(23)), 4) == KEYS[:5]
    assert page_keys(KEYS[1], packed(range(8, 24)), 4) == KEYS[2:]
    other = page_keys(root_key(), packed([9, *range(1, 24)]), 4)
    salted = page_keys(root_key("salt"), packed(range(24)), 4)
    assert len({*KEYS, *other, *salted}) == 18


def test_packed_tokens_are_four_bytes_each():
    tokens = (0, 1, 2**31 - 1)
    assert packed(tokens) == bytes.fromhex("00000000 01000000 ffffff7f")
    assert unpacked(packed(tokens)) == tokens
    assert unpacked(packed(())) == ()


def test_the_longest_prefix_is_taken():
    full = CacheGroup("full", 10)
    pool, pages = cached(make_pool(10), [*KEYS[:3], KEYS[4]])
    length, (pool,), (table,) = share_prefix([full], [pool], KEYS, 4)
    assert (length, table) == (3, PageTable(0, tuple(pages[key] for key in KEYS[:3])))
    assert (pool.n_owned, pool.n_idle) == (3, 1)


def test_a_window_needs_the_pages_that_it_looks_at_and_no_others():
    groups = [CacheGroup("window", 10, window=6), CacheGroup("full", 10)]
    full, _ = cached(make_pool(10), KEYS)
    window, pages = cached(make_pool(10), [KEYS[0], KEYS[2], KEYS[3], KEYS[5]])
    length, _, tables = share_prefix(groups, [window, full], KEYS, 4)
    # The query at position 16 looks at tokens 11 to 16, which begin in page 2.
    assert length == 4
    assert tables[0] == PageTable(2, (pages[KEYS[2]], pages[KEYS[3]]))
    assert (tables[1].dead, len(tables[1].pages)) == (0, 4)


def test_without_a_usable_prefix_nothing_is_taken():
    groups = [CacheGroup("full", 10), CacheGroup("window", 10, window=6)]
    full, _ = cached(make_pool(10), KEYS)
    empty = make_pool(10)
    length, pools, tables = share_prefix(groups, [full, empty], KEYS, 4)
    assert length == 0
    assert pools == (full, empty)
    assert tables == (PageTable(), PageTable())


def test_a_fork_shares_full_pages_and_owns_the_rest():
    pool, pages = allocate(make_pool(10), 4)
    (pool,), (table,) = fork([pool], [PageTable(1, pages)], n_full=4, n_own=2)
    assert table.pages[:3] == pages[:3]
    assert table.pages[3] not in pages
    assert (table.dead, table.end) == (1, 6)
    assert pool.n_owned == 6


def test_dead_pages_are_those_no_later_query_looks_at():
    group = CacheGroup("window", 10, window=6)
    assert [group.n_dead(position, 4) for position in (0, 8, 9, 12, 13)] == [0, 0, 1, 1, 2]
    assert CacheGroup("full", 10).n_dead(100, 4) == 0


@pytest.mark.parametrize(("pages", "window"), [(1, None), (4, 0)])
def test_a_group_without_pages_or_window_is_refused(pages, window):
    with pytest.raises(ConfigError, match=r"cache group x: got .*, expected at least"):
        CacheGroup("x", pages, window)
