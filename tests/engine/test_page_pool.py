"""Pages are given out, shared, kept and given out again; an old pool stays what it was."""

import collections

import pytest
from support.pages_check import check_pool

from rfjax.engine.page_pool import acquire, allocate, find, make_pool, register, release


def test_pages_are_given_out_once_and_never_the_null_page():
    pool, first = allocate(make_pool(10), 4)
    pool, second = allocate(pool, 5)
    assert sorted(first + second) == list(range(1, 10))
    assert pool.n_available == 0
    with pytest.raises(AssertionError):
        allocate(pool, 1)


def test_a_shared_page_is_free_when_its_last_owner_lets_go():
    pool, (page,) = allocate(make_pool(4), 1)
    pool = acquire(pool, [page])
    pool = release(pool, [(page, None)])
    assert pool.n_owned == 1
    pool = release(pool, [(page, None)])
    assert pool.n_owned == 0
    check_pool(pool, collections.Counter())


def test_a_registered_page_is_kept_found_and_taken_again():
    pool, (page,) = allocate(make_pool(4), 1)
    pool = release(register(pool, [(b"key", page)]), [(page, b"key")])
    assert (pool.n_idle, pool.n_owned) == (1, 0)
    assert find(pool, b"key") == page
    pool = acquire(pool, [page])
    assert (pool.n_idle, pool.n_owned) == (0, 1)
    check_pool(pool, collections.Counter([page]))


def test_the_first_page_of_a_key_stays_known_and_the_second_is_not_kept():
    pool, (first, second) = allocate(make_pool(4), 2)
    pool = register(register(pool, [(b"key", first)]), [(b"key", second)])
    pool = release(pool, [(second, b"key"), (first, b"key")])
    assert find(pool, b"key") == first
    assert (pool.n_idle, pool.n_free) == (1, 1)


def test_the_least_recently_used_idle_page_is_given_out_first():
    pool, pages = allocate(make_pool(5), 4)
    keys = [bytes([n]) for n in range(4)]
    pool = register(pool, zip(keys, pages, strict=True))
    pool = release(pool, [(pages[i], keys[i]) for i in (2, 0, 3)])
    pool = release(acquire(pool, [pages[2]]), [(pages[2], keys[2])])  # used anew
    pool = release(pool, [(pages[1], keys[1])])
    for n in (0, 3, 2, 1):
        pool, given = allocate(pool, 1)
        assert given == (pages[n],)
        assert find(pool, keys[n]) is None


def test_pages_taken_from_among_many_idle_ones_leave_the_order_of_the_others():
    pool, pages = allocate(make_pool(1001), 1000)
    keys = [page.to_bytes(2, "big") for page in pages]
    known = list(zip(pages, keys, strict=True))
    pool = register(pool, [(key, page) for page, key in known])
    for at in range(0, 1000, 50):
        pool = release(pool, known[at : at + 50])
    taken = [*pages[40:60], *pages[300:700], pages[999]]
    pool = acquire(pool, taken)
    check_pool(pool, collections.Counter(taken))
    pool = release(pool, [(pages[999], keys[999]), (pages[40], keys[40])])
    still_taken = set(taken) - {pages[999], pages[40]}
    check_pool(pool, collections.Counter(still_taken))
    left = [page for page in pages if page not in taken]
    pool, given = allocate(pool, 581)
    assert list(given) == [*left, pages[999], pages[40]]
    check_pool(pool, collections.Counter([*given, *still_taken]))


def test_free_pages_are_given_out_before_idle_ones():
    pool, (a, b) = allocate(make_pool(3), 2)
    pool = release(register(pool, [(b"key", a)]), [(a, b"key"), (b, None)])
    assert allocate(pool, 1)[1] == (b,)


def test_an_old_pool_stays_what_it_was():
    old, pages = allocate(make_pool(1000), 600)
    keys = [page.to_bytes(2, "big") for page in pages]
    old = register(old, zip(keys, pages, strict=True))
    new = release(old, zip(pages, keys, strict=True))
    new, _ = allocate(new, 999)
    check_pool(old, collections.Counter(pages))
    assert old.n_owned == 600
    assert all(find(old, key) == page for key, page in zip(keys, pages, strict=True))
    assert not any(find(new, key) for key in keys)


def test_many_pages_come_back_in_short_runs():
    pool, pages = allocate(make_pool(2000), 1999)
    pool = release(pool, [(page, None) for page in pages[:1500]])
    pool = release(pool, [(page, None) for page in pages[1500:]])
    assert max(map(len, pool.free)) <= 512
    check_pool(pool, collections.Counter())
