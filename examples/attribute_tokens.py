"""Which tokens made the model say that? Input times gradient, through packed weights.

python examples/attribute_tokens.py [MODEL.gguf] differentiates the log-probability of the next
token by the embedding of every token before it. The weights stay as the file has them.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import rfjax

BUNDLED = pathlib.Path(__file__).parent / "models" / "shakespeare.gguf"


def best_logprob(shift, params, tokens, *, config):
    """Log-probability of the likeliest next token, with the embeddings [T, D] of the tokens
    shifted; and that token and the embeddings."""
    edits = {"token_embd": lambda embedded: embedded + shift}
    logits, at = rfjax.forward(params, tokens, config=config, taps=("token_embd",), edits=edits)
    best = logits[-1].argmax()
    return jax.nn.log_softmax(logits[-1])[best], (best, at["token_embd"])


def main(path: str | pathlib.Path = BUNDLED, weights: str = "packed") -> np.ndarray:
    model = rfjax.load(path, weights=weights)
    tokenizer, config = model.tokenizer, model.config
    assert tokenizer is not None
    text = "KING RICHARD III:\nA horse! a horse! my kingdom for a"
    tokens = jnp.asarray(tokenizer.encode(text))

    still = jnp.zeros((len(tokens), config.d_model), config.dtype)
    function = functools.partial(best_logprob, config=config)
    gradient = jax.jit(jax.value_and_grad(function, has_aux=True))
    (value, (best, embedded)), slopes = gradient(still, model.params, tokens)
    scores = np.asarray((embedded * slopes).sum(axis=-1))

    pieces = tokenizer.stream(continuation=True)  # keeps the blanks of single tokens
    texts = [pieces.push(token) for token in [*tokens.tolist(), int(best)]]
    print(f"log p({texts[-1]!r}) = {float(value):.3f}, because of")
    for text, score in zip(texts, scores, strict=False):
        bar = "#" * round(30 * abs(score) / np.abs(scores).max())
        print(f"{text!r:>12} {score:+7.3f} {bar}")
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:2])
