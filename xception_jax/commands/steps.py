"""Training and inference steps of a model on synthetic images, compiled for one device, and their flags."""

import argparse
import ast
import contextlib
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from xception_jax import metrics, models, optim, state, step
from xception_jax.data.images import inputs
from xception_jax.errors import SettingError, UserError
from xception_jax.run.compiler import compile_lowered

MODES = ("train", "inference")
WARM_UP = 2  # calls before the first that a caller sees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A key of `models.MODELS`, fields of its `Config`, and the images of a step: how many, and pixels a side."""

    model: str
    batch: int
    image_size: int
    dtype: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The model with its settings, such as "xception (remat=True)"."""
        settings = " ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.model} ({settings})" if settings else self.model

    @property
    def inputs(self) -> str:
        """What each image is, such as "299 px, float32"."""
        return f"{self.image_size} px, {self.dtype}"

    def create_model(self, key: jax.Array, **settings: Any) -> nnx.Module:
        """The model with fresh parameters; `settings` win over the workload's own."""
        fields = {"dtype": self.dtype, **self.settings, **settings}
        return models.create_model(self.model, rngs=nnx.Rngs(key), **fields)

    def abstract_model(self, **settings: Any) -> nnx.Module:
        """The same without arrays."""
        return nnx.eval_shape(lambda: self.create_model(jax.random.key(0), **settings))

    def forward_jaxpr(self) -> core.Jaxpr:
        """The forward pass for one image in inference mode, with XLA's own convolutions, traced but not computed.

        Raises:
          ValueError: if the images are too small for the model.
        """
        model = self.abstract_model(implementation="xla")
        graphdef, *arrays = state.split(model)
        shape = (1, self.image_size, self.image_size, model.config.in_channels)

        def forward(image, *arrays):
            return nnx.merge(graphdef, *arrays)(image, train=False)

        return jax.make_jaxpr(forward)(jax.ShapeDtypeStruct(shape, jnp.float32), *arrays).jaxpr


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Declares the flags that say what is measured, and how often by default."""
    add_model_arguments(parser)
    parser.add_argument("--batch", type=positive, default=8, help="images a step (default: 8)")
    types = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=types, default="float32", help="of the computation (default: float32)")
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"measurements (default: {rounds})")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that say which model."""
    names = ", ".join(image_models())
    parser.add_argument("--model", default="xception", help=f"one of {names} (default: xception)")
    parser.add_argument("--image-size", type=positive, help="pixels (default: the model's own)")
    about = "other fields of the model's Config, such as middle_blocks=1"
    several = {"dest": "settings", "nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--set", metavar="KEY=VALUE", help=about, **several)


def image_models() -> list[str]:
    """Names of the models that read images."""
    return [name for name, (cls, _) in models.MODELS.items() if cls.INPUTS == "images"]


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
    if arguments.model not in image_models():
        raise UserError(f"--model={arguments.model}: choose a model of images, {', '.join(image_models())}")
    workload = Workload(
        model=arguments.model,
        batch=arguments.batch,
        image_size=arguments.image_size or models.model_class(arguments.model).PREPROCESSING["image_size"],
        dtype=arguments.dtype,
        settings=dict(map(_parse_setting, arguments.settings)),
    )
    try:
        workload.forward_jaxpr()
    except SettingError as error:
        raise UserError(f"--set {error}") from None
    except ValueError as error:
        raise UserError(f"--image-size={workload.image_size}: {error}") from None
    return workload


def _parse_setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE as (key, value); what is no Python literal is a string."""
    key, _, value = text.partition("=")
    if key == "dtype":
        raise UserError(f"--set {text}: write --dtype={value}")
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value)
    return key, value


class Step:
    """A compiled step of one of `MODES` with its arguments on the device, ready and warm; a call runs it once.

    A training step uses SGD with momentum 0.9 and without weight decay, and hands its state to the next call. An
    inference is the evaluation step, which computes the logits, their loss and the hits.
    """

    def __init__(self, workload: Workload, mode: str):
        optimizer = optim.make_optimizer("sgd", 0.01, momentum=0.9, weight_decay=0.0)

        def init(key):
            return state.create(workload.create_model(key), optimizer, averaging=False)

        train_state = jax.jit(init)(jax.random.key(0))
        model = workload.abstract_model()
        graphdef, *_ = state.split(model)
        images = inputs.of_model(model.PREPROCESSING, channels=model.config.in_channels)
        objective = metrics.Objective(num_classes=model.config.num_classes)
        settings = {"prepare": images.prepare, "objective": objective}
        self._training = mode == "train"
        if self._training:
            function = step.make_train_step(graphdef, optimizer, **settings)
            self._carried, self._fixed = train_state, (synthetic_batch(workload), jax.random.key(1))
        else:
            function = step.make_eval_step(graphdef, **settings)
            self._carried, self._fixed = state.weight_sets(train_state), (synthetic_batch(workload),)
        jitted = jax.jit(function, donate_argnums=0 if self._training else ())
        start = time.perf_counter()
        self.compiled = compile_lowered(jitted.lower(self._carried, *self._fixed))
        self.compile_seconds = time.perf_counter() - start
        for _ in range(WARM_UP):
            self()

    def __call__(self) -> float:
        """Seconds of a step, from its call until its results are there."""
        start = time.perf_counter()
        result = jax.block_until_ready(self.compiled(self._carried, *self._fixed))
        seconds = time.perf_counter() - start
        if self._training:
            self._carried = result[0]
        return seconds


def synthetic_batch(workload: Workload) -> dict[str, jax.Array]:
    """Random images uint8[N, H, W, C] and labels int32[N] on the device, all of which count."""
    rng = np.random.default_rng(0)
    config = models.model_config(workload.model, **workload.settings)
    n, size = workload.batch, workload.image_size
    image = rng.integers(0, 256, (n, size, size, config.in_channels), dtype=np.uint8)
    label = rng.integers(0, config.num_classes, n, dtype=np.int32)
    batch = {"image": image, "label": label, "seed": np.arange(n, dtype=np.uint32)}
    return jax.device_put(batch | {"mask": np.ones(n, np.float32), "unreadable": np.full(n, -1, np.int32)})
