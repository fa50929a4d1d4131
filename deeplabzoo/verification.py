"""Judge a finished conversion: the file is read back, its tensors are the source's, and backends agree on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplabzoo.core.analysis import smallest_live_size
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import WeightsError
from deeplabzoo.parity.report import Report
from deeplabzoo.parity.run import parity
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import read_source
from deeplabzoo.weights_converter.dtypes import cast_array
from deeplabzoo.weights_converter.layouts.base import described
from deeplabzoo.weights_converter.ledger import digest


@dataclass(frozen=True)
class Verification:
    """Outcome of `verify`.

    Attributes:
        equal: tensors that are bit for bit the source's.
        cast: tensors whose element type was changed on the way.
        report: the parity run on what was read back.
    """

    equal: int
    cast: int
    report: Report


def verify(
    path: Path, model: Canonical, backends: Sequence[str], *, progress: Callable[[str], None] | None = None
) -> Verification:
    """Read a converted file back, compare every tensor with the source's, and run parity on the result in float64.

    The image is the smallest on which every tap of every atrous kernel reads a real pixel.

    Args:
        path: the file that was written.
        model: what it was written from.
        backends: that take part in the parity run.
        progress: called with the name of each step.

    Raises:
        WeightsError: a tensor is missing or differs, or what is read back has another spec.
        BackendError: a backend is not installed.
    """
    back = read_source(path, lazy=True).model
    if back.spec != model.spec:
        raise WeightsError(
            f"{path}: reads as another network than was written, first {_difference(model.spec, back.spec)}: keep the "
            "spec file beside it, or write a .safetensors, which holds its spec"
        )
    lost = [name for name in model.weights if name not in back.weights and not name.endswith("num_batches_tracked")]
    if lost:
        raise WeightsError(f"{path}: {len(lost)} tensors of the source are not in it, first {lost[0]}: convert again")
    cast = 0
    for name in back.weights:
        if name not in model.weights:  # a counter that the layout wants and the source had not
            continue
        ours, theirs = model.weights[name], back.weights[name]
        if ours.dtype != theirs.dtype:
            cast += 1
            ours = cast_array(ours, theirs.dtype)
        if digest(ours) != digest(theirs):
            raise WeightsError(f"{path}: {name} is not the source's tensor, expected the same bits: convert again")
    size = smallest_live_size(back.graph, back.spec.output_stride)
    report = parity(weights=back, backends=backends, dtype="float64", sizes=[(size, size)], progress=progress)
    return Verification(len(back.weights) - cast, cast, report)


def _difference(wanted: ArchSpec, found: ArchSpec) -> str:
    """The first field that differs, as `field = found, expected wanted`."""
    ours, theirs = (dict(line.split(" = ", 1) for line in described(spec.to_dict())) for spec in (wanted, found))
    field = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    return f"{field} = {theirs.get(field)}, expected {ours.get(field)}"
