"""Where quantization hurts: the KL divergence of every token of a text, as a page of HTML.

python examples/kld_heat_map.py [PAGE.html [BASE.gguf QUANT.gguf]] colours the tokens by how far the
quantization's prediction of them is from the base's. Without files the bundled model is quantized
here, to 3 bits: a model is a tree of arrays, and another tree is another model.
"""

import html
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import rfjax
from rfjax.evals.kl.divergence import divergences

MODELS = pathlib.Path(__file__).parent / "models"


def rounded(weight, bits=3, block=32):
    """A matrix with every 32 weights of a row rounded to equal steps of their own scale."""
    if weight.ndim != 2 or weight.shape[-1] % block:
        return weight
    blocks = weight.reshape(*weight.shape[:-1], -1, block)
    scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / (2 ** (bits - 1) - 0.5)
    steps = jnp.round(blocks / jnp.where(scale == 0, 1, scale))
    return (steps * scale).reshape(weight.shape)


def main(page="kld_heat_map.html", base=MODELS / "shakespeare.gguf", quant=None, length=256):
    """Writes the page; returns the tokens' texts and divergences in nats."""
    model = rfjax.load(base, weights="dequantized")
    params, config = jax.tree.map(rounded, model.params), model.config
    if quant is not None:
        other = rfjax.load(quant)
        params, config = other.params, other.config
    text = (MODELS / "shakespeare-heldout.txt").read_text(encoding="utf-8")
    ids = model.tokenizer.encode(text)[:length]
    compare = jax.jit(divergences, static_argnames=("first", "base_config", "config"))
    rows, static = np.asarray([ids], np.int32), {"base_config": model.config, "config": config}
    kld = np.asarray(compare(model.params, params, rows, first=0, **static).kld[0])
    words = list(map(model.tokenizer.stream(continuation=True).push, ids[1:]))  # with blanks
    spans = [
        f'<span style="background:rgb(100% 20% 20% / {share:.0%})" title="{value:.4f} nats">'
        f"{html.escape(word)}</span>"
        for word, value, share in zip(words, kld, np.sqrt(kld / max(1e-9, kld.max())), strict=True)
    ]
    heading = f'<meta charset="utf-8"><h1>mean KL divergence {kld.mean():.4f} nats</h1>'
    pathlib.Path(page).write_text(f"{heading}<pre>{''.join(spans)}</pre>", encoding="utf-8")
    print(f"{page}: mean {kld.mean():.4f}, most at:")
    for i in np.argsort(-kld)[:5]:
        print(f"{kld[i]:8.3f}  ...{''.join(words[max(0, i - 6) : i])!r} -> {words[i]!r}")
    return words, kld


if __name__ == "__main__":
    main(*sys.argv[1:4])
