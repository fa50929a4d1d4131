"""The ledger: what happened to every tensor of a conversion."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import classifier_names, is_float
from deeplabzoo.errors import LayoutError, WeightsError
from deeplabzoo.weights_converter.formats import shown
from deeplabzoo.weights_converter.layouts.base import COUNTER, Entry, Layout, hollow

_LISTED = 3
_DAMAGE = 8
"""Tensors of a sound file that may be lost or added without its being another network."""


@dataclass(frozen=True)
class LedgerRow:
    """One tensor: its name and shape in the file, what was done, its canonical name.

    `canonical` is empty for a tensor that is left out or kept aside, and `foreign` for one that no file holds;
    `transform` then says why.
    """

    foreign: str
    shape: tuple[int, ...]
    dtype: str
    transform: str
    canonical: str


class LazyWeights(Mapping[str, np.ndarray]):
    """Canonical tensors by name, each made anew on every access, so that one at a time is in memory."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:  # the inherited one would make the tensor
        return name in self._makers


@dataclass(frozen=True)
class Taken:
    """What was taken from a file.

    Attributes:
        weights: canonical tensors in the layout's order; views where possible, read when asked for.
        spares: tensors that the project's files hold and no network uses, by their foreign names.
        rows: the ledger, in the file's order.
    """

    weights: LazyWeights
    spares: LazyWeights
    rows: list[LedgerRow]


def to_canonical(tensors: Mapping[str, np.ndarray], layout: Layout, spec: ArchSpec, file_format: str) -> Taken:
    """Canonical weights, what is kept beside them, and the ledger.

    Args:
        tensors: the foreign tensors; may be lazy, each is looked at once here and again when its weight is used.
        layout: the layout of the tensors.
        spec: the network they belong to.
        file_format: format of the file.

    Raises:
        LayoutError: a tensor that is missing, unexpected or of the wrong shape (lists both sides), or one that is
            stored twice with different values.
        WeightsError: a weight of whole numbers.
    """
    tensors = layout.prepared(tensors)
    entries = {entry.foreign: entry for entry in layout.entries(spec, file_format, tensors)}
    shapes = build_graph(spec).parameters()
    makers: dict[str, Callable[[], np.ndarray]] = {}
    spares: dict[str, Callable[[], np.ndarray]] = {}
    taken: dict[str, str] = {}
    rows: list[LedgerRow] = []
    unexpected: list[str] = []
    wrong: list[str] = []
    for foreign in tensors:
        entry, array = entries.get(foreign), tensors[foreign]
        shape, dtype = tuple(array.shape), str(array.dtype)
        if entry is None:
            reason = layout.ignored(foreign)
            if reason is None:
                unexpected.append(foreign)
            rows.append(LedgerRow(foreign, shape, dtype, f"left out: {reason}", ""))
        elif not entry.canonical:
            spares[foreign] = _reader(tensors, foreign)
            rows.append(LedgerRow(foreign, shape, dtype, "kept aside: no network uses it", ""))
        elif (canonical := _apply(entry, array, shapes)) is None:
            wrong.append(f"{foreign} {shape}, expected {_foreign_shape(entry, shapes)}")
        else:
            if not entry.canonical.endswith(f".{COUNTER}") and not is_float(array.dtype):
                raise WeightsError(
                    f"{shown(foreign)} is of {dtype}, expected floating point: quantised weights have no scale here; convert "
                    "the network as it was before quantisation"
                )
            if (twin := taken.setdefault(entry.canonical, foreign)) != foreign:
                _check_twins(twin, makers[entry.canonical](), foreign, canonical)
            makers[entry.canonical] = _reader(tensors, foreign, entry)
            rows.append(LedgerRow(foreign, shape, dtype, entry.transform.name, entry.canonical))
    for name, (array, reason) in layout.filled(spec).items():
        if name not in makers:
            makers[name] = lambda array=array: array  # type: ignore[misc]  # bound anew for each tensor
            rows.append(LedgerRow("", tuple(array.shape), str(array.dtype), reason, name))
    missing = [
        name
        for name, entry in entries.items()
        if not entry.optional and name not in tensors and entry.canonical not in makers
    ]
    if missing or unexpected or wrong:
        raise LayoutError(_complaint(layout, spec, missing, wrong, unexpected))
    placed = [name for name in _canonical_order(spec) if name in makers]
    return Taken(LazyWeights({name: makers[name] for name in placed}), LazyWeights(spares), rows)


