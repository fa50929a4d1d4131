"""`deeplabzoo inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from deeplabzoo.cli.common import PATH, json_option, print_json, print_table, source_path


@click.command("inspect")
@click.argument("file", type=PATH)
@click.option("--from-layout", help="Layout, where the names do not tell it.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def command(file: Path, from_layout: str | None, tensors: bool, as_json: bool) -> None:
    """Tell format, layout, architecture and tensors of a weights file; nothing in it is executed."""
    from deeplabzoo.core.analysis import parameter_count
    from deeplabzoo.weights_converter import formats
    from deeplabzoo.weights_converter.convert import read_source

    path = source_path(file)
    read = read_source(path, layout=from_layout)
    spec, ledger = read.model.spec, read.ledger
    dtypes = sorted({row.dtype for row in ledger})
    data = {
        "file": str(file),
        "format": read.format,
        "layout": read.layout,
        "evidence": read.evidence,
        "notes": list(read.notes),
        "model": spec.title,
        "spec": spec.to_dict(),
        "told": list(read.told),
        "assumed": list(read.assumed),
        "tensors": len(ledger),
        "dtypes": dtypes,
        "values": sum(array.size for array in read.model.weights.values()),
        "parameters": parameter_count(read.model.graph),
        "left_out": {row.foreign: row.transform.removeprefix("left out: ") for row in ledger if not row.canonical},
        "classes": list(read.model.card.classes),
        "preprocessing": dict(read.model.card.preprocessing or {}),
        "provenance": dict(read.model.card.provenance),
    }
    if as_json:
        if tensors:
            data["ledger"] = [vars(row) for row in ledger]
        print_json(data)
        return
    lines = (
        ("format", read.format),
        ("layout", f"{read.layout} ({read.evidence})"),
        ("model", f"{spec.title}, stride {spec.output_stride}, {spec.num_classes} classes"),
        ("told", "; ".join(read.told)),
        ("assumed", "; ".join(read.assumed)),
        ("tensors", f"{len(ledger)} of {', '.join(dtypes)}; {data['values']:,} values"),
        ("parameters", f"{data['parameters']:,}"),
        ("left out", "; ".join(f"{k} ({v})" for k, v in list(data["left_out"].items())[:6])),  # type: ignore[attr-defined]
        ("classes", ", ".join(read.model.card.classes)),
        ("photos", ", ".join(f"{k} {v}" for k, v in (read.model.card.preprocessing or {}).items())),
        ("from", ", ".join(f"{k} {v}" for k, v in read.model.card.provenance.items())),
        ("notes", "; ".join(read.notes)),
    )
    for name, value in lines:
        if value:
            click.echo(f"{name:12} {value}")
    if tensors:
        click.echo()
        checkpoint = formats.read(path)
        print_table(
            ((name, tuple(array.shape), array.dtype) for name, array in checkpoint.tensors.items()),
            ("tensor", "shape", "dtype"),
        )
