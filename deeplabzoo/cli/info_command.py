"""`deeplabzoo info`."""

from __future__ import annotations

from typing import Any

import click

from deeplabzoo.cli.common import json_option, print_json, print_table
from deeplabzoo.cli.types import SIZE


@click.command("info")
@click.argument("model")
@click.option("--backbone", help="Backbone, where MODEL is an architecture.")
@click.option("--output-stride", type=int, help="8, 16 or 32.")
@click.option("--size", type=SIZE, default="513x513", show_default=True, help="Image size to speak of.")
@click.option("--layers", is_flag=True, help="List every layer.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the spec as TOML, ready to edit for --spec.")
@json_option
def command(
    model: str,
    backbone: str | None,
    output_stride: int | None,
    size: tuple[int, int],
    layers: bool,
    as_toml: bool,
    as_json: bool,
) -> None:
    """Layers, parameters, multiply-adds, receptive field, live taps and legal strides of MODEL.

    MODEL is an architecture (v1, v2, v3, v3plus), a preset of `deeplabzoo list`, a weights file or a spec file.
    """
    from deeplabzoo.core import analysis
    from deeplabzoo.core.architectures import build_graph
    from deeplabzoo.zoo.presets import PRESETS

    spec = _spec(model, backbone, output_stride)
    graph = build_graph(spec)
    if as_toml:
        click.echo(spec.to_toml(), nl=False)
        return
    taps = analysis.live_taps(graph, *size)
    head = graph.by_name["aspp.fusion.conv"].inputs[0] if spec.aspp else _scores(graph)
    features = _deepest(graph)
    source = PRESETS[model].source if model in PRESETS else None
    data: dict[str, Any] = {
        "preset": model if source else None,
        "model": spec.title,
        "spec": spec.to_dict(),
        "graph_sha256": graph.digest(),
        "size": list(size),
        "layers": len(graph.nodes) - 1,
        "parameters": analysis.parameter_count(graph),
        "multiply_adds": analysis.multiply_adds(graph, *size),
        "receptive_field_backbone": analysis.receptive_field(graph, features),
        "receptive_field_head": analysis.receptive_field(graph, head),
        "atrous_kernels": len(taps),
        "atrous_kernels_all_live": sum(t.live == t.total for t in taps),
        "smallest_size_all_live": analysis.smallest_live_size(graph, spec.output_stride),
        "other_strides": _other_strides(spec, graph),
        "outputs": {name: list(graph.shapes(*size)[node]) for name, node in graph.outputs},
    }
    if as_json:
        if layers:
            data["nodes"] = graph.to_dict()["nodes"]
        print_json(data)
        return
    if source is not None:
        click.echo(f"preset            {model}: {source}")
    click.echo(f"model             {spec.title}, stride {spec.output_stride}, {spec.num_classes} classes")
    click.echo(f"layers            {data['layers']}")
    click.echo(f"parameters        {data['parameters']:,}")
    click.echo(f"multiply-adds     {data['multiply_adds'] / 1e9:.2f} G at {size[0]}x{size[1]}")
    click.echo(
        f"receptive field   {data['receptive_field_backbone']} px (backbone), {data['receptive_field_head']} px "
        f"({'ASPP, image pooling aside' if spec.aspp else 'head'})"
    )
    click.echo(
        f"atrous kernels    {len(taps)}, with every tap live at {size[0]}x{size[1]}: {data['atrous_kernels_all_live']}; "
        f"all of them from {data['smallest_size_all_live']} px on"
    )
    for stride, differences in data["other_strides"].items():
        if differences is None:
            click.echo(f"at stride {stride:<8}not possible: the network ends before it, or its rates do not divide")
            continue
        verdict = f"differ, first {differences[0]}" if differences else "the same values on the common grid"
        click.echo(f"at stride {stride:<8}backbone and atrous branches: {verdict}")
    for name, shape in data["outputs"].items():
        click.echo(f"output {name:10} {'x'.join(map(str, shape))}")
    if layers:
        click.echo()
        print_table(graph.rows(*size), ("layer", "op", "attributes", "output"))


def _spec(model: str, backbone: str | None, output_stride: int | None) -> Any:
    import os
    from pathlib import Path

    from deeplabzoo.core.spec import ARCHITECTURES, read_spec
    from deeplabzoo.errors import SpecError, unknown
    from deeplabzoo.models import canonical_model
    from deeplabzoo.zoo.models import PRESETS, PUBLISHED, changed, named_spec

    given = {"backbone": backbone, "output_stride": output_stride}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if model in ARCHITECTURES or model in PRESETS:
        return named_spec(model, **options)
    if model in PUBLISHED:
        return changed(PUBLISHED[model].spec(), options)
    path = Path(model)
    if path.suffix in (".toml", ".json") and path.is_file():
        return changed(read_spec(path)[0], options)
    known_suffix = model.endswith((".toml", ".json", ".safetensors", ".pth", ".pt", ".pdparams", ".h5", ".index"))
    if known_suffix or "/" in model or os.path.lexists(path):
        return canonical_model(weights=path, **options)[0].spec
    names = [*ARCHITECTURES, *PRESETS, *PUBLISHED]
    raise SpecError(
        f"{unknown('model', model, names)}; there is no such file either (`deeplabzoo list` shows all models)"
    )


def _deepest(graph: Any) -> str:
    from deeplabzoo.core.schedule import groups

    return str(groups(graph)["backbone"].outputs[-1])


def _scores(graph: Any) -> str:
    return next(str(node.name) for node in graph.nodes if node.name in ("classifier.conv", "classifier.sum"))


def _other_strides(spec: Any, graph: Any) -> dict[str, list[str] | None]:
    """For each other stride the nodes whose values change with these weights; none where it can't be had."""
    from deeplabzoo.core.analysis import stride_differences
    from deeplabzoo.core.architectures import build_graph
    from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
    from deeplabzoo.errors import SpecError

    found: dict[str, list[str] | None] = {}
    for stride in OUTPUT_STRIDES:
        if stride == spec.output_stride:
            continue
        try:
            other = build_graph(spec.at_output_stride(stride))
        except SpecError:  # rates that do not divide, or a network that ends before
            found[str(stride)] = None
            continue
        pair = (other, graph) if stride > spec.output_stride else (graph, other)
        found[str(stride)] = stride_differences(*pair)
    return found
