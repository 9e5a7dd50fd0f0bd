"""The examples of evaluations as pure functions, on the bundled model."""

import math

import attribute_tokens
import data_parallel
import perplexity_sweep
import pytest
import tap_activations
from numpy.testing import assert_allclose
from support.tiny_model import tiny_llama

pytestmark = pytest.mark.quick_compile


def test_longer_contexts_help_and_bfloat16_hardly_costs(monkeypatch, capsys):
    monkeypatch.setattr(perplexity_sweep, "CONTEXTS", (32, 128))
    table = perplexity_sweep.main()
    assert set(table) == {(n, dtype) for n in (32, 128) for dtype in ("float32", "bfloat16")}
    assert table[128, "float32"] < table[32, "float32"] < 20
    for length in (32, 128):
        assert table[length, "bfloat16"] == pytest.approx(table[length, "float32"], rel=0.01)
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("n_devices", [8, 3])
def test_any_number_of_devices_gives_the_scores_of_one(capsys, n_devices):
    expected = data_parallel.main(n_devices=1)
    found = data_parallel.main(n_devices=n_devices)
    assert capsys.readouterr().out.count("rows of 64 tokens") == 1 + n_devices
    assert_allclose(found, expected, atol=1e-5)
    assert math.exp(-found[:, 1:].mean()) == pytest.approx(19.06, abs=0.01)
    assert not found[:, 0].any()


def test_the_choice_grows_layer_by_layer_and_edits_take_it_away():
    found = tap_activations.main()
    layers = [found[name] for name in ("token_embd", "blk.0", "blk.1", "blk.2", "blk.3")]
    assert layers == sorted(layers)
    assert found["blk.0.ffn"] < 0.1 * found["blk.3"]


def test_kingdom_makes_the_model_say_king(capsys):
    scores = attribute_tokens.main()
    output = capsys.readouterr().out
    assert output.startswith("log p(' king')")
    assert scores.argmax() == 17  # of "kingdom"
    assert "' king'  +0.45" in output


def test_attribution_through_packed_weights_is_that_of_plain_ones(tmp_path):
    path = tiny_llama(tmp_path / "m.gguf", n_layers=1, quantized=True)
    packed, plain = (attribute_tokens.main(path, kind) for kind in ("packed", "dequantized"))
    assert abs(packed).max() > 0.01
    assert_allclose(packed, plain, atol=1e-6)
