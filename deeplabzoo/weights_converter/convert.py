"""Read any known file into canonical weights, write canonical weights in any known layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo._version import __version__
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import check_weights
from deeplabzoo.errors import FormatError, LayoutError, unknown
from deeplabzoo.files import beside_then_rename, check_output
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import (
    Canonical,
    read_metadata,
    read_sidecar,
    sidecar_path,
    sidecar_text,
)
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import Layout, detect_layout, get_layout
from deeplabzoo.weights_converter.ledger import LedgerRow, to_canonical, to_foreign

FORMAT_OF_BACKEND = {"torch": "torch", "paddle": "paddle", "keras": "keras-h5"}
SUFFIXES = {"safetensors": ".safetensors", "torch": ".pth", "paddle": ".pdparams", "keras-h5": ".weights.h5"}


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
    """

    model: Canonical
    format: str
    layout: str
    evidence: str
    told: tuple[str, ...]
    assumed: tuple[str, ...]
    ledger: tuple[LedgerRow, ...] = field(repr=False)
    notes: tuple[str, ...]


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
    """

    source: Source
    path: Path | None
    sidecar: Path | None
    format: str
    layout: str
    ledger: tuple[LedgerRow, ...] = field(repr=False)
    notes: tuple[str, ...]


def read_source(
    source: str | Path | Mapping[str, np.ndarray],
    *,
    layout: str | None = None,
    spec: ArchSpec | None = None,
    output_stride: int | None = None,
) -> Source:
    """Canonical weights of a file, or of foreign tensors by name.

    The spec is the first of: `spec`, the file's own metadata, the TOML file beside it, what the tensors tell plus the
    layout's published defaults.

    Args:
        source: path of a file, or tensors by their foreign names.
        layout: name of the layout; told from the names by default.
        spec: the spec, where the caller knows it.
        output_stride: take the spec at another output stride, rates rescaled.

    Raises:
        FormatError: the file can't be read.
        LayoutError: the layout can't be told, or the tensors do not fit it.
        SpecError: a spec beside the file is wrong.
    """
    if isinstance(source, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in source.items()}
        checkpoint = Checkpoint(arrays, "arrays", {})
        found, origin = None, "arrays in memory"
    elif not isinstance(source, str | Path):
        raise FormatError(f"source = {source!r}: expected a path, or foreign tensors by name")
    else:
        path = Path(source)
        checkpoint = formats.read(path)
        found = read_metadata(checkpoint.metadata, path) or read_sidecar(path)
        origin = path.name.encode(errors="replace").decode()  # a name of raw bytes is no text
    card = found[1] if found else None
    if found is not None:
        found[1].check(found[0])
    known, evidence = (get_layout(layout), "named by the caller") if layout else detect_layout(checkpoint)
    told: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    if spec is None and found is not None:
        spec, told = found[0], ("the spec in the file or beside it",)
    elif spec is None:
        reading = _read_spec(known, checkpoint)
        spec, told, assumed = reading.spec, reading.told, reading.assumed
    if output_stride is not None and output_stride != spec.output_stride:
        changed = spec.at_output_stride(output_stride)
    else:
        changed = spec
    weights, rows = to_canonical(checkpoint.tensors, known, spec, checkpoint.format)
    if card is None:
        card = known.card(changed)
    if not card.provenance:
        provenance = {"source": origin, "layout": known.name, "format": checkpoint.format}
        if assumed:  # kept with the weights, so that a guess never turns into a fact on the way
            provenance["assumed"] = "; ".join(assumed)
        card = dataclasses.replace(card, provenance=provenance)
    if card.foreign is None and known.name != "deeplabzoo":
        names = [row.foreign for row in rows if row.canonical]
        card = dataclasses.replace(card, foreign={"layout": known.name, "format": checkpoint.format, "names": names})
    model = Canonical(changed, weights, card)
    return Source(model, checkpoint.format, known.name, evidence, told, assumed, tuple(rows), checkpoint.notes)


def write_model(
    model: Canonical,
    path: Path,
    *,
    to: str | None = None,
    layout: str = "deeplabzoo",
    force: bool = False,
    dry_run: bool = False,
) -> tuple[str, tuple[LedgerRow, ...], Path | None, tuple[str, ...]]:
    """Write canonical weights; returns format, ledger, the spec file written beside (or none), notes.

    A safetensors file in our own layout holds its spec and card itself; beside every other file lies a TOML file.

    Raises:
        OutputError: the output exists (without `force`) or can't be written.
        LayoutError: the layout can't hold this network.
        WeightsError: the weights do not fit the spec.
    """
    file_format = output_format(path, to)
    chosen = get_layout(layout)
    check_weights(model.graph, model.weights)
    tensors, rows = to_foreign(model.weights, chosen, model.spec, file_format, model.card.foreign)
    notes = tuple(
        f"the file says nothing of {line}, and {chosen.title} computes otherwise"
        for line in chosen.differences(model.spec)
    )
    beside = None if file_format == "safetensors" and layout == "deeplabzoo" else sidecar_path(path)
    if not dry_run:
        check_output(path, force=force)
        if beside is not None:
            check_output(beside, force=force)
        text = b"" if beside is None else sidecar_text(model).encode()
        metadata = model.metadata() if file_format == "safetensors" else None
        formats.write(
            path, tensors, format=file_format, metadata=_file_metadata(model, file_format, metadata), force=force
        )
        if beside is not None:
            with beside_then_rename(beside) as temporary:
                temporary.write_bytes(text)
    return file_format, tuple(rows), beside, notes


def convert(
    source: str | Path | Mapping[str, np.ndarray] | Any,
    dest: str | Path | None = None,
    *,
    to: str | None = None,
    from_layout: str | None = None,
    to_layout: str = "deeplabzoo",
    spec: ArchSpec | None = None,
    output_stride: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Conversion:
    """Convert a checkpoint between frameworks and layouts, bit-exact, executing nothing from the file.

    Args:
        source: path of a checkpoint (TensorFlow checkpoint, safetensors, `.pth`, `.pdparams`, `.weights.h5`), or
            foreign tensors by name.
        dest: file to write; its suffix chooses the format. None reads only.
        to: backend whose format to write (`torch`, `paddle`, `keras`), where the suffix does not say.
        from_layout: layout of the source; told from the names by default.
        to_layout: `deeplabzoo` (default), `torchvision` or `tensorflow`.
        spec: spec of the source, where the caller knows it better than the file.
        output_stride: take the network at another output stride, rates rescaled.
        force: replace `dest` where it exists.
        dry_run: do everything but write.

    Returns:
        What was read, what was written, and the ledger of both.

    Raises:
        FormatError, LayoutError, SpecError, WeightsError, OutputError: one line each, nothing half-written.
    """
    if dest is not None and not dry_run:
        output_format(Path(dest), to)
        check_output(Path(dest), force=force)
    read = read_source(source, layout=from_layout, spec=spec, output_stride=output_stride)
    if dest is None:
        return Conversion(read, None, None, "", "", (), read.notes)
    if isinstance(source, str | Path) and _same_file(Path(source), Path(dest)):
        raise LayoutError(f"source and output are the same file {dest}; give another output")
    file_format, rows, beside, notes = write_model(
        read.model, Path(dest), to=to, layout=to_layout, force=force, dry_run=dry_run
    )
    return Conversion(
        read,
        None if dry_run else Path(dest),
        None if dry_run else beside,
        file_format,
        to_layout,
        rows,
        (*read.notes, *notes),
    )


def _read_spec(layout: Layout, checkpoint: Checkpoint) -> Any:
    try:
        return layout.read_spec(checkpoint)
    except LayoutError as error:
        raise LayoutError(f"layout {layout.name}: {error}") from None


def output_format(path: Path, to: str | None) -> str:
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
    if wanted == "keras-h5" and not path.name.endswith(SUFFIXES[wanted]):
        raise FormatError(f"output {path.name}: Keras reads only files named *{SUFFIXES[wanted]}; name it so")
    if any(path.name.endswith(suffix) for suffix in SUFFIXES.values()) and formats.format_of_suffix(path) != wanted:
        raise FormatError(
            f"output {path.name} has the suffix of {formats.format_of_suffix(path)}, but --to {to} writes {wanted}: "
            f"name it *{SUFFIXES[wanted]} or leave --to out"
        )
    return wanted


def _file_metadata(model: Canonical, file_format: str, metadata: dict[str, str] | None) -> dict[str, str] | None:
    if file_format == "keras-h5":
        from deeplabzoo.weights_converter.keras_paths import keras_group_names

        return keras_group_names(model.graph)
    if metadata is not None:
        metadata["written_by"] = f"deeplabzoo {__version__}"
    return metadata


def _same_file(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
