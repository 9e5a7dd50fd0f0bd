"""What holds of every row of the architecture table, whatever the row is."""

import ast
import dataclasses
import importlib
import pathlib
import pkgutil
import re
import typing

import pytest

import rfjax
from rfjax.models import archs
from rfjax.models.arch import ArchSpec, Mixture
from rfjax.models.architectures import ARCHITECTURES
from rfjax.models.config import PRE_NORMS
from rfjax.models.params import Block, Linear, Norm, Params
from rfjax.ops.activation import ACTIVATIONS, GATES

ROOT = pathlib.Path(rfjax.__file__).parent
READERS = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "models").glob("configure*.py")
    if path.name != "configure_experts.py"
}
READER_OF_MIXTURES = (ROOT / "models" / "configure_experts.py").read_text(encoding="utf-8")

STEMS = {
    field.name: field.type
    for node in (Block, Params)
    for field in dataclasses.fields(node)
    if field.type not in (tuple[Block, ...],)
}
"""Every leaf of the tree of weights, with what it is."""
NORMS = {stem for stem, kind in STEMS.items() if Norm in (kind, *typing.get_args(kind))}
WITH_BIAS = NORMS | {
    stem for stem, kind in STEMS.items() if Linear in (kind, *typing.get_args(kind))
}
OF_RESIDUAL = PRE_NORMS | {"attn_norm_2", "post_attention_norm", "post_ffw_norm"}
"""Norms that a row names; the others follow from other fields."""

MIXTURE_STEMS = {"ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}

every_row = pytest.mark.parametrize("name", ARCHITECTURES)


def test_every_file_is_a_row_in_order():
    files = sorted(module.name for module in pkgutil.iter_modules(archs.__path__))
    assert [name.replace("-", "_") for name in ARCHITECTURES] == files


@every_row
def test_its_file_says_how_it_differs(name):
    module = importlib.import_module(f"{archs.__name__}.{name.replace('-', '_')}")
    assert module.SPEC is ARCHITECTURES[name] and module.SPEC.name == name
    models, _, difference = (module.__doc__ or "").split("\n\n")[0].strip().partition(": ")
    assert models and difference.endswith("."), "the docstring opens: models: difference."


@every_row
def test_norms(name):
    spec = ARCHITECTURES[name]
    assert spec.norms <= OF_RESIDUAL and spec.optional_norms <= OF_RESIDUAL
    assert not spec.norms & spec.optional_norms
    assert spec.norm in ("rms", "layer")
    assert spec.qk_norm is not None or not (spec.qk_norm_from or spec.qk_norm_optional)
    assert "ffn_norm" in spec.optional_norms or spec.parallel != "without_ffn_norm"


@every_row
def test_biases(name):
    """They are of what is there."""
    spec = ARCHITECTURES[name]
    stated = spec.biases | spec.optional_biases
    assert stated <= WITH_BIAS
    assert stated & OF_RESIDUAL <= spec.norms | spec.optional_norms
    assert spec.norm_weights or not stated & NORMS
    assert spec.qk_norm or not stated & {"attn_q_norm", "attn_k_norm"}
    assert spec.mixture or not stated & MIXTURE_STEMS
    assert spec.gated or "ffn_gate" not in stated
    assert spec.embedding_norm or "token_embd_norm" not in stated


@every_row
def test_feed_forward(name):
    spec = ARCHITECTURES[name]
    assert spec.activation in (GATES if spec.gated else ACTIVATIONS)
    assert spec.gated or not spec.fused_gate_up
    assert spec.ffn_share >= 1
    mixture = spec.mixture or Mixture()
    assert mixture.shared != "never" or not mixture.shared_gate
    assert spec.gated or spec.mixture is None, "experts are gated"


@every_row
def test_positions(name):
    spec = ARCHITECTURES[name]
    rotates = spec.pairing is not None
    assert rotates or not (spec.rope_factors or spec.sections or spec.unrotated_period)
    assert rotates or (spec.long_factors, spec.rotated) == ("never", "all")
    assert spec.window is not None or spec.rotated == "all"
    if spec.window is not None:
        assert spec.window.period >= 1
        assert spec.window.size is None or spec.window.size >= 0
    positions = rotates or spec.alibi or spec.positions != "never"
    assert positions or "attention.max_alibi_bias" in spec.keys


@every_row
def test_renames_are_of_leaves(name):
    for stem, stored in ARCHITECTURES[name].renames:
        assert stem in STEMS and stem != stored


@every_row
def test_every_key_is_read(name):
    spec = ARCHITECTURES[name]
    assert spec.required_keys <= spec.keys
    unread = {key for key in spec.keys if not any(f'"{key}"' in text for text in READERS.values())}
    if spec.mixture is not None:
        unread |= {key for key in spec.mixture.keys if f'"{key}"' not in READER_OF_MIXTURES}
    assert not unread


def test_every_key_that_is_asked_for_is_some_row_s():
    """What no row lists is never read."""
    listed = frozenset().union(*(spec.keys for spec in ARCHITECTURES.values()))
    asking = re.compile(r'(?:optional|self\.bound|self\.scale)\(\s*"([^"]+)"')
    asked = {key for text in READERS.values() for key in asking.findall(text)}
    assert asked and asked <= listed
    listed = frozenset().union(*(s.mixture.keys for s in ARCHITECTURES.values() if s.mixture))
    asked = set(re.findall(r'"([^"]+)" (?:not )?in mixture\.keys', READER_OF_MIXTURES))
    assert asked == listed


@pytest.mark.parametrize("kind", [ArchSpec, Mixture])
def test_every_mechanism_is_some_row_s(kind):
    """A field with one value in all rows is no mechanism; so is a choice that no row makes."""
    rows = [s if kind is ArchSpec else s.mixture for s in ARCHITECTURES.values()]
    for field in dataclasses.fields(kind):
        values = {getattr(row, field.name) for row in rows if row is not None}
        assert len(values) > 1, field.name
        choices = typing.get_args(field.type) if "Literal" in str(field.type) else ()
        assert {c for c in choices if isinstance(c, str)} <= values, field.name


@pytest.mark.parametrize("folder", ["models", "ops", "cache", "engine", "pallas"])
def test_no_code_asks_for_an_architecture_by_name(folder):
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Constant) and node.value in ARCHITECTURES
            assert not named, f"{path.name}:{getattr(node, 'lineno', 0)}: use a field of ArchSpec"
