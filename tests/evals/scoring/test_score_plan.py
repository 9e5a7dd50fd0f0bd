"""Plans of pieces: carried out on pretended pages, every piece finds what stands before it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.evals.scoring.continuation import Continuation
from rfjax.evals.scoring.score_plan import PAGE_SIZE, PIECE_SIZES, cut, n_pages_of, plan_waves


@st.composite
def continuations(draw):
    """Contexts that often begin alike, and continuations of all lengths."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    stems = [tuple(rng.randrange(50) for _ in range(rng.randrange(1, 200))) for _ in range(3)]
    made = []
    for _ in range(draw(st.integers(1, 12))):
        stem = rng.choice(stems)
        context = stem[: rng.randrange(1, len(stem) + 1)]
        context += tuple(rng.randrange(50) for _ in range(rng.choice([0, 0, 1, 5, 70])))
        tokens = tuple(rng.randrange(50) for _ in range(rng.choice([1, 1, 2, 9, 40, 150])))
        made.append(Continuation(context, tokens))
    return made


def in_order(pieces):
    """As the scorer computes them: by size, the largest first."""
    return [piece for size in PIECE_SIZES for piece in pieces if piece.size == size]


def write(pages, piece):
    for place, token in enumerate(piece.tokens, piece.start):
        pages[piece.pages[place // PAGE_SIZE]][place % PAGE_SIZE] = token


@settings(deadline=None, max_examples=60)
@given(continuations(), st.integers(0, 30))
def test_every_piece_finds_what_stands_before_it(wanted, extra):
    n_pages = max(map(n_pages_of, wanted)) + extra
    scored: dict[int, list[int]] = {i: [] for i in range(len(wanted))}
    for wave in plan_waves(wanted, n_pages):
        pages = [[None] * PAGE_SIZE for _ in range(n_pages + 1)]
        for piece in in_order(wave.contexts):
            assert piece.owner is None
            write(pages, piece)
        for piece in in_order(wave.scored):
            assert 0 not in piece.pages
            if piece.copied is not None:
                source, target = piece.copied
                pages[target] = list(pages[source])
            write(pages, piece)
        for piece in wave.scored:  # nothing was written over by another
            one = wanted[piece.owner]
            whole = one.context + one.tokens
            end = piece.start + len(piece.tokens)
            seen = [pages[piece.pages[i // PAGE_SIZE]][i % PAGE_SIZE] for i in range(end)]
            assert tuple(seen) == whole[:end]
            assert piece.start + 1 == len(one.context) + piece.offset
            scored[piece.owner] += range(piece.offset, piece.offset + len(piece.tokens))
    for index, one in enumerate(wanted):
        assert sorted(scored[index]) == list(range(len(one.tokens)))


@settings(deadline=None, max_examples=30)
@given(continuations(), st.randoms(use_true_random=False))
def test_how_one_is_cut_does_not_depend_on_the_others(wanted, rng):
    def shape(pieces, owner):
        return [(p.start, p.tokens, p.size) for p in pieces if p.owner == owner]

    together = list(wanted)
    rng.shuffle(together)
    (wave,) = plan_waves(together, 1000)
    for index, one in enumerate(together):
        (alone,) = plan_waves([one], 1000)
        assert shape(wave.scored, index) == shape(alone.scored, 0)
        contexts = {(p.start, p.tokens, p.size) for p in wave.contexts}
        assert contexts >= {(p.start, p.tokens, p.size) for p in alone.contexts}


def test_what_begins_alike_is_computed_once():
    begin = tuple(range(64))
    question = begin + (7,) * 40
    wanted = [Continuation(question, (answer,) * 3) for answer in range(4)]
    wanted.append(Continuation((*begin, 9, 9), (1,)))
    (wave,) = plan_waves(wanted, 100)
    # The 64, then 32 and 7 of the question, then what comes after the 64 in the other one.
    assert sorted(len(p.tokens) for p in wave.contexts) == [1, 7, 32, 64]
    assert [len(p.tokens) for p in wave.scored] == [3, 3, 3, 3, 1]


@pytest.mark.parametrize(
    "n, lengths",
    [(1, [1]), (16, [16]), (17, [17]), (33, [32, 1]), (48, [32, 16]), (49, [49]), (64, [64])],
)
def test_rests_waste_few_places(n, lengths):
    assert cut(n) == lengths
    assert cut(128 + n) == [64, 64, *lengths]
