"""Which pages hold a sequence's tokens, in every cache group. No JAX.

Layers fall into cache groups (full attention, sliding window, latent); the layers of a group share
its page table. All groups have pages of the same number of tokens, so that one hash chain names
the pages of all. Page j of a sequence holds its tokens `[j * C, (j + 1) * C)`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from rfjax.engine.page_pool import NULL_PAGE, PagePool, acquire, allocate, find
from rfjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share a page table.

    Attributes:
        name: for messages and metrics.
        n_pages: pages in device memory, the null page (id 0) included.
        window: how many tokens back a query looks, itself included: with window W the query at
            position p attends to keys `p - W + 1 .. p`. None for all.
    """

    name: str
    n_pages: int
    window: int | None = None

    def __post_init__(self):
        if self.n_pages < 2:
            raise ConfigError(
                f"cache group {self.name}: got {self.n_pages} pages, expected at least 2, of which "
                "the first stays empty; give the cache more memory"
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(
                f"cache group {self.name}: got window {self.window}, expected at least 1 or None"
            )

    def n_dead(self, position: int, page_size: int) -> int:
        """How many of the first pages no query at `position` or later looks at."""
        if self.window is None:
            return 0
        n_tokens = position - self.window + 1
        return n_tokens // page_size if n_tokens > 0 else 0

    def most_pages(self, n_tokens: int, step: int, page_size: int) -> int:
        """Most pages that a sequence of `n_tokens` owns at a time, advancing by up to `step`."""
        whole = -(-n_tokens // page_size)
        if self.window is None:
            return whole
        return min(whole, -(-(self.window + step) // page_size) + 1)


class PageTable(NamedTuple):
    """A sequence's pages in one group: its page j is `pages[j - dead]`.

    `dead` counts the first pages, which lie behind the window and were given back.
    """

    dead: int = 0
    pages: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Number of the first page that is not there yet."""
        return self.dead + len(self.pages)

    def keyed(
        self, keys: Sequence[bytes], end: int | None = None
    ) -> list[tuple[int, bytes | None]]:
        """Pages with their keys, if they have any, the last first: what `release` takes.

        Args:
            keys: of the sequence's first pages.
            end: number of the page at which to stop; None takes all pages.
        """
        dead, pages = self
        end = dead + len(pages) if end is None else end
        known = len(keys)
        return [
            (pages[j - dead], keys[j] if j < known else None) for j in range(end - 1, dead - 1, -1)
        ]


def share_prefix(
    groups: Sequence[CacheGroup],
    pools: Sequence[PagePool],
    keys: Sequence[bytes],
    page_size: int,
) -> tuple[int, tuple[PagePool, ...], tuple[PageTable, ...]]:
    """Take the longest cached prefix.

    A prefix counts where every group has the pages that the next token's query looks at.

    Args:
        groups: the cache groups.
        pools: their pages.
        keys: of the prompt's full pages, as far as they may be taken.
        page_size: tokens of a page.

    Returns:
        How many pages long the prefix is, the pools in which its pages have one owner more, and
        its tables.
    """
    found: list[list[int]] = []
    length = len(keys)
    for group, pool in zip(groups, pools, strict=True):
        pages = _found(pool, keys[:length], whole=group.window is None)
        if group.window is None:
            length = len(pages)
        found.append(pages)
    missing = True
    while missing:  # a page that is missing inside a window: the prefix can only end before it
        missing = False
        for group, pages in zip(groups, found, strict=True):
            dead = group.n_dead(length * page_size, page_size)
            holes = [j for j in range(dead, length) if pages[j] == NULL_PAGE]
            if holes:
                length, missing = holes[-1], True
    tables = []
    for group, pages in zip(groups, found, strict=True):
        dead = group.n_dead(length * page_size, page_size)
        tables.append(PageTable(dead, tuple(pages[dead:length])))
    if length:
        pools = [acquire(pool, table.pages) for pool, table in zip(pools, tables, strict=True)]
    return length, tuple(pools), tuple(tables)


def fork(
    pools: Sequence[PagePool], tables: Sequence[PageTable], n_full: int, n_own: int
) -> tuple[tuple[PagePool, ...], tuple[PageTable, ...]]:
    """A second sequence with the same first pages: a copy of the table.

    The full pages get one owner more. Behind them stand pages of the new sequence's own. Where the
    tokens so far end inside a page, the first of these takes a copy of it, because the next thing
    that either sequence does is to write there; the caller orders the copy.

    Args:
        pools: of each group; each must have `n_own` pages available.
        tables: of the sequence that is copied, in each group.
        n_full: how many of its first pages are full.
        n_own: pages for the new sequence alone.

    Returns:
        The pools, and the new sequence's tables.
    """
    new_pools, new_tables = [], []
    for pool, table in zip(pools, tables, strict=True):
        shared = table.pages[: max(0, n_full - table.dead)]
        pool, own = allocate(acquire(pool, shared), n_own)
        new_pools.append(pool)
        new_tables.append(PageTable(table.dead, shared + own))
    return tuple(new_pools), tuple(new_tables)


def _found(pool: PagePool, keys: Sequence[bytes], *, whole: bool) -> list[int]:
    """The page of each key, the null page where there is none; `whole` ends at the first such."""
    pages = []
    for key in keys:
        page = find(pool, key)
        if page is None and whole:
            break
        pages.append(NULL_PAGE if page is None else page)
    return pages
