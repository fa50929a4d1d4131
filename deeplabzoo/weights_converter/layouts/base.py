"""What a layout is: recognise, read the spec, and one table used in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import BatchNorm
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.canonical import Card
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.transforms import IDENTITY, Transform

Shapes = Mapping[str, tuple[int, ...]]

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Entry:
    """One line of a layout's table.

    Attributes:
        foreign: name in the file.
        canonical: name in our weights.
        transform: how the one becomes the other.
    """

    foreign: str
    canonical: str
    transform: Transform = IDENTITY

    @property
    def optional(self) -> bool:
        """Counters may be absent on either side."""
        return self.canonical.endswith(f".{COUNTER}")


@dataclass(frozen=True)
class Reading:
    """A spec read from tensors.

    Attributes:
        spec: the spec.
        told: what the tensors told, `field = value`.
        assumed: what they can't tell and the layout's published default fills in, `field = value`.
    """

    spec: ArchSpec
    told: tuple[str, ...]
    assumed: tuple[str, ...]


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
    def entries(self, spec: ArchSpec, file_format: str) -> list[Entry]:
        """The table for a spec, in the file's own order; `LayoutError` where the layout has no such network."""

    def ignored(self, foreign: str) -> str | None:
        """Why a tensor of the file is left out, or none where it has no reason to be."""
        del foreign
        return None

    def card(self, spec: ArchSpec) -> Card:
        """Published preprocessing and class names."""
        del spec
        return Card()

    def differences(self, spec: ArchSpec) -> list[str]:
        """Fields in which a spec computes something else than the project's own class with the same tensor names."""
        del spec
        return []


def with_counters(spec: ArchSpec, entries: list[Entry], rename: Mapping[str, str]) -> list[Entry]:
    """Add torch's `num_batches_tracked` after each `running_var`, where torch keeps it.

    `rename` maps the canonical name of a batch norm to its foreign name.
    """
    norms = {node.name for node in build_graph(spec).nodes if isinstance(node.op, BatchNorm)}
    made = []
    for entry in entries:
        made.append(entry)
        node, suffix = entry.canonical.rsplit(".", 1)
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
