"""From spec to graph: DeepLab v3 and v3+."""

from __future__ import annotations

from functools import lru_cache

from deeplabzoo.core import ops
from deeplabzoo.core.architectures.parts import add_aspp, add_aux, add_decoder, add_output
from deeplabzoo.core.graph import Graph, GraphBuilder
from deeplabzoo.core.spec import ArchSpec


@lru_cache(maxsize=64)
def build_graph(spec: ArchSpec) -> Graph:
    """The graph that a spec means: groups `backbone`, `aspp`, `decoder`, `classifier`, `aux`, `output`.

    Outputs: `out`, and `aux` where the spec has an auxiliary head.
    """
    builder = GraphBuilder()
    image = builder.input(spec.in_channels)
    features = spec.backbone.add(builder, image, spec.output_stride)
    x = add_aspp(builder, spec.aspp, features.out)
    if spec.decoder is not None:
        x = add_decoder(builder, spec.decoder, x, features.taps[spec.decoder.low_level])
    if spec.output.size == "input" and spec.output.resize == "features":
        x = builder.apply("classifier.resize", ops.Resize(align_corners=spec.output.align_corners), x, image)
    x = builder.conv("classifier.conv", x, spec.num_classes, bias=spec.classifier.bias)
    outputs = {"out": add_output(builder, spec.output, x, image, scope="output")}
    if spec.aux is not None:
        y = add_aux(builder, spec.aux, features.taps[spec.aux.tap], spec.num_classes)
        # The auxiliary logits are resized at the end in every implementation that resizes at all.
        outputs["aux"] = add_output(builder, spec.output, y, image, scope="aux", resize=spec.output.size == "input")
    return builder.finish(outputs)
