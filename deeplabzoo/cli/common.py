"""Options, tables and bars that several commands share."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deeplabzoo.backends import resolve
from deeplabzoo.cli.types import BACKEND, CRF_NAMES, FIELD, LAYOUT, LAYOUT_NAMES, PATH, PYTHON, SCALES, SIZE

if TYPE_CHECKING:
    from deeplabzoo.weights_converter.canonical import Canonical

Function = TypeVar("Function", bound=Callable[..., Any])


def backend_option(function: Function) -> Function:
    """`--backend`; the first installed one by default."""
    return click.option("--backend", type=BACKEND, help="Framework to use; by default the first one installed.")(
        function
    )


def device_option(function: Function) -> Function:
    """`--device`."""
    return click.option(
        "--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True, help="Where to compute."
    )(function)


def python_option(function: Function) -> Function:
    """`--python BACKEND=PATH`, repeatable; the command gets `pythons`, a table of paths by the backend's full name."""

    def by_backend(ctx: click.Context, param: click.Parameter, given: tuple[tuple[str, str], ...]) -> dict[str, str]:
        pythons: dict[str, str] = {}
        for backend, path in given:
            if pythons.setdefault(backend, path) != path:
                raise click.BadParameter(f"{backend} was given two interpreters: give one", ctx, param)
        return pythons

    return click.option(
        "--python",
        "pythons",
        type=PYTHON,
        multiple=True,
        callback=by_backend,
        help="Interpreter of another environment for a backend to run in, repeatable; it needs the framework and numpy.",
    )(function)


def check_pythons(pythons: Mapping[str, str], names: Iterable[str]) -> None:
    """Wrong use: an interpreter for a backend that takes no part in the run of `names`."""
    chosen = {resolve(name).name for name in names}
    if strange := pythons.keys() - chosen:
        raise click.UsageError(
            f"--python is for {', '.join(sorted(strange))}, which takes no part: expected one of {', '.join(sorted(chosen))}"
        )


