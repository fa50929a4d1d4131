"""Read a file of any known format and layout, tensors by name, or a model in memory, into canonical weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import FormatError, LayoutError, SpecError, unknown
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import (
    SPARE,
    Canonical,
    Card,
    find_sidecar,
    fingerprint,
    read_card,
    read_metadata,
    recorded_fingerprint,
)
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import Layout, Reading, detect_layout, get_layout
from deeplabzoo.weights_converter.layouts.base import described
from deeplabzoo.weights_converter.layouts.fit import fitted, told
from deeplabzoo.weights_converter.ledger import LazyWeights, LedgerRow, to_canonical
from deeplabzoo.weights_converter.native import checkpoint_of, checkpoint_of_arrays, is_native


@dataclass(frozen=True)
class Source:
    """A file that was read: the canonical model and everything worth telling about the way.

    Attributes:
        model: canonical weights, spec and card.
        format: of the file.
        layout: name of the layout.
        evidence: what showed the layout.
        told: fields of the spec that the file told.
        assumed: fields that were filled in with the layout's published defaults.
        ledger: one row a tensor of the file, in its order.
        notes: whatever else happened.
        tensors: the foreign tensors themselves, by name, read when asked for.
    """

    model: Canonical
    format: str
    layout: str
    evidence: str
    told: tuple[str, ...]
    assumed: tuple[str, ...]
    ledger: tuple[LedgerRow, ...] = field(repr=False)
    notes: tuple[str, ...]
    tensors: Mapping[str, np.ndarray] = field(repr=False)


def read_source(
    source: str | Path | Mapping[str, np.ndarray] | Any,
    *,
    layout: str | None = None,
    spec: ArchSpec | None = None,
    preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
    output_stride: int | None = None,
    lazy: bool = False,
) -> Source:
    """Canonical weights of a file, of foreign tensors by name, or of a native model.

    The spec is the first of: `spec`, the file's own metadata, the TOML file beside it, `preset` with the classes and
    channels that the tensors tell, what the tensors tell plus the layout's published defaults.

    Args:
        source: path of a file, tensors by their foreign names, or a model of PyTorch, Paddle or Keras.
        layout: name of the layout; told from the names by default.
        spec: the spec, where the caller knows it.
        preset: named architecture to take in the place of the layout's published default, for what no tensor tells.
        changes: fields of the spec to change after all else, by dotted name (`{"output.align_corners": True}`).
        output_stride: take the spec at another output stride, rates rescaled but where `changes` says them.
        lazy: read each tensor when it is used, and anew each time: little memory, but the file must stay as it is.

    Raises:
        FormatError: the file can't be read.
        LayoutError: the layout can't be told, or the tensors do not fit it.
        SpecError: a spec beside the file is wrong, or `preset` or `changes` are.
    """
    checkpoint, origin, found = _opened(source)
    if found is not None:
        found[1].check(found[0])
    known, evidence = (get_layout(layout), "named by the caller") if layout else detect_layout(checkpoint)
    known = known.bound(checkpoint)
    reading = _reading(known, checkpoint, spec, found, preset)
    spec, asked = reading.spec, set(changes or {})
    if output_stride is not None:
        asked.add("output_stride")
        spec = spec if spec.output_stride == output_stride else spec.at_output_stride(output_stride)
    # Last, so that rates asked for are those that come out.
    changed = changed_fields(spec, changes) if changes else spec
    now = {line.split(" = ")[0]: line for line in described(changed.to_dict())}
    guesses = still_open(reading.assumed, asked, now)
    tensors = _Without(checkpoint.tensors, SPARE) if known.name == "deeplabzoo" else checkpoint.tensors
    taken = to_canonical(tensors, known, reading.spec, checkpoint.format)
    spares: Mapping[str, np.ndarray] = taken.spares
    rows = tuple(taken.rows)
    if isinstance(tensors, _Without) and tensors.left:
        spares = LazyWeights({n.removeprefix(SPARE): lambda n=n: checkpoint.tensors[n] for n in tensors.left})  # type: ignore[misc]
        rows += tuple(
            LedgerRow(n, tuple(a.shape), str(a.dtype), "kept aside: no network uses it", "")
            for n, a in ((n, checkpoint.tensors[n]) for n in tensors.left)
        )
    kept = found[1] if found else known.card(changed, checkpoint.facts)
    if remembered := kept.provenance.get("assumed"):  # a guess stays one, until somebody says or changes the field
        asked |= {line.split(" = ")[0] for line in (() if preset is None else described(reading.spec.to_dict()))}
        guesses = still_open(remembered.split("; "), asked, now)
        rest = {name: value for name, value in kept.provenance.items() if name != "assumed"}
        kept = dataclasses.replace(kept, provenance={**rest, **({"assumed": "; ".join(guesses)} if guesses else {})})
    card = _card(kept, known, checkpoint, origin, guesses, rows)
    weights: Mapping[str, np.ndarray] = taken.weights
    if not lazy:
        weights, spares = dict(weights), dict(spares)
    model = Canonical(changed, weights, card, spares)
    return Source(
        model,
        checkpoint.format,
        known.name,
        evidence,
        reading.told,
        guesses,
        rows,
        (*checkpoint.notes, *reading.notes),
        checkpoint.tensors,
    )


def changed_fields(spec: ArchSpec, changes: Mapping[str, Any]) -> ArchSpec:
    """A spec with other values in some fields, by dotted name.

    Raises:
        SpecError: a field that does not exist, a value it can't have, or one that the tensors tell.
    """
    data = spec.to_dict()
    for name, value in changes.items():
        *sections, field_name = name.split(".")
        table: Any = data
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        if not isinstance(table, dict) or field_name not in table:
            raise SpecError(unknown("field", name, [line.split(" = ")[0] for line in described(spec.to_dict())]))
        table[field_name] = value
    made = ArchSpec.from_dict(data)
    if build_graph(made).parameters() != build_graph(spec).parameters():
        raise SpecError(
            f"{', '.join(changes)}: with that the network has other tensors than the file; expected fields that no "
            "tensor tells"
        )
    return made


class _Without(Mapping[str, np.ndarray]):
    """A lazy mapping without the names that start with a prefix, which are in `left`."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
        self._tensors = tensors
        self._names = [name for name in tensors if not name.startswith(prefix)]
        self.left = [name for name in tensors if name.startswith(prefix)]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:  # the inherited one would read the tensor
        return name in self._tensors and name not in self.left


