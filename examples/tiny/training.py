"""Training through the decoder that serves the model: random weights, dropout, loss, steps."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from rfjax.models.attention_inputs import whole_rows
from rfjax.models.config import ModelConfig
from rfjax.models.decoder import hidden_states, output_projection
from rfjax.models.params import Linear, Params, named_leaves, param_spec
from rfjax.ops.likelihood import token_nll
from rfjax.typing import Array, Float, Int
from tiny.recipe import Recipe


@struct.dataclass
class TrainState:
    """Everything that a step changes."""

    params: Params
    average: Params  # the weights' running average: what is measured and kept
    optimizer: optax.OptState
    step: Array  # int32 []


def init_params(key: Array, config: ModelConfig) -> Params:
    """Random f32 weights: normal of deviation 0.02, less where a layer writes to the stream.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    """
    spec = param_spec(config)
    narrow = 0.02 / math.sqrt(2 * len(config.layers))
    leaves = []
    for i, (name, leaf) in enumerate(named_leaves(spec).items()):
        if leaf.wide:
            leaves.append(jnp.ones(leaf.shape, jnp.float32))
            continue
        deviation = narrow if "attn_output" in name or "ffn_down" in name else 0.02
        values = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, jnp.float32)
        leaves.append(values * deviation)
    return jax.tree.unflatten(jax.tree.structure(spec), leaves)


def drop(params: Params, key: Array, rate: float) -> Params:
    """Weights with features dropped: of every layer's two inner vectors and two outputs.

    A feature is dropped by its column or row of a matrix, so the decoder needs no dropout of its
    own, and one mask holds for all tokens computed with these weights. What stays is scaled up.

    Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks" (2016), whose masks hold for a sequence.
    """

    def mask(key: Array, size: int) -> Array:
        return jax.random.bernoulli(key, 1 - rate, (size,)).astype(jnp.float32) / (1 - rate)

    def masked(linear: Linear, key: Array) -> Linear:
        rows, columns = linear.weight.shape
        out, inner = jax.random.split(key)
        kept = mask(out, rows)[:, None] * mask(inner, columns)[None, :]
        return linear.replace(weight=linear.weight * kept)

    if rate == 0:
        return params
    keys = jax.random.split(key, (len(params.blk), 2))
    blocks = [
        block.replace(
            attn_output=masked(block.attn_output, keys[i, 0]),
            ffn_down=masked(block.ffn_down, keys[i, 1]),
        )
        for i, block in enumerate(params.blk)
    ]
    return params.replace(blk=tuple(blocks))


def loss(
    params: Params, inputs: Int[Array, "B L"], targets: Int[Array, "B L"], config: ModelConfig
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the targets, in nats; logits are computed in f32."""
    batch, length = inputs.shape
    rows = whole_rows(jnp.full((batch,), length, jnp.int32), length)
    hidden, _ = hidden_states(params, inputs.reshape(-1), rows, None, config=config)
    output = output_projection(params)
    nll = token_nll(hidden.astype(jnp.float32), output.weight, output.bias, targets.reshape(-1))
    return jnp.mean(nll)