def judging_options(function: Function) -> Function:
    """What is judged, and on what: seeded or real weights, seeded images, interpreters of other environments."""
    options = (
        click.option(
            "--weights", help="Published weights by name, or a weights file; seeded lively weights by default."
        ),
        click.option(
            "--size",
            "sizes",
            type=SIZE,
            multiple=True,
            help="Image size, repeatable; by default one odd size with all atrous taps live and one even size.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0, max=2**63 - 1),
            default=0,
            show_default=True,
            help="Seed of weights, images and labels.",
        ),
        click.option(
            "--narrow",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Divide all channel counts by this, to judge the wiring of a large model in seconds.",
        ),
        python_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def json_option(function: Function) -> Function:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def force_option(function: Function) -> Function:
    """`--force`."""
    return click.option("--force", is_flag=True, help="Replace the output where it exists.")(function)


def architecture_options(function: Function) -> Function:
    """The options that describe a model in words; read them with `spec_options`."""
    options = (
        click.option("--arch", help="v1, v2, v3, v3plus, or a preset of `deeplabzoo list`.  [default: v3plus]"),
        click.option(
            "--backbone",
            help="vgg16, resnet18/34/50/101, xception41/65/71, xception, mobilenet_v2, mobilenet_v3_large.  [default: resnet50, in v1 and v2 vgg16]",
        ),
        click.option("--width", type=float, help="Width multiplier of the backbone.  [default: 1.0]"),
        click.option(
            "--output-stride", type=int, help="8, 16 or 32.  [default: 16, in v1 and v2 8, or that of the weights]"
        ),
        click.option("--num-classes", type=int, help="Number of classes.  [default: 21, or that of the weights]"),
        click.option("--spec", "spec_file", type=PATH, help="Take the architecture from a TOML or JSON file."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def spec_options(
    arch: str | None,
    backbone: str | None,
    width: float | None,
    output_stride: int | None,
    num_classes: int | None,
    spec_file: Path | None,
) -> tuple[Any, dict[str, Any]]:
    """Architecture (name, spec or None) and the options that were given, for `deeplabzoo.models.build`."""
    given = {
        "backbone": backbone,
        "width": width,
        "output_stride": output_stride,
        "num_classes": num_classes,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if spec_file is None:
        return arch, options
    if arch is not None:
        raise click.UsageError("--spec and --arch both name the architecture: give one of them")
    from deeplabzoo.core.spec import read_spec

    return read_spec(spec_file)[0], options


def reading_options(function: Function) -> Function:
    """How a file is read where its tensors do not tell; read them with `reading_arguments`."""
    options = (
        click.option(
            "--from-layout",
            type=LAYOUT,
            metavar="LAYOUT",
            help=f"Whose names the file has; told from the names by default. One of {', '.join(LAYOUT_NAMES)}.",
        ),
        click.option(
            "--spec", "spec_file", type=PATH, help="Spec of the file, where you know it better than the file."
        ),
        click.option("--preset", help="Model of `deeplabzoo list` to take for what no tensor tells."),
        click.option(
            "--set",
            "changes",
            type=FIELD,
            multiple=True,
            help="Another value for a field that no tensor tells, such as output.align_corners=true; repeatable.",
        ),
        click.option("--output-stride", type=int, help="Take the network at another output stride: 8, 16 or 32."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def reading_arguments(
    from_layout: str | None,
    spec_file: Path | None,
    preset: str | None,
    changes: tuple[tuple[str, Any], ...],
    output_stride: int | None,
) -> dict[str, Any]:
    """Arguments of `weights_converter.convert.read_source` that were given, but the layout."""
    from deeplabzoo.core.spec import read_spec

    return {
        "spec": read_spec(spec_file)[0] if spec_file else None,
        "preset": preset,
        "changes": {name: tuple(value) if isinstance(value, list) else value for name, value in changes},
        "output_stride": output_stride,
    }


def inference_options(function: Function) -> Function:
    """How a photo is shown to the network and what follows; read them with `predictor_options`."""
    options = (
        click.option("--output-stride", type=int, help="Run at another output stride: 8, 16 or 32."),
        click.option(
            "--scales",
            type=SCALES,
            default="1",
            show_default=True,
            help="Sizes to show the photo at, from 0.05 to 8, such as 0.5,1,2.",
        ),
        click.option("--flip", is_flag=True, help="Show it mirrored as well."),
        click.option(
            "--fusion",
            type=click.Choice(["mean", "max"]),
            default="mean",
            show_default=True,
            help="Over scales and flips: mean probability, or largest logit.",
        ),
        click.option(
            "--window",
            type=click.IntRange(min=33),
            help="Side of windows to label it by, in pixels of the prepared input.  [default: no windows, where it fits]",
        ),
        click.option(
            "--overlap", type=float, help="Share of a window that its neighbour sees too, 0 to below 1.  [default: 1/3]"
        ),
        click.option("--crf", type=click.Choice(CRF_NAMES), help="Sharpen the labels with the CRF of that model."),
        click.option(
            "--memory-limit",
            metavar="MB",
            type=click.IntRange(min=1),
            help="What the network's maps may take; the frameworks themselves come on top.  [default: what is free]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def predictor_options(
    scales: tuple[float, ...],
    flip: bool,
    fusion: str,
    window: int | None,
    overlap: float | None,
    crf: str | None,
    memory_limit: int | None,
) -> dict[str, Any]:
    """The options of `deeplabzoo.prediction.Predictor` that were given; notes go to stderr."""
    if overlap is not None and window is None:
        raise click.UsageError("--overlap is that of windows: give --window too, or leave it out")
    options: dict[str, Any] = {"scales": scales, "flip": flip, "fusion": fusion, "window": window, "crf": crf}
    if overlap is not None:
        options["overlap"] = overlap
    if memory_limit is not None:
        options["memory_limit"] = memory_limit * 1_000_000
    return {**options, "notes": say}


def one_thread_for_numpy() -> None:
    """Keep the referee from taking the workers' cores: threads of numpy's OpenBLAS wait by spinning.

    Before numpy is imported, later it is read no more; workers inherit it, frameworks have libraries of their own.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def say(message: str = "") -> None:
    """A message for people, on stderr."""
    click.echo("\n".join(map(printable, message.split("\n"))), err=True)


def source_path(source: Path) -> Path:
    """The file that a command reads: published weights by name, downloaded and converted if need be, or a path.

    Raises:
        DownloadError: the weights can't be had.
        WeightsError: there is no such file, and the name is nearly one of published weights.
    """
    from deeplabzoo.models import local_source

    return Path(local_source(source))


def tell_assumed(model: Canonical) -> None:
    """Say what nobody said about a model: fields that no tensor tells, and how photos are prepared."""
    if assumed := model.card.provenance.get("assumed"):
        say(f"note: assumed, because no tensor tells: {assumed}")
    if model.card.preprocessing is None:
        say(
            f"note: nobody says how photos are prepared for these weights; taking what is usual for "
            f"{model.spec.backbone.name}. Labels may be wrong: convert the source again, or give its .toml back"
        )


def printable(value: object) -> str:
    """A value as text for a terminal; names that come from a file could else move its cursor, or be no text at all."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def print_table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> None:
    """A table on stdout."""
    from tabulate import tabulate

    click.echo(tabulate([list(map(printable, row)) for row in rows], headers=headers, disable_numparse=True))


def print_json(data: Any) -> None:
    """JSON on stdout; what is no number in JSON becomes null."""
    click.echo(json.dumps(_finite(data), indent=1))


@contextmanager
def bar(total: int, label: str) -> Iterator[Any]:
    """A progress bar on stderr for people who watch, nothing where stderr is a file; call it with a step's name."""
    from tqdm import tqdm

    # A program started without stderr has None there, of which tqdm knows nothing.
    with tqdm(total=total, desc=label, unit="step", leave=False, disable=sys.stderr is None or None) as progress:

        def step(name: str) -> None:
            progress.set_postfix_str(name)
            progress.update()

        yield step


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
