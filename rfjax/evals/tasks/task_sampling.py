"""Which tasks of a file llama-perplexity takes, and in which order.

It draws them without replacement with `std::mt19937` seeded with 1. HellaSwag's draw goes through
`std::uniform_int_distribution<size_t>`, whose algorithm the C++ standard leaves open; this is
that of libstdc++ since GCC 11 (Lemire, "Fast Random Integer Generation in an Interval", 2019), so
of llama.cpp as it is built on Linux. Needs no JAX.
"""

from collections.abc import Iterator

import numpy as np

_SEED = 1
_WORD = 1 << 32


def draw_uniform(n_tasks: int, n_drawn: int) -> list[int]:
    """Indices of tasks in HellaSwag's order, which is shuffled even where all are drawn.

    Args:
        n_tasks: tasks to draw from, below 2^32.
        n_drawn: tasks to draw, at most all.
    """
    words = _random_words()
    left = list(range(n_tasks))
    return [left.pop(_below(len(left), words)) for _ in range(n_drawn)]


def draw_scaled(n_tasks: int, n_drawn: int) -> list[int]:
    """Indices of tasks in the order of WinoGrande and of multiple choice.

    llama-perplexity draws only where fewer tasks are asked for than there are; else it takes all in
    the file's order. It scales 32 random bits in f32, and fills the gap with the last index.

    Args:
        n_tasks: tasks to draw from.
        n_drawn: tasks to draw; where these are all, the file's order stands.
    """
    left = list(range(n_tasks))
    if n_drawn >= n_tasks:
        return left
    words = _random_words()
    drawn = []
    for _ in range(n_drawn):
        scaled = np.float32(2**-32) * np.float32(next(words)) * np.float32(len(left))
        # The largest words round to 2^32 in f32, and so to an index past the end.
        index = min(int(scaled), len(left) - 1)
        drawn.append(left[index])
        left[index] = left[-1]
        left.pop()
    return drawn


def _random_words() -> Iterator[int]:
    """The 32-bit outputs of `std::mt19937(1)`, without end."""
    generator = np.random.RandomState(_SEED)  # seeds as the C++ standard does; its stream is frozen
    while True:
        yield from generator.randint(0, _WORD, size=256, dtype=np.uint32).tolist()


def _below(n: int, words: Iterator[int]) -> int:
    """A uniform number below n: the upper half of a 64-bit product, some products rejected."""
    product = next(words) * n
    if product % _WORD < n:
        # The 2^32 mod n lowest products of each number would make some numbers likelier.
        while product % _WORD < _WORD % n:
            product = next(words) * n
    return product // _WORD
