"""Learning-rate schedules, optimizers and Polyak averaging, built from optax."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = dict

OPTIMIZERS = ("sgd", "rmsprop_tf", "rmsprop_keras1")
SCHEDULES = ("constant", "exponential", "piecewise", "cosine")
LR_RULES = ("none", "linear", "sqrt")


def to_steps(
    name: str,
    *,
    batch_size: int,
    num_examples: int,
    steps: float | None = None,
    epochs: float | None = None,
    samples: float | None = None,
) -> float | None:
    """A duration in gradient steps, given in one unit of three; None if it is given in none.

    None and 0 both say that a unit is not used.

    Raises:
      ValueError: if two units are given; `name` is what the message calls the duration.

    >>> to_steps("decay_every", batch_size=32, num_examples=1600, epochs=2)
    100.0
    """
    given = {"steps": steps, "epochs": epochs, "samples": samples}
    given = {unit: value for unit, value in given.items() if value}
    if len(given) > 1:
        settings = " and ".join(f"{name}_{unit} = {value}" for unit, value in given.items())
        raise ValueError(f"{settings}: keep one and set the others to 0")
    if not given:
        return None
    ((unit, value),) = given.items()
    return float(value) * {"steps": 1, "epochs": num_examples / batch_size, "samples": 1 / batch_size}[unit]


def scale_learning_rate(base: float, *, batch_size: int, reference_batch: int, rule: str) -> float:
    """The learning rate for `batch_size`, from one tuned for `reference_batch`.

    Args:
      rule: "linear" (Goyal et al. 2017), "sqrt" (Krizhevsky 2014) or "none".

    >>> scale_learning_rate(0.045, batch_size=480, reference_batch=1920, rule="sqrt")
    0.0225
    """
    exponent = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}
    if rule not in exponent:
        raise ValueError(f"lr_rule = {rule!r}: choose one of {LR_RULES}")
    return base * (batch_size / reference_batch) ** exponent[rule]


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    total_steps: float,
    decay_rate: float = 0.94,
    decay_steps: float | None = None,
    staircase: bool = True,
    boundaries: Sequence[float] = (),
    factors: Sequence[float] = (),
    end_fraction: float = 0.0,
    warmup_steps: float = 0.0,
) -> optax.Schedule:
    """Learning rate as a function of the number of updates done.

    Args:
      name: "constant"; "exponential": times `decay_rate` every `decay_steps`, at once with `staircase`,
        else smoothly; "piecewise": times `factors[i]` from `boundaries[i]` on; "cosine": from the learning
        rate down to `end_fraction` of it at `total_steps` (Loshchilov and Hutter 2017).
      learning_rate: before any decay.
      total_steps, decay_steps, boundaries, warmup_steps: in gradient steps; fractions are allowed.
      warmup_steps: over these the schedule is multiplied by (step + 1) / warmup_steps. Decays count from
        step 0, with or without warm-up.

    Raises:
      ValueError: for an unknown name or what its schedule lacks.
    """
    if name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif name == "exponential":
        if not decay_steps:
            raise ValueError("schedule 'exponential' needs decay_every_epochs, _steps or _samples")
        schedule = _exponential(learning_rate, decay_steps, decay_rate, staircase)
    elif name == "piecewise":
        if not boundaries or len(boundaries) != len(factors):
            raise ValueError(f"schedule 'piecewise' needs as many boundaries {boundaries} as factors {factors}")
        schedule = _piecewise(learning_rate, boundaries, factors)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, total_steps, alpha=end_fraction)
    else:
        raise ValueError(f"schedule name = {name!r}: choose one of {SCHEDULES}")

    def rate(step):
        step = jnp.asarray(step, jnp.float32)  # optimizers count in int32
        return schedule(step) * (jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)

    return rate


def _exponential(learning_rate: float, decay_steps: float, decay_rate: float, staircase: bool) -> optax.Schedule:
    """A stair begins at its very step; optax's can be one late: XLA divides through the rounded reciprocal."""

    def schedule(step):
        decays = step / decay_steps
        if staircase:
            decays = jnp.floor(decays)
            decays = jnp.where(step >= (decays + 1) * decay_steps, decays + 1, decays)
            decays = jnp.where(step < decays * decay_steps, decays - 1, decays)
        return learning_rate * jnp.power(decay_rate, decays)

    return schedule


