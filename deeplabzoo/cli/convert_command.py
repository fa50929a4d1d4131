"""`deeplabzoo convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplabzoo.cli.common import (
    bar,
    force_option,
    json_option,
    print_json,
    print_table,
    reading_arguments,
    reading_options,
    say,
    source_path,
)
from deeplabzoo.cli.types import BACKENDS, DTYPE_NAMES, LAYOUT, LAYOUT_NAMES, PATH

if TYPE_CHECKING:
    from deeplabzoo.verification import Verification
    from deeplabzoo.weights_converter.convert import Conversion


@click.command("convert")
@click.argument("source", type=PATH)
@click.argument("dest", type=click.Path(), required=False)
@click.option(
    "--to",
    type=click.Choice(["torch", "paddle", "keras", "onnx"]),
    help="Format to write where DEST's suffix does not say.",
)
@click.option(
    "--to-layout",
    type=LAYOUT,
    metavar="LAYOUT",
    default="deeplabzoo",
    show_default=True,
    help=f"Whose names DEST gets: one of {', '.join(LAYOUT_NAMES)}.",
)
@reading_options
@click.option(
    "--dtype",
    type=click.Choice(DTYPE_NAMES),
    help="Element type to write; as in SOURCE by default.",
)
@click.option("--ledger", type=PATH, help="Write what happened to every tensor, with digests, to a JSON file.")
@click.option(
    "--verify",
    "backends",
    type=BACKENDS,
    metavar="BACKEND[,BACKEND]",
    help="Read DEST back, compare every tensor, and run parity on it with these backends.",
)
@click.option("--dry-run", is_flag=True, help="Print what would happen to every tensor, write nothing.")
@force_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: Path,
    dest: str | None,
    to: str | None,
    to_layout: str,
    from_layout: str | None,
    dtype: str | None,
    ledger: Path | None,
    backends: tuple[str, ...] | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **words: Any,
) -> None:
    """Convert a checkpoint, bit-exact, executing nothing from the file.

    SOURCE is the name of published weights, or a file or folder of any format and project that `deeplabzoo inspect`
    reads. DEST's suffix chooses the format: .safetensors, .pth, .pdparams, .weights.h5, .h5 (Keras 2), .ckpt
    (TensorFlow), .npz, .onnx, or a folder with a / at its end (for the Hugging Face hub).

    \b
    deeplabzoo convert deeplabv3_resnet101.pth model.weights.h5
    deeplabzoo convert model.ckpt-30000 model.safetensors --verify torch,keras
    deeplabzoo convert model.safetensors model.pth --to-layout torchvision --ledger ledger.json
    """
    from deeplabzoo.files import check_output
    from deeplabzoo.weights_converter.convert import check_ledger, convert

    if dest is None and not dry_run:
        raise click.UsageError("Missing argument 'DEST': name the file to write, or add --dry-run")
    if backends is not None and (dest is None or dry_run):
        raise click.UsageError("--verify reads DEST back: name it, and leave --dry-run out")
    if ledger is not None:
        check_output(ledger, force=force)
        check_ledger(ledger, source, dest, to)
    done = convert(
        source_path(source),
        dest,
        to=to,
        from_layout=from_layout,
        to_layout=to_layout,
        dtype=dtype,
        force=force,
        dry_run=dry_run,
        **reading_arguments(from_layout=None, **words),
    )
    if ledger is not None:
        _write_ledger(done, ledger)
    if not as_json:
        _tell(source, done, dry_run=dry_run)
    verified = None
    if backends and done.path:
        from deeplabzoo.verification import verify as judge

        with bar(len(backends) + 1, "verify") as step:
            verified = judge(done.path, done.source.model, backends, progress=step)
        if not as_json:
            _tell_verified(verified)
    if as_json:
        print_json(_data(source, done, verified))
    if verified is not None and not verified.report.passed:
        ctx.exit(1)


def _tell(source: Path, done: Conversion, *, dry_run: bool) -> None:
    read = done.source
    if dry_run:
        headers = ("foreign name", "shape", "transform", "canonical name")
        print_table(((r.foreign, r.shape, r.transform, r.canonical) for r in read.ledger), headers)
        if done.ledger:
            click.echo(f"\nas {done.format}, layout {done.layout}:\n")
            print_table(((r.foreign, r.shape, r.transform, r.canonical) for r in done.ledger), headers)
    spec = read.model.spec
    say(f"read {source}: {read.format}, layout {read.layout} ({read.evidence}), {len(read.ledger)} tensors")
    say(f"model {spec.title}, stride {spec.output_stride}, {spec.num_classes} classes")
    if read.assumed:
        say(f"assumed, because no tensor tells (--preset and --set change it): {'; '.join(read.assumed)}")
    reasons: dict[str, list[str]] = {}
    for row in (*read.ledger, *done.ledger):
        if not row.canonical:
            reasons.setdefault(row.transform, []).append(row.foreign)
        elif not row.foreign:
            reasons.setdefault(row.transform, []).append(row.canonical)
    for reason, names in reasons.items():
        shown = ", ".join(dict.fromkeys(names[:4]))
        say(f"{reason}: {shown}" + (f" and {len(names) - 4} more" if len(names) > 4 else ""))
    for note in done.notes:
        say(f"note: {note}")
    if done.path:
        beside = f"; spec in {done.sidecar}" if done.sidecar else ""
        say(f"wrote {done.path}: {done.format}, layout {done.layout}, {len(done.tensors)} tensors{beside}")
    else:
        say("dry run: no output was written")


def _tell_verified(verified: Verification) -> None:
    same = f"{verified.equal} tensors are bit for bit the source's"
    say(same + (f", {verified.cast} of another element type" if verified.cast else ""))
    for line in verified.report.lines():
        say(line)


def _write_ledger(done: Conversion, path: Path) -> None:
    """Every tensor on both sides: name, shape, type, what was done, canonical name, digest of its values."""
    import json

    from deeplabzoo.files import beside_then_rename
    from deeplabzoo.weights_converter.ledger import digest

    def rows(ledger: Any, tensors: Any) -> list[dict[str, Any]]:
        return [
            {**vars(row), "sha256": digest(tensors[row.foreign]) if row.foreign in tensors else None} for row in ledger
        ]

    read = done.source
    data = {
        "source": {"format": read.format, "layout": read.layout, "tensors": rows(read.ledger, read.tensors)},
        "spec": read.model.spec.to_dict(),
        "assumed": list(read.assumed),
        "output": {"format": done.format, "layout": done.layout, "tensors": rows(done.ledger, done.tensors)},
        "notes": list(done.notes),
    }
    with beside_then_rename(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _data(source: Path, done: Conversion, verified: Verification | None) -> dict[str, Any]:
    read = done.source
    data: dict[str, Any] = {
        "source": str(source),
        "format": read.format,
        "layout": read.layout,
        "evidence": read.evidence,
        "spec": read.model.spec.to_dict(),
        "assumed": list(read.assumed),
        "written": str(done.path) if done.path else None,
        "written_format": done.format,
        "written_layout": done.layout,
        "ledger": [vars(row) for row in read.ledger],
        "written_ledger": [vars(row) for row in done.ledger],
        "notes": list(done.notes),
    }
    if verified is not None:
        data["verified"] = {"equal": verified.equal, "cast": verified.cast, "parity": verified.report.to_dict()}
    return data
