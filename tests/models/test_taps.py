"""Taps and edits: what the named points hold, that edits act, and what wrong ones get."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal
from support.arch_goldens import GOLDENS, KEPT, stored
from support.mutations import nmse
from support.random_model import Shape, random_tokens, save
from support.typed_model import SHAPES, save_typed

import rfjax
from rfjax.errors import RequestError
from rfjax.models.decoder import forward, project
from rfjax.models.taps import point_names
from rfjax.quant.types import GGMLType
from rfjax.sharding import make_mesh

pytestmark = pytest.mark.quick_compile

TOKENS = random_tokens(3, 9, 19)

run = jax.jit(forward, static_argnames=("config", "taps"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = Shape(width=16, n_heads=2, n_kv_heads=1, ffn_width=24, vocab_size=19)
    return rfjax.load(save(tmp_path_factory.mktemp("taps") / "m.gguf", shape, seed=21))


@pytest.fixture(scope="module")
def logits(model):
    return np.asarray(run(model.params, TOKENS, config=model.config))


def edited(model, edits, taps=()):
    return run_edits(model, edits, taps)(model.params, TOKENS)


def run_edits(model, edits, taps=()):
    return jax.jit(functools.partial(forward, config=model.config, taps=taps, edits=edits))


KINDS = {
    "stablelm-parallel": "parallel without a norm of its own",
    "gptneox": "parallel with two norms, or one after the other",
    "gemma2": "norms behind both",
    "granitemoe": "scaled residuals, experts",
    "deepseek2-yarn": "latent attention, shared experts",
    "gpt-oss": "sinks, experts with biases",
}
"""Models by what stands between a part's product and the residual stream."""

MODELS = {g.family.name: name for name, g in GOLDENS.items() if not name.endswith("-64")}
"""A model of every architecture."""


@pytest.mark.parametrize("name", KINDS)
def test_layers_add_what_their_points_hold(name, tmp_path):
    golden = GOLDENS[name]
    model = rfjax.load(golden.write(tmp_path / "model.gguf"), context=golden.context)
    names = point_names(model.config)
    tokens = jnp.asarray(golden.tokens())
    found, at = forward(model.params, tokens, config=model.config, taps=names)
    assert tuple(at) == names
    assert nmse(found[KEPT], stored(name)["logits"]) <= 1e-8  # tapped everywhere
    before = at["token_embd"]
    for i in range(len(model.config.layers)):
        added = at[f"blk.{i}.attn_output"] + at[f"blk.{i}.ffn"]
        assert jnp.linalg.norm(added) > 0.01 * jnp.linalg.norm(before)
        assert_allclose(at[f"blk.{i}"], before + added, atol=1e-5 * float(jnp.abs(before).max()))
        before = at[f"blk.{i}"]
    assert_allclose(project(model.params, at["output_norm"], config=model.config), found, atol=1e-5)


@pytest.mark.parametrize("name", MODELS.values())
def test_every_architecture_has_every_point(name, tmp_path):
    golden = GOLDENS[name]
    model = rfjax.load(golden.write(tmp_path / "model.gguf"), context=golden.context)
    names = point_names(model.config)
    keep = lambda x: x  # noqa: E731
    call = functools.partial(
        forward, config=model.config, taps=names, edits=dict.fromkeys(names, keep)
    )
    logits, at = jax.eval_shape(call, model.params, jax.ShapeDtypeStruct((5,), jnp.int32))
    assert logits.shape == (5, model.config.vocab_size)
    assert len(at) == 3 * len(model.config.layers) + 2
    assert {(x.shape, x.dtype.name) for x in at.values()} == {
        ((5, model.config.d_model), "float32")
    }


def test_logits_alone_without_taps(model, logits):
    plain = str(
        jax.make_jaxpr(functools.partial(forward, config=model.config))(model.params, TOKENS)
    )
    call = functools.partial(forward, config=model.config, taps=(), edits={})
    assert str(jax.make_jaxpr(call)(model.params, TOKENS)) == plain
    found, at = run(model.params, TOKENS, config=model.config, taps=("blk.1", "token_embd"))
    assert list(at) == ["blk.1", "token_embd"]
    assert_allclose(found, logits, atol=1e-5)


def test_activations_have_the_dtype_of_the_model(model):
    config = dataclasses.replace(model.config, dtype="bfloat16")
    found, at = run(model.params, TOKENS, config=config, taps=point_names(config))
    assert found.dtype == jnp.float32
    assert {x.dtype.name for x in at.values()} == {"bfloat16"}


def test_a_layer_without_its_parts_adds_nothing(model):
    parts = [name for name in point_names(model.config) if "attn" in name or "ffn" in name]
    _, at = edited(model, dict.fromkeys(parts, jnp.zeros_like), ("token_embd", "blk.1"))
    assert_array_equal(at["blk.1"], at["token_embd"])


