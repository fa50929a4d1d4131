"""What a file that holds its graph (a frozen one of TensorFlow, or ONNX) tells beside its tensors: rates, strides, epsilons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
from deeplabzoo.core.ops import BatchNorm, Conv2d, float32_exact
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import DeepLabZooError
from deeplabzoo.weights_converter.layouts.base import Entry


def informed_by_graph(spec: ArchSpec, facts: Mapping[str, Any], table: Sequence[Entry]) -> tuple[ArchSpec, list[str]]:
    """`spec` with what the graph of the file says, and the fields that it settled.

    A field is taken only where all that the graph says of it agrees; whatever contradicts stays an assumption.

    Args:
        spec: the layout's reading, with the published defaults.
        facts: of the checkpoint; `graph` as the readers of frozen graphs and ONNX make it.
        table: foreign and canonical names.
    """
    graph = facts.get("graph")
    if not isinstance(graph, Mapping):
        return spec, []
    nodes = {entry.foreign: entry.canonical.rsplit(".", 1)[0] for entry in table if entry.canonical}
    dilations = dict(_dilations(graph, nodes))
    told: list[str] = []
    if dilations:
        spec, found = _with_dilations(spec, dilations)
        told += found
    return _with_epsilons(spec, graph, nodes, told)


def _dilations(graph: Mapping[str, Any], nodes: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    for convolution in graph.get("convolutions", ()):
        name, pair = nodes.get(convolution.get("weights", "")), convolution.get("dilations")
        if name and isinstance(pair, list) and len(set(pair)) == 1 and isinstance(pair[0], int):
            yield name, pair[0]


def _with_dilations(spec: ArchSpec, dilations: Mapping[str, int]) -> tuple[ArchSpec, list[str]]:
    """The stride whose dilations of the backbone are those of the graph, and the rates of the branches."""
    fitting = []
    for stride in OUTPUT_STRIDES:
        try:
            candidate = spec.replace(output_stride=stride)
            wanted = _expected(candidate, "backbone.")
        except DeepLabZooError:  # a stride that this backbone can't have
            continue
        if wanted and all(dilations.get(name) == dilation for name, dilation in wanted.items()):
            fitting.append(stride)
    told: list[str] = []
    if len(fitting) == 1:
        spec, told = spec.replace(output_stride=fitting[0]), ["output_stride"]
    if spec.aspp is not None and spec.aspp.rates:
        kind = "conv" if spec.aspp.branch == "plain" else "depthwise.conv"
        rates = [dilations.get(f"aspp.branch{n}.{kind}") for n in range(1, len(spec.aspp.rates) + 1)]
        if all(rate is not None and rate > 0 for rate in rates):
            spec = spec.replace(aspp=spec.aspp.replace(rates=tuple(rates)))
            told.append("aspp.rates")
    return spec, told


def _expected(spec: ArchSpec, prefix: str) -> dict[str, int]:
    """Dilation of every spatial convolution whose name starts so."""
    return {
        node.name: node.op.dilation
        for node in build_graph(spec).nodes
        if isinstance(node.op, Conv2d) and node.op.kernel > 1 and node.name.startswith(prefix)
    }


def _with_epsilons(
    spec: ArchSpec, graph: Mapping[str, Any], nodes: Mapping[str, str], told: list[str]
) -> tuple[ArchSpec, list[str]]:
    """The epsilon of each section, where its batch norms have one and the same."""
    found: dict[str, set[float]] = {}
    for norm in graph.get("batch_norms", ()):
        name = nodes.get(norm.get("scale") or norm.get("variance") or "")
        if name and isinstance(norm.get("epsilon"), float):
            found.setdefault(name.split(".")[0], set()).add(norm["epsilon"])
    norms = [node for node in build_graph(spec).nodes if isinstance(node.op, BatchNorm)]
    for section in ("backbone", "aspp", "decoder", "aux"):
        part = getattr(spec, section)
        values = found.get(section, set())
        if part is None or len(values) != 1 or not any(node.name.startswith(f"{section}.") for node in norms):
            continue
        (value,) = values
        if 0 < value < 1 and float32_exact(value) != float32_exact(part.epsilon):
            spec = spec.replace(**{section: part.replace(epsilon=value)})
        told = [*told, f"{section}.epsilon"]
    return spec, told
