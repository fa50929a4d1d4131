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
    as_json: bool,
    **words: Any,
) -> None:
    """Run one model in isolated workers and compare every output; exit 1 where an error is over the bound.

    The error of a against b is max|a - b| / max|b|. The referee is a plain numpy reading of the op definitions.

    \b
    deeplabzoo parity --arch v3plus --backends torch,paddle,keras --dtype float64
    deeplabzoo parity --arch v3plus_xception65.tf --narrow 8
    deeplabzoo parity --weights model.safetensors --dtype float32
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
    count = (len(names) + 1) * (len(sizes) or 2)
    with bar(count, "parity") as step:
        report = parity(
            arch,
            backends=names,
            dtype=dtype or ("float64" if device == "cpu" else "float32"),
            device=device,
            weights=None if weights is None else model,
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
