"""Optimizers, schedules and averaging against numpy in float64, written from the rules in their docstrings."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xception_jax import optim
from xception_jax.errors import SettingError
from xception_jax.optim import Averaging, Schedule

RATES = (0.1, 0.05, 0.02, 0.01, 0.01)
IMAGENET, CIFAR = 1_281_167, 50_000


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(3, 2)), "bias": np.array([0.0, 1e-3 * rng.normal()])}


START = random_tree(0)
GRADIENTS = [random_tree(seed) for seed in range(1, len(RATES) + 1)]


def sgd(g, rate, slots, *, momentum=0.9, nesterov=False):
    slots["v"] = momentum * slots.get("v", 0.0) + g
    return rate * (g + momentum * slots["v"] if nesterov else slots["v"])


def rmsprop_tf(g, rate, slots, *, momentum=0.9, decay=0.9, epsilon=1.0):
    slots["s"] = decay * slots.get("s", 1.0) + (1 - decay) * g**2
    slots["v"] = momentum * slots.get("v", 0.0) + rate * g / np.sqrt(slots["s"] + epsilon)
    return slots["v"]


def rmsprop_keras1(g, rate, slots, *, decay=0.9, epsilon=1e-8):
    slots["s"] = decay * slots.get("s", 0.0) + (1 - decay) * g**2
    return rate * g / (np.sqrt(slots["s"]) + epsilon)


def adam(g, rate, slots, *, momentum=0.9, decay=0.999, epsilon=1e-8):
    t = slots["t"] = slots.get("t", 0) + 1
    slots["v"] = momentum * slots.get("v", 0.0) + (1 - momentum) * g
    slots["s"] = decay * slots.get("s", 0.0) + (1 - decay) * g**2
    return rate * slots["v"] / (1 - momentum**t) / (np.sqrt(slots["s"] / (1 - decay**t)) + epsilon)


RULES = {"sgd": sgd, "rmsprop_tf": rmsprop_tf, "rmsprop_keras1": rmsprop_keras1, "adam": adam}


def expected_path(rule, *, coupled=0.0, decoupled=0.0, decayed=("kernel",), clip_norm=math.inf, **terms):
    """The parameters after each step, in float64."""
    params, slots, path = START, {name: {} for name in START}, []
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        decays = {name: float(name in decayed) for name in params}
        g = {name: gradient[name] + coupled * decays[name] * params[name] for name in params}
        norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        g = {name: x * min(1.0, clip_norm / norm) for name, x in g.items()}
        params = {
            name: p - rule(g[name], rate, slots[name], **terms) - rate * decoupled * decays[name] * p
            for name, p in params.items()
        }
        path.append(params)
    return path


def actual_path(optimizer):
    """The same, by optax under jit in float32."""

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def single(tree):
        return {"block": jax.tree.map(jnp.float32, tree)}

    params, path = single(START), []
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        params, state = update(params, state, single(gradient))
        path.append(params["block"])
    return path


def decaying(step):
    return jnp.array(RATES, jnp.float32)[step]


def check_paths(actual, expected, *, atol=1e-7):
    for a, e in zip(actual, expected, strict=True):
        for name in START:
            np.testing.assert_allclose(a[name], e[name], rtol=2e-6, atol=atol)


ADAM = 2e-6  # float32 has few digits of 1 - 0.999^t


@pytest.mark.parametrize(
    "name, terms",
    [
        ("sgd", {}),
        ("sgd", {"momentum": 0.5}),
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"momentum": 0.5, "nesterov": True}),
        ("rmsprop_tf", {}),
        ("rmsprop_tf", {"epsilon": 1e-3}),
        ("rmsprop_tf", {"momentum": 0.5, "decay": 0.99, "epsilon": 1.0}),
        ("rmsprop_keras1", {}),
        ("rmsprop_keras1", {"decay": 0.99, "epsilon": 1e-2}),
        ("adam", {}),
        ("adam", {"momentum": 0.5, "decay": 0.9, "epsilon": 1e-3}),
    ],
)
def test_optimizers_follow_their_recurrences(name, terms):
    optimizer = optim.make_optimizer(name, decaying, weight_decay=0.0, **terms)
    expected = expected_path(RULES[name], **terms)
    check_paths(actual_path(optimizer), expected, atol=ADAM if name == "adam" else 1e-7)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_weight_decay(name, mode):
    optimizer = optim.make_optimizer(name, decaying, weight_decay=0.3, weight_decay_mode=mode)
    expected = expected_path(RULES[name], **{mode: 0.3})
    check_paths(actual_path(optimizer), expected, atol=ADAM if name == "adam" else 1e-7)


def test_adamw_decays_the_weights_directly():
    optimizer = optim.make_optimizer("adamw", decaying, weight_decay=0.3)
    check_paths(actual_path(optimizer), expected_path(adam, decoupled=0.3), atol=ADAM)


def logistic_gradient(params, batch):
    """Of sum log(1 + exp(x kernel + bias)): not linear in the parameters."""
    shares = 1 / (1 + np.exp(-(batch @ params["kernel"] + params["bias"])))
    return {"kernel": batch.T @ shares, "bias": shares.sum(0)}


def distributed_path(rule, batches, *, workers, coupled=0.0, decoupled=0.0, clip_norm=math.inf, **terms):
    """The server's parameters before each update, in float64: every worker has a copy of its own."""
    server, slots, path = START, {name: {} for name in START}, [START]
    copies = [START] * workers
    for update, batch in enumerate(batches):
        worker = update % workers
        g = logistic_gradient(copies[worker], batch)
        g["kernel"] = g["kernel"] + coupled * copies[worker]["kernel"]
        scale = min(1.0, clip_norm / math.sqrt(sum((x**2).sum() for x in g.values())))
        decay = {"kernel": RATES[update] * decoupled * server["kernel"], "bias": 0.0}
        server = {
            name: server[name] - rule(scale * g[name], RATES[update], slots[name], **terms) - decay[name]
            for name in server
        }
        copies[worker] = server
        path.append(server)
    return path


