"""`deeplabzoo fetch`."""

from __future__ import annotations

import click

from deeplabzoo.cli.common import json_option, print_json, say


@click.command("fetch")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Download and convert again what is cached.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds without an answer before a connection is given up.",
)
@json_option
def command(names: tuple[str, ...], force: bool, time_limit: float, as_json: bool) -> None:
    """Download published weights by name, check and convert them; prints the path of each canonical model.

    A download that broke off goes on where it ended. The digest is checked where the project publishes one; where not,
    the first download's digest is kept, and every later one must agree. DEEPLABZOO_CACHE names the folder.

    \b
    deeplabzoo list mmseg cityscapes
    deeplabzoo fetch v3plus_resnet50.mmseg_cityscapes_80k
    deeplabzoo predict street.jpg --weights v3plus_resnet50.mmseg_cityscapes_80k --output labels
    """
    from deeplabzoo.zoo.fetch import fetch_model

    data = []
    for name in names:
        found = fetch_model(name, force=force, progress=True, time_limit=time_limit)
        weights, spec = found.weights, found.weights.spec()
        data.append({**weights.to_dict(), "path": str(found.path), "file": str(found.file), "sha256": found.sha256})
        if not as_json:
            click.echo(found.path)
        figure = f"mIoU {weights.miou:g} on {weights.judged}" if weights.miou else "no published mIoU"
        say(
            f"{name}: {spec.title}, stride {spec.output_stride}, {spec.num_classes} classes ({weights.dataset}), "
            f"{figure}, {weights.licence}, from {weights.source}"
        )
    if as_json:
        print_json(data)
