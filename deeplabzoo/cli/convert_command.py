"""`deeplabzoo convert`."""

from __future__ import annotations

from pathlib import Path

import click

from deeplabzoo.cli.common import PATH, force_option, json_option, print_json, print_table, say, source_path

LAYOUT = click.Choice(["deeplabzoo", "torchvision", "tensorflow"])


@click.command("convert")
@click.argument("source", type=PATH)
@click.argument("dest", type=PATH, required=False)
@click.option(
    "--to", type=click.Choice(["torch", "paddle", "keras"]), help="Format to write where DEST's suffix does not say."
)
@click.option("--from-layout", type=LAYOUT, help="Layout of SOURCE; told from the names by default.")
@click.option("--to-layout", type=LAYOUT, default="deeplabzoo", show_default=True, help="Layout of DEST.")
@click.option("--spec", "spec_file", type=PATH, help="Spec of SOURCE, where you know it better than the file.")
@click.option("--output-stride", type=int, help="Take the network at another output stride: 8, 16 or 32.")
@click.option("--dry-run", is_flag=True, help="Print the ledger, write nothing.")
@force_option
@json_option
def command(
    source: Path,
    dest: Path | None,
    to: str | None,
    from_layout: str | None,
    to_layout: str,
    spec_file: Path | None,
    output_stride: int | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint, bit-exact, executing nothing from the file.

    SOURCE is the name of published weights, a TensorFlow checkpoint, .safetensors, .pth, .pdparams or .weights.h5;
    DEST's suffix chooses the format.

    \b
    deeplabzoo convert deeplabv3_resnet101.pth model.weights.h5
    deeplabzoo convert model.ckpt-30000 model.safetensors
    deeplabzoo convert model.safetensors model.pth --to-layout torchvision
    """
    from deeplabzoo.core.spec import read_spec
    from deeplabzoo.weights_converter.convert import convert

    if dest is None and not dry_run:
        raise click.UsageError("Missing argument 'DEST': name the file to write, or add --dry-run")
    done = convert(
        source_path(source),
        dest,
        to=to,
        from_layout=from_layout,
        to_layout=to_layout,
        spec=read_spec(spec_file)[0] if spec_file else None,
        output_stride=output_stride,
        force=force,
        dry_run=dry_run,
    )
    read = done.source
    if as_json:
        print_json(
            {
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
        )
        return
    if dry_run:
        headers = ("foreign name", "shape", "transform", "canonical name")
        print_table(((r.foreign, r.shape, r.transform, r.canonical) for r in read.ledger), headers)
        if done.ledger:
            click.echo(f"\nas {done.format}, layout {done.layout}:\n")
            print_table(((r.foreign, r.shape, r.transform, r.canonical) for r in done.ledger), headers)
    left_out = [row for row in read.ledger if not row.canonical]
    spec = read.model.spec
    say(f"read {source}: {read.format}, layout {read.layout} ({read.evidence}), {len(read.ledger)} tensors")
    say(f"model {spec.title}, stride {spec.output_stride}, {spec.num_classes} classes")
    if read.assumed:
        say(f"assumed, because no tensor tells: {'; '.join(read.assumed)}")
    for row in left_out:
        say(f"left out {row.foreign}: {row.transform.removeprefix('left out: ')}")
    for note in done.notes:
        say(f"note: {note}")
    if done.path:
        say(
            f"wrote {done.path}: {done.format}, layout {done.layout}"
            + (f"; spec in {done.sidecar}" if done.sidecar else "")
        )
    else:
        say("dry run: nothing was written")