@pytest.mark.parametrize(
    "name, workers, terms, decay",
    [
        ("sgd", 2, {}, {}),
        ("sgd", 4, {"momentum": 0.5, "nesterov": True}, {"decoupled": 0.3}),
        ("rmsprop_keras1", 3, {}, {"coupled": 0.3}),
        ("rmsprop_tf", 2, {}, {"coupled": 0.3, "clip_norm": 0.5}),
        ("rmsprop_tf", 7, {}, {"decoupled": 0.3}),  # more workers than there are updates
    ],
)
def test_workers_in_turn_are_a_server_and_copies(name, workers, terms, decay):
    settings = {"weight_decay": 0.0} | decay
    for mode in ("coupled", "decoupled"):
        if mode in settings:
            settings |= {"weight_decay": settings.pop(mode), "weight_decay_mode": mode}
    optimizer = optim.make_optimizer(name, decaying, replicas=workers, **terms, **settings)
    batches = np.random.default_rng(9).normal(size=(len(RATES) + workers - 1, 5, 3))

    def loss(params, batch):
        return jnp.sum(jax.nn.softplus(batch @ params["kernel"] + params["bias"][None]))

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.float32, START)
    state, path = optimizer.init(params), [params]
    for batch in batches:
        params, state = step(params, state, jnp.float32(batch))
        path.append(params)
    for waiting in path[:workers]:  # nothing has been applied yet
        jax.tree.map(np.testing.assert_array_equal, waiting, path[0])
    expected = distributed_path(RULES[name], batches[: len(RATES)], workers=workers, **terms, **decay)
    for a, e in zip(path[workers - 1 :], expected, strict=True):
        for leaf in START:
            np.testing.assert_allclose(a[leaf], e[leaf], rtol=1e-5, atol=1e-6)


