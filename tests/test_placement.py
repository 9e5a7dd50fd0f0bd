import pytest
from support.tiny_model import tiny_llama

import rfjax.io.load
import rfjax.placement
from rfjax.io.memory import Memory
from rfjax.ops.dispatch import KernelPolicy
from rfjax.placement import place_file


@pytest.fixture
def path(tmp_path):
    return tiny_llama(tmp_path / "model.gguf", quantized=True)


@pytest.fixture
def gpu(monkeypatch):
    """A device on which kernels run, all of which have passed."""
    monkeypatch.setattr(rfjax.placement, "current_target", lambda: "cuda")
    monkeypatch.setattr(rfjax.placement, "remembered_policy", KernelPolicy)


def test_on_the_cpu_plain_jax_runs_everything(path):
    found = place_file(path)
    assert set(found.paths.values()) == {"plain"}
    assert found.plan is not None and found.plan.weights > 0
    packed = place_file(path, weights="packed")
    assert packed.paths["blk.0.attn_q.weight"] == "XLA from packed blocks"
    assert packed.paths["blk.0.ffn_up.weight"] == "plain"
    assert packed.plan is not None and packed.plan.weights < found.plan.weights


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_kernels_do(path, monkeypatch):
    paths = place_file(path, weights="packed").paths
    assert paths["blk.1.attn_k.weight"] == "kernel quantized_matvec"
    assert paths["blk.1.ffn_up.weight"] == "kernel plain_matvec"
    assert paths["token_embd.weight"] == paths["blk.1.ffn_norm.weight"] == "plain"
    failed = KernelPolicy(disabled=(("quantized_matvec:Q8_0", "its error is 3"),))
    monkeypatch.setattr(rfjax.placement, "remembered_policy", lambda: failed)
    path_taken = place_file(path, weights="packed").paths["blk.1.attn_k.weight"]
    assert path_taken.startswith("XLA from packed blocks (the kernel quantized_matvec is disabled")
    assert "its error is 3" in path_taken


def test_what_does_not_fit_is_data_as_well(path, monkeypatch):
    monkeypatch.setattr(rfjax.io.load, "memory_of", lambda devices: Memory(1000, 1, "a toy"))
    found = place_file(path)
    assert (found.plan, found.paths) == (None, {})
    assert found.refusal is not None and "on a toy" in found.refusal
