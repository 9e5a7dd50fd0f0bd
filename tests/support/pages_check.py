"""Whether a scheduler's pages are all accounted for."""

import collections

from rfjax.engine.page_pool import NULL_PAGE, PagePool
from rfjax.engine.scheduler_state import SchedulerState
from rfjax.engine.sequence import Prefilling, Running


def check_pool(pool: PagePool, owners: collections.Counter):
    """Every page but the null page is free, idle, or owned by those who say so."""
    assert owners[NULL_PAGE] == 0
    free = [page for run in pool.free for page in run]
    free += range(pool.unused, pool.n_pages)
    records, index = pool.records.contents, pool.index.contents
    idle = []
    for number, run in pool.idle.items():
        assert run.pages
        assert number < pool.next_run
        for page, key in zip(run.pages, run.keys, strict=True):
            assert records[page] == -1 - number
            assert index[key] == page
        idle += run.pages
    assert list(pool.idle) == sorted(pool.idle)
    assert len(idle) == pool.n_idle
    assert sorted([*free, *idle, *owners]) == list(range(1, pool.n_pages))
    for page, n in owners.items():
        assert records[page] == n - 1
    for page in free:
        assert records[page] == 0
    known = index.values()
    assert len(known) == len(set(known))
    assert not set(known) & set(free)
    assert pool.n_available == len(free) + len(idle)
    assert pool.n_owned == len(owners)


def check_state(state: SchedulerState):
    """No page is leaked, no slot is given twice, and ranks say what states say."""
    config = state.config
    active, queue, slots = [], [], []
    owners = [collections.Counter() for _ in state.pools]
    writable = [collections.Counter() for _ in state.pools]
    for number, live in state.live.items():
        assert live.sequence.id == number
        if isinstance(live, Prefilling | Running):
            active.append(live.sequence.rank)
            slots.append(live.slot)
            full = live.done if isinstance(live, Prefilling) else live.history.length - 1
            full //= config.page_size
            for table, owned, own in zip(live.tables, owners, writable, strict=True):
                assert NULL_PAGE not in table.pages
                owned.update(table.pages)
                own.update(table.pages[max(0, full - table.dead) :])
        elif hasattr(live, "leader"):
            assert live.leader in state.live
        else:
            queue.append(live.sequence.rank)
    assert tuple(sorted(active)) == state.active
    assert tuple(sorted(queue)) == state.queue
    assert sorted([*slots, *state.free_slots]) == list(range(config.slots))
    for pool, owned, own in zip(state.pools, owners, writable, strict=True):
        check_pool(pool, owned)
        assert all(owned[page] == 1 for page in own), "a page that is not full is shared"
    by_request = collections.defaultdict(list)
    for number, live in state.live.items():
        by_request[live.sequence.request.id].append(number)
    assert {name: sorted(numbers) for name, numbers in state.requests.items()} == by_request
    assert 0 <= state.n_queued <= config.max_queue
