"""Choosing what the device does next. No JAX.

Active sequences come first, in the order of their ranks: a decode step for each, and prompts in
chunks within what is left of the token budget. Where pages are short, bursts get shorter, then
prompts stand still and sequences are preempted, the last in order first; so the first in order
always goes on. Then the queue is admitted strictly in order: nobody overtakes the head because it
is smaller. Both together are why nobody starves within a priority.
"""

from rfjax.engine.effects import Admission
from rfjax.engine.page_pool import PagePool, allocate, register
from rfjax.engine.page_table import PageTable, fork, share_prefix
from rfjax.engine.plan import DecodeRows, Opened, PageCopies, PageWrites, Plan, PrefillChunk
from rfjax.engine.scheduler_state import Draft, InFlight
from rfjax.engine.sequence import (
    Active,
    AwaitingFork,
    Preempted,
    Prefilling,
    Running,
    Waiting,
    new,
    token_ids,
)

# What a sequence is to do: tokens of its prompt, steps of decoding, and the pages to add for both.
Wish = tuple[Active, int, int, int]


class Planner:
    """One plan in the making, on a draft of the scheduler's state."""

    def __init__(self, draft: Draft, now: float):
        config = draft.config
        self._draft = draft
        self._now = now
        self._config = config
        self._budget = config.token_budget
        self._pressed = False  # for pages: not the time to admit
        self._n_steps = config.burst
        self._opened: list[Opened] = []
        self._chunks: list[PrefillChunk] = []
        self._rows: list[tuple[int, int, int]] = []
        self._writes: list[tuple[list[int], list[int], list[int]]]
        self._writes = [([], [], []) for _ in config.groups]
        self._copies: list[list[tuple[int, int]]] = [[] for _ in config.groups]
        self._full: list[list[tuple[bytes, int]]] = [[] for _ in config.groups]

    def plan(self) -> Plan:
        """Change the draft to what it is once the plan is dispatched, and give the plan."""
        draft = self._draft
        self._free_behind_windows()
        if self._has_prompts():
            self._n_steps = self._config.mixed_burst
        self._grant(self._affordable())
        self._admit_in_order()
        for group, pages in enumerate(self._full):
            if pages:  # known from the next plan on: the pages are filled by this one
                draft.pools[group] = register(draft.pools[group], pages)
        slots, sequences, steps = zip(*self._rows, strict=True) if self._rows else ((), (), ())
        burst = draft.next_burst
        draft.next_burst += 1
        if sequences:
            draft.in_flight = (*draft.in_flight, InFlight(burst, sequences, steps))
        return Plan(
            burst=burst,
            opened=tuple(self._opened),
            writes=tuple(PageWrites(*map(tuple, columns)) for columns in self._writes),
            prefill=tuple(self._chunks),
            copies=tuple(
                PageCopies(tuple(s for s, _ in pairs), tuple(t for _, t in pairs))
                for pairs in self._copies
            ),
            decode=DecodeRows(slots, sequences, steps),
            n_steps=max(steps, default=0),
        )

    def _free_behind_windows(self) -> None:
        draft, size = self._draft, self._config.page_size
        for index, group in enumerate(self._config.groups):
            if group.window is None:
                continue
            released: list[tuple[int, bytes | None]] = []
            for _, number in draft.active:
                live = draft.live[number]
                assert isinstance(live, (Prefilling, Running))
                sequence, history, slot, tables, place = live
                table = tables[index]
                # What is under way may be broken off early: only what is known is certain.
                position = history.length - 1 if type(live) is Running else place
                dead = group.n_dead(position, size)
                n_more = dead - table.dead
                if n_more <= 0:
                    continue
                if len(history.keys) < dead and history.tail and isinstance(live, Running):
                    history = draft.name(live).history
                released += table.keyed(history.keys, dead)
                table = new(PageTable, (dead, table.pages[n_more:]))
                tables = (*tables[:index], table, *tables[index + 1 :])
                draft.live[number] = new(type(live), (sequence, history, slot, tables, place))
            draft.let_go(index, released)
        draft.settle()

    def _has_prompts(self) -> bool:
        """Whether a prompt is under way or can be admitted."""
        draft = self._draft
        if any(isinstance(draft.live[number], Prefilling) for _, number in draft.active):
            return True
        head = self._head()
        return head is not None and self._room_for(head, len(draft.active)) is not None

    def _affordable(self) -> list[Wish]:
        """What the active sequences do, cut to the pages there are."""
        draft, shortest = self._draft, min(self._config.mixed_burst, self._n_steps)
        wishes, total = self._wishes()
        while total > self._n_available() and self._n_steps > shortest:
            self._n_steps = max(shortest, self._n_steps // 2)
            wishes, total = self._wishes()
        while total > self._n_available():
            self._pressed = True
            last = draft.live[draft.active[-1][1]]
            assert isinstance(last, Prefilling | Running)
            wanted = wishes.pop() if wishes and wishes[-1][0] is last else None
            total -= 0 if wanted is None else wanted[3]
            if wanted is None or isinstance(last, Running):
                draft.preempt(last)
                draft.settle()
        return wishes

    def _n_available(self) -> int:
        return min(pool.n_available for pool in self._draft.pools)

    def _wishes(self) -> tuple[list[Wish], int]:
        """What every active sequence would do, in order, and the pages for all of it."""
        live_of, size, n_steps = self._draft.live, self._config.page_size, self._n_steps
        wishes: list[Wish] = []
        total = 0
        prompts = []
        for _, number in self._draft.active:
            live = live_of[number]
            if type(live) is Running:
                sequence, _, _, tables, dispatched = live
                steps = sequence.limit - dispatched
                if steps > 0:
                    if steps > n_steps:
                        steps = n_steps
                    dead, owned = tables[0]
                    pages = -(-(dispatched - 1 + steps) // size) - dead - len(owned)
                    if pages <= 0:
                        pages = 0
                    total += pages
                    wishes.append((live, 0, steps, pages))
            else:
                prompts.append(len(wishes))
                assert isinstance(live, Prefilling)
                wishes.append((live, 0, 0, 0))
        budget = self._config.token_budget - (len(wishes) - len(prompts))
        for at in prompts:
            live = wishes[at][0]
            assert isinstance(live, Prefilling)
            wish = self._prompt_wish(live, budget)
            budget -= wish[1] + (wish[2] > 0)
            total += wish[3]
            wishes[at] = wish
        return wishes, total

    def _prompt_wish(self, live: Prefilling, budget: int) -> Wish:
        length, limit = live.history.length, live.sequence.limit
        chunk = min(self._config.prefill_chunk, length - 1 - live.done, budget)
        end = live.done + chunk
        steps = 0
        if end == length - 1 and budget > chunk:  # and decodes with the others at once
            steps = min(self._n_steps, limit - length)
            end += steps
        return live, chunk, steps, max(0, -(-end // self._config.page_size) - live.tables[0].end)

    def _grant(self, wishes: list[Wish]) -> None:
        """Give the pages and note what is to be done."""
        live_of, rows = self._draft.live, self._rows
        total = sum(wish[3] for wish in wishes)
        columns = [self._extended(group, wishes, total) for group in range(len(self._writes))]
        completed = []
        for (live, chunk, steps, _), tables in zip(wishes, zip(*columns, strict=True), strict=True):
            if type(live) is Running:
                sequence, history, slot, _, dispatched = live
                number = sequence.id
                fields = (sequence, history, slot, tables, dispatched + steps)
                live_of[number] = new(Running, fields)
                rows.append((slot, number, steps))
                self._budget -= 1
                continue
            assert isinstance(live, Prefilling)
            self._budget -= chunk + (steps > 0)
            if self._advance(live, tables, chunk, steps):
                completed.append(live)
        for live in completed:
            self._fork(live)

    def _extended(self, group: int, wishes: list[Wish], total: int) -> list[PageTable]:
        """Every wish's table in a group, with its new pages, which are written to the device's."""
        self._draft.pools[group], pages = allocate(self._draft.pools[group], total)
        slots, indices, targets = self._writes[group]
        targets += pages
        tables = []
        at = 0
        for live, _, _, n in wishes:
            _, _, slot, table, _ = live
            table = table[group]
            if n:
                dead, owned = table
                start = dead + len(owned)
                slots += (slot,) * n
                indices += range(start, start + n)
                table = new(PageTable, (dead, owned + pages[at : at + n]))
                at += n
            tables.append(table)
        return tables

    @staticmethod
    def _write(
        columns: tuple[list[int], list[int], list[int]],
        slot: int,
        start: int,
        pages: tuple[int, ...],
    ) -> None:
        slots, indices, targets = columns
        slots += [slot] * len(pages)
        indices += range(start, start + len(pages))
        targets += pages

    def _advance(
        self, live: Prefilling, tables: tuple[PageTable, ...], chunk: int, steps: int
    ) -> bool:
        """Note the chunk; whether the whole prompt is computed with it."""
        draft, size = self._draft, self._config.page_size
        sequence, history, done = live.sequence, live.history, live.done
        end = done + chunk
        if chunk:
            tokens = token_ids(sequence.request, history) if history.output else None
            tokens = sequence.request.token_ids if tokens is None else tokens
            reported = sequence.request.params.prompt_logprobs if _reports_prompt(live) else None
            self._chunks.append(
                PrefillChunk(live.slot, sequence.id, done, tokens[done:end], reported)
            )
            if self._config.prefix_caching:
                for full, table in zip(self._full, tables, strict=True):
                    for j in range(max(done // size, table.dead), end // size):
                        full.append((history.keys[j], table.pages[j - table.dead]))
        if end < history.length - 1:
            draft.live[sequence.id] = Prefilling(sequence, history, live.slot, tables, end)
            return False
        self._run(Running(sequence, history, live.slot, tables, history.length), steps)
        return True

    def _run(self, live: Running, steps: int) -> None:
        """A sequence whose prompt is computed starts to decode."""
        number = live.sequence.id
        self._draft.live[number] = Running(
            live.sequence, live.history, live.slot, live.tables, live.dispatched + steps
        )
        if steps:
            self._rows.append((live.slot, number, steps))

    def _fork(self, leader: Prefilling) -> None:
        """The further samples of a request whose prompt is computed share its pages."""
        draft, size = self._draft, self._config.page_size
        source = draft.live[leader.sequence.id]
        assert isinstance(source, Running)
        length = leader.history.length
        n_full, partial = divmod(length - 1, size)
        steps = min(self._n_steps, leader.sequence.request.limit - length)
        n_own = -(-(length - 1 + steps) // size) - n_full
        for number in draft.requests[leader.sequence.request.id]:
            child = draft.live[number]
            if not isinstance(child, AwaitingFork) or child.leader != leader.sequence.id:
                continue
            if not draft.free_slots or self._budget < 1 or n_own > self._n_available():
                draft.wait(child.sequence, child.history)
                continue
            pools, tables = fork(draft.pools, source.tables, n_full, n_own)
            draft.pools = list(pools)
            self._budget -= 1
            slot = self._open(child, length - 1)
            for columns, table in zip(self._writes, tables, strict=True):
                self._write(columns, slot, table.dead, table.pages)
            if partial:
                for pairs, old, new in zip(self._copies, source.tables, tables, strict=True):
                    pairs.append((old.pages[n_full - old.dead], new.pages[n_full - new.dead]))
            self._run(Running(child.sequence, child.history, slot, tables, length), steps)

    def _open(self, live: Waiting | AwaitingFork | Preempted, n_cached: int) -> int:
        """Give a sequence the first free slot."""
        sequence, history = live.sequence, live.history
        slot = self._draft.open(sequence)
        request = sequence.request
        known = token_ids(request, history)
        self._opened.append(Opened(slot, sequence.id, request, sequence.index, known, n_cached))
        kind = "first" if sequence.index == 0 else "sample"
        kind = "resumed" if isinstance(live, Preempted) else kind
        waited = self._now - request.arrival
        self._draft.admissions.append(
            Admission(sequence.id, request, history.length, n_cached, waited, kind)
        )
        return slot

    def _head(self) -> Waiting | Preempted | None:
        """The first in the queue, if it may be admitted once there is room."""
        draft = self._draft
        if not draft.queue or not draft.free_slots:
            return None
        head = draft.live[draft.queue[0][1]]
        if isinstance(head, Preempted):
            return head if head.dispatched == head.history.length else None
        assert isinstance(head, Waiting)
        return head

    def _admit_in_order(self) -> None:
        draft = self._draft
        while not self._pressed and self._budget > 0 and (head := self._head()) is not None:
            room = self._room_for(head, len(draft.active))
            if room is None:
                return
            n_cached, pools, tables = room
            draft.pools = list(pools)
            draft.dequeue(head)
            slot = self._open(head, n_cached * self._config.page_size)
            for columns, table in zip(self._writes, tables, strict=True):
                self._write(columns, slot, table.dead, table.pages)
            done = n_cached * self._config.page_size
            live = Prefilling(head.sequence, head.history, slot, tables, done)
            self._grant([self._prompt_wish(live, self._budget)])

    def _room_for(
        self, head: Waiting | Preempted, reserve: int
    ) -> tuple[int, tuple[PagePool, ...], tuple[PageTable, ...]] | None:
        """What `share_prefix` gives, if there are pages for all the rest and a reserve.

        The reserve, a page for each active sequence, keeps what is admitted from being preempted
        at once.
        """
        config, history = self._config, head.history
        size, length = config.page_size, history.length
        keys = () if _reports_prompt(head) else history.keys
        found = share_prefix(config.groups, self._draft.pools, keys, size)
        steps = min(self._n_steps, head.sequence.request.limit - length)
        rest = -(-(length - 1 + steps) // size) - found[0]
        for group, pool in zip(config.groups, found[1], strict=True):
            most = group.most_pages(length + steps, config.longest_step, size)
            if min(rest, most) + reserve > pool.n_available:
                return None
        return found


def _reports_prompt(live: Waiting | Preempted | Prefilling) -> bool:
    """Whether log-probabilities of the prompt are still to be computed with it."""
    wanted = live.sequence.request.params.prompt_logprobs is not None
    return wanted and live.sequence.index == 0 and not live.history.output
