"""Learning-rate schedules, optimizers and weight averaging, built from optax; and their settings."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pydantic

from xception_jax.errors import SettingError
from xception_jax.settings import Section, setting, zero_is_none

PyTree = dict
Duration = Annotated[float | None, zero_is_none]

TERMS = {  # by optimizer: the settings that its update rule has
    "sgd": ("momentum", "nesterov"),
    "rmsprop_tf": ("momentum", "nesterov", "decay", "epsilon"),
    "rmsprop_keras1": ("decay", "epsilon"),
    "adam": ("momentum", "decay", "epsilon"),
    "adamw": ("momentum", "decay", "epsilon"),
}
LR_EXPONENTS = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}  # by rule


class Optimizer(Section):
    """Optimizer, weight decay and gradient clipping; see `make_optimizer`."""

    name: Literal[tuple(TERMS)] = setting("sgd", "update rule")
    momentum: float | None = setting(
        None, "decay of the velocity, Adam's beta 1; None = this optimizer's default", ge=0, lt=1
    )
    nesterov: bool = setting(False, "Nesterov's momentum")
    decay: float | None = setting(
        None, "decay of the mean of squared gradients; None = this optimizer's default", ge=0, lt=1
    )
    epsilon: float | None = setting(None, "added to the root, or inside it; None = this optimizer's default", gt=0)
    weight_decay: float = setting(1e-5, "strength of the weight decay", ge=0)
    weight_decay_mode: Literal["coupled", "decoupled"] = setting(
        "coupled", "coupled = L2 regularization of the loss; decoupled = subtracted from the weights directly"
    )
    weight_decay_paths: str = setting("kernel", "regular expression: parameters with matching paths decay")
    clip_norm: Duration = setting(None, "largest global norm of the gradient; None = no clipping", gt=0)
    replicas: int = setting(
        1, "number of asynchronous replicas to replay; each takes the memory of a gradient", ge=1
    )


class Schedule(Section):
    """Learning rate over the run; see `make_schedule`. Give a duration in one unit only."""

    name: Literal["constant", "exponential", "piecewise", "cosine"] = setting("exponential", "kind of decay")
    base_lr: float = setting(0.045, "learning rate for `reference_batch` examples, before any decay", gt=0)
    reference_batch: int = setting(1920, "batch size that `base_lr` was tuned for", gt=0)
    lr_rule: Literal[tuple(LR_EXPONENTS)] = setting("linear", "how the learning rate follows the batch size")
    decay_rate: float = setting(0.94, "exponential: factor of each decay", gt=0)
    decay_every_epochs: Duration = setting(None, "exponential: epochs between decays", gt=0)
    decay_every_steps: Duration = setting(None, "exponential: steps between decays", gt=0)
    decay_every_samples: Duration = setting(None, "exponential: examples between decays", gt=0)
    staircase: bool = setting(True, "exponential: decay in stairs, not smoothly")
    boundaries_epochs: tuple[pydantic.PositiveFloat, ...] = setting(
        (), "piecewise: epochs at which the factors begin to apply"
    )
    factors: tuple[pydantic.PositiveFloat, ...] = setting((), "piecewise: factor of the rate from each boundary")
    end_fraction: float = setting(0.0, "cosine: share of the learning rate at the end", ge=0, lt=1)
    warmup_epochs: Duration = setting(None, "epochs of linear warm-up", gt=0)
    warmup_steps: Duration = setting(None, "steps of linear warm-up", gt=0)
    warmup_samples: Duration = setting(None, "examples of linear warm-up", gt=0)

    def build(self, *, batch_size: int, num_examples: int, total_steps: float) -> optax.Schedule:
        """The schedule for a batch size, a training set and a length in steps.

        Raises:
          SettingError: for a duration in two units, or if the kind of schedule lacks a setting.
        """
        per_epoch = num_examples / batch_size
        sizes = {"batch_size": batch_size, "num_examples": num_examples}
        return make_schedule(
            self.name,
            scale_learning_rate(
                self.base_lr, batch_size=batch_size, reference_batch=self.reference_batch, rule=self.lr_rule
            ),
            total_steps=total_steps,
            decay_rate=self.decay_rate,
            decay_steps=to_steps(self, "decay_every", **sizes),
            staircase=self.staircase,
            boundaries=[epochs * per_epoch for epochs in self.boundaries_epochs],
            factors=self.factors,
            end_fraction=self.end_fraction,
            warmup_steps=to_steps(self, "warmup", **sizes) or 0.0,
        )


class Averaging(Section):
    """Polyak averaging of the weights; see `update_average`."""

    decay: Annotated[float | None, zero_is_none] = setting(
        0.9999, "decay of the exponential moving average; None = no averaging", gt=0, lt=1
    )
    warmup: bool = setting(True, "lower decay in the first steps, min(decay, (1 + step) / (10 + step))")


def to_steps(section: Section, name: str, *, batch_size: int, num_examples: int) -> float | None:
    """A duration of a section in gradient steps; None if it is set in no unit.

    Args:
      section: has some of the settings NAME_steps, NAME_epochs and NAME_samples.
      name: of the duration, such as "decay_every".

    Raises:
      SettingError: if it is set in two units.

    >>> to_steps(Schedule(decay_every_epochs=2.0), "decay_every", batch_size=32, num_examples=1600)
    100.0
    """
    factors = {"steps": 1, "epochs": num_examples / batch_size, "samples": 1 / batch_size}
    values = {unit: getattr(section, f"{name}_{unit}", None) for unit in factors}
    given = {unit: value for unit, value in values.items() if value is not None}
    if len(given) > 1:
        unit, other, *_ = given
        remedy = f"{name}_{other} is set too; keep one and set the others to None"
        raise SettingError(f"{name}_{unit}", given[unit], remedy)
    return next((float(value) * factors[unit] for unit, value in given.items()), None)


def scale_learning_rate(base: float, *, batch_size: int, reference_batch: int, rule: str) -> float:
    """The learning rate for `batch_size`, from one tuned for `reference_batch`.

    Args:
      rule: "linear" (Goyal et al. 2017), "sqrt" (Krizhevsky 2014) or "none".

    >>> scale_learning_rate(0.045, batch_size=480, reference_batch=1920, rule="sqrt")
    0.0225
    """
    return base * (batch_size / reference_batch) ** LR_EXPONENTS[rule]


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
      name: "constant"; "exponential": multiplied by `decay_rate` every `decay_steps`, at once with `staircase`,
        else smoothly; "piecewise": multiplied by `factors[i]` from `boundaries[i]` on; "cosine": from the learning
        rate down to `end_fraction` of it at `total_steps` (Loshchilov and Hutter 2017).
      learning_rate: before any decay.
      total_steps, decay_steps, boundaries, warmup_steps: in gradient steps; fractions are allowed.
      warmup_steps: the schedule is multiplied by (step + 1) / warmup_steps during these steps. Decays are counted
        from step 0, with or without warm-up.

    Raises:
      SettingError: for a setting that the kind of schedule lacks.
    """
    if name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif name == "exponential":
        if not decay_steps:
            remedy = "schedule 'exponential' needs it; set it, decay_every_steps or decay_every_samples"
            raise SettingError("decay_every_epochs", None, remedy)
        schedule = _exponential(learning_rate, decay_steps, decay_rate, staircase)
    elif name == "piecewise":
        if not boundaries:
            raise SettingError("boundaries_epochs", (), "schedule 'piecewise' needs one boundary or more")
        if len(boundaries) != len(factors):
            remedy = f"schedule 'piecewise' needs a factor for each of its {len(boundaries)} boundaries"
            raise SettingError("factors", tuple(factors), remedy)
        schedule = _piecewise(learning_rate, boundaries, factors)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, total_steps, alpha=end_fraction)
    else:
        raise SettingError("name", name, "choose 'constant', 'exponential', 'piecewise' or 'cosine'")

    def rate(step):
        step = jnp.asarray(step, jnp.float32)  # optimizers count in int32
        return schedule(step) * (jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)

    return rate


