"""`deeplabzoo build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplabzoo.cli.common import (
    architecture_options,
    backend_option,
    device_option,
    force_option,
    print_json,
    print_table,
    say,
    spec_options,
    tell_assumed,
)
from deeplabzoo.cli.types import PATH, SIZE


@click.command("build")
@backend_option
@architecture_options
@click.option("--weights", help="Published weights by name, or a weights file; seeded random weights by default.")
@click.option("--reset-classifier", is_flag=True, help="Load everything but the classifier (for --num-classes).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of random weights.")
@click.option("--size", type=SIZE, default="513x513", show_default=True, help="Image size the summary speaks of.")
@device_option
@click.option("--output", type=PATH, help="Save the framework's usual weights file and the spec beside it.")
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    backend: str | None,
    weights: str | None,
    reset_classifier: bool,
    seed: int,
    size: tuple[int, int],
    device: str,
    output: Path | None,
    force: bool,
    as_json: bool,
    **words: Any,
) -> None:
    """Build a native model, run it once, print a summary; with --output save it.

    \b
    deeplabzoo build --backend paddle --arch v3plus
    deeplabzoo build --backend torch --arch v3 --backbone resnet101 --output-stride 8 --output model.pth
    deeplabzoo build --backend keras --weights model.safetensors --num-classes 5 --reset-classifier
    """
    import numpy as np

    from deeplabzoo.backends import default_backend, resolve
    from deeplabzoo.backends.worker import Worker
    from deeplabzoo.files import check_output
    from deeplabzoo.models import canonical_model
    from deeplabzoo.weights_converter.convert import FORMAT_OF_BACKEND, SUFFIXES, output_format, write_model

    if reset_classifier and weights is None:
        raise click.UsageError("--reset-classifier needs --weights: without weights everything is initialised anew")
    arch, options = spec_options(**words)
    chosen = resolve(backend) if backend else default_backend()
    chosen.require()
    to = None if output is not None and output.suffix == ".safetensors" else chosen.folder
    if output is not None:
        output_format(output, to)
        check_output(output, force=force)
    model, anew = canonical_model(arch, weights=weights, seed=seed, reset_classifier=reset_classifier, **options)
    if weights:
        tell_assumed(model)
    graph = model.graph
    shapes = graph.shapes(*size)
    with Worker(chosen.name, device=device) as worker:
        worker.load(graph, model.weights)
        side = _probe_side(graph)
        probe = np.zeros((1, model.spec.in_channels, side, side), np.float32)
        made = worker.forward(probe)
        versions, device_name = worker.versions, worker.device_name
    data = _summary(model.spec, graph, size)
    data |= {"backend": chosen.name, "versions": versions, "device": device_name}
    if as_json:
        print_json(data)
    else:
        print_table(
            (
                (s["stage"], "x".join(map(str, s["output"])), f"{s['parameters']:,}", f"{s['multiply_adds']:,}")
                for s in data["stages"]
            ),
            ("stage", "output", "parameters", "multiply-adds"),
        )
        click.echo()
        click.echo(f"model            {model.spec.title}, {model.spec.num_classes} classes")
        click.echo(f"output stride    {model.spec.output_stride}, rates {_rates(model.spec)}")
        click.echo(f"parameters       {data['parameters']:,}")
        click.echo(f"multiply-adds    {data['multiply_adds'] / 1e9:.2f} G at {size[0]}x{size[1]}")
        for name, node in graph.outputs:
            click.echo(f"output {name:9} {'x'.join(map(str, shapes[node]))} (N x C x H x W; height and width are free)")
        click.echo(
            f"native           {chosen.name} ({', '.join(f'{k} {v}' for k, v in versions.items())}) on {device_name}; "
            f"a {side}x{side} image gives {'x'.join(map(str, made['out'].shape))}"
        )
    if weights and anew:
        say(f"initialised anew, seed {seed}: {', '.join(anew)}")
    if output is None:
        suffix = SUFFIXES[FORMAT_OF_BACKEND[chosen.folder]]
        say(f"nothing was saved; to save weights and spec add: --output model{suffix}")
        return
    beside = write_model(model, output, to=to, force=force).sidecar
    say(f"saved {output}" + (f" and its spec {beside}" if beside else ", which holds its spec"))


def _summary(spec: Any, graph: Any, size: tuple[int, int]) -> dict[str, Any]:
    from deeplabzoo.core.analysis import multiply_adds, parameter_count
    from deeplabzoo.core.schedule import groups

    shapes = graph.shapes(*size)
    stages = []
    for name, group in groups(graph).items():
        if (
            name
            and (name.count(".") == 0 or (name.startswith("backbone.") and name.count(".") == 1))
            and name != "backbone"
        ):
            stages.append(
                {
                    "stage": name,
                    "output": list(shapes[group.outputs[-1]][1:]),
                    "parameters": parameter_count(graph, name + "."),
                    "multiply_adds": multiply_adds(graph, *size, name + "."),
                }
            )
    return {
        "model": spec.title,
        "spec": spec.to_dict(),
        "parameters": parameter_count(graph),
        "multiply_adds": multiply_adds(graph, *size),
        "size": list(size),
        "outputs": {name: list(shapes[node]) for name, node in graph.outputs},
        "stages": stages,
    }


def _rates(spec: Any) -> str:
    if spec.head is not None and spec.head.kernel == 1:
        return "none"  # a 1x1 classifier
    return ", ".join(map(str, spec.rates)) or "none"


def _probe_side(graph: Any) -> int:
    """Side of a small image that the network can take; one without padding needs a larger one."""
    from deeplabzoo.errors import GraphError

    side = 65
    while True:
        try:
            graph.shapes(side, side)
        except GraphError:
            if side > 4096:
                raise
            side = 2 * side - 1
        else:
            return side
