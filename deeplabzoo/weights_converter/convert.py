"""Write canonical weights in any known layout; convert is reading and writing."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo._version import __version__
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import check_weights
from deeplabzoo.errors import FormatError, LayoutError, OutputError, unknown
from deeplabzoo.files import beside_then_rename, check_output
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import SPARE, Canonical, fingerprint, sidecar_path, sidecar_text
from deeplabzoo.weights_converter.dtypes import DTYPES, cast, check_dtype
from deeplabzoo.weights_converter.layouts import Layout, get_layout
from deeplabzoo.weights_converter.ledger import LazyWeights, LedgerRow, to_foreign
from deeplabzoo.weights_converter.source import Source, read_source

__all__ = [
    "FORMAT_OF_BACKEND",
    "SUFFIXES",
    "Conversion",
    "Source",
    "Written",
    "convert",
    "output_format",
    "read_source",
    "write_model",
]

FORMAT_OF_BACKEND = {"torch": "torch", "paddle": "paddle", "keras": "keras-h5", "onnx": "onnx"}
_WHOLE_MODELS = ("keras", "onnx")
"""Files of a network with its weights, which the framework's own library writes."""
_SELF_CONTAINED = ("safetensors", "onnx")
"""Files that hold spec and card themselves where the names are our own."""
SUFFIXES = {
    "safetensors": ".safetensors",
    "torch": ".pth",
    "paddle": ".pdparams",
    "keras-h5": ".weights.h5",
    "onnx": ".onnx",
}


