"""Activations tapped behind every layer: when does a model make up its mind?

python examples/tap_activations.py [MODEL.gguf] reads the residual stream behind each layer as if
it were the last one's (the "logit lens"), then edits it: without one layer's attention or network,
how likely is the model's choice still?
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

import rfjax
from rfjax.models.decoder import project
from rfjax.models.normalize import normalized

BUNDLED = pathlib.Path(__file__).parent / "models" / "shakespeare.gguf"


def main(path: str | pathlib.Path = BUNDLED) -> dict[str, float]:
    model = rfjax.load(path)
    config, tokenizer = model.config, model.tokenizer
    assert tokenizer is not None
    text = "KING RICHARD III:\nA horse! a horse! my kingdom for a"
    tokens = jnp.asarray(tokenizer.encode(text))
    n_layers = len(config.layers)
    streams = ("token_embd", *(f"blk.{i}" for i in range(n_layers)))

    run = functools.partial(rfjax.forward, config=config)
    logits, activations = jax.jit(functools.partial(run, taps=streams))(model.params, tokens)
    choice = int(logits[-1].argmax())
    spelled = lambda token: tokenizer.stream(continuation=True).push(int(token))  # noqa: E731
    print(f"{text.splitlines()[-1]} -> {spelled(choice)!r}")
    found = {}
    for name in streams:
        hidden = normalized(activations[name][-1:], model.params.output_norm, config)
        chances = jax.nn.softmax(project(model.params, hidden, config=config)[0])
        found[name] = float(chances[choice])
        best = [spelled(i) for i in jax.lax.top_k(chances, 3)[1]]
        print(f"{name:>30}: {found[name]:6.1%}, best {best}")

    parts = [f"blk.{i}.{part}" for i in range(n_layers) for part in ("attn_output", "ffn")]

    def chance_with(shares):  # so much of what each part adds
        edits = {p: functools.partial(jnp.multiply, s) for p, s in zip(parts, shares, strict=True)}
        return jax.nn.softmax(run(model.params, tokens, edits=edits)[-1])[choice]

    without_one = 1 - jnp.eye(len(parts))
    for name, chance in zip(parts, jax.jit(jax.vmap(chance_with))(without_one), strict=True):
        found[name] = float(chance)
        print(f"{'without ' + name:>30}: {found[name]:6.1%}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])
