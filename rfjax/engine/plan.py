"""What the device is to do next: the scheduler's side of the interface to the runner. No JAX.

The runner carries out plans in order, each in this order:
1. `opened`: start the rows of these slots anew, with their tokens and sampling parameters. Set the
   slot's row of every page table to the null page (0).
2. `writes`: one value per cache group; store pages in the group's table, int32
   [slots, max_pages]: `table[slots[i], indices[i]] = pages[i]`.
3. `prefill`: compute keys and values of these tokens, which attend to all tokens of their slot
   before them. Chunks of one plan are of different slots and independent of each other. No logits
   are needed, but for chunks with `prompt_logprobs`.
4. `copies`: one value per cache group; copy whole pages. Read all sources before writing any
   target. (Forks: the prompt's last, partial page.)
5. `decode`: up to `n_steps` steps of the rows of `slots`, and of no others. Row i makes at most
   `steps[i]` tokens, and fewer where it ends: at a stop id (not before `min_tokens`) or at its
   limit. The first step feeds the last known token of the row. A row that has ended stays ended
   on the device until its slot is opened again, even if a later plan, made before the end was
   known, lists it. Key and value of the last token made are not computed.

Token p of a sequence stands in page `table[slot, p // C]` of its group at place `p % C`. Entries
behind a sliding window keep their old page ids although these pages may belong to others by now:
the kernel must not read what lies behind the window. The same holds for entries at or beyond the
length. Nothing may be written for rows that a plan does not name.

Results of a burst come back as the event `Received` (`rfjax.engine.scheduler`); the next plan may
be made and dispatched before that. Pages and slots change hands in the order of the plans, so it
is the order of execution on the device that keeps them apart.
"""

import dataclasses

from rfjax.engine.request import Request


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A slot is given to a sequence, and stays its own until it ends or is preempted.

    Attributes:
        slot: row of the decode batch.
        sequence: the sequence's number.
        request: the user's, with parameters and limit.
        index: which sample of `request.params.n`; its seed is `request.seed_of(index)`.
        token_ids: all known tokens; those from `len(request.token_ids)` on are output, after a
            preemption.
        n_cached: how many of the first tokens are in the given pages already.
    """

    slot: int
    sequence: int
    request: Request
    index: int
    token_ids: tuple[int, ...]
    n_cached: int


@dataclasses.dataclass(frozen=True, slots=True)
class PageWrites:
    """New entries of a group's page table: three columns of equal length."""

    slots: tuple[int, ...]
    indices: tuple[int, ...]
    pages: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens `[start, start + len(token_ids))` of a slot.

    `prompt_logprobs`: report, for each of these positions, the log-probability of the token that
    follows, and of that many most likely ones; None reports nothing. After a preemption the same
    positions can be reported again, with the same values.
    """

    slot: int
    sequence: int
    start: int
    token_ids: tuple[int, ...]
    prompt_logprobs: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class PageCopies:
    """Copies of whole pages in one group: two columns of equal length."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeRows:
    """Sequences that decode: three columns of equal length."""

    slots: tuple[int, ...]
    sequences: tuple[int, ...]
    steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One burst: `burst` numbers them from 0."""

    burst: int
    opened: tuple[Opened, ...]
    writes: tuple[PageWrites, ...]
    prefill: tuple[PrefillChunk, ...]
    copies: tuple[PageCopies, ...]
    decode: DecodeRows
    n_steps: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run. A plan without rows to decode needs no `Received`."""
        return not self.prefill and not self.decode.slots

    @property
    def n_tokens(self) -> int:
        """Tokens that count against the budget: of prompts, and one for each decoding row."""
        return sum(len(chunk.token_ids) for chunk in self.prefill) + len(self.decode.slots)
