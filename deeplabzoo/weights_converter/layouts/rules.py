"""Layouts as tables: rules from our nodes to a project's modules, and how its files spell a module's tensors."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Node
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.canonical import Card
from deeplabzoo.weights_converter.formats import Checkpoint, around
from deeplabzoo.weights_converter.layouts.base import (
    Entry,
    Layout,
    Reading,
    described,
    hollow,
    require_same_tensors,
    shapes_of,
    with_counters,
)
from deeplabzoo.weights_converter.layouts.fit import assumed, assumed_card, fitted, is_training, told
from deeplabzoo.weights_converter.layouts.graph_facts import informed_by_graph
from deeplabzoo.weights_converter.transforms import HWIO, IDENTITY, Transform, depthwise
from deeplabzoo.zoo.presets.base import Preset

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern that a canonical node must match whole, and the project's module.

In the module `\\1` is what a group matched, `{\\1}` that number less one (for projects that count from 0), `{+\\1}` one
more; a function makes it from the match where that does not do.
"""


class Move(NamedTuple):
    """Where a project registers modules otherwise than it runs them.

    Attributes:
        pattern: matches the start of a foreign name; its group 1 is the start of the names before which it comes.
        before: that start, where it is no part of the name.
    """

    pattern: str
    before: str = ""


def units(ours: str, theirs: str, conv: str, bn: str) -> tuple[Rule, ...]:
    """Rules of a unit of convolution and batch norm."""
    return (rf"{ours}\.conv", theirs + conv), (rf"{ours}\.bn", theirs + bn)


def torch(node: Node, module: str, suffix: str) -> tuple[str, Transform]:
    """PyTorch's `state_dict`, which is where our suffixes come from."""
    del node
    return f"{module}.{suffix}", IDENTITY


def paddle(node: Node, module: str, suffix: str) -> tuple[str, Transform]:
    """Paddle's `state_dict`."""
    del node
    return f"{module}.{ {'running_mean': '_mean', 'running_var': '_variance'}.get(suffix, suffix) }", IDENTITY


_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def slim(node: Node, module: str, suffix: str) -> tuple[str, Transform]:
    """Variables of TensorFlow's slim; kernels HWIO and HWCM."""
    if not isinstance(node.op, Conv2d):
        return f"{module}/{_NORM[suffix]}", IDENTITY
    if suffix == "bias":
        return f"{module}/biases", IDENTITY
    if node.op.depthwise:
        return f"{module}/depthwise_weights", depthwise(node.op.in_channels)
    return f"{module}/weights", HWIO


def keras(node: Node, module: str, suffix: str) -> tuple[str, Transform]:
    """Weights of Keras 2 layers; kernels HWIO and HWCM."""
    if not isinstance(node.op, Conv2d):
        return f"{module}/{_NORM[suffix]}", IDENTITY
    if suffix == "bias":
        return f"{module}/bias", IDENTITY
    if node.op.depthwise:
        return f"{module}/depthwise_kernel", depthwise(node.op.in_channels)
    return f"{module}/kernel", HWIO


_DIVIDED = Transform("divided by the layer's third blob", lambda a: a, lambda a: a)
_BLOBS: dict[str, tuple[str, Transform]] = {
    "running_mean": ("bn{}/0", _DIVIDED), "running_var": ("bn{}/1", _DIVIDED), "weight": ("scale{}/0", IDENTITY),
    "bias": ("scale{}/1", IDENTITY),
}  # fmt: skip


def caffe(node: Node, module: str, suffix: str) -> tuple[str, Transform]:
    """Blobs of Caffe's layers by number; a batch norm is the layers `bn...` and `scale...`.

    That the statistics are divided is the layout's affair (`prepared`), because it takes two blobs.
    """
    if isinstance(node.op, Conv2d):
        return f"{module}/{int(suffix == 'bias')}", IDENTITY
    name, transform = _BLOBS[suffix]
    return name.format(module), transform


_SPELLINGS: dict[str, Callable[[Node, str, str], tuple[str, Transform]]] = {
    "torch": torch,
    "paddle": paddle,
    "slim": slim,
    "keras": keras,
    "caffe": caffe,
}


