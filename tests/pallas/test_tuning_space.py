import pytest

from rfjax.pallas import grouped_matvec, plain_matvec, quantized_matvec
from rfjax.pallas.target import lanes_of
from rfjax.pallas.tuning_space import plain_space, quantized_space
from rfjax.quant.layout import groups_per_column

LANES = {"cuda": 32, "gfx9": 64, "gfx11": 32}


@pytest.mark.parametrize("target", LANES)
@pytest.mark.parametrize("n", [1, 3, 131, 28672])
@pytest.mark.parametrize("k", [32, 96, 320, 768, 4096, 5120, 14336])
@pytest.mark.parametrize("m", [1, 3, 16])
def test_spaces_begin_with_the_heuristic_and_stay_within_the_matrix(n, k, m, target):
    space = quantized_space(n, k, m, target)
    assert space[0] == quantized_matvec.heuristic(n, k, m, target)
    assert len(set(space)) == len(space) <= 60
    n_groups = groups_per_column(k)
    n_columns = k // (32 * n_groups)
    for config in space:
        assert config.rows <= n and n_groups % config.groups == 0
    for config in space[1:]:
        assert config.groups * config.columns == LANES[target] * config.warps
        assert n_columns / (-(-n_columns // config.columns) * config.columns) >= 0.8
    plain = plain_space(n, k, m, target)
    assert plain[0] == plain_matvec.heuristic(n, k, m, target)
    assert len(set(plain)) == len(plain) <= 120
    assert all(config.rows <= n for config in plain)
    # Two elements a lane at least: whole waves.
    assert all(config.columns >= 2 * LANES[target] * config.warps for config in plain[1:])


def test_usual_shapes_have_a_choice():
    assert quantized_matvec.Config(2, 2, 16, 1) in quantized_space(28672, 4096, 1, "cuda")
    assert quantized_matvec.Config(2, 4, 16, 1) in quantized_space(28672, 4096, 1, "gfx9")
    assert quantized_matvec.Config(4, 4, 32, 4) in quantized_space(4096, 14336, 1, "cuda")
    for target in LANES:
        assert len(quantized_space(4096, 14336, 1, target)) >= 8
        assert len(quantized_space(28672, 4096, 8, target)) >= 8
        assert len(plain_space(28672, 4096, 1, target)) >= 16


@pytest.mark.parametrize("k", [768, 2048, 4096])
def test_experts_fill_whole_waves(k):
    for target, lanes in LANES.items():
        config = grouped_matvec.heuristic(1024, k, target)
        assert config.groups * config.columns == lanes == lanes_of(target)
        assert config.warps == 1
