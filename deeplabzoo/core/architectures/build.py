"""From spec to graph."""

from __future__ import annotations

from functools import lru_cache

from deeplabzoo.core import ops
from deeplabzoo.core.architectures.parts import (
    add_aspp,
    add_aux,
    add_classifier,
    add_decoder,
    add_head,
    add_output,
)
from deeplabzoo.core.graph import Graph, GraphBuilder
from deeplabzoo.core.spec import ArchSpec


@lru_cache(maxsize=64)
def build_graph(spec: ArchSpec) -> Graph:
    """The graph that a spec means: groups `backbone`, `aspp` or `head`, `decoder`, `classifier`, `aux`, `output`.

    Outputs: `out`, and `aux` where the spec has an auxiliary head.
    """
    builder = GraphBuilder()
    image = builder.input(spec.in_channels)
    features = spec.backbone.add(builder, image, spec.output_stride)
    if spec.aspp is not None:
        ends = [add_aspp(builder, spec.aspp, features.out)]
    else:
        ends = add_head(builder, spec.required_head, features.out)
    if spec.decoder is not None:
        ends = [add_decoder(builder, spec.decoder, ends[0], features.taps[spec.decoder.low_level])]
    if spec.output.size == "input" and spec.output.resize == "features":
        resize = ops.Resize(align_corners=spec.output.align_corners)
        ends = [builder.apply("classifier.resize", resize, ends[0], image)]
    x = add_classifier(builder, ends, spec.head, spec.num_classes, spec.classifier.bias)
    outputs = {"out": add_output(builder, spec.output, x, image, scope="output")}
    if spec.aux is not None:
        y = add_aux(builder, spec.aux, features.taps[spec.aux.tap], spec.num_classes)
        # The auxiliary logits are resized at the end in every implementation that resizes at all.
        outputs["aux"] = add_output(builder, spec.output, y, image, scope="aux", resize=spec.output.size == "input")
    return builder.finish(outputs)
