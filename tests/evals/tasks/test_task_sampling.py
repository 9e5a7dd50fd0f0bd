"""Draws of tasks: the same as C++ programs make, none twice."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.evals.tasks.task_sampling import _below, _random_words, draw_scaled, draw_uniform

_SCALED = [83, 198, 142, 183, 0, 24, 58, 192, 28, 45, 17, 74]
_UNIFORM = [83, 199, 143, 185, 0, 25, 60, 198, 30, 48, 18, 80]


def test_known_draws():
    """Printed by a C++ program (GCC 12, x86-64)."""
    assert draw_uniform(200, 12) == _UNIFORM
    assert draw_scaled(200, 12) == _SCALED


def test_thousands_of_draws():
    """The same program's digests: sums of number times place, modulo a prime."""

    def digest(drawn):
        return sum(i * number for i, number in enumerate(drawn, 1)) % 1_000_003

    assert digest(draw_uniform(10042, 10042)) == 708859
    assert digest(draw_scaled(1267, 1266)) == 810853


def test_numbers_near_the_generators_range_are_rejected_alike():
    """Of 3 * 10^9 possible tasks; printed by the same C++ program, and too many to list."""
    words = _random_words()
    drawn = [_below(3_000_000_000, words) for _ in range(20)]
    assert drawn == [
        *(1251065995, 2991554424, 2160973467, 2797672083, 384373343, 440267677, 708266928),
        *(277015786, 1189742178, 558780633, 1163732220, 1190302405, 2806617217, 1616450195),
        *(2538932754, 939820538, 613356746, 82162787, 1603241721, 2011402522),
    ]


@given(st.integers(1, 300), st.data())
@settings(max_examples=50, deadline=None)
def test_no_task_is_drawn_twice(n_tasks, data):
    n_drawn = data.draw(st.integers(0, n_tasks))
    for draw in (draw_uniform, draw_scaled):
        drawn = draw(n_tasks, n_drawn)
        assert len(drawn) == len(set(drawn)) == n_drawn
        assert set(drawn) <= set(range(n_tasks))


def test_all_tasks_are_shuffled_by_one_and_left_in_order_by_the_other():
    assert draw_scaled(50, 50) == draw_scaled(50, 80) == list(range(50))
    assert draw_uniform(50, 50) != list(range(50))
    assert sorted(draw_uniform(50, 50)) == list(range(50))


def test_a_number_that_rounds_up_to_the_range_takes_the_last_task(monkeypatch):
    """C++ would read behind the end there."""
    monkeypatch.setattr(
        "rfjax.evals.tasks.task_sampling._random_words", lambda: iter([2**32 - 1, 0])
    )
    assert draw_scaled(5, 2) == [4, 0]