def _exponential(learning_rate: float, decay_steps: float, decay_rate: float, staircase: bool) -> optax.Schedule:
    """Exponential decay whose stairs begin at the exact step.

    Optax's stairs can begin one step late, because XLA multiplies by the rounded reciprocal of `decay_steps`.
    """

    def schedule(step):
        decays = step / decay_steps
        if staircase:
            decays = jnp.floor(decays)
            decays = jnp.where(step >= (decays + 1) * decay_steps, decays + 1, decays)
            decays = jnp.where(step < decays * decay_steps, decays - 1, decays)
        return learning_rate * jnp.power(decay_rate, decays)

    return schedule


def _piecewise(learning_rate: float, boundaries: Sequence[float], factors: Sequence[float]) -> optax.Schedule:
    """Piecewise constant rate; a factor applies from the first step at or after its boundary.

    (Optax's own schedule applies it from the step after.)
    """

    def schedule(step):
        passed = [jnp.where(step >= b, f, 1.0) for b, f in zip(boundaries, factors, strict=True)]
        return learning_rate * jnp.prod(jnp.stack(passed))

    return schedule


def path_mask(params: PyTree, pattern: str) -> PyTree:
    """True for each parameter whose path, such as "entry/0/separable/1/bn/scale", matches the regular expression.

    Raises:
      SettingError: if it matches none.
    """
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/")) is not None,
        params,
    )
    if not any(jax.tree.leaves(mask)):
        raise SettingError("weight_decay_paths", pattern, "matches no parameter; `summary` lists the layers")
    return mask


