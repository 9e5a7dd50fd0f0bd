"""The training script end to end, on a text made here: two steps of a tiny model."""

import json
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_tiny
from tiny.recipe import Recipe
from tiny.training import draw_rows, drop, init_params

import rfjax
from rfjax.io.gguf import read_gguf
from rfjax.models.params import named_leaves

pytestmark = pytest.mark.quick_compile

FLAGS = {
    "vocab_size": 320,
    "n_layers": 1,
    "width": 64,
    "ffn_width": 96,
    "n_heads": 2,
    "n_kv_heads": 1,
    "context": 16,
    "batch": 4,
    "groups": 2,
    "steps": 2,
    "warmup": 1,
    "eval_every": 1,
    "segmentations": 1,
}


def a_text() -> str:
    """About 6000 characters of paragraphs, not all of them ASCII."""
    rng = random.Random(5)
    words = ["the", "king", "thou", "art", "noble", "night", "caf\u00e9", "1599", "swear", "storm"]
    lines = (" ".join(rng.choices(words, k=rng.randint(3, 9))).capitalize() for _ in range(200))
    return "".join(f"{line}.\n{'' if i % 3 else chr(10)}" for i, line in enumerate(lines))


def flags(**changes: object) -> list[str]:
    return [f"--{k.replace('_', '-')}={v}" for k, v in (FLAGS | changes).items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A model that the script has written."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text(a_text(), encoding="utf-8")
    output = folder / "models" / "tiny.gguf"
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix dtypes
        assert train_tiny.main([str(text), "--output", str(output), *flags()]) == 0
    return output


def test_the_file_loads_with_the_recipe_s_sizes(trained):
    model = rfjax.load(trained)
    assert (model.config.vocab_size, model.config.d_model, len(model.config.layers)) == (320, 64, 1)
    assert model.config.tied_output and model.config.context_length == 16
    metadata = read_gguf(trained).metadata
    assert metadata["general.name"] == "Shakespeare tiny"
    assert metadata["general.license"] == "apache-2.0"


def test_the_tokenizer_gives_text_back(trained):
    tokenizer = rfjax.load(trained).tokenizer
    assert tokenizer is not None and tokenizer.add_bos and not tokenizer.add_eos
    text = "Noble caf\u00e9,\n\n  thou art 1599 \u96ea"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_summary_s_perplexity_is_that_of_the_file(trained):
    summary = json.loads(trained.with_suffix(".json").read_text())
    held_out = (trained.parent / "tiny-heldout.txt").read_text(encoding="utf-8")
    assert a_text().endswith(held_out)
    result = rfjax.LLM(trained, dtype="float32", compilation_cache=False).perplexity(
        held_out, n_ctx=16
    )
    assert result.perplexity == pytest.approx(summary["held_out"]["perplexity"], rel=1e-6)
    assert summary["bytes"] == trained.stat().st_size
    assert summary["recipe"]["n_layers"] == 1


def test_a_model_over_the_limit_is_refused_and_not_written(tmp_path, capsys):
    text, output = tmp_path / "text.txt", tmp_path / "big.gguf"
    text.write_text(a_text(), encoding="utf-8")
    status = train_tiny.main([str(text), "--output", str(output), "--max-bytes=9999", *flags()])
    assert status == 2
    assert "at most 9999" in capsys.readouterr().err
    assert not list(tmp_path.glob("big*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"groups": 3}, "divisor of batch"), ({"dropout": 1.0}, "below 1"), ({"steps": 0}, "steps")],
)
def test_impossible_settings_are_refused(tmp_path, capsys, change, message):
    assert train_tiny.main([str(tmp_path / "none.txt"), *flags(**change)]) == 2
    assert message in capsys.readouterr().err


def test_dropped_features_leave_the_layer_and_the_rest_is_scaled():
    recipe = Recipe(vocab_size=8, n_layers=2, width=64, ffn_width=64, n_heads=2, n_kv_heads=1)
    params = init_params(jax.random.key(0), recipe.model_config())
    dropped = drop(params, jax.random.key(1), 0.5)
    for name, leaf in named_leaves(dropped).items():
        before = named_leaves(params)[name]
        if "attn_output" not in name and "ffn_down" not in name:
            assert leaf is before
            continue
        ratio = np.asarray(leaf / before)
        assert set(np.unique(ratio.round(5))) == {0.0, 4.0}  # kept: doubled by row and by column
        assert 0.2 < (ratio.any(axis=0)).mean() < 0.8
        assert 0.2 < (ratio.any(axis=1)).mean() < 0.8
    assert drop(params, jax.random.key(1), 0.0) is params


def test_rows_start_with_bos_and_targets_are_the_text():
    ids = jnp.arange(100, dtype=jnp.int32)
    clean = Recipe(vocab_size=100, context=10, batch=4, groups=1, token_noise=0.0)
    inputs, targets = map(np.asarray, draw_rows(jax.random.key(0), ids, clean, 1))
    assert (inputs[:, 0] == 1).all() and (inputs[:, 1:] == targets[:, :-1]).all()
    assert (np.diff(targets, axis=1) == 1).all()
    noisy = Recipe(vocab_size=100, context=10, batch=4, groups=1, token_noise=0.5)
    inputs, noisy_targets = map(np.asarray, draw_rows(jax.random.key(0), ids, noisy, 1))
    assert (noisy_targets == targets).all()
    assert 0.2 < (inputs[:, 1:] != targets[:, :-1]).mean() < 0.8
