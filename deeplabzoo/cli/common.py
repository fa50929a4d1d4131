"""Options, tables and bars that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deeplabzoo.backends import NAMES
from deeplabzoo.errors import unknown

if TYPE_CHECKING:
    from deeplabzoo.weights_converter.canonical import Canonical

Function = TypeVar("Function", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class BackendType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases
    """Name of a backend, with a near match where it is wrong."""

    name = "backend"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        if value not in NAMES:
            self.fail(unknown("backend", value, NAMES), param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Shown in the help."""
        return "[torch|paddle|keras|keras/jax|keras/torch]"


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases
    """HEIGHTxWIDTH, or one number for a square."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse."""
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
            self.fail(f"{value!r}: expected HEIGHTxWIDTH in pixels, such as 513x513", param, ctx)
        return int(parts[0]), int(parts[-1])

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Shown in the help."""
        return "HxW"


BACKEND = BackendType()
SIZE = SizeType()


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


def json_option(function: Function) -> Function:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def force_option(function: Function) -> Function:
    """`--force`."""
    return click.option("--force", is_flag=True, help="Replace the output where it exists.")(function)


def architecture_options(function: Function) -> Function:
    """The options that describe a model in words; read them with `spec_options`."""
    options = (
        click.option("--arch", help="v3, v3plus, or a preset of `deeplabzoo list`.  [default: v3plus]"),
        click.option("--backbone", help="resnet50, resnet101 or mobilenet_v2.  [default: resnet50]"),
        click.option("--width", type=float, help="Width multiplier of mobilenet_v2.  [default: 1.0]"),
        click.option("--output-stride", type=int, help="8, 16 or 32.  [default: 16, or that of the weights]"),
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


def say(message: str = "") -> None:
    """A message for people, on stderr."""
    click.echo(message, err=True)


def tell_assumed(model: Canonical) -> None:
    """Say what nobody said about a model: fields that no tensor tells, and how photos are prepared."""
    if assumed := model.card.provenance.get("assumed"):
        say(f"note: assumed, because no tensor tells: {assumed}")
    if model.card.preprocessing is None:
        say(
            f"note: nobody says how photos are prepared for these weights; taking what is usual for "
            f"{model.spec.backbone.name}. Labels may be wrong: convert the source again, or give its .toml back"
        )


def print_table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> None:
    """A table on stdout."""
    from tabulate import tabulate

    click.echo(tabulate([list(map(str, row)) for row in rows], headers=headers, disable_numparse=True))


def print_json(data: Any) -> None:
    """JSON on stdout; what is no number in JSON becomes null."""
    click.echo(json.dumps(_finite(data), indent=1))


@contextmanager
def bar(total: int, label: str) -> Iterator[Any]:
    """A progress bar on stderr for people who watch, nothing where stderr is a file; call it with a step's name."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="step", leave=False, disable=None) as progress:

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
