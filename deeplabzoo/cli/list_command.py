"""`deeplabzoo list`."""

from __future__ import annotations

import itertools

import click

from deeplabzoo.cli.common import json_option, print_json, print_table, say


@click.command("list")
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option("--only", type=click.Choice(["presets", "weights"]), help="Leave the other table out.")
@json_option
def command(patterns: tuple[str, ...], only: str | None, as_json: bool) -> None:
    """Named models that match every PATTERN: presets with their source, published weights with licence and mIoU.

    A PATTERN is a part of the name, or has the wildcards of a shell.

    \b
    deeplabzoo list v3plus ade20k
    deeplabzoo list 'v3_resnet50.*' --only weights
    """
    from deeplabzoo.core.analysis import parameter_count
    from deeplabzoo.core.architectures import build_graph
    from deeplabzoo.zoo.models import PRESETS, PUBLISHED, list_models

    names = [name for name in list_models() if all(name in list_models(pattern) for pattern in patterns)]
    presets = [PRESETS[name] for name in names if name in PRESETS and only != "weights"]
    published = [PUBLISHED[name] for name in names if name in PUBLISHED and only != "presets"]
    if as_json:
        print_json(
            {
                "presets": [{"name": p.name, "source": p.source, "spec": p.make().to_dict()} for p in presets],
                "weights": [weights.to_dict() for weights in published],
            }
        )
        return
    if presets:
        rows = []
        for preset in presets:
            spec = preset.make()
            rows.append((preset.name, spec.output_stride, f"{parameter_count(build_graph(spec)):,}", preset.source))
        print_table(rows, ("model", "stride", "parameters", "source"))
    published.sort(key=lambda weights: weights.publisher.lower())
    for publisher, group in itertools.groupby(published, key=lambda weights: f"{weights.publisher}, {weights.licence}"):
        click.echo(f"\n{publisher}\n")
        print_table(
            (
                (
                    w.name,
                    w.num_classes,
                    f"{w.megabytes:.0f} MB",
                    "" if w.miou is None else f"{w.miou:g}",
                    w.judged or w.dataset,
                )
                for w in group
            ),
            ("weights", "classes", "size", "mIoU", "on"),
        )
    if not presets and not published:
        say(f"no model matches {' and '.join(map(repr, patterns))}; `deeplabzoo list` shows all")
