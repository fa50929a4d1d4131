"""The ledger: what happened to every tensor of a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import classifier_names
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.layouts.base import Entry, Layout


@dataclass(frozen=True)
class LedgerRow:
    """One tensor: its name and shape in the file, what was done, its canonical name.

    `canonical` is empty for a tensor that is left out; `transform` then says why.
    """

    foreign: str
    shape: tuple[int, ...]
    dtype: str
    transform: str
    canonical: str


def to_canonical(
    tensors: Mapping[str, np.ndarray], layout: Layout, spec: ArchSpec, file_format: str
) -> tuple[dict[str, np.ndarray], list[LedgerRow]]:
    """Canonical weights (views where possible) and the ledger, in the file's order.

    Raises:
        LayoutError: a tensor that is missing, unexpected or of the wrong shape; lists both sides.
    """
    entries = {entry.foreign: entry for entry in layout.entries(spec, file_format)}
    shapes = build_graph(spec).parameters()
    weights: dict[str, np.ndarray] = {}
    rows: list[LedgerRow] = []
    unexpected: list[str] = []
    wrong: list[str] = []
    for foreign, array in tensors.items():
        entry = entries.get(foreign)
        if entry is None:
            reason = layout.ignored(foreign)
            if reason is None:
                unexpected.append(foreign)
            rows.append(LedgerRow(foreign, array.shape, str(array.dtype), f"left out: {reason}", ""))
            continue
        canonical = _apply(entry, array, shapes)
        if canonical is None:
            wrong.append(f"{foreign} {array.shape}, expected {_foreign_shape(entry, shapes)}")
            continue
        weights[entry.canonical] = canonical
        rows.append(LedgerRow(foreign, array.shape, str(array.dtype), entry.transform.name, entry.canonical))
    missing = [name for name, entry in entries.items() if not entry.optional and name not in tensors]
    if missing or unexpected or wrong:
        raise LayoutError(_complaint(layout, spec, missing, wrong, unexpected))
    order = {name: i for i, name in enumerate(entry.canonical for entry in entries.values())}
    return dict(sorted(weights.items(), key=lambda item: order[item[0]])), rows


def to_foreign(
    weights: Mapping[str, np.ndarray],
    layout: Layout,
    spec: ArchSpec,
    file_format: str,
    foreign: Mapping[str, object] | None = None,
) -> tuple[dict[str, np.ndarray], list[LedgerRow]]:
    """Tensors under the layout's names and the ledger, in the order in which the layout's own files have them.

    Args:
        weights: canonical weights that fit the spec.
        layout: the layout to write.
        spec: the spec of the weights.
        file_format: format of the file.
        foreign: record of the file the weights came from; where it is of this layout, its order and its set of
            counters are kept, so that the way back gives the same file.

    Raises:
        LayoutError: the layout has no such network, or is not written in this format.
    """
    if file_format not in layout.writes:
        raise LayoutError(
            f"layout {layout.name} is not written as {file_format}: expected {' or '.join(layout.writes)}"
        )
    entries = layout.entries(spec, file_format)
    names: list[str] | None = None
    if foreign and foreign.get("layout") == layout.name and foreign.get("format") == file_format:
        by_name = {entry.foreign: entry for entry in entries}
        recorded = foreign.get("names")
        names = [str(name) for name in recorded] if isinstance(recorded, Sequence) else None
        required = {name for name, entry in by_name.items() if not entry.optional}
        if names is not None and required <= set(names) <= set(by_name):
            entries = [by_name[name] for name in names]
    # Other layouts than our own come from frameworks that always have their counters.
    complete = layout.name != "deeplabzoo"
    tensors: dict[str, np.ndarray] = {}
    rows: list[LedgerRow] = []
    for entry in entries:
        if entry.canonical in weights:
            array = entry.transform.inverse(weights[entry.canonical])
            transform = entry.transform.name
        elif entry.optional and complete:
            array, transform = np.zeros((), np.int64), "0: the source has no counter"
        else:
            continue
        tensors[entry.foreign] = array
        rows.append(LedgerRow(entry.foreign, array.shape, str(array.dtype), transform, entry.canonical))
    used = {entry.canonical for entry in entries}
    rows += [
        LedgerRow(name, array.shape, str(array.dtype), "left out: a counter that only torch layouts hold", "")
        for name, array in weights.items()
        if name not in used
    ]
    return tensors, rows


def _apply(entry: Entry, array: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
    """The canonical array, or none where its shape is wrong."""
    try:
        canonical = entry.transform.forward(array)
    except ValueError:  # another number of axes
        return None
    return canonical if canonical.shape == shapes.get(entry.canonical, ()) else None


def _foreign_shape(entry: Entry, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    hollow = np.broadcast_to(np.zeros((), np.float32), shapes.get(entry.canonical, ()))
    return entry.transform.inverse(hollow).shape


def _complaint(layout: Layout, spec: ArchSpec, missing: list[str], wrong: list[str], unexpected: list[str]) -> str:
    first = (sorted(missing) or sorted(wrong) or sorted(unexpected))[0]
    lists = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:8])}"
        + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        for what, names in (("missing", missing), ("of the wrong shape", wrong), ("unexpected", unexpected))
        if names
    ]
    heads = {
        entry.foreign
        for entry in layout.entries(spec, "torch")
        if entry.canonical in classifier_names(build_graph(spec))
    }
    hint = ""
    if wrong and not missing and not unexpected and all(name.split(" ")[0] in heads for name in wrong):
        hint = f"; the class counts differ (the spec has {spec.num_classes})"
    return f"the tensors do not fit layout {layout.name} with {spec.title}, first {first}: {'; '.join(lists)}{hint}"
