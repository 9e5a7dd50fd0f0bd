"""Who owns the pages of a cache group: an immutable value, and pure functions on it. No JAX.

A page is in exactly one of these states:
- the null page (id 0), which no sequence ever owns: tables are padded with it;
- free: never used, or given back without anything worth keeping;
- owned by one sequence or more. Only full pages have several owners, so that nothing ever writes
  to a shared page: who shares a partial page by a fork takes a copy (`rfjax.engine.page_table`);
- idle: owned by no one, and kept because a later prompt may begin with what it holds. Idle pages
  are given out again, the least recently used first, when no free ones are left.

A full page can be registered under its key (`rfjax.engine.page_keys`); `find` answers with the
page of a key, owned or idle. All functions take many pages at once, because each call copies the
upper level of the pool (about a hundredth of its size).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rfjax.engine.persistent import (
    DictDraft,
    ListDraft,
    PersistentDict,
    PersistentList,
    make_dict,
    make_list,
)

NULL_PAGE = 0
_RUN = 256


class Idle(NamedTuple):
    """An idle page's neighbours in order of use, and its key. Page 0 closes the ring."""

    older: int
    newer: int
    key: bytes


# Of an owned page: how many owners it has besides the first. Of a free page: 0.
Record = int | Idle


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PagePool:
    """The pages of one cache group.

    Attributes:
        n_pages: how many there are, the null page included; ids are below it.
        unused: pages from this id on were never given out.
        free: pages given back, in runs; the last is given out first.
        n_free: how many these are.
        n_idle: how many pages are idle.
        records: of each page.
        index: key to page, of the registered pages.
    """

    n_pages: int
    unused: int
    free: tuple[tuple[int, ...], ...]
    n_free: int
    n_idle: int
    records: PersistentList[Record]
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
    records: PersistentList[Record] = make_list(n_pages, 0)
    draft = ListDraft(records)
    draft[NULL_PAGE] = Idle(NULL_PAGE, NULL_PAGE, b"")
    return PagePool(
        n_pages=n_pages,
        unused=1,
        free=(),
        n_free=0,
        n_idle=0,
        records=draft.freeze(),
        index=make_dict(n_pages),
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
    return pool.index.get(key)


def acquire(pool: PagePool, pages: Iterable[int]) -> PagePool:
    """Give found pages one more owner."""
    records, n_idle = ListDraft(pool.records), pool.n_idle
    for page in pages:
        record = records[page]
        if isinstance(record, Idle):
            _unlink(records, record)
            records[page] = 0
            n_idle -= 1
        else:
            records[page] = record + 1
    return dataclasses.replace(pool, records=records.freeze(), n_idle=n_idle)


def register(pool: PagePool, pages: Iterable[tuple[bytes, int]]) -> PagePool:
    """Make owned, full pages known by their keys. Of two pages of a key, the first stays known."""
    index: DictDraft[bytes, int] = DictDraft(pool.index)
    for key, page in pages:
        index.add(key, page)
    return dataclasses.replace(pool, index=index.freeze())


def release(pool: PagePool, pages: Iterable[tuple[int, bytes | None]]) -> PagePool:
    """Take one owner away from each page.

    Args:
        pool: the pool.
        pages: page and key, None for one that was not registered. Of those that become idle, the
            first is the first to be given out again: give a sequence's last pages first.
    """
    records = ListDraft(pool.records)
    freed: list[int] = []
    kept: list[tuple[int, bytes]] = []
    for page, key in pages:
        record = records[page]
        assert not isinstance(record, Idle)
        if record:
            records[page] = record - 1
        elif key is not None and pool.index.get(key) == page:
            kept.append((page, key))
        else:
            freed.append(page)
    if kept:
        _append(records, kept)
    return dataclasses.replace(
        pool,
        free=_pushed(pool.free, freed),
        n_free=pool.n_free + len(freed),
        records=records.freeze(),
        n_idle=pool.n_idle + len(kept),
    )


def _append(records: ListDraft[Record], pages: Sequence[tuple[int, bytes]]) -> None:
    """Make pages idle, the last the most recently used."""
    ring = records[NULL_PAGE]
    assert isinstance(ring, Idle)
    older = ring.older
    _relink(records, older, newer=pages[0][0])
    for at, (page, key) in enumerate(pages, start=1):
        newer = pages[at][0] if at < len(pages) else NULL_PAGE
        records[page] = Idle(older, newer, key)
        older = page
    _relink(records, NULL_PAGE, older=older)


def _evict(pool: PagePool, n: int, pages: list[int]) -> PagePool:
    """Append the n least recently used idle pages to `pages`."""
    records = ListDraft(pool.records)
    index: DictDraft[bytes, int] = DictDraft(pool.index)
    ring = records[NULL_PAGE]
    assert isinstance(ring, Idle)
    page = ring.newer
    for _ in range(n):
        record = records[page]
        assert isinstance(record, Idle)
        records[page] = 0
        del index[record.key]
        pages.append(page)
        page = record.newer
    _relink(records, NULL_PAGE, newer=page)
    _relink(records, page, older=NULL_PAGE)
    return dataclasses.replace(
        pool, n_idle=pool.n_idle - n, records=records.freeze(), index=index.freeze()
    )


def _unlink(records: ListDraft[Record], record: Idle) -> None:
    _relink(records, record.older, newer=record.newer)
    _relink(records, record.newer, older=record.older)


def _relink(
    records: ListDraft[Record], page: int, older: int | None = None, newer: int | None = None
) -> None:
    record = records[page]
    assert isinstance(record, Idle)
    records[page] = Idle(
        record.older if older is None else older,
        record.newer if newer is None else newer,
        record.key,
    )


def _pushed(runs: tuple[tuple[int, ...], ...], pages: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Further runs on top; none is long, and only the topmost may be short."""
    if runs and len(runs[-1]) < _RUN:
        runs, pages = runs[:-1], (*runs[-1], *pages)
    return runs + tuple(tuple(pages[i : i + _RUN]) for i in range(0, len(pages), _RUN))