def test_gradients_that_wait_are_written_in_place():
    """The memory of a step grows by nothing but the state."""
    params, workers = {"kernel": jnp.zeros((64, 64))}, 20
    optimizer = optim.make_optimizer("rmsprop_keras1", decaying, replicas=workers)
    state = optimizer.init(params)
    compiled = jax.jit(optimizer.update, donate_argnums=1).lower(params, state, params).compile().memory_analysis()
    queue = workers * 64 * 64 * 4
    assert compiled.alias_size_in_bytes > queue and compiled.temp_size_in_bytes < queue / 4


def test_no_replicas_are_refused():
    with pytest.raises(SettingError, match=r"^replicas = 0: input should be greater than or equal to 1"):
        optim.make_optimizer("sgd", 0.1, replicas=0)


def test_decoupled_weight_decay_at_a_constant_rate():
    optimizer = optim.make_optimizer("sgd", 0.1, momentum=0.0, weight_decay=0.5, weight_decay_mode="decoupled")
    params = {"kernel": jnp.array([2.0])}
    updates, _ = optimizer.update({"kernel": jnp.array([3.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.1 * 3 - 0.1 * 0.5 * 2], rtol=1e-6)


@pytest.mark.parametrize("pattern, decayed", [("bias", ("bias",)), ("^block/", ("bias", "kernel"))])
def test_weight_decay_touches_the_parameters_of_its_pattern(pattern, decayed):
    optimizer = optim.make_optimizer("sgd", decaying, weight_decay=0.3, weight_decay_paths=pattern)
    check_paths(actual_path(optimizer), expected_path(sgd, coupled=0.3, decayed=decayed))


@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
def test_clipping_comes_after_coupled_and_beside_decoupled_decay(mode, clip_norm):
    settings = {"weight_decay": 0.3, "weight_decay_mode": mode, "clip_norm": clip_norm}
    expected = expected_path(sgd, clip_norm=clip_norm, **{mode: 0.3})
    check_paths(actual_path(optim.make_optimizer("sgd", decaying, **settings)), expected)


def test_clipping_by_hand():
    optimizer = optim.make_optimizer("sgd", 1.0, momentum=0.0, weight_decay=0.1, clip_norm=1.0)
    params = {"kernel": jnp.array([0.0, 10.0])}
    updates, _ = optimizer.update({"kernel": jnp.array([3.0, 3.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.6, -0.8], rtol=1e-6)  # (3, 3 + 0.1 * 10) has norm 5


def test_an_optimizer_takes_its_rate_from_a_schedule():
    schedule = optim.make_schedule("exponential", 0.1, total_steps=9, decay_rate=0.5, decay_steps=2.0)
    path = actual_path(optim.make_optimizer("sgd", schedule, momentum=0.0, weight_decay=0.0))
    expected = START["kernel"]
    for i, rate in enumerate((0.1, 0.1, 0.05, 0.05, 0.025)):
        expected = expected - rate * GRADIENTS[i]["kernel"]
        np.testing.assert_allclose(path[i]["kernel"], expected, rtol=2e-6, atol=1e-7)


def test_path_mask_writes_paths_with_slashes():
    params = {
        "entry": {0: {"bn": {"scale": 1.0}, "kernel": 1.0}, 10: {"kernel": 1.0}},
        "classifier": {"kernel": 1.0},
    }
    mask = optim.path_mask(params, r"entry/\d/.*(kernel|scale)$")
    expected = {0: {"bn": {"scale": True}, "kernel": True}, 10: {"kernel": False}}
    assert mask == {"entry": expected, "classifier": {"kernel": False}}


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(SettingError, match=r"^weight_decay_paths = 'kernle': matches no parameter"):
        optim.path_mask({"kernel": 1.0}, "kernle")
    with pytest.raises(SettingError, match=r"^weight_decay_paths = 'kernle': matches no parameter"):
        optim.make_optimizer("sgd", 0.1, weight_decay=0.1, weight_decay_paths="kernle").init(
            {"kernel": jnp.ones(1)}
        )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "adagrad"}, "'adagrad'.*sgd"),
        ({"name": "adam", "nesterov": True}, "nesterov = True.*'adam' has no nesterov"),
        ({"name": "sgd", "decay": 0.9}, "decay = 0.9.*'sgd' has no decay"),
        ({"name": "sgd", "epsilon": 1.0}, "epsilon = 1.0.*'sgd' has no epsilon"),
        ({"name": "rmsprop_keras1", "momentum": 0.9}, "momentum = 0.9.*'rmsprop_keras1' has no momentum"),
        (
            {"name": "rmsprop_keras1", "nesterov": True},
            "nesterov = True.*'rmsprop_keras1' has no nesterov; set it to False",
        ),
        ({"name": "sgd", "weight_decay_mode": "l2"}, "weight_decay_mode = 'l2'.*coupled"),
        ({"name": "sgd", "weight_decay_paths": "(kernel"}, r"weight_decay_paths = '\(kernel'.*regular expression"),
        ({"name": "sgd", "momentum": 1.0}, "momentum = 1.0: .*less than 1"),
        ({"name": "sgd", "weight_decay": -0.1}, "weight_decay = -0.1: .*greater than or equal to 0"),
        ({"name": "sgd", "clip_nrom": 1.0}, "clip_nrom = 1.0: .*did you mean 'clip_norm'"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(SettingError, match=message):
        optim.make_optimizer(learning_rate=0.1, **settings)


def rates(schedule, steps):
    """Values of a schedule as an optimizer asks for them: traced, with an int32 step."""
    traced = jax.jit(schedule)
    return [float(traced(jnp.int32(step))) for step in steps]


def every(count, *, examples, batch, unit):
    """decay_steps of a decay every `count` epochs or samples."""
    section = Schedule(**{f"decay_every_{unit}": count})
    return optim.to_steps(section, "decay_every", batch_size=batch, num_examples=examples)


@pytest.mark.parametrize("batch", [32, 480, 1600, 1920])
def test_staircase_of_two_epochs(batch):
    exact = Fraction(2 * IMAGENET, batch)
    schedule = optim.make_schedule(
        "exponential", 0.045, total_steps=1e6, decay_steps=every(2, examples=IMAGENET, batch=batch, unit="epochs")
    )
    for k in (1, 2, 3, 10, 29):
        first = math.ceil(k * exact)
        before, after = rates(schedule, [first - 1, first])
        np.testing.assert_allclose([before, after], [0.045 * 0.94 ** (k - 1), 0.045 * 0.94**k], rtol=1e-5)


@pytest.mark.parametrize("decay_steps", [1, 3, 41, 90, 781.25, 93_750])
def test_staircase_falls_at_the_very_step(decay_steps):
    schedule = optim.make_schedule("exponential", 1.0, total_steps=1e6, decay_rate=0.97, decay_steps=decay_steps)
    firsts = [math.ceil(k * Fraction(decay_steps)) for k in range(1, 60)]
    steps = [step for first in firsts for step in (first - 1, first)]
    expected = [0.97 ** math.floor(step / Fraction(decay_steps)) for step in steps]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=2e-5)


def test_staircase_of_three_million_samples():
    decay_steps = every(3_000_000, examples=350_000_000, batch=32, unit="samples")
    schedule = optim.make_schedule("exponential", 0.001, total_steps=1e6, decay_rate=0.9, decay_steps=decay_steps)
    steps = [0, 93_749, 93_750, 187_499, 187_500, 937_500]
    np.testing.assert_allclose(
        rates(schedule, steps), [0.001, 0.001, 0.0009, 0.0009, 0.00081, 0.001 * 0.9**10], rtol=1e-5
    )


def test_smooth_exponential():
    schedule = optim.make_schedule(
        "exponential", 0.045, total_steps=1e6, decay_steps=2 * IMAGENET / 1920, staircase=False
    )
    steps = [0, 1, 667, 1334, 1335, 40_000]
    expected = [0.045 * 0.94 ** (step * 1920 / (2 * IMAGENET)) for step in steps]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "batch, firsts",
    [(125, (40_000, 60_000, 72_000)), (128, (39_063, 58_594, 70_313))],  # 390.625 steps an epoch with 128
)
def test_piecewise_at_epochs_100_150_180(batch, firsts):
    schedule = optim.make_schedule(
        "piecewise",
        0.1,
        total_steps=200 * CIFAR / batch,
        boundaries=[epochs * CIFAR / batch for epochs in (100, 150, 180)],
        factors=(0.1, 0.1, 0.1),
    )
    steps = [0, *(step for first in firsts for step in (first - 1, first)), 10**6]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-6)