def draw_rows(key: Array, ids: Int[Array, " N"], recipe: Recipe, bos_id: int):
    """Random rows of the text: inputs, BOS in front and some tokens wrong, and their targets."""
    starting, noising, replacing = jax.random.split(key, 3)
    starts = jax.random.randint(starting, (recipe.batch, 1), 0, ids.shape[0] - recipe.context)
    targets = ids[starts + jnp.arange(recipe.context, dtype=jnp.int32)[None, :]]
    wrong = jax.random.bernoulli(noising, recipe.token_noise, targets.shape)
    random = jax.random.randint(replacing, targets.shape, 0, recipe.vocab_size)
    seen = jnp.where(wrong, random, targets)
    bos = jnp.full((recipe.batch, 1), bos_id, seen.dtype)
    return jnp.concatenate([bos, seen[:, :-1]], axis=1), targets


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW behind a clipped gradient, with a warm-up and a cosine."""
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=recipe.learning_rate,
        warmup_steps=min(recipe.warmup, recipe.steps - 1),
        decay_steps=recipe.steps,
        end_value=recipe.learning_rate / 20,
    )
    matrices_only = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.99, weight_decay=recipe.weight_decay, mask=matrices_only),
    )


def make_burst(recipe: Recipe, config: ModelConfig, bos_id: int):
    """A jitted `burst(state, ids) -> (state, mean loss)` of `eval_every` steps in one call, so that
    the host does not hold the device up; the state is donated."""
    optimizer = make_optimizer(recipe)
    seed = jax.random.key(recipe.seed)

    def batch_loss(params: Params, key: Array, inputs: Array, targets: Array):
        def group_loss(key, inputs, targets):
            return loss(drop(params, key, recipe.dropout), inputs, targets, config)

        grouped = lambda x: x.reshape(recipe.groups, -1, recipe.context)  # noqa: E731
        keys = jax.random.split(key, recipe.groups)
        return jnp.mean(jax.vmap(group_loss)(keys, grouped(inputs), grouped(targets)))

    def step(ids, state: TrainState, _):
        drawing, dropping = jax.random.split(jax.random.fold_in(seed, state.step))
        inputs, targets = draw_rows(drawing, ids, recipe, bos_id)
        value, grads = jax.value_and_grad(batch_loss)(state.params, dropping, inputs, targets)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first: the random start must not stay in the average.
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(jnp.float32(recipe.ema), (1 + done) / (10 + done))
        average = jax.tree.map(lambda a, p: a * decay + p * (1 - decay), state.average, params)
        return TrainState(params, average, optimizer_state, state.step + 1), value

    @functools.partial(jax.jit, donate_argnums=0)
    def burst(state: TrainState, ids: Array):
        one = functools.partial(step, ids)
        state, values = jax.lax.scan(one, state, length=recipe.eval_every)
        return state, jnp.mean(values)

    return burst


def init_state(recipe: Recipe, params: Params) -> TrainState:
    """The state before the first step. The weights are copied: a burst eats its state."""
    copied = functools.partial(jax.tree.map, jnp.copy)
    return TrainState(
        params=copied(params),
        average=copied(params),
        optimizer=make_optimizer(recipe).init(params),
        step=jnp.zeros((), jnp.int32),
    )


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One look at a training run.

    Attributes:
        step: steps done.
        train: nats per token of the last rows trained on, dropout and wrong tokens included.
        validation: nats per byte of the validation text.
        seconds: of a step; those of the first measurement hold the compilation.
    """

    step: int
    train: float
    validation: float
    seconds: float


def train(
    recipe: Recipe,
    config: ModelConfig,
    params: Params,
    ids: np.ndarray,
    bos_id: int,
    *,
    validate: Callable[[Params], float],
    report: Callable[[Measurement], None],
    max_seconds: float = math.inf,
) -> tuple[Params, Measurement]:
    """Trains until the steps, the patience or the time are used up.

    Args:
        config: the model's; its dtype is that of the activations, the weights stay f32.
        ids: text to draw rows from, int32 `[N]`.
        validate: nats per byte of the validation text.
        report: called with every measurement.

    Returns:
        The averaged weights that validated best, and their measurement.
    """
    started = time.monotonic()
    burst = make_burst(recipe, config, bos_id)
    state, device_ids = init_state(recipe, params), jnp.asarray(ids)
    best, best_params, waited = None, params, 0
    for step in range(recipe.eval_every, recipe.steps + 1, recipe.eval_every):
        began = time.monotonic()
        state, value = burst(state, device_ids)
        now = Measurement(
            step=step,
            train=float(value),  # waits for the device
            seconds=(time.monotonic() - began) / recipe.eval_every,
            validation=validate(state.average),
        )
        report(now)
        if best is None or now.validation < best.validation:
            best, best_params, waited = now, jax.tree.map(jnp.copy, state.average), 0
        else:
            waited += 1
        if waited == recipe.patience or time.monotonic() - started > max_seconds:
            break
    assert best is not None
    return best_params, best
