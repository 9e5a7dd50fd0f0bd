"""Trains a small llama on a text, through rfjax's own decoder, and writes it as a GGUF file.

    python examples/train_tiny.py ../shared/data/tinyshakespeare.txt
    python examples/train_tiny.py --help        every setting

Needs optax beside rfjax's own requirements (`pip install -e .[test]`). Learns a vocabulary and the
weights from the first part of the text, chooses when to stop on the next, and measures the written
file on the last, which it puts beside the model. A GPU takes a minute or two; two CPU cores take
hours for the same.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

import jax
from tiny.corpus import split
from tiny.export import write_gguf
from tiny.recipe import Recipe
from tiny.training import Measurement, init_params, train
from tiny.vocabulary import BOS, Vocabulary, training_ids

import rfjax
from rfjax.errors import RfjaxError
from rfjax.evals.perplexity import chunk_tokens, perplexity
from rfjax.io.load import resolve_dtype
from rfjax.models.params import Params, param_spec, parameter_count

NAME = "Shakespeare tiny"
DESCRIPTION = (
    "A small llama that writes in the manner of Shakespeare's plays. Trained from nothing on the "
    "first 91 % of the Tiny Shakespeare text with examples/train_tiny.py of rfjax; for tests and "
    "demonstrations."
)
HERE = pathlib.Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status."""
    options = _parse(arguments)
    try:
        settings = {
            field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)
        }
        make_model(
            options.text,
            options.output,
            Recipe(**settings),
            dtype=options.dtype,
            max_seconds=60 * options.max_minutes,
            max_bytes=options.max_bytes,
        )
    except (RfjaxError, OSError) as error:
        print(f"train_tiny: {error}", file=sys.stderr)
        return 2
    return 0


def make_model(
    text_path: pathlib.Path,
    output: pathlib.Path,
    recipe: Recipe,
    *,
    dtype: str | None = None,
    max_seconds: float = math.inf,
    max_bytes: int = 8_000_000,
) -> dict:
    """Trains on a text and writes `output`, `<stem>-heldout.txt` and `<stem>.json` beside it.

    Args:
        dtype: of the activations while training; None takes the device's usual one.
        max_seconds: the training ends after the first measurement beyond it.
        max_bytes: of the written model.

    Returns:
        What the JSON file holds: the recipe, the figures, and what they were made on.

    Raises:
        ConfigError: settings that do not fit together, the text, or `max_bytes`.
        RequestError: a text too short to be split and measured.
    """
    corpus = split(text_path.read_text(encoding="utf-8"))
    vocabulary = Vocabulary(corpus.train, recipe.vocab_size)
    ids = training_ids(
        vocabulary,
        corpus.train,
        copies=recipe.segmentations,
        noise=recipe.segmentation_noise,
        seed=recipe.seed,
    )
    config = recipe.model_config()
    print(f"{parameter_count(param_spec(config)):,} parameters on {jax.devices()[0].device_kind}")
    print(f"{len(vocabulary.encode(corpus.train)):,} tokens to learn from")
    params = init_params(jax.random.key(recipe.seed), config)

    # The file goes first through the reader, so that an hour of training cannot end in a bad one.
    output.parent.mkdir(parents=True, exist_ok=True)
    texts = {"name": NAME, "description": DESCRIPTION, "max_bytes": max_bytes}
    write_gguf(output, params, vocabulary, recipe, **texts)
    model = rfjax.load(output, dtype="float32")
    assert model.config == config, f"{output} reads as {model.config}"
    assert model.tokenizer is not None
    assert model.tokenizer.encode(corpus.validation, add_special_tokens=False) == (
        vocabulary.encode(corpus.validation).tolist()
    )

    def validate(params: Params) -> float:
        trained = dataclasses.replace(model, params=params)
        return _measure(trained, corpus.validation, vocabulary)["nats_per_byte"]

    started = time.monotonic()
    params, best = train(
        recipe,
        dataclasses.replace(config, dtype=resolve_dtype(dtype)),
        params,
        ids,
        BOS,
        validate=validate,
        report=_print,
        max_seconds=max_seconds,
    )
    seconds = time.monotonic() - started
    tensor_type = write_gguf(output, params, vocabulary, recipe, **texts)
    output.with_name(f"{output.stem}-heldout.txt").write_text(corpus.held_out, encoding="utf-8")

    figures = _measure(rfjax.load(output, dtype="float32"), corpus.held_out, vocabulary)
    summary = {
        "recipe": dataclasses.asdict(recipe),
        "parameters": parameter_count(param_spec(config)),
        "tensor_type": tensor_type,
        "bytes": output.stat().st_size,
        "training": {"seconds": round(seconds, 1), "dtype": resolve_dtype(dtype)}
        | {"device": jax.devices()[0].device_kind, "jax": jax.__version__},
        "validation": {"nats_per_byte": best.validation, "step": best.step},
        "held_out": figures,
    }
    output.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"{output}: {summary['bytes']:,} bytes, {tensor_type}, best at step {best.step}\n"
        f"held-out text: perplexity {figures['perplexity']:.4f} +/- {figures['stderr']:.4f} a "
        f"token, {figures['byte_perplexity']:.4f} a byte (context {figures['n_ctx']})"
    )
    return summary


def _measure(model: rfjax.Model, text: str, vocabulary: Vocabulary) -> dict:
    """Perplexity as llama-perplexity counts it, per token and per byte of the tokens counted."""
    n_ctx = model.config.context_length
    result = perplexity(model, text, n_ctx=n_ctx)
    ids = [BOS, *vocabulary.encode(text).tolist()]
    counted = chunk_tokens(ids, n_ctx, None, BOS)[:, n_ctx // 2 + 1 :]
    nats = result.mean_nll * counted.size / int(vocabulary.byte_lengths[counted].sum())
    return {
        "perplexity": result.perplexity,
        "stderr": result.stderr,
        "nats_per_byte": nats,
        "byte_perplexity": math.exp(nats),
        "n_ctx": n_ctx,
        "tokens": result.n_tokens,
    }


def _print(now: Measurement) -> None:
    print(
        f"step {now.step:6d}  train {now.train:.4f} nats/token  "
        f"validation {now.validation:.4f} nats/byte  {now.seconds * 1e3:.2f} ms/step",
        flush=True,
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "text",
        type=pathlib.Path,
        nargs="?",
        default=HERE.parents[1] / "shared" / "data" / "tinyshakespeare.txt",
        help="the text to learn, UTF-8 (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=HERE / "models" / "shakespeare.gguf",
        help="the model to write (default: %(default)s)",
    )
    parser.add_argument("--dtype", help="of activations (default: bfloat16 on GPUs, else float32)")
    parser.add_argument("--max-minutes", type=float, default=math.inf, help="of training")
    parser.add_argument(
        "--max-bytes", type=int, default=8_000_000, help="of the model (default: %(default)s)"
    )
    for field in dataclasses.fields(Recipe):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            default=field.default,
            help=f"{field.metadata['help']} (default: %(default)s)",
        )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
