"""Sizes that the scheduler keeps to. No JAX."""

import dataclasses

from rfjax.engine.page_table import CacheGroup
from rfjax.errors import ConfigError


def longest_step(prefill_chunk: int, burst: int) -> int:
    """Most tokens that a sequence is ahead of what is known of it.

    A chunk of its prompt and a burst, while another burst is under way.
    """
    return prefill_chunk + 2 * burst


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """How much runs at a time, and on which pages.

    Attributes:
        groups: the cache groups.
        page_size: tokens of a page (C), in every group.
        max_context: most tokens of a sequence, prompt and output; it must fit in the pages.
        slots: most sequences under way at a time: rows of the decode batch.
        token_budget: most tokens of one step: prompt tokens and one for each decoding sequence.
        prefill_chunk: most prompt tokens of a sequence in one step.
        burst: decode steps between two looks of the host.
        mixed_burst: the same while prompts are computed, so that these need not wait long.
        max_queue: most requests that wait for their first admission.
        prefix_caching: keep full pages for prompts that begin the same.
    """

    groups: tuple[CacheGroup, ...]
    page_size: int
    max_context: int
    slots: int = 256
    token_budget: int = 2048
    prefill_chunk: int = 512
    burst: int = 32
    mixed_burst: int = 4
    max_queue: int = 1000
    prefix_caching: bool = True

    def __post_init__(self):
        for name in (
            *("page_size", "slots", "token_budget", "prefill_chunk", "burst", "mixed_burst"),
            *("max_queue", "max_context"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: got {value!r}, expected an integer of at least 1")
        if not self.groups:
            raise ConfigError("groups: got none, expected at least one cache group")
        if self.token_budget <= self.slots:
            raise ConfigError(
                f"token_budget: got {self.token_budget}, expected more than slots, which is "
                f"{self.slots}, so that prompts go on while every slot decodes"
            )
        for group in self.groups:
            needed = group.most_pages(self.max_context, self.longest_step, self.page_size)
            if needed > group.n_pages - 1:
                raise ConfigError(
                    f"cache group {group.name}: got {group.n_pages} pages of {self.page_size} "
                    f"tokens, expected at least {needed + 1}, so that one sequence of max_context "
                    f"({self.max_context}) tokens fits: lower max_context, or give the cache more "
                    "memory"
                )

    @property
    def longest_step(self) -> int:
        """Most tokens between what is known of a sequence and what the next plan adds."""
        return longest_step(self.prefill_chunk, max(self.burst, self.mixed_burst))

    @property
    def max_pages(self) -> int:
        """Width of a page table on the device: pages of the longest sequence."""
        return -(-self.max_context // self.page_size)
