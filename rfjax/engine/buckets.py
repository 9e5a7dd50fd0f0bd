"""Array sizes are rounded up to few values, so that few programs are compiled."""

PIECE = 64
"""Most tokens of a piece of a prompt. Pieces of all prompts are the rows of a step."""


def round_up_power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and at least `least` (itself a power)."""
    return max(least, 1 << max(0, n - 1).bit_length())


def row_bucket(n: int, *, few_programs: bool) -> int:
    """Rows of a decode step for `n` sequences: a power of two, or of four where programs are to be
    few. Rows of padding cost little on GPUs, and a program takes long to compile there."""
    rows = round_up_power_of_two(n)
    return rows * 2 if few_programs and rows.bit_length() % 2 == 0 else rows


def piece_bucket(n: int, *, few_programs: bool) -> int:
    """Pieces of prompts in a step: 1, 2, 3, 4, 6, 8, 12, ..., or 1, 4, 8, 16, ..."""
    power = round_up_power_of_two(n)
    if few_programs:
        return power if n == 1 else max(4, power)
    between = power // 4 * 3
    return between if n <= between else power


def most_prompt_tokens(token_budget: int) -> int:
    """Tokens of the largest step for prompts, padding included.

    Enough for one prompt of the whole budget; many short ones take several steps.
    """
    return PIECE * max(4, round_up_power_of_two(-(-token_budget // PIECE)))
