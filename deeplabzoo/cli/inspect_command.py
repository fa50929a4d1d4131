"""`deeplabzoo inspect`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplabzoo.cli.common import (
    json_option,
    print_json,
    print_table,
    printable,
    reading_arguments,
    reading_options,
    source_path,
)
from deeplabzoo.cli.types import PATH

if TYPE_CHECKING:
    from deeplabzoo.weights_converter.convert import Source
    from deeplabzoo.weights_converter.formats import Checkpoint

_CERTIFICATE = "deeplabzoo.certificate"
"""Written out, because the library behind it takes time to load; a test holds it against that."""


@click.command("inspect")
@click.argument("file", type=PATH)
@reading_options
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def command(file: Path, from_layout: str | None, tensors: bool, as_json: bool, **words: Any) -> None:
    """Tell format, layout, architecture and tensors of a weights file or folder; nothing in it is executed.

    Reads .pth, .pt, .bin, .safetensors, .pdparams, .weights.h5, .keras, Keras 2 .h5, TensorFlow checkpoints,
    SavedModels and frozen graphs, .tflite, .caffemodel, .onnx, .npz, and folders of the Hugging Face hub, whatever
    they are called. Where the layout can't be told, it says what the file holds, and why not.
    """
    from deeplabzoo.errors import DeepLabZooError
    from deeplabzoo.weights_converter import formats
    from deeplabzoo.weights_converter.convert import read_source

    path = source_path(file)
    checkpoint = formats.read(path)
    read, failure = None, None
    try:
        arguments = reading_arguments(from_layout=None, **words)
        read = read_source(path, layout=from_layout, lazy=True, **arguments)
    except DeepLabZooError as error:
        failure = error
    data = _data(file, path, checkpoint, read)
    if _CERTIFICATE in checkpoint.metadata:
        data["certificate"] = _certificate(path, read)
    if as_json:
        if tensors:
            data["ledger"] = [vars(row) for row in read.ledger] if read else _listed(checkpoint)
        if failure is not None:
            data["error"] = str(failure)
        print_json(data)
    else:
        for name, value in _lines(data):
            if value:
                click.echo(f"{name:12} {printable(value)}")
        if tensors:
            click.echo()
            print_table(
                ([row["foreign"], row["shape"], row["dtype"]] for row in _listed(checkpoint)),
                ("tensor", "shape", "dtype"),
            )
    if failure is not None:
        raise failure


def _data(file: Path, path: Path, checkpoint: Checkpoint, read: Source | None) -> dict[str, Any]:
    from deeplabzoo.core.analysis import parameter_count
    from deeplabzoo.weights_converter.oddities import oddities

    listed = _listed(checkpoint)
    data: dict[str, Any] = {
        "file": str(file),
        "bytes": _size(path),
        "format": checkpoint.format,
        "tensors": len(listed),
        "dtypes": sorted({row["dtype"] for row in listed}),
        "notes": list(read.notes if read else checkpoint.notes),
        "odd": oddities(checkpoint.tensors, read.ledger if read else ()),
    }
    if read is None:
        return data
    spec, card = read.model.spec, read.model.card
    return data | {
        "layout": read.layout,
        "evidence": read.evidence,
        "model": spec.title,
        "spec": spec.to_dict(),
        "told": list(read.told),
        "assumed": list(read.assumed),
        "values": sum(math.prod(shape) for shape in read.model.graph.parameters().values()),
        "parameters": parameter_count(read.model.graph),
        "left_out": {row.foreign: row.transform.removeprefix("left out: ") for row in read.ledger if not row.canonical},
        "classes": list(card.classes),
        "preprocessing": dict(card.preprocessing or {}),
        "provenance": dict(card.provenance),
    }


def _certificate(path: Path, read: Source | None) -> dict[str, Any]:
    """What the certificate in the file says, and whether it fits."""
    from deeplabzoo.errors import FormatError
    from deeplabzoo.parity.certificate import misfit, read_certificate, summary

    try:
        made = read_certificate(path) or {}
    except FormatError as error:
        return {"summary": str(error), "fits": False}
    problem = "not compared" if read is None else misfit(made, read.model.graph, read.model.weights)
    return {**made, "summary": summary(made, problem), "fits": not problem}


def _lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    """What is printed, in order; what is empty is left out."""
    about = f"{data['tensors']} of {', '.join(data['dtypes'])}; {data['bytes'] / 1e6:,.1f} MB"
    lines = [("format", data["format"])]
    if "layout" in data:
        spec = data["spec"]
        lines += [
            ("layout", f"{data['layout']} ({data['evidence']})"),
            ("model", f"{data['model']}, stride {spec['output_stride']}, {spec['num_classes']} classes"),
            ("told", "; ".join(data["told"])),
            ("assumed", "; ".join(data["assumed"])),
            ("tensors", f"{about}; {data['values']:,} values"),
            ("parameters", f"{data['parameters']:,}"),
            ("classes", ", ".join(data["classes"])),
            ("photos", ", ".join(f"{k} {v}" for k, v in data["preprocessing"].items())),
            ("from", ", ".join(f"{k} {v}" for k, v in data["provenance"].items())),
        ]
    else:
        lines.append(("tensors", about))
    if "certificate" in data:
        lines.append(("certificate", data["certificate"]["summary"]))
    lines += [("odd" if i == 0 else "", line) for i, line in enumerate(data["odd"])]
    lines += [("notes" if i == 0 else "", line) for i, line in enumerate(data["notes"])]
    return lines


def _listed(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    rows = []
    for name in checkpoint.tensors:
        array = checkpoint.tensors[name]
        rows.append({"foreign": name, "shape": tuple(array.shape), "dtype": str(array.dtype)})
    return rows


def _size(path: Path) -> int:
    """Bytes of a file, of the files of a folder, or of those that a checkpoint's prefix stands for."""
    if path.is_file():
        return path.stat().st_size
    inside = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}.*")
    return sum(one.stat().st_size for one in inside if one.is_file())
