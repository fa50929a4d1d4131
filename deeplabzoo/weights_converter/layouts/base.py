"""What a layout is: recognise, read the spec, and one table used in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import BatchNorm
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.canonical import Canonical, Card
from deeplabzoo.weights_converter.formats import Checkpoint, shown
from deeplabzoo.weights_converter.transforms import IDENTITY, Transform

Shapes = Mapping[str, tuple[int, ...]]

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Entry:
    """One line of a layout's table.

    Attributes:
        foreign: name in the file. Two lines may give one canonical tensor, where a project stores it twice.
        canonical: name in our weights; empty for a tensor that the project's files have and no network uses.
        transform: how the one becomes the other.
        spare: makes the tensor that is written where `canonical` is empty and none was kept from the source.
    """

    foreign: str
    canonical: str
    transform: Transform = IDENTITY
    spare: Callable[[], np.ndarray] | None = None

    @property
    def optional(self) -> bool:
        """Counters, and tensors that nothing uses, may be absent on either side."""
        return not self.canonical or self.canonical.endswith(f".{COUNTER}")


@dataclass(frozen=True)
class Reading:
    """A spec read from tensors.

    Attributes:
        spec: the spec.
        told: what the tensors told, `field = value`.
        assumed: what they can't tell and the layout's published default fills in, `field = value`.
        notes: what the file says of its network that no spec can say, one line each.
    """

    spec: ArchSpec
    told: tuple[str, ...]
    assumed: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Layout(ABC):
    """The names of one public project."""

    name: str
    title: str
    writes: tuple[str, ...]
    """Formats this layout is written in."""

    @abstractmethod
    def recognise(self, checkpoint: Checkpoint) -> str:
        """The evidence that the tensors are of this layout; `LayoutError` with the reason where they are not."""

    @abstractmethod
    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """The spec the tensors belong to; `LayoutError` where they contradict the layout."""

    @abstractmethod
    def entries(self, spec: ArchSpec, file_format: str, names: Collection[str] = ()) -> list[Entry]:
        """The table for a spec, in the file's own order; `LayoutError` where the layout has no such network.

        Args:
            spec: the network.
            file_format: format of the file.
            names: of the tensors of the file at hand, for projects whose files differ in their names.
        """

    def networks(self) -> tuple[str, ...]:
        """Titles of the networks that the layout knows, for messages; empty where there are too many to name."""
        return ()

    def bound(self, checkpoint: Checkpoint) -> Layout:
        """The layout for one file, where the table is that file's own affair (TFLite); itself otherwise.

        Raises:
            LayoutError: such a table can't be made from this file.
        """
        del checkpoint
        return self

    def prepared(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The tensors to which the table applies, where a project keeps them in pieces (Caffe's batch norm)."""
        return tensors

    def filled(self, spec: ArchSpec) -> Mapping[str, tuple[np.ndarray, str]]:
        """Canonical tensors that no file of this layout holds, each with the reason for its values (TFLite)."""
        del spec
        return {}

    def ignored(self, foreign: str) -> str | None:
        """Why a tensor of the file is left out, or none where it has no reason to be."""
        del foreign
        return None

    def card(self, spec: ArchSpec, facts: Mapping[str, Any]) -> Card:
        """Published preprocessing and class names; `facts` are those of the checkpoint."""
        del spec, facts
        return Card()

    def differences(self, spec: ArchSpec) -> list[str]:
        """Fields in which a spec computes something else than the project's own class with the same tensor names."""
        del spec
        return []

    def config(self, model: Canonical) -> Mapping[str, Any] | None:
        """What a hub folder's `config.json` says of the network, or none where the project has no such folders."""
        del model
        return None

    def remembered(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of a checkpoint's facts goes into the record of the file, so that the way back gives it again."""
        del facts
        return {}


def with_counters(spec: ArchSpec, entries: list[Entry], rename: Mapping[str, str]) -> list[Entry]:
    """Add torch's `num_batches_tracked` after each `running_var`, where torch keeps it.

    `rename` maps the canonical name of a batch norm to its foreign name.
    """
    norms = {node.name for node in build_graph(spec).nodes if isinstance(node.op, BatchNorm)}
    made = []
    for entry in entries:
        made.append(entry)
        node, _, suffix = entry.canonical.rpartition(".")
        if node in norms and suffix == "running_var":
            made.append(Entry(f"{rename[node]}.{COUNTER}", f"{node}.{COUNTER}"))
    return made


def require_same_tensors(spec: ArchSpec, published: ArchSpec, title: str) -> None:
    """`LayoutError` where the project's own class has other tensors than the spec, naming the first difference."""
    ours, theirs = build_graph(spec).parameters(), build_graph(published).parameters()
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            raise LayoutError(
                f"{title} has no such network: {name} is {ours.get(name, 'absent')} here and {theirs.get(name, 'absent')} "
                "there; use --to-layout deeplabzoo"
            )


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(array.shape) for name, array in checkpoint.tensors.items()}


def require(names: Collection[str], *needed: str) -> None:
    """`LayoutError` naming the first of `needed` that is absent."""
    for name in needed:
        if name not in names:
            raise LayoutError(f"no tensor {name!r}")


def dimension(shapes: Shapes, name: str, axis: int) -> int:
    """One dimension of a tensor; `LayoutError` where it is absent or has fewer axes."""
    require(shapes, name)
    if len(shapes[name]) <= axis:
        raise LayoutError(f"{name!r} has shape {shapes[name]}, expected more than {axis} axes")
    return shapes[name][axis]


def described(data: Mapping[str, object], prefix: str = "") -> list[str]:
    """Nested plain data as sorted `field = value` lines."""
    lines = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines += described(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key} = {value}")
    return sorted(lines)


def unlike(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    """A note for each key of a `config.json` whose value is not that of the network that is read.

    Args:
        config: what the file says; a key that is absent says nothing.
        arguments: what the project would write of that network.
    """
    notes = []
    for key, wanted in arguments.items():
        value = config.get(key, wanted)
        # JSON tells true from 1, which Python does not.
        if value != wanted or isinstance(value, bool) is not isinstance(wanted, bool):
            said = repr(shown(value)) if isinstance(value, str) else shown(value)
            notes.append(f"config.json says {key} = {said}, but the network that is read has {wanted!r}: compare them")
    return notes


def require_labels(labels: Mapping[str, str], table: Mapping[str, str], node_of: Callable[[str], str | None]) -> None:
    """`LayoutError` where a file of counted paths names a layer otherwise than its place says.

    Args:
        labels: of the checkpoint: path of a group and the name of its layer.
        table: path of a group and the node whose layer is counted there.
        node_of: the node that a layer is by its name, or none where the name is no project's but a stock one.
    """
    for group, node in table.items():
        label = labels.get(group)
        named = None if label is None else node_of(label)
        if named not in (None, node):
            raise LayoutError(
                f"{group} is named {shown(label)!r} in the file, where by its place it is {node}: its layers stand in "
                "another order than those of the network; save the model as the spec describes it"
            )


def hollow(shape: tuple[int, ...]) -> np.ndarray:
    """A view of that shape without memory of its own, where only the shape is wanted."""
    return np.broadcast_to(np.zeros((), np.float32), shape)