def make_optimizer(
    name: str, learning_rate: optax.ScalarOrSchedule, **settings: Any
) -> optax.GradientTransformation:
    """An optimizer with weight decay and gradient clipping.

    With g the gradient, p the parameter, lr the learning rate of the step:

      "sgd" (TensorFlow, torch): v = momentum v + g;  p -= lr v. Default: momentum = 0.9.
      "rmsprop_tf" (TensorFlow 1, TF-Slim): s = decay s + (1 - decay) g^2, from s = 1;
        v = momentum v + lr g / sqrt(s + epsilon);  p -= v. Defaults: momentum = decay = 0.9, epsilon = 1.
      "rmsprop_keras1" (Keras in 2016): s = decay s + (1 - decay) g^2, from s = 0;
        p -= lr g / (sqrt(s) + epsilon). Defaults: decay = 0.9, epsilon = 1e-8. It has no momentum.
      "adam" (Kingma and Ba 2015): v = momentum v + (1 - momentum) g;  s = decay s + (1 - decay) g^2, both from 0;
        p -= lr (v / (1 - momentum^t)) / (sqrt(s / (1 - decay^t)) + epsilon) in update t = 1, 2, ...
        Defaults: momentum = 0.9, decay = 0.999, epsilon = 1e-8.
      "adamw" (Loshchilov and Hutter 2019): "adam", but its weight decay is always decoupled.

    "coupled" weight decay wd is L2 regularization, as in the paper: the loss has the term wd/2 |p|^2 (the
    convention of TensorFlow and torch; Keras's l2(c) is wd = 2c), so wd p is added to g before everything else,
    including clipping. "decoupled" weight decay (Loshchilov and Hutter 2019) is p -= lr wd p beside the update.

    With `replicas` > 1, the optimizer trains like that many asynchronous replicas, see `asynchronous`. Coupled
    weight decay and clipping are then part of the gradient that a replica computes; the server does the rest.

    Args:
      name: of the update rule.
      **settings: other fields of `Optimizer`. Momentum, decay and epsilon must stay None where the rule has no
        such term.

    Raises:
      SettingError: for a value out of range, or a setting that the rule has no term for.
    """
    s = Optimizer(name=name, **settings)
    for term in ("momentum", "nesterov", "decay", "epsilon"):
        unset = Optimizer.model_fields[term].default
        if (value := getattr(s, term)) != unset and term not in TERMS[name]:
            raise SettingError(term, value, f"optimizer {name!r} has no {term}; set it to {unset}")
    try:
        re.compile(s.weight_decay_paths)
    except re.error as error:
        remedy = f"is no regular expression ({error})"
        raise SettingError("weight_decay_paths", s.weight_decay_paths, remedy) from None

    def mask(params):
        return path_mask(params, s.weight_decay_paths)

    gradient, rule = [], [_rule(s, learning_rate)]
    if s.weight_decay and s.weight_decay_mode == "coupled" and name != "adamw":
        gradient.append(optax.add_decayed_weights(s.weight_decay, mask))
    elif s.weight_decay:
        rate = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
        rule.append(optax.add_decayed_weights(lambda step: -rate(step) * s.weight_decay, mask))
    if s.clip_norm is not None:
        gradient.append(optax.clip_by_global_norm(s.clip_norm))
    if s.replicas > 1:
        rule = [asynchronous(optax.chain(*rule), s.replicas)]
    return optax.chain(*gradient, *rule)


