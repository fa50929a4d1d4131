"""`deeplabzoo parity`."""

from __future__ import annotations

from typing import Any

import click

from deeplabzoo.cli.common import (
    BACKEND,
    SIZE,
    architecture_options,
    bar,
    device_option,
    json_option,
    print_json,
    print_table,
    say,
    spec_options,
    tell_assumed,
)


@click.command("parity")
@click.option(
    "--backends", default="torch,paddle,keras", show_default=True, help="Backends to compare, with commas between."
)
@architecture_options
@click.option("--weights", help="Published weights by name, or a weights file; seeded lively weights by default.")
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32"]),
    default=None,
    help="Judge pairs in float64, or each backend in float32 against the float64 truth.  [default: float64, float32 on a GPU]",
)
@device_option
@click.option(
    "--size",
    "sizes",
    type=SIZE,
    multiple=True,
    help="Image size, repeatable; by default one odd size with all atrous taps live and one even size.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of weights and images.")
@click.option(
    "--bound",
    type=click.FloatRange(min=0, min_open=True, max=1),
    help="Largest allowed error.  [default: 1e-11 in float64, 2e-5 in float32]",
)
@click.option(
    "--narrow",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Divide all channel counts by this, to judge the wiring of a large model in seconds.",
)
@click.option(
    "--trace", is_flag=True, help="Compare every node's value by its name and name the first that is to blame."
)
@click.option(
    "--against",
    metavar="WEIGHTS",
    help="With --trace: weights of an equal network that the backends run, judged against those of --weights.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    backends: str,
    weights: str | None,
    dtype: str | None,
    device: str,
    sizes: tuple[tuple[int, int], ...],
    seed: int,
    bound: float | None,
    narrow: int,
    trace: bool,
    against: str | None,
    as_json: bool,
    **words: Any,
) -> None:
    """Run one model in isolated workers and compare every output; exit 1 where an error is over the bound.

    The error of a against b is max|a - b| / max|b|. The referee is a plain numpy reading of the op definitions.

    \b
    deeplabzoo parity --arch v3plus --backends torch,paddle,keras --dtype float64
    deeplabzoo parity --arch v3plus_xception65.tf --narrow 8
    deeplabzoo parity --weights model.safetensors --dtype float32
    deeplabzoo parity --weights model.safetensors --trace --against exported.pth --backends torch
    """
    from deeplabzoo.models import canonical_model
    from deeplabzoo.parity.forward import REFEREE, parity

    arch, options = spec_options(**words)
    names = [BACKEND.convert(name.strip(), None, ctx) for name in backends.split(",") if name.strip()]
    if not names:
        raise click.UsageError("--backends names none: expected at least one, with commas between")
    if dtype == "float64" and device == "gpu":
        raise click.UsageError(
            "--device gpu is judged in strict float32 against the float64 truth: use --dtype float32"
        )
    if weights is not None:
        model, _ = canonical_model(arch, weights=weights, **options)
        tell_assumed(model)
        arch, options = None, {}
        weights_read: Any = model
    else:
        weights_read = None
    if against is not None and not (trace and weights is not None):
        raise click.UsageError(
            "--against compares with the network of --weights, node by node: add --weights and --trace"
        )
    if trace:
        if len(sizes) > 1:
            raise click.UsageError("--trace takes one --size")
        _trace(
            ctx,
            names,
            (arch, {"weights": weights_read, "seed": seed, "narrow": narrow, **options}),
            against,
            dtype or ("float64" if device == "cpu" else "float32"),
            device,
            sizes[0] if sizes else None,
            bound,
            as_json,
        )
        return
    count = (len(names) + 1) * (len(sizes) or 2)
    with bar(count, "parity") as step:
        report = parity(
            arch,
            backends=names,
            dtype=dtype or ("float64" if device == "cpu" else "float32"),
            device=device,
            weights=weights_read,
            seed=seed,
            sizes=sizes or None,
            bound=bound,
            narrow=narrow,
            progress=step,
            **options,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print_table(
            (
                (
                    row.case,
                    "all" if row.case.live else "some",
                    row.output,
                    row.first,
                    row.second,
                    f"{row.error:.1e}",
                    f"{row.labels:.4%}",
                    "ok" if row.error <= report.bound else "OVER",
                )
                for row in report.rows
            ),
            ("input", "live taps", "output", "backend", "against", "error", "labels equal", "verdict"),
        )
    worst = report.worst
    if not any(row.case.live for row in report.rows):
        say("note: no input makes every atrous tap read a real pixel; add a larger --size to judge them all")
    if worst.second == REFEREE and len(names) == 1:
        say("note: one backend alone, judged against the referee")
    say(
        f"{report.model}, {report.dtype} on {', '.join(sorted(set(report.devices.values())))}: largest error "
        f"{worst.error:.1e} ({worst.first} against {worst.second}), bound {report.bound:g}: "
        f"{'passed' if report.passed else 'FAILED'}"
    )
    if not report.passed:
        ctx.exit(1)


def _trace(
    ctx: click.Context,
    names: list[str],
    model: tuple[Any, dict[str, Any]],
    against: str | None,
    dtype: str,
    device: str,
    size: tuple[int, int] | None,
    bound: float | None,
    as_json: bool,
) -> None:
    from deeplabzoo.parity.forward import case_of, default_cases, subject
    from deeplabzoo.parity.trace import trace

    arch, options = model
    spec, graph, weights, title = subject(arch, **options)
    other = None if against is None else subject(weights=against)[1:3]
    case = default_cases(spec)[0] if size is None else case_of(graph, 1, *size)
    with bar(len(graph.nodes), "trace") as step:
        found = trace(
            graph, weights, case, names, dtype=dtype, other=other, title=title, seed=options["seed"], device=device,
            bound=bound, progress=step,
        )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
    else:
        sides = list(found.versions)
        errors: dict[str, dict[str, float]] = {}
        shapes = {row.node: "x".join(map(str, row.shape)) for row in found.rows}
        for row in found.rows:
            errors.setdefault(row.node, {})[row.side] = row.error
        print_table(
            ([node, shapes[node], *(f"{by_side[side]:.1e}" for side in sides)] for node, by_side in errors.items()),
            ("node", "shape", *sides),
        )
    for side, first in found.blamed.items():
        if first is None:
            worst = max((r for r in found.rows if r.side == side), key=lambda r: r.error)
            say(f"{side}: no node is to blame; largest error {worst.error:.1e} at {worst.node}")
        else:
            say(
                f"{side}: the error jumps to {first.error:.1e} at {first.node}, {'x'.join(map(str, first.shape))}: "
                f"{first.op}; mean {first.mean:.3g}, std {first.std:.3g}, largest {first.largest:.3g}"
            )
    if not case.live:
        say("note: on this size some atrous taps read nothing but padding, and faults there can't show")
    say(
        f"{title}, {found.dtype} on {case} against {found.truth}, bound {found.bound:g}: "
        + ("passed" if found.passed else "FAILED")
    )
    if not found.passed:
        ctx.exit(1)
