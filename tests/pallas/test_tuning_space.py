import pytest

from rfjax.pallas import plain_matvec, quantized_matvec
from rfjax.pallas.tuning_space import plain_space, quantized_space
from rfjax.quant.layout import groups_per_column


@pytest.mark.parametrize("n", [1, 3, 131, 28672])
@pytest.mark.parametrize("k", [32, 96, 320, 768, 4096, 5120, 14336])
@pytest.mark.parametrize("m", [1, 3, 16])
def test_spaces_begin_with_the_heuristic_and_stay_within_the_matrix(n, k, m):
    space = quantized_space(n, k, m)
    assert space[0] == quantized_matvec.heuristic(n, k, m)
    assert len(set(space)) == len(space) <= 60
    n_groups = groups_per_column(k)
    n_columns = k // (32 * n_groups)
    for config in space:
        assert config.rows <= n and n_groups % config.groups == 0
    for config in space[1:]:
        assert config.groups * config.columns == 32 * config.warps
        assert n_columns / (-(-n_columns // config.columns) * config.columns) >= 0.8
    plain = plain_space(n, k, m)
    assert plain[0] == plain_matvec.heuristic(n, k, m)
    assert len(set(plain)) == len(plain) <= 120
    assert all(config.rows <= n for config in plain)


def test_usual_shapes_have_a_choice():
    assert quantized_matvec.Config(2, 2, 16, 1) in quantized_space(28672, 4096, 1)
    assert quantized_matvec.Config(4, 4, 32, 4) in quantized_space(4096, 14336, 1)
    assert len(quantized_space(4096, 14336, 1)) >= 8
    assert len(quantized_space(28672, 4096, 8)) >= 8
    assert len(plain_space(28672, 4096, 1)) >= 16