@dataclass(frozen=True)
class Conversion:
    """A finished (or, with `dry_run`, a planned) conversion.

    Attributes:
        source: what was read.
        path: the file written, or none.
        sidecar: the spec file written beside it, or none.
        format: of the output.
        layout: of the output.
        ledger: one row a tensor of the output, in its order.
        notes: whatever else happened.
        tensors: what was written, by foreign name, made when asked for.
    """

    source: Source
    path: Path | None
    sidecar: Path | None
    format: str
    layout: str
    ledger: tuple[LedgerRow, ...] = field(repr=False)
    notes: tuple[str, ...]
    tensors: Mapping[str, np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Written:
    """What `write_model` did.

    Attributes:
        format: of the output.
        ledger: one row a tensor of the output, in its order.
        sidecar: the spec file written beside it, or none.
        notes: whatever else happened.
        tensors: what was written, by foreign name, made when asked for.
    """

    format: str
    ledger: tuple[LedgerRow, ...] = field(repr=False)
    sidecar: Path | None
    notes: tuple[str, ...]
    tensors: Mapping[str, np.ndarray] = field(repr=False)


def write_model(
    model: Canonical,
    path: str | Path,
    *,
    to: str | None = None,
    layout: str = "deeplabzoo",
    dtype: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Written:
    """Write canonical weights.

    A safetensors file in our own layout holds its spec and card itself; beside every other file lies a TOML file.

    Args:
        model: what to write.
        path: the file; its suffix chooses the format, a `/` at its end a folder for the hub.
        to: backend whose format to write, where the suffix does not say.
        layout: names to write.
        dtype: element type of all tensors but counters; as they are by default.
        force: replace the file where it exists.
        dry_run: do everything but write.

    Raises:
        OutputError: the output exists (without `force`) or can't be written.
        LayoutError: the layout can't hold this network.
        WeightsError: the weights do not fit the spec.
    """
    file_format = output_format(path, to)
    chosen = get_layout(layout)
    check_weights(model.graph, model.weights)
    foreign = dict(model.card.foreign) if model.card.foreign else None
    tensors, rows = to_foreign(model.weights, chosen, model.spec, file_format, foreign, model.spares)
    notes = [
        f"the file says nothing of {line}, and {chosen.title} computes otherwise"
        for line in chosen.differences(model.spec)
    ]
    own = layout == "deeplabzoo"
    if file_format in _WHOLE_MODELS and dtype is None:
        dtype = _common_type(tensors)  # such a model has one
    if own and file_format == "safetensors" and model.spares:
        tensors, rows = _with_spares(tensors, rows, model.spares)
    if dtype is not None:
        check_dtype(dtype)
        tensors, rows, lost = cast(tensors, rows, dtype)
        notes += lost
    beside = None if file_format in _SELF_CONTAINED and own else sidecar_path(Path(path))
    if not dry_run:
        _check_outputs(path, file_format, force=force)
        if beside is not None:
            check_output(beside, force=force)
            sidecar_text(model)  # what can't be said fails before anything is written
        if file_format in _WHOLE_MODELS:
            from deeplabzoo.whole_models import write_whole_model  # it needs a backend, which this room must not

            write_whole_model(Path(path), model, file_format, dtype=dtype or "float32", force=force)
        else:
            formats.write(
                path, tensors, format=file_format, metadata=_file_metadata(model, chosen, file_format), force=force
            )
        if beside is not None:
            # Two files can't be replaced at once; the fingerprint tells a spec from that of other weights.
            written = fingerprint(formats.read(path).tensors)
            with beside_then_rename(beside, force=force) as temporary:
                temporary.write_text(sidecar_text(model, written), encoding="utf-8")
    return Written(file_format, tuple(rows), beside, tuple(notes), tensors)


def convert(
    source: str | Path | Mapping[str, np.ndarray] | Any,
    dest: str | Path | None = None,
    *,
    to: str | None = None,
    from_layout: str | None = None,
    to_layout: str = "deeplabzoo",
    spec: ArchSpec | None = None,
    preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
    output_stride: int | None = None,
    dtype: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Conversion | Any:
    """Convert a checkpoint between frameworks and layouts, bit-exact, executing nothing from the file.

    Args:
        source: path of a checkpoint of any known format, name of published weights, foreign tensors by name, or a
            model of PyTorch, Paddle or Keras in memory.
        dest: file to write; its suffix chooses the format, a `/` at its end a folder for the hub. None reads only, or
            with `to` builds.
        to: backend whose format to write (`torch`, `paddle`, `keras`), where the suffix does not say; without `dest`
            the backend that a native model is built in, in this process.
        from_layout: layout of the source; told from the names by default.
        to_layout: a name of `weights_converter.layouts.LAYOUTS`.
        spec: spec of the source, where the caller knows it better than the file.
        preset: named architecture to take for what no tensor tells.
        changes: fields of the spec to change, by dotted name.
        output_stride: take the network at another output stride, rates rescaled.
        dtype: element type to write (`float32`, `float16`, `bfloat16`, `float64`); as in the source by default.
        force: replace `dest` where it exists.
        dry_run: do everything but write.

    Returns:
        What was read, what was written, and the ledger of both; or, with `to` and without `dest`, the native model.

    Raises:
        FormatError, LayoutError, SpecError, WeightsError, OutputError: one line each, nothing half-written.
        BackendError: a native model is asked for and its framework can't live in this process.
    """
    if dest is not None:
        chosen = output_format(dest, to)
        if not dry_run:
            _check_outputs(dest, chosen, force=force)
    if dtype is not None:
        check_dtype(dtype)
    builds = dest is None and to is not None and not dry_run
    if isinstance(source, str | Path):
        from deeplabzoo.models import local_source  # the zoo downloads, and for that it knows this room

        source = local_source(source)
    read = read_source(
        source,
        layout=from_layout,
        spec=spec,
        preset=preset,
        changes=changes,
        output_stride=output_stride,
        lazy=not builds,
    )
    if builds:
        from deeplabzoo.models import build  # it knows the backends, which this room must not

        return build(weights=read.model, backend=to or "", dtype=dtype or "float32")
    if dest is None:
        return Conversion(read, None, None, "", "", (), read.notes, {})
    if isinstance(source, str | Path) and _same_file(Path(source), _outputs(dest, chosen)):
        raise LayoutError(f"source and output are the same file {dest}; give another output")
    written = write_model(read.model, dest, to=to, layout=to_layout, dtype=dtype, force=force, dry_run=dry_run)
    return Conversion(
        read,
        None if dry_run else Path(dest),
        None if dry_run else written.sidecar,
        written.format,
        to_layout,
        written.ledger,
        (*read.notes, *written.notes),
        written.tensors,
    )


def check_ledger(ledger: Path, source: str | Path, dest: str | Path | None, to: str | None) -> None:
    """Refuse a ledger under the name of the source, of an output or of the spec beside it, whatever `force` says.

    Raises:
        OutputError: as said.
        FormatError: as for `convert`.
    """
    taken = () if dest is None else (*_outputs(dest, output_format(dest, to)), sidecar_path(Path(dest)))
    if any(ledger.resolve() == path.resolve() for path in taken) or _same_file(Path(source), (ledger,)):
        raise OutputError(f"ledger {ledger}: that is the source, the output or its spec file; give another name")


def output_format(path: str | Path, to: str | None) -> str:
    """Format of an output, by its suffix or the backend `to`.

    Raises:
        FormatError: an unknown suffix or backend, or both contradict each other.
    """
    if to is None:
        return formats.format_of_suffix(path)
    backend = to.split("/")[0]
    if backend not in FORMAT_OF_BACKEND:
        raise FormatError(unknown("backend", to, FORMAT_OF_BACKEND))
    wanted = FORMAT_OF_BACKEND[backend]
    name = Path(path).name
    if wanted == "keras-h5" and not name.endswith(SUFFIXES[wanted]):
        raise FormatError(f"output {name}: Keras reads only files named *{SUFFIXES[wanted]}; name it so")
    if any(name.endswith(suffix) for suffix in SUFFIXES.values()) and formats.format_of_suffix(path) != wanted:
        raise FormatError(
            f"output {name} has the suffix of {formats.format_of_suffix(path)}, but {to} was asked for: "
            f"name it *{SUFFIXES[wanted]}, or ask for the other"
        )
    return wanted


def _with_spares(
    tensors: LazyWeights, rows: list[LedgerRow], spares: Mapping[str, np.ndarray]
) -> tuple[LazyWeights, list[LedgerRow]]:
    """Our own file holds what is kept aside as well."""
    makers = {name: lambda name=name: tensors[name] for name in tensors}
    makers |= {SPARE + name: lambda name=name: spares[name] for name in spares}
    kept = [row for row in rows if row.foreign not in spares]
    kept += [LedgerRow(SPARE + n, tuple(a.shape), str(a.dtype), "kept aside", "") for n, a in spares.items()]
    return LazyWeights(makers), kept


def _file_metadata(model: Canonical, layout: Layout, file_format: str) -> dict[str, str] | None:
    own = layout.name == "deeplabzoo"
    if file_format == "keras-h5" and own:
        from deeplabzoo.weights_converter.keras_paths import keras_group_names

        return keras_group_names(model.graph)
    if file_format == "safetensors":
        # Others' loaders look for this key; ours marks a file whose names are our own.
        return {**(model.metadata() if own else {"format": "pt"}), "written_by": f"deeplabzoo {__version__}"}
    if file_format == "hub-folder":
        config = layout.config(model)
        return None if config is None else {"config": json.dumps(config, indent=2)}
    return None


def _outputs(path: str | Path, file_format: str) -> tuple[Path, ...]:
    return (Path(path),) if file_format in _WHOLE_MODELS else formats.outputs(path, format=file_format)


def _check_outputs(path: str | Path, file_format: str, *, force: bool) -> None:
    if file_format in _WHOLE_MODELS:
        check_output(Path(path), force=force)
    else:
        formats.check_outputs(path, format=file_format, force=force)


def _same_file(source: Path, outputs: Sequence[Path]) -> bool:
    """Whether a source is one of the outputs, or lies in one; the source may be the prefix of several files."""
    sources = [source, *source.parent.glob(f"{glob.escape(source.name)}.*")] if source.name else [source]
    inside = any(output.is_dir() and output.resolve() in source.resolve().parents for output in outputs)
    return inside or any(a.exists() and b.exists() and a.samefile(b) for a in sources for b in outputs)


def _common_type(tensors: LazyWeights) -> str:
    """The widest floating type among tensors."""
    found = {tensors[name].dtype for name in tensors}
    return next((name for name, dtype in DTYPES.items() if dtype in found), "float32")