def test_piecewise_factors_may_differ():
    schedule = optim.make_schedule("piecewise", 1.0, total_steps=9, boundaries=(2, 5.5), factors=(0.2, 0.5))
    np.testing.assert_allclose(rates(schedule, range(8)), [1, 1, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    "end_fraction, expected", [(0.0, [0.4, 0.3, 0.2, 0, 0]), (0.1, [0.4, 0.31, 0.22, 0.04, 0.04])]
)
def test_cosine(end_fraction, expected):
    schedule = optim.make_schedule("cosine", 0.4, total_steps=900, end_fraction=end_fraction)
    np.testing.assert_allclose(rates(schedule, [0, 300, 450, 900, 2000]), expected, rtol=1e-6, atol=1e-8)


def test_warm_up_multiplies_the_schedule():
    schedule = optim.make_schedule(
        "exponential", 0.8, total_steps=100, decay_rate=0.5, decay_steps=3.0, warmup_steps=4.0
    )
    expected = [0.2, 0.4, 0.6, 0.4, 0.4, 0.4, 0.2]  # decays count from step 0
    np.testing.assert_allclose(rates(schedule, range(7)), expected, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps, expected", [(0.0, [0.3] * 4), (2.0, [0.15, 0.3, 0.3, 0.3])])
def test_constant(warmup_steps, expected):
    schedule = optim.make_schedule("constant", 0.3, total_steps=10, warmup_steps=warmup_steps)
    np.testing.assert_allclose(rates(schedule, [0, 1, 2, 1000]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("exponential", {}, "^decay_every_epochs = None: .*'exponential' needs it"),
        ("piecewise", {}, r"^boundaries_epochs = \(\): .*'piecewise' needs"),
        (
            "piecewise",
            {"boundaries": (1, 2), "factors": (0.1,)},
            r"^factors = \(0.1,\): .*'piecewise'.*2 boundaries",
        ),
        ("linear", {}, "'linear'.*constant"),
    ],
)
def test_a_schedule_without_its_pieces_is_refused(name, settings, message):
    with pytest.raises(SettingError, match=message):
        optim.make_schedule(name, 0.1, total_steps=10, **settings)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, None),
        ({"steps": 7}, 7.0),
        ({"epochs": 2}, 2 * IMAGENET / 1920),
        ({"samples": 3_000_000}, 1562.5),
        ({"epochs": 0.0, "steps": 0}, None),
        ({"epochs": 0.0, "samples": 3_000_000}, 1562.5),
    ],
)
def test_durations_in_steps(given, expected):
    section = Schedule(**{f"warmup_{unit}": value for unit, value in given.items()})
    steps = optim.to_steps(section, "warmup", batch_size=1920, num_examples=IMAGENET)
    assert steps is None if expected is None else steps == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("units", [("steps", "epochs"), ("steps", "samples"), ("epochs", "samples")])
