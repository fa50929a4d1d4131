"""`deeplabzoo list`."""

from __future__ import annotations

import click

from deeplabzoo.cli.common import json_option, print_json, print_table, say


@click.command("list")
@click.argument("pattern", default="*")
@json_option
def command(pattern: str, as_json: bool) -> None:
    """Named models that match PATTERN: presets with their source, published weights with licence and mIoU."""
    import dataclasses

    from deeplabzoo.core.analysis import parameter_count
    from deeplabzoo.core.architectures import build_graph
    from deeplabzoo.zoo.models import PRESETS, PUBLISHED, list_models

    names = list_models(pattern)
    presets = [PRESETS[name] for name in names if name in PRESETS]
    published = [PUBLISHED[name] for name in names if name in PUBLISHED]
    if as_json:
        print_json(
            {
                "presets": [{"name": p.name, "source": p.source, "spec": p.make().to_dict()} for p in presets],
                "weights": [dataclasses.asdict(w) for w in published],
            }
        )
        return
    if presets:
        rows = []
        for preset in presets:
            spec = preset.make()
            rows.append((preset.name, spec.output_stride, f"{parameter_count(build_graph(spec)):,}", preset.source))
        print_table(rows, ("model", "stride", "parameters", "source"))
    if published:
        click.echo()
        print_table(
            ((w.name, f"{w.megabytes:g} MB", w.licence, f"{w.miou:g}", w.dataset, w.source) for w in published),
            ("weights", "size", "licence", "mIoU", "on", "published by"),
        )
    if not names:
        say(f"no model matches {pattern!r}; `deeplabzoo list` shows all")
