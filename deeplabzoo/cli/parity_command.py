"""`deeplabzoo parity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplabzoo.cli.common import (
    architecture_options,
    bar,
    check_pythons,
    device_option,
    json_option,
    judging_options,
    one_thread_for_numpy,
    print_json,
    print_table,
    say,
    spec_options,
    tell_assumed,
)
from deeplabzoo.cli.types import BACKENDS, BOUND, CHECKS, DTYPE_NAMES, PATH, SECONDS
from deeplabzoo.errors import GraphError, OutputError

if TYPE_CHECKING:
    from deeplabzoo.core.graph import Graph
    from deeplabzoo.parity.report import Report
    from deeplabzoo.parity.trace import Trace


@click.command("parity")
@click.option(
    "--backends",
    "names",
    type=BACKENDS,
    default="torch,paddle,keras",
    show_default=True,
    help="Backends to compare, with commas between: torch, paddle, keras, keras/jax, keras/torch, onnx.",
)
@architecture_options
@judging_options
@click.option("--against", metavar="WEIGHTS", help="Weights that the backends run, judged against those of --weights.")
@click.option(
    "--check",
    "checks",
    type=CHECKS,
    default="forward",
    show_default=True,
    help="What to compare: forward, gradients (evaluation mode), training (steps of SGD); with commas between.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Training steps, with --check training."
)
@click.option(
    "--batch-norm",
    type=click.Choice(["batch", "frozen"]),
    default="batch",
    show_default=True,
    help="Batch norm in training: statistics of the batch, or frozen.",
)
@click.option(
    "--dropout",
    type=click.Choice(["off", "seeded"]),
    default="off",
    show_default=True,
    help="Dropout in training: none, or the same seeded masks everywhere.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPE_NAMES),
    default=None,
    help="Judge pairs in float64, or each backend in lower precision against the float64 truth.  [default: float64, float32 on a GPU]",
)
@device_option
@click.option("--image", "images", type=PATH, multiple=True, help="A photo to judge on, repeatable.")
@click.option(
    "--bound",
    "bounds",
    type=BOUND,
    multiple=True,
    help="Largest allowed error, of the forward pass or of another check; repeatable.  [default: 1e-11 in float64, 2e-5 in float32; gradients 1e-9 and 5e-2, training 1e-8 and 3e-1]",
)
@click.option(
    "--small-rates",
    is_flag=True,
    help="Take rates 1, 2, 3 in the branches, which keeps every tap live on small images.",
)
@click.option(
    "--trace", is_flag=True, help="Compare every node's value by its name and name the first that is to blame."
)
@click.option(
    "--node",
    "nodes",
    metavar="NAME",
    multiple=True,
    help="With --trace: print this node, or all of this group, such as aspp; repeatable.",
)
@click.option(
    "--time-limit",
    type=SECONDS,
    default="900",
    show_default=True,
    help="Seconds that one call of a backend may take.",
)
@click.option("--report", "page", type=PATH, metavar="FILE.html", help="Write a page with verdict, curves and maps.")
@click.option("--junit", type=PATH, metavar="FILE.xml", help="Write the outcome for a CI server.")
@click.option(
    "--certificate",
    type=PATH,
    metavar="FILE",
    help="Write the certificate: a .json, or into the metadata of the .safetensors that was judged.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    weights: str | None,
    against: str | None,
    checks: tuple[Any, ...],
    steps: int,
    batch_norm: Any,
    dropout: Any,
    dtype: str | None,
    device: str,
    sizes: tuple[tuple[int, int], ...],
    images: tuple[Path, ...],
    seed: int,
    bounds: tuple[tuple[Any, float], ...],
    narrow: int,
    small_rates: bool,
    trace: bool,
    nodes: tuple[str, ...],
    pythons: dict[str, str],
    time_limit: float,
    page: Path | None,
    junit: Path | None,
    certificate: Path | None,
    as_json: bool,
    **words: Any,
) -> None:
    """Run one model in isolated workers and compare every output; exit 1 where an error is over the bound.

    Tables go to stdout, the verdict and notes to stderr.

    The error of a against b is max|a - b| / max|b|. The referee is a plain numpy reading of the op definitions.

    \b
    deeplabzoo parity --arch v3plus --backends torch,paddle,keras --dtype float64
    deeplabzoo parity --arch v3plus_xception65.tf --narrow 8 --check forward,gradients,training
    deeplabzoo parity --weights model.safetensors --dtype float32 --image photo.png --report parity.html
    deeplabzoo parity --weights model.safetensors --trace --against exported.pth --backends torch
    """
    one_thread_for_numpy()
    from deeplabzoo.core.architectures import build_graph
    from deeplabzoo.core.spec import ArchSpec
    from deeplabzoo.core.training import Training
    from deeplabzoo.models import canonical_model
    from deeplabzoo.parity.cases import called, dead_taps, subject
    from deeplabzoo.parity.run import parity

    arch, options = spec_options(**words)
    if dtype == "float64" and device == "gpu":
        raise click.UsageError(
            "--device gpu is judged in strict float32 against the float64 truth: use --dtype float32"
        )
    if against is not None and weights is None:
        raise click.UsageError("--against is judged against the weights of --weights: add --weights")
    if against is not None and certificate is not None:
        raise click.UsageError(
            "--certificate is about the weights that ran, which are those of --against: judge them alone"
        )
    if nodes and not trace:
        raise click.UsageError("--node chooses from what --trace prints: add --trace")
    _check_settings(ctx, checks, bounds)
    if len(set(sizes)) < len(sizes):
        raise click.UsageError("--size was given twice with one size: give each once")
    inputs = (weights, against, words["spec_file"], *images)
    _check_files({"--report": page, "--junit": junit, "--certificate": certificate}, inputs)
    check_pythons(pythons, names)
    judged = None
    if weights is not None:
        judged = called(canonical_model(arch, weights=weights, **options)[0], Path(weights).name)
        tell_assumed(judged)
        arch, options = None, {}
    if certificate is not None:
        from deeplabzoo.parity.certificate import check_delivery

        check_delivery(certificate, judged)
    it: dict[str, Any] = {"weights": judged, "seed": seed, "narrow": narrow, "small_rates": small_rates, **options}
    chosen = _chosen_nodes(nodes, subject(arch, **it).graph) if nodes else None
    with bar((len(names) + 1) * (len(sizes) + len(images) or 2) * len(checks), "parity") as step:
        report = parity(
            arch,
            backends=names,
            dtype=dtype or ("float64" if device == "cpu" else "float32"),
            device=device,
            against=against,
            sizes=sizes or None,
            images=images,
            checks=checks,
            training=Training(steps=steps, batch_norm=batch_norm, dropout=dropout, seed=seed),
            bounds=dict(bounds),
            trace=trace,
            pythons=pythons,
            time_limit=time_limit,
            progress=step,
            **it,
        )
    _write(report, page, junit, certificate)  # before a reader of the tables may be gone
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, chosen)
    for line in report.lines():
        say(line)
    largest = max((row.case for row in report.rows), key=lambda case: case.height * case.width, default=None)
    if largest is not None and not any(row.case.live for row in report.rows):
        say(
            f"note: no input makes every atrous tap read a real pixel; at {largest} live are of "
            f"{', '.join(dead_taps(build_graph(ArchSpec.from_dict(report.spec)), largest))}; add a larger --size to judge them all"
        )
    if not report.passed:
        ctx.exit(1)


_SUFFIXES = {"--report": (".html", ".htm"), "--junit": (".xml",), "--certificate": (".json", ".safetensors")}


def _check_settings(ctx: click.Context, checks: tuple[str, ...], bounds: tuple[tuple[str, float], ...]) -> None:
    """Wrong use: settings of a check that is not made, two bounds for one."""
    given = [
        name
        for name in ("steps", "batch_norm", "dropout")
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given and "training" not in checks:
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for training steps: add --check training")
    for check, _ in bounds:
        if check not in checks:
            raise click.UsageError(f"--bound {check}=... is for a check that is not made: add --check {check}")
    if len(dict(bounds)) < len(bounds):
        raise click.UsageError("--bound was given twice for one check: give it once")


def _check_files(outputs: dict[str, Path | None], inputs: tuple[Any, ...]) -> None:
    """A long run should not end at a file that can't be written, nor write over what it has read."""
    from deeplabzoo.files import check_not_read, check_output

    seen: dict[Path, str] = {}
    for option, file in outputs.items():
        if file is None:
            continue
        suffixes = _SUFFIXES[option]
        if file.suffix.lower() not in suffixes:
            raise click.UsageError(f"{option} {file}: expected a name that ends in {' or '.join(suffixes)}")
        check_output(file, force=True)
        if (first := seen.setdefault(file.resolve(), option)) != option:
            raise click.UsageError(f"{first} and {option} are both {file}: give two files")
        if file.suffix.lower() == ".safetensors":  # a certificate, which leaves the tensors as they are
            continue
        try:
            check_not_read(file, inputs)
        except OutputError as error:
            raise click.UsageError(f"{option}: {error}") from None