def test_two_units_are_refused(units):
    section = Schedule(**{f"warmup_{unit}": 5 for unit in units})
    with pytest.raises(SettingError, match=f"^warmup_{units[0]} = 5.0: warmup_{units[1]} is set too; keep one"):
        optim.to_steps(section, "warmup", batch_size=32, num_examples=100)


@pytest.mark.parametrize("rule, expected", [("linear", 0.0375), ("sqrt", 0.075), ("none", 0.15)])
def test_learning_rate_for_another_batch(rule, expected):
    actual = optim.scale_learning_rate(0.15, batch_size=64, reference_batch=256, rule=rule)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_an_unknown_rule_is_refused():
    with pytest.raises(SettingError, match=r"^lr_rule = 'cubic'.*linear"):
        Schedule(lr_rule="cubic")


def test_a_section_builds_its_schedule():
    """Epochs of 40 steps; the rate 0.8 was tuned for a batch four times as large."""
    section = Schedule(
        name="piecewise",
        base_lr=0.8,
        reference_batch=128,
        boundaries_epochs=(1.0, 2.5),
        factors=(0.5, 0.1),
        warmup_samples=64,
    )
    schedule = section.build(batch_size=32, num_examples=1280, total_steps=200)
    expected = {0: 0.1, 1: 0.2, 39: 0.2, 40: 0.1, 99: 0.1, 100: 0.01}
    np.testing.assert_allclose(rates(schedule, expected), [*expected.values()], rtol=1e-6)