def to_foreign(
    weights: Mapping[str, np.ndarray],
    layout: Layout,
    spec: ArchSpec,
    file_format: str,
    foreign: Mapping[str, object] | None = None,
    spares: Mapping[str, np.ndarray] | None = None,
) -> tuple[LazyWeights, list[LedgerRow]]:
    """Tensors under the layout's names and the ledger, in the order in which the layout's own files have them.

    Args:
        weights: canonical weights that fit the spec.
        layout: the layout to write.
        spec: the spec of the weights.
        file_format: format of the file.
        foreign: record of the file the weights came from; where it is of this layout, its names, its order and its set
            of counters are kept, so that the way back gives the same file.
        spares: what was kept aside of that file.

    Raises:
        LayoutError: the layout has no such network, or is not written in this format.
    """
    if not layout.writes:
        raise LayoutError(f"layout {layout.name} can only be read; use --to-layout deeplabzoo")
    if file_format not in layout.writes:
        raise LayoutError(
            f"layout {layout.name} is not written as {file_format}: expected {' or '.join(layout.writes)}"
        )
    recorded = _recorded(foreign, layout)
    entries = layout.entries(spec, file_format, recorded)
    if recorded:
        by_name = {entry.foreign: entry for entry in entries}
        required = {name for name, entry in by_name.items() if not entry.optional}
        if required <= set(recorded) <= set(by_name):
            entries = [by_name[name] for name in recorded]
    kept = (spares or {}) if foreign and foreign.get("layout") == layout.name else {}
    # Other layouts than our own come from frameworks that always have their counters.
    complete = layout.name != "deeplabzoo"
    makers: dict[str, Callable[[], np.ndarray]] = {}
    rows: list[LedgerRow] = []
    for entry in entries:
        made = _made(entry, weights, kept, complete=complete)
        if made is None:
            continue
        makers[entry.foreign], how = made
        array = makers[entry.foreign]()
        rows.append(LedgerRow(entry.foreign, tuple(array.shape), str(array.dtype), how, entry.canonical))
    used = {entry.canonical for entry in entries}
    for name in weights:
        if name not in used:
            array = weights[name]
            rows.append(
                LedgerRow(name, array.shape, str(array.dtype), "left out: a counter that only torch layouts hold", "")
            )
    rows += [
        LedgerRow(name, tuple(array.shape), str(array.dtype), "left out: no network uses it, nor does this layout", "")
        for name, array in (spares or {}).items()
        if name not in makers
    ]
    return LazyWeights(makers), rows


def digest(array: np.ndarray) -> str:
    """SHA-256 of a tensor's values, C-contiguous and little-endian: what must be the same on both sides of a copy."""
    flat = np.ascontiguousarray(array)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return hashlib.sha256(flat.reshape(-1).view(np.uint8).data).hexdigest()


def _canonical_order(spec: ArchSpec) -> Iterator[str]:
    """Every canonical name in the order of the graph, counters after the batch norm that they belong to."""
    for node in build_graph(spec).nodes:
        yield from node.parameters()
        yield f"{node.name}.{COUNTER}"


def _made(
    entry: Entry, weights: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], *, complete: bool
) -> tuple[Callable[[], np.ndarray], str] | None:
    """How to make the tensor of an entry, and what the ledger says; none where there is nothing to write."""
    if entry.canonical in weights:
        return lambda: entry.transform.inverse(weights[entry.canonical]), entry.transform.name
    if entry.canonical:
        if complete and entry.optional:
            return lambda: np.zeros((), np.int64), "0: the source has no counter"
        return None
    if entry.foreign in kept:
        return _reader(kept, entry.foreign), "kept aside: no network uses it"
    return (entry.spare, "neutral: no network uses it") if entry.spare else None


def _recorded(foreign: Mapping[str, object] | None, layout: Layout) -> list[str]:
    """Names of the file the weights came from, where it was of this layout."""
    if not foreign or foreign.get("layout") != layout.name:
        return []
    names = foreign.get("names")
    return [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else []


def _reader(tensors: Mapping[str, np.ndarray], name: str, entry: Entry | None = None) -> Callable[[], np.ndarray]:
    """Reads a tensor; aligned, because frameworks may take the memory as it is."""
    forward = entry.transform.forward if entry else lambda array: array
    return lambda: np.require(forward(tensors[name]), requirements="A")


def _check_twins(one: str, a: np.ndarray, other: str, b: np.ndarray) -> None:
    if a.dtype != b.dtype or a.shape != b.shape or digest(a) != digest(b):
        raise LayoutError(
            f"{one} and {other} are one tensor in this layout, but the file has two different ones: it is damaged, or "
            "two networks were mixed; expected equal values"
        )


def _apply(entry: Entry, array: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
    """The canonical array, or none where its shape is wrong."""
    try:
        canonical = entry.transform.forward(array)
    except ValueError:  # another number of axes
        return None
    return canonical if canonical.shape == shapes.get(entry.canonical, ()) else None


def _foreign_shape(entry: Entry, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return entry.transform.inverse(hollow(shapes.get(entry.canonical, ()))).shape


def _complaint(layout: Layout, spec: ArchSpec, missing: list[str], wrong: list[str], unexpected: list[str]) -> str:
    """One line: the first tensor, how many of each kind and a few of them, and what would fit where most do not."""
    first = (sorted(missing) or sorted(wrong) or sorted(unexpected))[0]
    lists = [
        f"{len(names)} {what}: {', '.join(map(shown, sorted(names)[:_LISTED]))}"
        + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        for what, names in (("missing", missing), ("of the wrong shape", wrong), ("unexpected", unexpected))
        if names
    ]
    heads = {
        entry.foreign
        for entry in layout.entries(spec, "torch")
        if entry.canonical in classifier_names(build_graph(spec))
    }
    hint, known = "", layout.networks()
    if wrong and not missing and not unexpected and all(name.split(" ")[0] in heads for name in wrong):
        hint = f"; the class counts differ (the spec has {spec.num_classes})"
    elif known and len(missing) + len(wrong) + len(unexpected) > _DAMAGE:
        hint = f"; if it is another network: this layout has {', '.join(known)}"
    return (
        f"the tensors do not fit layout {layout.name} with {spec.title}, first {shown(first)}: {'; '.join(lists)}{hint}"
    )
