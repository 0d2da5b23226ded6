"""What is measured: a training step or an inference of a model on synthetic images, compiled for one device."""

import argparse
import ast
import contextlib
import dataclasses
import inspect
import time
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jax.extend import core

from xception_jax import metrics, models, optim, state
from xception_jax import step as step_lib
from xception_jax.errors import UserError

MODES = ("train", "inference")
DTYPES = ("float32", "bfloat16")
WARM_UP = 2  # calls before the measured ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and the images it gets.

    Attributes:
      model: a key of `models.MODELS`.
      batch: images a step.
      image_size: their height and width in pixels.
      dtype: of the computation, a field of the model's `Config`.
      settings: other fields of the model's `Config`.
    """

    model: str
    batch: int
    image_size: int
    dtype: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.image_size} px, {self.dtype}"

    @property
    def columns(self) -> dict[str, Any]:
        """Of a row of measurements."""
        return {
            "library": "xception_jax",
            "model": self.model,
            "batch": self.batch,
            "image_size": self.image_size,
            "dtype": self.dtype,
            "implementation": self.settings.get("implementation") or "default",
        }

    def create_model(self, key: jax.Array, **settings: Any) -> nnx.Module:
        """The model with fresh parameters; `settings` win over the workload's own."""
        fields = {"dtype": self.dtype, **self.settings, **settings}
        return models.create_model(self.model, rngs=nnx.Rngs(key), **fields)

    def abstract_model(self, **settings: Any) -> nnx.Module:
        """The model without arrays."""
        return nnx.eval_shape(lambda: self.create_model(jax.random.key(0), **settings))

    @property
    def normalization(self) -> dict[str, float]:
        """`mean` and `std` of the model's preprocessing."""
        record = models.model_class(self.model).PREPROCESSING
        return {"mean": record.mean, "std": record.std}


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Declares the flags that say what is measured; `rounds` is how often if nothing is said."""
    add_model_arguments(parser)
    parser.add_argument("--batch", type=positive, default=8, help="images a step (default: 8)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation (default: float32)")
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"measurements (default: {rounds})")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that say which model."""
    parser.add_argument(
        "--model", default="xception", help=f"one of {', '.join(models.MODELS)} (default: xception)"
    )
    parser.add_argument("--image-size", type=positive, help="pixels (default: the model's own)")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="other fields of the model's Config, such as middle_blocks=1",
    )


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def from_arguments(arguments: argparse.Namespace) -> Workload:
    """The workload that the flags of `add_arguments` describe.

    Raises:
      UserError: for an unknown model or field, a value of another type or out of range, images too small.
    """
    try:
        cls = models.model_class(arguments.model)
    except ValueError as error:
        raise UserError(str(error).replace("model name = ", "--model=")) from None
    workload = Workload(
        model=arguments.model,
        batch=arguments.batch,
        image_size=arguments.image_size or cls.PREPROCESSING.image_size,
        dtype=arguments.dtype,
        settings=dict(_parse_setting(cls.CONFIG, text) for text in arguments.settings),
    )
    try:
        forward_jaxpr(workload)
    except (TypeError, ValueError) as error:
        raise UserError(f"--model={workload.model} --image-size={workload.image_size}: {error}") from None
    return workload


def _parse_setting(config: type, text: str) -> tuple[str, Any]:
    """KEY=VALUE as (key, value of the field's type)."""
    key, _, value = text.partition("=")
    types = typing.get_type_hints(config)
    if key == "dtype" or key not in types:
        raise UserError(f"--set {text}: choose one of {', '.join(sorted(types.keys() - {'dtype'}))}")
    with contextlib.suppress(ValueError, SyntaxError):  # which other text gives
        value = ast.literal_eval(value)
    try:
        return key, pydantic.TypeAdapter(types[key]).validate_python(value)
    except pydantic.ValidationError as error:
        rule = error.errors()[0]["msg"].replace("Input should", "it should")
        default = inspect.signature(config).parameters[key].default
        raise UserError(f"--set {text}: {rule}; the default is {key}={default}") from None


def forward_jaxpr(workload: Workload) -> core.Jaxpr:
    """The forward pass for one image in inference mode, with XLA's own convolutions, traced but not computed."""
    model = workload.abstract_model(implementation="xla")
    graphdef, params, batch_stats = state.split(model)
    size = workload.image_size
    image = jax.ShapeDtypeStruct((1, size, size, model.config.in_channels), jnp.float32)

    def forward(params, batch_stats, image):
        return nnx.merge(graphdef, params, batch_stats)(image, train=False)

    return jax.make_jaxpr(forward)(params, batch_stats, image).jaxpr


class Step:
    """A compiled step with its arguments on the device; a call runs it once.

    A training step has SGD with momentum 0.9 and gives its state back to the next call; inference is the
    evaluation step, that is the logits, their loss and hits.

    Attributes:
      compiled: jax's compiled program.
      compile_seconds: for tracing and compiling.
    """

    def __init__(self, workload: Workload, mode: str):
        self.training = mode == "train"
        optimizer = optim.make_optimizer("sgd", 0.01, momentum=0.9)

        def init(key):
            return state.create(workload.create_model(key), optimizer, averaging=False)

        train_state = jax.jit(init)(jax.random.key(0))
        model = workload.abstract_model()
        batch, (graphdef, *_) = synthetic_batch(workload), state.split(model)
        objective = metrics.Objective(num_classes=model.config.num_classes)
        settings = {**workload.normalization, "objective": objective}
        if self.training:
            function = step_lib.make_train_step(graphdef, optimizer, **settings)
            self._carried, self._fixed = train_state, (batch, jax.random.key(1))
        else:
            function = step_lib.make_eval_step(graphdef, **settings)
            self._carried, self._fixed = state.weight_sets(train_state), (batch,)
        jitted = jax.jit(function, donate_argnums=0 if self.training else ())
        start = time.perf_counter()
        self.compiled = jitted.lower(self._carried, *self._fixed).compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> tuple[float, float]:
        """Runs the step: (seconds until it was handed to the device, seconds until it was done)."""
        start = time.perf_counter()
        result = self.compiled(self._carried, *self._fixed)
        handed_over = time.perf_counter() - start
        jax.block_until_ready(result)
        done = time.perf_counter() - start
        if self.training:
            self._carried = result[0]
        return handed_over, done


def synthetic_batch(workload: Workload) -> dict[str, jax.Array]:
    """Random images uint8[N, H, W, C] and labels int32[N], all of them to be counted, on the device."""
    rng = np.random.default_rng(0)
    config = models.model_class(workload.model).CONFIG(**workload.settings)
    n, size = workload.batch, workload.image_size
    image = rng.integers(0, 256, (n, size, size, config.in_channels), dtype=np.uint8)
    label = rng.integers(0, config.num_classes, n, dtype=np.int32)
    counted = {"mask": np.ones(n, np.float32), "unreadable": np.full(n, -1, np.int32)}
    return jax.device_put({"image": image, "label": label, **counted})