def _piecewise(learning_rate: float, boundaries: Sequence[float], factors: Sequence[float]) -> optax.Schedule:
    """A factor holds from the first step at or after its boundary (optax's own holds from the step after)."""

    def schedule(step):
        passed = [jnp.where(step >= b, f, 1.0) for b, f in zip(boundaries, factors, strict=True)]
        return learning_rate * jnp.prod(jnp.stack(passed))

    return schedule


def path_mask(params: PyTree, pattern: str) -> PyTree:
    """True for each parameter whose path, as in "entry/0/separable/1/bn/scale", matches the regular expression.

    Raises:
      ValueError: if it matches none.
    """
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/")) is not None,
        params,
    )
    if not any(jax.tree.leaves(mask)):
        raise ValueError(f"weight_decay_paths = {pattern!r} matches no parameter")
    return mask


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    decay: float | None = None,
    epsilon: float | None = None,
    weight_decay: float = 0.0,
    weight_decay_mode: str = "coupled",
    weight_decay_paths: str = "kernel",
    clip_norm: float | None = None,
    workers: int = 1,
) -> optax.GradientTransformation:
    """An optimizer with weight decay and gradient clipping.

    With g the gradient, p the parameter, lr the learning rate of the step:

      "sgd" (TensorFlow, torch): v = momentum v + g;  p -= lr v. momentum = 0.9.
      "rmsprop_tf" (TensorFlow 1, TF-Slim): s = decay s + (1 - decay) g^2, from s = 1;
        v = momentum v + lr g / sqrt(s + epsilon);  p -= v. momentum = decay = 0.9, epsilon = 1.
      "rmsprop_keras1" (Keras in 2016): s = decay s + (1 - decay) g^2, from s = 0;
        p -= lr g / (sqrt(s) + epsilon). decay = 0.9, epsilon = 1e-8. It has no momentum.

    Args:
      momentum, nesterov, decay, epsilon: None or False where the rule above has no such term; None takes
        the value above.
      weight_decay: wd. "coupled" is L2 regularization, the paper's: the loss has wd/2 |p|^2 (TensorFlow's and
        torch's convention; Keras's l2(c) is wd = 2c), so g gets wd p before everything else, clipping too.
        "decoupled" (Loshchilov and Hutter 2019): p -= lr wd p beside the update.
      weight_decay_paths: regular expression; decay touches the parameters whose path it finds.
      clip_norm: largest global norm of the gradient.
      workers: more than 1 trains as so many asynchronous workers do, see `asynchronous`. Coupled weight decay and
        clipping are then part of the gradient that a worker computes, the rest is the server's.

    Raises:
      ValueError: for an unknown name or mode, or a setting the optimizer does not have.
    """
    _check_terms(name, momentum=momentum, nesterov=nesterov, decay=decay, epsilon=epsilon)
    _check_decay(weight_decay_mode, weight_decay_paths)
    if workers < 1:
        raise ValueError(f"workers = {workers}: must be 1 or more")

    def mask(params):
        return path_mask(params, weight_decay_paths)

    gradient = []
    rule = [_rule(name, learning_rate, momentum=momentum, nesterov=nesterov, decay=decay, epsilon=epsilon)]
    if weight_decay and weight_decay_mode == "coupled":
        gradient.append(optax.add_decayed_weights(weight_decay, mask))
    elif weight_decay:
        rate = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
        rule.append(optax.add_decayed_weights(lambda step: -rate(step) * weight_decay, mask))
    if clip_norm is not None:
        gradient.append(optax.clip_by_global_norm(clip_norm))
    if workers > 1:
        rule = [asynchronous(optax.chain(*rule), workers)]
    return optax.chain(*gradient, *rule)


class AsynchronousState(NamedTuple):
    """State of `asynchronous`.

    Attributes:
      count: gradients given so far, int32[].
      queue: the last of them, [workers, ...] of each parameter; gradient t is at t mod workers. All but one wait:
        with a place more than these need, the newest is written before the oldest is read, and nothing copied.
      rule: state of the update rule.
    """

    count: jax.Array
    queue: PyTree
    rule: optax.OptState


