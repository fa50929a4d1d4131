"""`deeplabzoo demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deeplabzoo.cli.common import bar, json_option, print_json, print_table, say
from deeplabzoo.cli.types import PATH

if TYPE_CHECKING:
    from deeplabzoo.demo import Outcome
    from deeplabzoo.inference.metrics import Scores


@click.command("demo")
@click.option("--output", type=PATH, default="demo-output", show_default=True, help="Folder for weights and pictures.")
@click.option("--data", type=PATH, help="Folder with checkpoint and photos.  [default: DEEPLABZOO_DATA]")
@json_option
@click.pass_context
def command(ctx: click.Context, /, output: Path, data: Path | None, as_json: bool) -> None:
    """Run the main job end to end: convert a public checkpoint, run every framework on photos, draw, compare.

    Without data the checkpoint is downloaded; without a network seeded weights and a drawn image take their places.
    """
    from deeplabzoo.demo import data_folder, run_demo

    done = run_demo(output, data_folder(data), tell=say, bar=bar)
    scored = [(name, scores) for name, scores in done.scores.items() if scores is not None]
    if as_json:
        print_json(
            {
                "public_checkpoint": done.real,
                "scores": {name: {"pixel_accuracy": s.pixel_accuracy, "miou": s.miou} for name, s in scored},
                "labels_equal": [{"first": a, "second": b, "share": share} for a, b, share in done.agreements],
                "pictures": [str(picture) for picture in done.pictures],
                "page": str(done.page),
                "parity": done.report.to_dict(),
            }
        )
    else:
        _print(done, scored)
    say()
    weights = "the public checkpoint" if done.real else "seeded weights"
    say(f"float64 parity of {weights}:")
    for line in done.report.lines():
        say(line)
    if not done.real:
        say("the labels of seeded weights mean nothing; what counts is that they are the same everywhere")
    say(f"pictures: {done.pictures[-1]} and {len(done.pictures) - 1} beside it, and the report {done.page}")
    if not done.report.passed:
        ctx.exit(1)


def _print(done: Outcome, scored: list[tuple[str, Scores]]) -> None:
    click.echo()
    if scored:
        print_table(
            ((name, f"{scores.pixel_accuracy:.4f}", f"{scores.miou:.4f}") for name, scores in scored),
            ("backend", "pixel accuracy", "mIoU (classes present)"),
        )
        click.echo()
    print_table(((a, b, f"{share:.4%}") for a, b, share in done.agreements), ("backend", "backend", "labels equal"))
    click.echo()
    print_table(
        ((row.case, row.first, row.second, f"{row.error:.1e}") for row in done.report.rows),
        ("input", "backend", "against", "error in float64"),
    )