def _write(report: Report, page: Path | None, junit: Path | None, certificate: Path | None) -> None:
    """What was found, in the files asked for."""
    if page is not None:
        from deeplabzoo.parity.html import write_html

        write_html(report, page)
        say(f"wrote {page}")
    if junit is not None:
        from deeplabzoo.parity.junit import write_junit

        write_junit(report, junit)
        say(f"wrote {junit}")
    if certificate is not None:
        from deeplabzoo.parity.certificate import deliver

        deliver(report, certificate)
        say(f"wrote {certificate}")


def _chosen_nodes(names: tuple[str, ...], graph: Graph) -> frozenset[str]:
    """Nodes that `--node` names, alone or by their groups."""
    try:
        return graph.members(names)
    except GraphError as error:
        raise click.UsageError(f"--node: {error}") from None


def _print(report: Report, nodes: frozenset[str] | None) -> None:
    """Outputs one by one, of gradients and training steps the worst of each pair."""
    rows = [row for row in report.rows if row.check == "forward"]
    if rows:
        print_table(
            (
                (
                    row.case,
                    "all" if row.case.live else "some",
                    row.name,
                    row.first,
                    row.second,
                    f"{row.error:.1e}",
                    f"{row.labels:.4%}",
                    "ok" if row.passed else "OVER",
                )
                for row in rows
            ),
            ("input", "live taps", "output", "backend", "against", "error", "labels equal", "verdict"),
        )
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in report.rows:
        if row.check != "forward":
            groups.setdefault((row.check, str(row.case), row.step or "-", row.first, row.second), []).append(row)
    if groups:
        click.echo()
        print_table(
            (
                (*key, len(among), worst.name, f"{worst.error:.1e}", "ok" if worst.passed else "OVER")
                for key, among in groups.items()
                for worst in [max(among, key=lambda row: row.error)]
            ),
            ("check", "input", "step", "backend", "against", "compared", "worst", "error", "verdict"),
        )
    if report.trace is not None:
        click.echo()
        _print_trace(report.trace, nodes)


def _print_trace(trace: Trace, nodes: frozenset[str] | None) -> None:
    sides = list(trace.blamed)
    errors: dict[str, dict[str, float]] = {}
    shapes = {row.node: "x".join(map(str, row.shape)) for row in trace.rows}
    for row in trace.rows:
        if nodes is None or row.node in nodes:
            errors.setdefault(row.node, {})[row.side] = row.error
    print_table(
        (
            [node, shapes[node], *(f"{by_side[side]:.1e}" if side in by_side else "-" for side in sides)]
            for node, by_side in errors.items()
        ),
        ("node", "shape", *sides),
    )
