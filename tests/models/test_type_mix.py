"""Mixes give every tensor the type that llama-quantize gave it."""

import csv
import pathlib

import pytest

from rfjax.errors import ConfigError
from rfjax.models.type_mix import MIXES, MixModel, check_mix, type_of
from rfjax.quant.types import GGMLType

# Written from the files that llama-quantize (ggml 0.25.3) made of random models in F16. Cells of
# the last column are `stem+stem=TYPE`, or where layers differ `stem=TYPE:0-1,4 OTHER:2-3`.
GOLDENS = pathlib.Path(__file__).parent / "goldens" / "type_mixes.tsv"


def rows():
    with GOLDENS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def expected(row):
    """Tensor name and type, of everything in a row."""
    for part in row["types"].split("; "):
        stems, types = part.split("=")
        for stem in stems.split("+"):
            for entry in types.split(" "):
                type_name, _, layers = entry.partition(":")
                if stem in ("output", "token_embd"):
                    yield f"{stem}.weight", type_name
                    continue
                for span in (layers or f"0-{int(row['n_layers']) - 1}").split(","):
                    first, _, last = span.partition("-")
                    for layer in range(int(first), int(last or first) + 1):
                        yield f"blk.{layer}.{stem}.weight", type_name


def shape_of(name, row):
    """Only the number of dimensions and the last size count."""
    inner = int(row["ffn_dim"] if "ffn_down" in name else row["d_model"])
    if "odd" not in name and "attn_output" in name:
        inner = 288 if row["d_model"] == "288" else 256
    return (8, 64, inner) if name.endswith("_exps.weight") else (64, inner)


@pytest.mark.parametrize("mix", MIXES)
def test_mixes_are_those_of_llama_quantize(mix):
    checked = 0
    for row in rows():
        if row["mix"] != mix:
            continue
        model = MixModel(
            n_layers=int(row["n_layers"]),
            kv_group=int(row["kv_group"]),
            n_experts=int(row["n_experts"]),
            tied_output=row["tied"] == "1",
        )
        for name, type_name in expected(row):
            assert type_of(name, shape_of(name, row), mix, model).name == type_name, (row, name)
            checked += 1
    assert checked > 1000


def test_every_mix_has_a_golden():
    assert {row["mix"] for row in rows()} == set(MIXES)


def test_norms_biases_and_routers_stay_f32():
    model = MixModel(n_layers=4, n_experts=8)
    for name, shape in (
        ("blk.0.attn_norm.weight", (64,)),
        ("blk.0.attn_q.bias", (64,)),
        ("blk.0.ffn_gate_inp.weight", (8, 64)),
    ):
        assert type_of(name, shape, "q4_k_m", model) == GGMLType.F32


def test_layers_of_a_whole_model_count_from_their_place():
    name, shape = "blk.0.ffn_down.weight", (64, 256)
    middle = [MixModel(n_layers=80, first_layer=layer) for layer in (39, 40)]
    types = [type_of(name, shape, "q4_k_m", model) for model in middle]
    assert types == [GGMLType.Q6_K, GGMLType.Q4_K]


def test_a_pure_type_is_everywhere():
    model = MixModel(n_layers=4)
    for name in ("output.weight", "token_embd.weight", "blk.0.attn_v.weight"):
        assert type_of(name, (64, 256), "IQ2_XS-pure", model) == GGMLType.IQ2_XS
        assert type_of(name, (64, 96), "q4_K-pure", model) == GGMLType.Q5_0
        assert type_of(name, (64, 256), "f32-pure", model) == GGMLType.F32


def test_unknown_mixes_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'q4_k_m'"):
        check_mix("q4km")
    with pytest.raises(ConfigError, match="no type mix"):
        check_mix("nothing-pure")
