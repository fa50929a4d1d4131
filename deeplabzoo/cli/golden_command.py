"""`deeplabzoo golden record`, `check` and `show`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplabzoo.cli.common import (
    architecture_options,
    bar,
    check_pythons,
    device_option,
    force_option,
    json_option,
    judging_options,
    one_thread_for_numpy,
    print_json,
    print_table,
    python_option,
    say,
    spec_options,
    tell_assumed,
)
from deeplabzoo.cli.types import BACKENDS, BOUND, PATH, NamesType, NameType

if TYPE_CHECKING:
    from deeplabzoo.parity.drift import Drift, DriftRow


DTYPES = NamesType(NameType("dtype", "DTYPE", ("float64", "float32")), "D,D")


def _judged(ctx: click.Context, param: click.Parameter, bounds: tuple[tuple[Any, float], ...]) -> Any:
    """Bounds of what a golden holds."""
    if any(check == "training" for check, _ in bounds):
        raise click.BadParameter("a golden has no training steps: expected forward or gradients", ctx, param)
    return bounds


_bound_option = click.option(
    "--bound",
    "bounds",
    type=BOUND,
    multiple=True,
    callback=_judged,
    help="Largest allowed error of outputs, or of gradients=X; repeatable, for every dtype.  [default: 1e-11 in float64, 2e-5 in float32; gradients 1e-9 and 5e-2]",
)


@click.group("golden", no_args_is_help=True)
def command() -> None:
    """Record what backends compute, replay it after an upgrade.

    \b
    deeplabzoo golden record --arch v3plus --output v3plus.golden
    deeplabzoo golden check v3plus.golden --python paddle=/path/to/other/env/bin/python
    deeplabzoo golden show v3plus.golden
    """


@command.command("record", short_help="Run a model and write the golden.")
@architecture_options
@judging_options
@click.option(
    "--backends",
    type=BACKENDS,
    default="torch,paddle,keras",
    show_default=True,
    help="Backends to record, with commas between.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=DTYPES,
    default="float64,float32",
    show_default=True,
    help="What they compute in, with commas between.",
)
@click.option("--gradients/--no-gradients", default=True, show_default=True, help="Record gradients too.")
@_bound_option
@click.option("--output", type=PATH, required=True, metavar="FILE", help="The golden.")
@force_option
@json_option
def record_command(
    weights: str | None,
    backends: tuple[str, ...],
    dtypes: tuple[str, ...],
    sizes: tuple[tuple[int, int], ...],
    seed: int,
    narrow: int,
    gradients: bool,
    pythons: dict[str, str],
    bounds: tuple[tuple[Any, float], ...],
    output: Path,
    force: bool,
    as_json: bool,
    **words: Any,
) -> None:
    """Run a model in every backend and keep outputs on a grid, norms of gradients, digests and versions.

    Weights are not kept, only their digest. A backend that fails, or is off the numpy referee, is an error.
    """
    one_thread_for_numpy()
    from deeplabzoo.errors import OutputError
    from deeplabzoo.files import check_not_read, check_output
    from deeplabzoo.models import canonical_model
    from deeplabzoo.parity.golden import record, recorded_rows

    check_pythons(pythons, backends)
    try:
        check_not_read(output, (weights, words["spec_file"]))
    except OutputError as error:  # wrong use here
        raise click.UsageError(f"--{error}") from None
    check_output(output, force=force)
    arch, options = spec_options(**words)
    if weights is not None:
        tell_assumed(canonical_model(arch, weights=weights, **options)[0])
    steps = (1 + len(backends) * len(dtypes)) * (len(sizes) or 2) * (2 if gradients else 1)
    with bar(steps, "record") as step:
        golden = record(
            arch,
            backends=backends,
            dtypes=dtypes,
            weights=weights,
            seed=seed,
            narrow=narrow,
            sizes=sizes or None,
            gradients=gradients,
            pythons=pythons,
            bounds=dict(bounds),
            progress=step,
            **options,
        )
    golden.save(output, force=force)
    if as_json:
        print_json(golden.to_dict())
    else:
        _print_rows(recorded_rows(golden), replayed=False)
    for line in dict.fromkeys(f"{one.name}: no gradients: {one.left_out}" for one in golden.records if one.left_out):
        say(f"note: {line}")
    say(f"{golden.model}: wrote {output}, {output.stat().st_size / 1000:.0f} kB")


@command.command("check", short_help="Replay a golden and tell the drift.")
@click.argument("file", metavar="GOLDEN", type=PATH)
@click.option(
    "--backends",
    type=BACKENDS,
    help="Backends to run, with commas between; by default the recorded ones. Others are judged against the recorded truth.",
)
@python_option
@click.option("--weights", help="The weights that it was recorded with; not needed for seeded ones.")
@device_option
@_bound_option
@json_option
@click.pass_context
def check_command(
    ctx: click.Context,
    /,
    file: Path,
    backends: tuple[str, ...] | None,
    pythons: dict[str, str],
    weights: str | None,
    device: str,
    bounds: tuple[tuple[Any, float], ...],
    as_json: bool,
) -> None:
    """Replay a golden and print how far everybody is from what was recorded; exit 1 where that is too far.

    On a GPU backends run in strict float32 and are judged against the recorded float64 truth.
    """
    one_thread_for_numpy()
    from deeplabzoo.parity.drift import KINK
    from deeplabzoo.parity.golden import check
    from deeplabzoo.parity.golden_file import Golden

    golden = Golden.load(file)
    names = backends or golden.backends
    check_pythons(pythons, names)
    dtypes = sum(1 if device == "gpu" else len(golden.dtypes(name)) for name in names)
    steps = dtypes * len(golden.inputs) * (2 if golden.truth.gradients else 1)
    with bar(steps, "check") as step:
        drift = check(
            golden,
            backends=backends,
            weights=weights,
            device=device,
            pythons=pythons,
            bounds=dict(bounds),
            progress=step,
        )
    if as_json:
        print_json(drift.to_dict())
    elif drift.rows:
        _print_rows(drift.rows, replayed=True)
    for change in drift.changes:
        say(f"{change.what}: {change.then} -> {change.now}")
    for name, reason in drift.left_out.items():
        say(f"note: {name}: no gradients: {reason}")
    for name, reason in drift.failures.items():
        say(f"{name}: failed: {' '.join(reason.split())}")
    bad = [row for row in drift.rows if not row.passed]
    if bad and all(row.kink for row in bad):
        say(f"note: {KINK}" + ("; float64 passed" if any(row.dtype == "float64" for row in drift.rows) else ""))
    verdict = _verdict(drift)
    if drift.rows:
        worst = max(drift.rows, key=lambda row: row.worst / row.bound)
        drifted = "" if worst.drift is None else f"drift {worst.drift:.1e}, "
        say(
            f"{drift.model}, {drift.device}: nearest to its bound is {worst.side}, {worst.dtype}, {worst.case}, {worst.check}: "
            f"{drifted}off the truth {worst.truth:.1e}, bound {worst.bound:g}: {verdict}"
        )
    else:
        say(f"{drift.model}, {drift.device}: nobody could be judged: {verdict}")
    if not drift.passed:
        ctx.exit(1)


@command.command("show", short_help="Print what a golden holds.")
@click.argument("file", metavar="GOLDEN", type=PATH)
@json_option
def show_command(file: Path, as_json: bool) -> None:
    """Print what a golden holds; nothing is run."""
    from deeplabzoo.parity.golden import recorded_rows
    from deeplabzoo.parity.golden_file import Golden

    golden = Golden.load(file)
    if as_json:
        print_json(golden.to_dict())
        return
    facts = {
        "model": golden.model,
        "weights": f"{golden.weights}, SHA-256 {golden.weights_digest}",
        "graph": f"SHA-256 {golden.graph_digest}",
        "inputs": ", ".join(str(one.case) for one in golden.inputs) + f", seed {golden.seed}",
        **golden.environment,
        **{
            f"{one.name}, {one.dtype}": ", ".join(f"{what} {version}" for what, version in one.versions.items())
            + (f"; no gradients: {one.left_out}" if one.left_out else "")
            for one in golden.records[1:]
        },
    }
    print_table(facts.items(), ("golden", str(file)))
    click.echo()
    _print_rows(recorded_rows(golden), replayed=False)


def _verdict(drift: Drift) -> str:
    """The last word; where no row says why it failed, it names who gave none."""
    if drift.passed:
        return "passed"
    if not drift.rows or not all(row.passed for row in drift.rows):
        return "FAILED"
    judged = {row.side for row in drift.rows}
    return "FAILED: " + ", ".join(f"{one} did not {'finish' if one in judged else 'run'}" for one in drift.failures)


def _print_rows(rows: Iterable[DriftRow], *, replayed: bool) -> None:
    told = {None: "-", True: "equal", False: "differ"}
    print_table(
        (
            (
                row.side,
                row.dtype,
                row.case,
                row.name if row.check == "forward" else f"gradients, most {row.name}",
                *(["-" if row.drift is None else f"{row.drift:.1e}"] if replayed else []),
                f"{row.truth:.1e}",
                *([told[row.bits]] if replayed else []),
                told[row.labels],
                *([f"{row.bound:g}", "ok" if row.passed else "OVER"] if replayed else []),
            )
            for row in rows
        ),
        (
            *("backend", "dtype", "input", "output"),
            *(["drift"] if replayed else []),
            "off the truth",
            *(["bits"] if replayed else []),
            "labels",
            *(["bound", "verdict"] if replayed else []),
        ),
    )