def asynchronous(rule: optax.GradientTransformation, workers: int) -> optax.GradientTransformation:
    """Asynchronous gradient descent (Chollet 2017, section 4.4) of workers that take turns, one gradient a call.

    Each of W workers computes a gradient on its copy of the parameters and hands it to a server, which updates the
    parameters by `rule`, then copies these. All begin with the same copy. The server's update u = 0, 1, ... is
    worker u mod W's, which made its copy after update u - W. So, p(v) being the parameters before update v, the
    gradient of update u is that on p(max(0, u - K)), with K = W - 1.

    One worker gives the same parameters if it applies each gradient K calls late. Call t = 0, 1, ... comes with
    gradient t, computed on the parameters as they are, and applies gradient t - K as update t - K; the first K
    calls apply none and leave the rule's state alone, since even a gradient of zero moves what has momentum or
    decays. Before call t, max(0, t - K) updates were made: gradient t, which is that of update t, was computed on
    p(max(0, t - K)).

    It takes the memory of W gradients, in checkpoints too. A run of T calls makes T - K updates; the learning rate
    of `rule` follows the updates.

    Args:
      rule: turns a gradient into an update.
      workers: W, 2 or more.
    """

    def init(params):
        queue = jax.tree.map(lambda p: jnp.zeros((workers, *p.shape), p.dtype), params)
        return AsynchronousState(jnp.zeros((), jnp.int32), queue, rule.init(params))

    def update(gradient, state, params=None):
        newest, oldest = state.count % workers, (state.count + 1) % workers
        queue = jax.tree.map(
            lambda q, g: jax.lax.dynamic_update_index_in_dim(q, g, newest, axis=0), state.queue, gradient
        )
        due = jax.tree.map(lambda q: jax.lax.dynamic_index_in_dim(q, oldest, keepdims=False), queue)
        updates, rule_state = rule.update(due, state.rule, params)
        nothing = (optax.tree.zeros_like(updates), state.rule)
        updates, rule_state = optax.tree.where(state.count >= workers - 1, (updates, rule_state), nothing)
        return updates, AsynchronousState(state.count + 1, queue, rule_state)

    return optax.GradientTransformation(init, update)


def _rule(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float | None,
    nesterov: bool,
    decay: float | None,
    epsilon: float | None,
) -> optax.GradientTransformation:
    """The update rule alone, with the values `make_optimizer` names for what is None."""

    def given(value, default):
        return default if value is None else value

    if name == "sgd":
        return optax.sgd(learning_rate, momentum=given(momentum, 0.9), nesterov=nesterov)
    tensorflow = name == "rmsprop_tf"
    return optax.rmsprop(
        learning_rate,
        decay=given(decay, 0.9),
        eps=given(epsilon, 1.0 if tensorflow else 1e-8),
        initial_scale=1.0 if tensorflow else 0.0,
        eps_in_sqrt=tensorflow,
        momentum=given(momentum, 0.9) if tensorflow else None,
        nesterov=nesterov,
    )


def _check_terms(name: str, *, nesterov: bool, **settings: float | None) -> None:
    """Raises ValueError for an unknown optimizer, or a setting it has no term for."""
    terms = {
        "sgd": {"momentum"},
        "rmsprop_tf": {"momentum", "decay", "epsilon"},
        "rmsprop_keras1": {"decay", "epsilon"},
    }
    if name not in terms:
        raise ValueError(f"optimizer name = {name!r}: choose one of {OPTIMIZERS}")
    for setting, value in settings.items():
        if value is not None and setting not in terms[name]:
            raise ValueError(f"{setting} = {value}: optimizer {name!r} has no {setting}; set it to None")
    if nesterov and "momentum" not in terms[name]:
        raise ValueError(f"nesterov = True: optimizer {name!r} has no momentum; set it to False")


def _check_decay(mode: str, paths: str) -> None:
    """Raises ValueError for an unknown mode of weight decay, or paths that are no regular expression."""
    if mode not in ("coupled", "decoupled"):
        raise ValueError(f"weight_decay_mode = {mode!r}: choose 'coupled' or 'decoupled'")
    try:
        re.compile(paths)
    except re.error as error:
        raise ValueError(f"weight_decay_paths = {paths!r}: no regular expression, {error}") from None


def polyak_update(average: PyTree, new: PyTree, *, step: jax.Array, decay: float, warmup: bool) -> PyTree:
    """Moves the exponential moving average of the weights: average = d average + (1 - d) new.

    Args:
      average, new: trees of float arrays; parameters and batch statistics alike.
      step: number of updates done, this one included: int32[].
      decay: d, the paper's Polyak averaging (section 4.2); TensorFlow's Inception used 0.9999.
      warmup: TensorFlow's `num_updates` rule: d = min(decay, (1 + step) / (10 + step)).
    """
    step = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else jnp.float32(decay)
    return jax.tree.map(lambda a, n: (d * a + (1 - d) * n).astype(a.dtype), average, new)
