"""Who owns the pages of a cache group: an immutable value, and pure functions on it. No JAX.

A page is in exactly one of these states:
- the null page (id 0), which no sequence ever owns: tables are padded with it;
- free: never used, or given back without anything worth keeping;
- owned by one sequence or more. Only full pages have several owners, so that nothing ever writes
  to a shared page: who shares a partial page by a fork takes a copy (`rfjax.engine.page_table`);
- idle: owned by no one, and kept because a later prompt may begin with what it holds. Idle pages
  are given out again, the least recently used first, when no free ones are left.

A full page can be registered under its key (`rfjax.engine.page_keys`); `find` answers with the
page of a key, owned or idle. All functions take many pages at once, and cost what these cost.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rfjax.engine.persistent import PersistentDict, PersistentList

NULL_PAGE = 0
_RUN = 256


class IdleRun(NamedTuple):
    """Idle pages and their keys, the least recently used first."""

    pages: tuple[int, ...] = ()
    keys: tuple[bytes, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PagePool:
    """The pages of one cache group.

    Attributes:
        n_pages: how many there are, the null page included; ids are below it.
        unused: pages from this id on were never given out.
        free: pages given back, in runs; the last is given out first.
        n_free: how many these are.
        idle: runs by number; the first ones are given out first.
        n_idle: how many pages they have.
        next_run: no idle run has this number or a higher one.
        records: of each page. Owned: how many owners it has besides the first. Idle: -1 - the
            number of its run. Otherwise 0.
        index: key to page, of the registered pages.
    """

    n_pages: int
    unused: int
    free: tuple[tuple[int, ...], ...]
    n_free: int
    idle: Mapping[int, IdleRun]
    n_idle: int
    next_run: int
    records: PersistentList[int]
    index: PersistentDict[bytes, int]

    @property
    def n_available(self) -> int:
        """Pages that `allocate` can give."""
        return self.n_pages - self.unused + self.n_free + self.n_idle

    @property
    def n_owned(self) -> int:
        """Pages that sequences own."""
        return self.n_pages - 1 - self.n_available


def make_pool(n_pages: int) -> PagePool:
    """A pool of which all pages but the null page are free."""
    return PagePool(
        n_pages=n_pages,
        unused=1,
        free=(),
        n_free=0,
        idle={},
        n_idle=0,
        next_run=0,
        records=PersistentList([0] * n_pages),
        index=PersistentDict({}),
    )


def allocate(pool: PagePool, n: int) -> tuple[PagePool, tuple[int, ...]]:
    """Give out n pages (at most `n_available`), each to one owner; their content is arbitrary."""
    assert n <= pool.n_available
    if n == 0:
        return pool, ()
    pages: list[int] = []
    runs = len(pool.free)
    rest: tuple[tuple[int, ...], ...] = ()
    while len(pages) < n and runs:
        runs -= 1
        run, wanted = pool.free[runs], n - len(pages)
        pages += run[-wanted:]
        if wanted < len(run):
            rest = (run[:-wanted],)
    n_freed = len(pages)
    fresh = min(n - n_freed, pool.n_pages - pool.unused)
    if n_freed or fresh:
        pages += range(pool.unused, pool.unused + fresh)
        pool = dataclasses.replace(
            pool,
            unused=pool.unused + fresh,
            free=pool.free[:runs] + rest,
            n_free=pool.n_free - n_freed,
        )
    if len(pages) < n:
        pool = _evict(pool, n - len(pages), pages)
    return pool, tuple(pages)


def find(pool: PagePool, key: bytes) -> int | None:
    """The page registered under a key, or None."""
    return pool.index.contents.get(key)


def acquire(pool: PagePool, pages: Iterable[int]) -> PagePool:
    """Give found pages one more owner."""
    records, changes = pool.records.contents, {}
    revived: dict[int, set[int]] = {}
    for page in pages:
        record = changes.get(page, records[page])
        changes[page] = max(0, record + 1)
        if record < 0:
            revived.setdefault(-1 - record, set()).add(page)
    idle = dict(pool.idle)
    for number, gone in revived.items():
        left = [item for item in zip(*idle[number], strict=True) if item[0] not in gone]
        if left:
            idle[number] = IdleRun(*zip(*left, strict=True))
        else:
            del idle[number]
    n_idle = pool.n_idle - sum(map(len, revived.values()))
    records = pool.records.replaced(changes)
    return dataclasses.replace(pool, records=records, idle=idle, n_idle=n_idle)


def register(pool: PagePool, pages: Iterable[tuple[bytes, int]]) -> PagePool:
    """Make owned, full pages known by their keys. Of two pages of a key, the first stays known."""
    known = pool.index.contents
    new: dict[bytes, int] = {}
    for key, page in pages:
        if key not in known:
            new.setdefault(key, page)
    return dataclasses.replace(pool, index=pool.index.added(new))


def release(pool: PagePool, pages: Iterable[tuple[int, bytes | None]]) -> PagePool:
    """Take one owner away from each page.

    Args:
        pool: the pool.
        pages: page and key, None for one that was not registered. Of those that become idle, the
            first is the first to be given out again: give a sequence's last pages first.
    """
    records, known = pool.records.contents, pool.index.contents
    changes: dict[int, int] = {}
    freed: list[int] = []
    kept: list[int] = []
    keys: list[bytes] = []
    for page, key in pages:
        others = records[page]
        if others:
            others = changes.get(page, others)
        assert others >= 0
        if others:
            changes[page] = others - 1
        elif key is not None and known.get(key) == page:
            kept.append(page)
            keys.append(key)
        else:
            freed.append(page)
    idle, next_run = pool.idle, pool.next_run
    if kept:
        idle, numbers = _appended(pool, kept, keys)
        next_run = numbers[-1] + 1
        changes.update((page, -1 - number) for page, number in zip(kept, numbers, strict=True))
    return dataclasses.replace(
        pool,
        free=_pushed(pool.free, freed),
        n_free=pool.n_free + len(freed),
        records=pool.records.replaced(changes),
        idle=idle,
        n_idle=pool.n_idle + len(kept),
        next_run=next_run,
    )


def _appended(
    pool: PagePool, pages: Sequence[int], keys: Sequence[bytes]
) -> tuple[dict[int, IdleRun], list[int]]:
    """The idle runs with further pages, the last the most recently used; the run of each of these.

    No run is long, and only the last and those that lost pages may be short.
    """
    idle = dict(pool.idle)
    numbers: list[int] = []
    number = max(0, pool.next_run - 1)
    while len(numbers) < len(pages):
        run = idle.get(number, IdleRun())
        start = len(numbers)
        end = start + max(0, _RUN - len(run.pages))
        if end > start:
            joined = run.pages + tuple(pages[start:end]), run.keys + tuple(keys[start:end])
            idle[number] = IdleRun(*joined)
            numbers += [number] * len(pages[start:end])
        number += 1
    return idle, numbers


def _evict(pool: PagePool, n: int, pages: list[int]) -> PagePool:
    """Append the n least recently used idle pages to `pages`."""
    idle = dict(pool.idle)
    evicted: list[int] = []
    keys: list[bytes] = []
    for number, run in pool.idle.items():
        wanted = n - len(evicted)
        evicted += run.pages[:wanted]
        keys += run.keys[:wanted]
        if wanted < len(run.pages):
            idle[number] = IdleRun(run.pages[wanted:], run.keys[wanted:])
            break
        del idle[number]
        if wanted == len(run.pages):
            break
    pages += evicted
    return dataclasses.replace(
        pool,
        idle=idle,
        n_idle=pool.n_idle - n,
        records=pool.records.replaced(dict.fromkeys(evicted, 0)),
        index=pool.index.without(keys),
    )


def _pushed(runs: tuple[tuple[int, ...], ...], pages: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Further runs on top; none is long, and only the topmost may be short."""
    if runs and len(runs[-1]) < _RUN:
        runs, pages = runs[:-1], (*runs[-1], *pages)
    return runs + tuple(tuple(pages[i : i + _RUN]) for i in range(0, len(pages), _RUN))