class TableLayout(Layout):
    """A layout made of rules.

    Attributes:
        presets: the project's networks as the zoo knows them.
        others: more networks of the project, which differ from the presets in the tensors that they have.
        marks: names that show the layout: all of one of these groups must be there.
        spelling: how tensors are spelled: one of `torch`, `paddle`, `slim`, `keras`, `caffe`.
        moves: where the file's order is not the order of execution.
        free: fields that the project's own constructor lets its users choose.
    """

    presets: ClassVar[Sequence[Preset]]
    others: ClassVar[Sequence[Callable[[], ArchSpec]]] = ()
    marks: ClassVar[tuple[tuple[str, ...], ...]]
    spelling: ClassVar[str] = "torch"
    moves: ClassVar[tuple[Move, ...]] = ()
    free: ClassVar[tuple[str, ...]] = ("output_stride", "aspp.rates", "head.rates")

    @abstractmethod
    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """The rules for a network, the first match counts."""

    def standard(self, names: Collection[str]) -> Mapping[str, str]:
        """Names of a file that the project spells otherwise at times -> the standard name; those left out are."""
        del names
        return {}

    def doubles(self, foreign: str) -> Iterable[str]:
        """Further names under which the project stores the same tensor."""
        del foreign
        return ()

    def unused(self, spec: ArchSpec) -> tuple[str, list[Entry]]:
        """Tensors that no network uses, and the start of the names after which they come."""
        del spec
        return "", []

    def informed(self, spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str]]:
        """`spec` with what the project's own files say beside the tensors, and the fields that they settled."""
        del facts
        return spec, []

    def remarks(self, checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
        """What the file says of its network that no spec can say, one line each."""
        del checkpoint, spec
        return []

    def networks(self) -> tuple[str, ...]:
        """Those of `presets` and `others`."""
        return tuple(sorted({one.title for one in self._variants()}))

    def candidates(self, names: Collection[str]) -> Sequence[ArchSpec]:
        """The networks that a file with these names may hold, where the names tell more than which is nearest."""
        del names
        return self._variants()

    def ignored(self, foreign: str) -> str | None:
        """In PyTorch, what the class around the network keeps beside it: its own buffers, and those of its loss."""
        return around(foreign) if self.spelling == "torch" else None

    def recognise(self, checkpoint: Checkpoint) -> str:
        """One of the groups of names in `marks`."""
        names = self._standard_names(checkpoint.tensors)
        for group in self.marks:
            if all(name in names for name in group):
                return f"has {', '.join(group)}"
        missing = next(name for name in self.marks[0] if name not in names)
        raise LayoutError(f"no tensor {missing!r}")

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """The network of the project whose names are nearest to the file's, with the numbers that the shapes show."""
        names = self._standard_names(checkpoint.tensors)
        spec = self._nearest(names)
        shapes = shapes_of(checkpoint)
        canonical = {}
        for entry in self._table(spec, checkpoint.tensors):
            if entry.canonical and entry.foreign in shapes:
                try:
                    canonical[entry.canonical] = entry.transform.forward(hollow(shapes[entry.foreign])).shape
                except ValueError:  # another number of axes, about which the conversion itself complains
                    continue
        spec, said = self.informed(fitted(spec, canonical), checkpoint.facts)
        table, backbones = self._table(spec, checkpoint.tensors), [one.backbone for one in self._variants()]
        spec, shown, notes = informed_by_graph(spec, checkpoint.facts, table, backbones)
        known = {*said, *shown}
        lines = tuple(line for line in described(spec.to_dict()) if line.split(" = ")[0] in known)
        guesses = [line for line in assumed(spec) if line.split(" = ")[0] not in known]
        guesses += assumed_card(self.card(spec, checkpoint.facts), self.named(spec.num_classes, checkpoint.facts))
        return Reading(spec, (*told(spec), *lines), tuple(guesses), (*notes, *self.remarks(checkpoint, spec)))

    def entries(self, spec: ArchSpec, file_format: str, names: Collection[str] = ()) -> list[Entry]:
        """Every tensor by the rules, counters and doubles where the project has them, in the project's order."""
        del file_format
        self._check_order(spec, self.published(spec))
        return self._table(spec, names)

    def card(self, spec: ArchSpec, facts: Mapping[str, Any]) -> Card:
        """The project's preprocessing; the file's classes, or those that its published weights know by that count."""
        made = self._preset_of(spec)
        preprocessing = made.preprocessing.to_dict() if made and made.preprocessing else None
        return Card(preprocessing, self.named(spec.num_classes, facts) or self.classes(spec.num_classes))

    def named(self, count: int, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the classes where the project's own files give as many; none by default."""
        del count, facts
        return ()

    def classes(self, count: int) -> tuple[str, ...]:
        """Names of the project's classes where it has as many; VOC's 21 by default."""
        from deeplabzoo.inference.classes import VOC_CLASSES

        return VOC_CLASSES if count == len(VOC_CLASSES) else ()

    def differences(self, spec: ArchSpec) -> list[str]:
        """Fields of which no tensor tells, and which are not the user's to choose in the project's own class."""
        ours = described(spec.to_dict())
        theirs = described(self.published(spec).to_dict())
        return [
            line
            for line in ours
            if line not in theirs and not is_training(line.split(" = ")[0]) and not line.startswith(self.free)
        ]

    def published(self, spec: ArchSpec) -> ArchSpec:
        """The project's own network with the same tensors, and among several the one most like `spec`.

        Raises:
            LayoutError: the project has none.
        """
        graph = build_graph(spec)
        mine = set(described(spec.to_dict()))
        alike = [one for one in self._variants() if (one.arch, one.backbone.name) == (spec.arch, spec.backbone.name)]
        if not alike:
            known = ", ".join(self.networks())
            raise LayoutError(f"{self.title} has no {spec.title}, but {known}; use --to-layout deeplabzoo")
        same = [one for one in alike if build_graph(one).parameters().keys() == graph.parameters().keys()]
        made = [fitted(one, graph.parameters()) for one in same or alike]
        best = min(made, key=lambda one: len(mine ^ set(described(one.to_dict()))))
        require_same_tensors(spec, best, self.title)
        return best

    def _table(self, spec: ArchSpec, names: Collection[str] = ()) -> list[Entry]:
        rules = tuple(self.rules(spec))
        entries, modules = [], {}
        for node in build_graph(spec).nodes:
            parameters = node.parameters()
            if not parameters:
                continue
            modules[node.name] = module = self._module(rules, node.name)
            for canonical in parameters:
                foreign, transform = _SPELLINGS[self.spelling](node, module, canonical.rsplit(".", 1)[1])
                entries.append(Entry(foreign, canonical, transform))
        if self.spelling == "torch":
            entries = with_counters(spec, entries, modules)
        entries = self._with_unused(self._with_doubles(entries), spec)
        for move in self.moves:
            entries = _moved(entries, move)
        back = {standard: actual for actual, standard in self.standard(names).items()}
        return [Entry(back.get(e.foreign, e.foreign), e.canonical, e.transform, e.spare) for e in entries]

    def _variants(self) -> Sequence[ArchSpec]:
        return _made(type(self))

    def _standard_names(self, names: Collection[str]) -> list[str]:
        standard = self.standard(names)
        return [standard.get(name, name) for name in names if self.ignored(name) is None]

    def _nearest(self, names: list[str]) -> ArchSpec:
        given = set(names)
        found: list[tuple[int, ArchSpec]] = []
        for spec in self.candidates(names):
            entries = self._table(spec)
            required = {entry.foreign for entry in entries if not entry.optional}
            distance = len(required - given) + len(given - {entry.foreign for entry in entries})
            if distance == 0:
                return spec
            found.append((distance, spec))
        distance, spec = min(found, key=lambda pair: pair[0])
        if distance > len(given) / 2:
            raise LayoutError(
                f"the tensors are those of no network that {self.title} has here: the nearest, {spec.title}, differs "
                f"in {distance} names; expected one of {', '.join(self.networks())}"
            )
        return spec

    def _preset_of(self, spec: ArchSpec) -> Preset | None:
        """The preset with most fields in common."""
        mine = set(described(spec.to_dict()))
        return max(self.presets, key=lambda one: len(mine & set(described(one.make().to_dict()))), default=None)

    def _check_order(self, spec: ArchSpec, published: ArchSpec) -> None:
        """The order of a concatenation changes which columns of the next kernel belong to what."""
        pairs = []
        if spec.aspp is not None and published.aspp is not None:
            pairs.append(("aspp.order", spec.aspp.order, published.aspp.order))
        if spec.decoder is not None and published.decoder is not None:
            pairs.append(("decoder.order", spec.decoder.order, published.decoder.order))
        for field, ours, theirs in pairs:
            if ours != theirs:
                raise LayoutError(
                    f"{field} = {list(ours)}: {self.title} has {list(theirs)}; use --to-layout deeplabzoo"
                )

    def _module(self, rules: tuple[Rule, ...], node: str) -> str:
        for pattern, target in rules:
            if match := re.fullmatch(pattern, node):
                if callable(target):
                    return target(match)
                name = re.sub(r"\{\+(\d+)\}", lambda m: str(int(m[1]) + 1), match.expand(target))
                return re.sub(r"\{(\d+)\}", lambda m: str(int(m[1]) - 1), name)
        raise LayoutError(f"{self.title} has no counterpart of {node!r}; use --to-layout deeplabzoo")

    def _with_doubles(self, entries: list[Entry]) -> list[Entry]:
        """Doubles come after the last tensor that has one, those of one further name together."""
        found = [(name, entry) for entry in entries for name in self.doubles(entry.foreign)]
        if not found:
            return entries
        last = max(i for i, entry in enumerate(entries) if any(self.doubles(entry.foreign)))
        doubled = [Entry(name, entry.canonical, entry.transform) for name, entry in found]
        return [*entries[: last + 1], *doubled, *entries[last + 1 :]]

    def _with_unused(self, entries: list[Entry], spec: ArchSpec) -> list[Entry]:
        after, unused = self.unused(spec)
        if not unused:
            return entries
        last = max(i for i, entry in enumerate(entries) if entry.foreign.startswith(after))
        return [*entries[: last + 1], *unused, *entries[last + 1 :]]


@lru_cache(maxsize=32)
def _made(layout: type[TableLayout]) -> tuple[ArchSpec, ...]:
    """Every network of a layout, built once."""
    return (*(preset.make() for preset in layout.presets), *(make() for make in layout.others))


def _moved(entries: list[Entry], move: Move) -> list[Entry]:
    """Stable: the tensors that match go before the others of the same parent."""
    keys: list[tuple[int, int]] = []
    first: dict[str, int] = {}
    for i, entry in enumerate(entries):
        match = re.match(move.pattern, entry.foreign)
        parent = None if match is None else move.before or match[1]
        if parent is None:
            keys.append((i, 1))
            continue
        if parent not in first:
            first[parent] = next(n for n, other in enumerate(entries) if other.foreign.startswith(parent))
        keys.append((first[parent], 0))
    return [entries[i] for i in sorted(range(len(entries)), key=lambda i: (keys[i], i))]