def _opened(source: Any) -> tuple[Checkpoint, str, tuple[ArchSpec, Card] | None]:
    """The checkpoint, what to call it, and the spec and card that lie in it or beside it."""
    if isinstance(source, Mapping):
        return checkpoint_of_arrays(source), "arrays in memory", None
    if isinstance(source, str | Path):
        path = Path(source)
        checkpoint = formats.read(path)
        found = read_metadata(checkpoint.metadata, path)
        if found is None and (beside := find_sidecar(path)) is not None:
            found, checkpoint = read_card(beside), _told_by(checkpoint, beside)
        return checkpoint, path.name.encode(errors="replace").decode(), found  # a name of raw bytes is no text
    if is_native(source):
        checkpoint, spec = checkpoint_of(source)
        return checkpoint, f"a model of {checkpoint.format} in memory", None if spec is None else (spec, Card())
    raise FormatError(
        f"source = {source!r}: expected a path, tensors by their foreign names, or a model of PyTorch, Paddle or Keras"
    )


def still_open(lines: Iterable[str], asked: Collection[str], now: Mapping[str, str]) -> tuple[str, ...]:
    """What is assumed of fields that nobody asked for, at the fields' present values.

    Args:
        lines: `field = value`, as assumed once.
        asked: fields that somebody has said since.
        now: `field = value` by field.
    """
    fields = {line: line.split(" = ")[0] for line in lines}
    return tuple(now.get(field, line) for line, field in fields.items() if field not in asked)


def _told_by(checkpoint: Checkpoint, beside: Path) -> Checkpoint:
    """The checkpoint with a note of the file that says its spec, and whether that was written for these weights."""
    note = f"spec from {beside.name}"
    recorded = recorded_fingerprint(beside)
    if recorded is not None and recorded != fingerprint(checkpoint.tensors):
        note += ", which was written for other weights than these: see that it is still theirs"
    return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, note))


def _reading(
    layout: Layout,
    checkpoint: Checkpoint,
    spec: ArchSpec | None,
    found: tuple[ArchSpec, Card] | None,
    preset: str | None,
) -> Reading:
    """The spec of the tensors, from whoever knows it best."""
    if spec is not None:
        if preset is not None:
            raise SpecError("a spec and a preset are given, and both say what the network is: give one of them")
        return Reading(spec, (), ())
    if found is not None and preset is None:
        return Reading(found[0], ("the spec in the file or beside it",), ())
    try:
        reading = layout.read_spec(checkpoint)
    except LayoutError as error:
        raise LayoutError(f"layout {layout.name}: {error}") from None
    if preset is None:
        return reading
    from deeplabzoo.zoo.models import named_spec  # the zoo downloads, and for that it knows this room

    shapes = build_graph(reading.spec).parameters()
    made = fitted(named_spec(preset), shapes)
    if build_graph(made).parameters() != shapes:
        raise SpecError(
            f"preset {preset!r} has other tensors than the file, which looks like {reading.spec.title}: give the "
            "preset of that network, or leave it out"
        )
    return Reading(made, (f"preset {preset}", *told(made)), (), reading.notes)


def _card(
    card: Card,
    layout: Layout,
    checkpoint: Checkpoint,
    origin: str,
    guesses: tuple[str, ...],
    rows: tuple[LedgerRow, ...],
) -> Card:
    """The card with where the weights come from, and the record that makes the way back exact."""
    if not card.provenance:
        provenance = {"source": origin, "layout": layout.name, "format": checkpoint.format}
        if guesses:  # kept with the weights, so that a guess never turns into a fact on the way
            provenance["assumed"] = "; ".join(guesses)
        card = dataclasses.replace(card, provenance=provenance)
    if card.foreign is None and layout.name != "deeplabzoo":
        names = [row.foreign for row in rows if row.foreign and (row.canonical or row.transform.startswith("kept"))]
        told = layout.remembered(checkpoint.facts)
        foreign = {"layout": layout.name, "format": checkpoint.format, "names": names, **told}
        card = dataclasses.replace(card, foreign=foreign)
    return card
