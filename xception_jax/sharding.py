"""The mesh of devices, and where each array lives on it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_jax.errors import SettingError
from xception_jax.settings import Section, setting

PyTree = Any


class MeshShape(Section):
    """How the devices share the work."""

    model: int = setting(1, "devices that split the classes of the last layer among them", free=True, gt=0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shardings of batches and states over a mesh with the axis "data" and perhaps "model".

    Examples are split over all devices and the classes of the last layer along "model"; all else is replicated.
    """

    mesh: Mesh
    num_classes: int  # number of logits

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_example(self) -> NamedSharding:
        """The first axis split over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

    @property
    def logits(self) -> NamedSharding:
        """Sharding of logits [N, classes]: examples along "data", classes along "model" if the mesh has it."""
        return NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))

    def of_batch(self, name: str, ndim: int) -> NamedSharding:
        """Sharding of an array of a batch: labels and masks lie where the logits of their examples will be."""
        if name in ("label", "mask"):
            return NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names[:ndim]))
        return self.by_example

    def of_state(self, tree: PyTree) -> PyTree:
        """Shardings of a state or a part of one, given its shapes.

        Everything is replicated, except that the kernel and bias of the classifier, their averages and their
        optimizer state are split along "model", if the mesh has it.
        """

        def sharding(path, leaf):
            of_classes = "classifier" in jax.tree_util.keystr(path) and leaf.shape[-1:] == (self.num_classes,)
            if not of_classes or "model" not in self.mesh.axis_names:
                return self.replicated
            return NamedSharding(self.mesh, PartitionSpec(*(None,) * (leaf.ndim - 1), "model"))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def abstract(self, shapes: PyTree) -> PyTree:
        """A state's shapes with its shardings."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.of_state(shapes)
        )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's share of a batch -> the global batch, split over the devices."""
        return {
            name: jax.make_array_from_process_local_data(self.of_batch(name, array.ndim), array)
            for name, array in batch.items()
        }

    def round_up(self, batch_size: int) -> int:
        """The next multiple of the number of devices; padding is masked."""
        return math.ceil(batch_size / self.mesh.size) * self.mesh.size


def make_layout(model: int, *, num_classes: int) -> Layout:
    """All devices along "data" or, if `model` > 1, along "data" and `model` neighbors along "model".

    Raises:
      SettingError: if `model` does not divide the devices of a host and the classes.
    """
    local = jax.local_device_count()
    if local % model or num_classes % model:
        choices = [size for size in range(1, local + 1) if local % size == 0 and num_classes % size == 0]
        remedy = (
            f"must divide the number of devices of a host, {local}, and of classes, {num_classes:,}; choose one of"
        )
        raise SettingError("mesh.model", model, f"{remedy} {choices}")
    devices = in_host_order(jax.devices())
    shape, names = ((-1,), ("data",)) if model == 1 else ((-1, model), ("data", "model"))
    return Layout(Mesh(np.reshape(devices, shape), names, axis_types=(AxisType.Auto,) * len(names)), num_classes)


def in_host_order(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices, those of each host together.

    A host reads consecutive examples of the global batch, so its devices must be neighbors in the mesh.
    (`jax.make_mesh` may interleave the hosts of a TPU pod, which would permute the batch.)
    """
    return sorted(devices, key=lambda device: (device.process_index, device.id))