def _rule(s: Optimizer, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The update rule alone, with the defaults of `make_optimizer` in the place of None."""

    def given(value, default):
        return default if value is None else value

    if s.name == "sgd":
        return optax.sgd(learning_rate, momentum=given(s.momentum, 0.9), nesterov=s.nesterov)
    if s.name in ("adam", "adamw"):
        decays = {"b1": given(s.momentum, 0.9), "b2": given(s.decay, 0.999)}
        adam = optax.adam(learning_rate, **decays, eps=given(s.epsilon, 1e-8))
        return optax.GradientTransformation(adam.init, _with_standard_promotion(adam.update))
    tensorflow = s.name == "rmsprop_tf"
    return optax.rmsprop(
        learning_rate,
        decay=given(s.decay, 0.9),
        eps=given(s.epsilon, 1.0 if tensorflow else 1e-8),
        initial_scale=1.0 if tensorflow else 0.0,
        eps_in_sqrt=tensorflow,
        momentum=given(s.momentum, 0.9) if tensorflow else None,
        nesterov=s.nesterov,
    )


def _with_standard_promotion(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced with JAX's usual promotion of types; Adam raises a float to an int32."""

    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return call


class AsynchronousState(NamedTuple):
    """State of `asynchronous`.

    Attributes:
      count: number of gradients given so far, int32[].
      queue: ring buffer of W gradients, [W, ...] for each parameter; gradient t is at t mod W. K gradients
        wait at a time; the spare slot allows writing before reading, so that nothing is copied.
      rule: state of the update rule.
    """

    count: jax.Array
    queue: PyTree
    rule: optax.OptState


def asynchronous(rule: optax.GradientTransformation, replicas: int) -> optax.GradientTransformation:
    """Asynchronous gradient descent (Chollet 2017, section 4.4) with W = `replicas` >= 2 that take turns.

    Each replica computes a gradient on its copy of the parameters and sends it to a server, which updates the
    parameters by `rule` and sends a new copy back. All replicas start with the same copy. Update u = 0, 1, ...
    comes from replica u mod W, which got its copy after update u - W. So its gradient is computed on the
    parameters before update max(0, u - K), where K = W - 1.

    A single process gives the same parameters if it applies each gradient K calls late: call t = 0, 1, ...
    receives gradient t, computed on the current parameters, and makes update t - K with gradient t - K. The first
    K calls change neither the parameters nor the rule's state (a zero gradient would move what has momentum or
    decays).

    This takes the memory of W gradients, in checkpoints too. A run of T calls makes T - K updates; the learning
    rate of `rule` follows the updates.
    """

    def init(params):
        queue = jax.tree.map(lambda p: jnp.zeros((replicas, *p.shape), p.dtype), params)
        return AsynchronousState(jnp.zeros((), jnp.int32), queue, rule.init(params))

    def update(gradient, state, params=None):
        newest, oldest = state.count % replicas, (state.count + 1) % replicas
        queue = jax.tree.map(
            lambda q, g: jax.lax.dynamic_update_index_in_dim(q, g, newest, axis=0), state.queue, gradient
        )
        due = jax.tree.map(lambda q: jax.lax.dynamic_index_in_dim(q, oldest, keepdims=False), queue)
        updates, rule_state = rule.update(due, state.rule, params)
        nothing = (optax.tree.zeros_like(updates), state.rule)
        updates, rule_state = optax.tree.where(state.count >= replicas - 1, (updates, rule_state), nothing)
        return updates, AsynchronousState(state.count + 1, queue, rule_state)

    return optax.GradientTransformation(init, update)


def update_average(average: PyTree, new: PyTree, *, step: jax.Array, settings: Averaging) -> PyTree:
    """Moves the exponential moving average of the weights: average = d average + (1 - d) new.

    Args:
      average, new: trees of arrays, parameters and model state alike; what is not floating-point is copied.
      step: number of updates done, this one included: int32[].
      settings: d = decay (Polyak averaging in the paper, section 4.2; TensorFlow's Inception used 0.9999); with
        `warmup`, d = min(decay, (1 + step) / (10 + step)), which is TensorFlow's `num_updates` rule.
    """
    step = step.astype(jnp.float32)
    d = jnp.minimum(settings.decay, (1 + step) / (10 + step)) if settings.warmup else jnp.float32(settings.decay)

    def move(a, n):
        return (d * a + (1 - d) * n).astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else n

    return jax.tree.map(move, average, new)