@pytest.mark.parametrize("point", ["token_embd", "blk.0.attn_output", "blk.0.ffn"])
def test_an_edit_acts_where_it_stands(model, logits, point):
    """Steering: one direction is added at a token, and what comes before it does not change."""
    push = jnp.zeros((9, 16)).at[4].set(2.0)
    steered, at = edited(model, {point: lambda x: x + push}, (point,))
    _, plain = run(model.params, TOKENS, config=model.config, taps=(point,))
    assert_allclose(at[point] - plain[point], push, atol=1e-5)
    assert_allclose(steered[:4], logits[:4], atol=1e-5)
    assert (np.abs(steered - logits)[4:].max(axis=1) > 1e-3).all()


def test_values_of_one_run_replace_those_of_another(model, logits):
    """Activation patching: with another text's stream behind the last layer come its logits."""
    other = random_tokens(4, 9, 19)
    expected, at = run(model.params, other, config=model.config, taps=("blk.1",))
    assert np.abs(expected - logits).max() > 0.1
    assert_allclose(edited(model, {"blk.1": lambda x: at["blk.1"]}), expected, atol=1e-5)


def test_edits_may_be_traced_and_mapped(model):
    """vmap over the strength of a direction; every strength is the edit alone."""
    direction = jnp.linspace(-1.0, 1.0, 16)

    def steered(strength):
        return forward(
            model.params,
            TOKENS,
            config=model.config,
            edits={"blk.0": lambda x: x + strength * direction[None, :]},
        )

    strengths = jnp.asarray([0.0, 0.5, 3.0])
    found = jax.jit(jax.vmap(steered))(strengths)
    alone = jax.jit(steered)
    for strength, row in zip(strengths, found, strict=True):
        assert_allclose(row, alone(strength), atol=1e-5)


def test_rows_of_a_batch_are_tapped(model):
    rows = np.stack([random_tokens(seed, 9, 19) for seed in range(3)])
    one = functools.partial(forward, config=model.config, taps=("blk.0.ffn",))
    found, at = jax.jit(jax.vmap(one, in_axes=(None, 0)))(model.params, rows)
    assert found.shape == (3, 9, 19) and at["blk.0.ffn"].shape == (3, 9, 16)
    expected = jax.jit(one)(model.params, rows[2])[1]["blk.0.ffn"]
    assert_allclose(at["blk.0.ffn"][2], expected, atol=1e-5)


def test_packed_weights_are_tapped(tmp_path):
    path = save_typed(tmp_path / "m.gguf", SHAPES["dense"], [GGMLType.Q8_0, GGMLType.Q4_K])
    tokens = random_tokens(0, 6, SHAPES["dense"].vocab_size)
    packed, plain = (rfjax.load(path, weights=kind) for kind in ("packed", "dequantized"))
    names = point_names(packed.config)
    _, at = run(packed.params, tokens, config=packed.config, taps=names)
    _, expected = run(plain.params, tokens, config=plain.config, taps=names)
    for name in names:
        assert nmse(at[name], expected[name]) <= 1e-10, name


def test_a_mesh_is_tapped_and_edited(tmp_path):
    shape = Shape(n_layers=1, width=64, n_heads=8, n_kv_heads=8, ffn_width=64, vocab_size=48)
    path = save(tmp_path / "m.gguf", shape, seed=3)
    mesh = make_mesh(data=2, model=4)
    alone, spread = rfjax.load(path), rfjax.load(path, mesh=mesh)
    rows = np.stack([random_tokens(seed, 8, 48) for seed in range(2)])
    names = point_names(alone.config)
    edits = {"blk.0.attn_output": lambda x: 0.5 * x}
    call = functools.partial(forward, config=alone.config, taps=names, edits=edits)
    batched = jax.jit(jax.vmap(call, in_axes=(None, 0)))
    expected = batched(alone.params, rows)
    rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
    found = batched(spread.params, rows)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert nmse(a, b) <= 1e-10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.2", r"no point 'blk.2' \(did you mean .*'blk\.1'"),
        ("blk.-1", "N from 0 to 1"),
        ("blk.01", "'blk.N'"),
        ("blk.0.attn_outptu", r"did you mean 'blk\.0\.attn_output'"),
        ("attention", "expected 'token_embd'"),
        (3, "no point 3"),
    ],
)
def test_an_unknown_point_is_named_with_those_near(model, name, message):
    with pytest.raises(RequestError, match=f"taps: .*{message}"):
        forward(model.params, TOKENS, config=model.config, taps=("blk.0", name))
    with pytest.raises(RequestError, match=f"edits: .*{message}"):
        forward(model.params, TOKENS, config=model.config, edits={name: lambda x: x})


def test_one_name_must_stand_in_a_tuple(model):
    with pytest.raises(RequestError, match=r"\('blk.0',\)"):
        forward(model.params, TOKENS, config=model.config, taps="blk.0")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x[:-1], r"got float32\[8, 16\] .* expected float32\[9, 16\]"),
        (lambda x: x.astype(jnp.bfloat16), r"got bfloat16\[9, 16\]"),
        (lambda x: None, "got None"),
        (lambda x: 0.0, r"got 0\.0"),
        (1.0, "expected a function"),
    ],
)
def test_an_edit_keeps_shape_and_dtype(model, edit, message):
    with pytest.raises(RequestError, match=rf"edits\['blk.1'\]: .*{message}"):
        edited(model, {"blk.1": edit})