@pytest.mark.parametrize("warmup", [True, False])
def test_averaging(warmup):
    settings = Averaging(decay=0.9, warmup=warmup)
    update = jax.jit(lambda average, new, n: optim.update_average(average, new, step=n, settings=settings))
    average, expected = jax.tree.map(jnp.float32, START), START
    for n in range(1, 121):  # (1 + n) / (10 + n) passes 0.9 at 80
        new, d = random_tree(n), min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
        expected = {name: d * expected[name] + (1 - d) * new[name] for name in new}
        average = update(average, jax.tree.map(jnp.float32, new), jnp.int32(n))
        for name in new:
            np.testing.assert_allclose(average[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step, weight", [(1, 9 / 11), (45_000, 9 / 45_010), (89_990, 1e-4), (10**6, 1e-4)])
def test_the_warm_up_reaches_0_9999_at_step_89990(step, weight):
    settings = Averaging(decay=0.9999, warmup=True)
    moved = optim.update_average(jnp.zeros(1), jnp.ones(1), step=jnp.int32(step), settings=settings)
    np.testing.assert_allclose(moved, [weight], rtol=1e-3)


def test_averaging_copies_what_is_not_floating_point():
    """Counters, flags and random keys of a model's state have no mean."""

    def tree(number):
        counters = {"int32": jnp.int32([number, 2**30 + number]), "uint32": jnp.uint32(2**32 - 1 - number)}
        others = {"flag": jnp.array([number > 5, number < 5]), "key": jax.random.key(number)}
        return {"statistics": {"mean": jnp.float32([number, -number])}, **counters, **others}

    update = jax.jit(lambda *trees: optim.update_average(*trees, step=jnp.int32(1), settings=Averaging(decay=0.5)))
    old, new = tree(3), tree(11)
    average = update(old, new)
    d = 2 / 11  # of the warm-up at step 1
    np.testing.assert_allclose(
        average["statistics"]["mean"], [3 * d + 11 * (1 - d), -3 * d - 11 * (1 - d)], rtol=1e-6
    )
    for name in ("int32", "uint32", "flag"):
        np.testing.assert_array_equal(average[name], new[name], strict=True)
    np.testing.assert_array_equal(jax.random.key_data(average["key"]), jax.random.key_data(new["key"]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), average) == jax.tree.map(lambda x: (x.shape, x.dtype), old)
