"""Models beside a base over a text: what is counted, the three ways to hold them, bad input."""

import dataclasses
import functools
import gc
import weakref

import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.errors import CapacityError, ModelFormatError, RequestError
from rfjax.evals.kl import residency
from rfjax.evals.kl.final_states import final_states
from rfjax.evals.kl.kld import kld
from rfjax.evals.kl.kld_files import kld_files
from rfjax.evals.kl.residency import choose_residency
from rfjax.evals.perplexity import perplexity
from rfjax.evals.records.journal import Journal
from rfjax.io.gguf import read_gguf
from rfjax.io.memory import Memory
from rfjax.io.parts import open_parts

pytestmark = pytest.mark.quick_compile

load = functools.partial(rfjax.load, weights="packed")
parts = functools.partial(open_parts, weights="packed")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A base, the same with attention in Q8_0, and a narrower model."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {"base": {}, "q8": {"quantized": True}, "small": {"width": 32}}
    return {
        name: tiny_llama(folder / f"{name}.gguf", **{"n_layers": 1, **kind})
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(3, 300, 16 * 5 + 3).tolist()


@pytest.fixture(scope="module")
def together(paths, ids):
    models = [load(paths[name]) for name in ("base", "base", "q8", "small")]
    told = []
    results = kld(
        models[0],
        models[1:],
        ids,
        n_ctx=16,
        batch_size=2,
        on_chunk=lambda done, total, sums: told.append((done, total, sums[0].count)),
    )
    assert told == [(i, 5, 7 * i) for i in range(1, 6)]
    return dict(zip(("base", "q8", "small"), results, strict=True))


def test_an_interrupted_comparison_goes_on_from_its_journal(paths, ids, together, tmp_path):
    models = [load(paths[name]) for name in ("base", "base", "q8", "small")]
    told = []

    def on_chunk(done, total, sums):
        told.append(done)
        if len(told) == 2:
            raise KeyboardInterrupt

    def compare():
        with Journal.open(tmp_path / "kld.jsonl", {}) as journal:
            before = len(journal)
            sizes = {"n_ctx": 16, "batch_size": 2}
            return before, kld(
                models[0], models[1:], ids, **sizes, journal=journal, on_chunk=on_chunk
            )

    with pytest.raises(KeyboardInterrupt):
        compare()
    for expected in (2, 5):
        before, results = compare()
        assert before == expected
        assert results == list(together.values())
    assert told == [1, 2, *range(1, 6), *range(1, 6)]


def test_the_figures_are_those_of_each_model(paths, ids, together):
    base, q8, small = (together[name].summary for name in ("base", "q8", "small"))
    assert (base.kld.value, base.p_diff_rms.value, base.same_top.value) == (0, 0, 1)
    assert 0 < q8.kld.value < 0.01 < small.kld.value
    assert q8.count == 5 * 7 and together["q8"].n_chunks == 5 and together["q8"].n_ctx == 16
    for name, summary in (("base", base), ("q8", q8), ("small", small)):
        alone = perplexity(load(paths[name]), ids, n_ctx=16)
        assert summary.ppl.value == pytest.approx(alone.perplexity, rel=1e-6)
        assert summary.ppl_base.value == base.ppl.value


@pytest.mark.parametrize("way", ["all", "one", "layers"])
def test_however_the_models_are_held_the_figures_are_the_same(paths, ids, together, way):
    """Within rounding: the pieces are compiled apart here, and hardly optimized."""
    seen, steps = [], []
    results = kld_files(
        paths["base"],
        list(paths.values()),
        ids,
        residency=way,
        load=load,
        open_parts=parts,
        n_ctx=16,
        batch_size=2,
        on_model=lambda path, model: seen.append((path, model.path)),
        on_step=lambda *step: steps.append(step),
    )
    for found, wanted in zip(results, together.values(), strict=True):
        assert (found.n_chunks, found.summary.count) == (5, 35)
        for name in ("ppl", "kld", "p_diff_rms", "same_top"):
            figure, other = getattr(found.summary, name), getattr(wanted.summary, name)
            assert figure.value == pytest.approx(other.value, rel=1e-4, abs=1e-9)
            assert figure.error == pytest.approx(other.error, rel=1e-3, abs=1e-9)
    expected = [] if way == "layers" else [(path, str(path)) for path in paths.values()]
    assert seen == expected
    assert all(done <= total for _, done, total in steps)
    assert steps[-1][1:] == (5, 5)


def test_one_model_is_given_up_before_the_next_is_loaded(paths, ids, monkeypatch):
    """Except for the base's output projection."""
    norms, alive, states, waiting = [], [], [], []

    def computing(model, *args, **kwargs):
        found = final_states(model, *args, **kwargs)
        states.append(weakref.ref(found))
        return found

    monkeypatch.setattr("rfjax.evals.kl.kld_files.final_states", computing)

    def loading(path):
        gc.collect()
        waiting.append(sum(each() is not None for each in states))
        alive.append(sum(norm() is not None for norm in norms))
        model = load(path)
        norms.append(weakref.ref(model.params.output_norm.weight))
        return model

    files = [paths["q8"], paths["base"], paths["q8"]]
    # Of a file that was compared nothing is left; the base's states wait.
    how = {"residency": "one", "load": loading, "open_parts": parts, "n_ctx": 16, "chunks": 2}
    results = kld_files(paths["base"], files, ids, **how)
    assert waiting == [0, 1, 1]
    assert alive == [0, 0, 0]  # the base is loaded and computed once
    assert results[0] == results[2] and results[1].summary.kld.value == 0


def test_what_is_held_follows_from_the_free_memory(paths, monkeypatch):
    def chosen(free):
        memory = Memory(free, 1, "a device")
        for module in (residency, rfjax.io.load):
            monkeypatch.setattr(module, "memory_of", lambda devices: memory)
        files = list(paths.values())
        return choose_residency(files, n_ctx=16, batch_size=1, weights="dequantized")

    ways = [chosen(free) for free in (None, 10**10, *range(20 << 20, 0, -(200 << 10)), 1000)]
    assert ways[:2] == ["one", "all"] and ways[-1] == "layers"
    changes = [way for way, before in zip(ways[2:], ways[1:], strict=False) if way != before]
    assert changes == ["one", "layers"]


def test_every_file_is_checked_for_room_beside_the_base_before_any_is_computed(
    paths, ids, monkeypatch
):
    checked = []

    def checking(parts, rows, batch_size, *, beside=0):
        checked.append((parts.path, beside))
        if beside:
            raise CapacityError("too large")

    monkeypatch.setattr("rfjax.evals.kl.kld_files.check_room", checking)
    monkeypatch.setattr("rfjax.evals.kl.kld_files.stream_states", None)
    how = {"residency": "layers", "load": load, "open_parts": parts, "n_ctx": 16}
    with pytest.raises(CapacityError, match="too large"):
        kld_files(paths["base"], [paths["base"], paths["q8"]], ids, **how)
    width = parts(paths["base"]).config.d_model
    assert checked == [(str(paths["base"]), 0), (str(paths["q8"]), 5 * 7 * width * 4)]


def test_other_vocabularies_are_refused_before_weights_are_loaded(paths, ids, tmp_path):
    gguf = read_gguf(paths["base"])
    assert gguf.metadata["tokenizer.ggml.tokens"][300] != "other"
    other = tmp_path / "other.gguf"
    data = paths["base"].read_bytes()
    piece = gguf.metadata["tokenizer.ggml.tokens"][-2].encode()
    place = data.index(len(piece).to_bytes(8, "little") + piece) + 8
    other.write_bytes(data[:place] + b"\x7f" + data[place + 1 :])

    def loading(path):
        raise AssertionError("weights are loaded")

    with pytest.raises(RequestError, match=r"token \d+ is .* in .*other.gguf and .* in the base"):
        kld_files(
            paths["base"],
            [other],
            ids,
            residency="one",
            load=loading,
            open_parts=open_parts,
            n_ctx=16,
        )


def test_bad_requests_say_what_is_wrong(paths, ids):
    base = load(paths["base"])
    with pytest.raises(RequestError, match="at least one model"):
        kld(base, [], ids)
    with pytest.raises(RequestError, match="n_ctx: got 512"):
        kld(base, [base], ids)
    with pytest.raises(RequestError, match="batch_size: got 0"):
        kld(base, [base], ids, n_ctx=16, batch_size=0)


def test_a_model_that_computes_nan_is_refused(paths, ids):
    base = load(paths["base"])
    norm = base.params.output_norm.weight.at[0].set(np.nan)
    broken = base.params.replace(output_norm=base.params.output_norm.replace(weight=norm))
    broken = dataclasses.replace(base, params=broken)
    for models in ((base, broken), (broken, base)):
        with pytest.raises(ModelFormatError, match="computes NaN"):
            kld(models[0], models[1:], ids, n_ctx=16, batch_size=2)
