"""Array sizes are rounded up to few values, so that few programs are compiled."""

SMALLEST_CAPACITY = 64


def round_up_power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and at least `least` (itself a power)."""
    return max(least, 1 << max(0, n - 1).bit_length())


def round_up_bucket(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `n`."""
    power = round_up_power_of_two(n)
    between = power // 4 * 3
    return between if n <= between else power
