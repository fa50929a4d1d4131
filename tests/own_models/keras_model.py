"""A DeepLab v3 on MobileNetV2 as bonlime's users have it, of stock Keras layers, and what the trace says of its faults."""

from __future__ import annotations

import json

import common
import keras
import numpy as np
from keras import layers

import deeplabzoo as dz
from deeplabzoo.core.architectures import build_graph

SPEC = dz.spec("v3_mobilenet_v2.bonlime")
SPEC = SPEC.replace(num_classes=21, backbone=SPEC.backbone.replace(width=0.25), aspp=SPEC.aspp.replace(channels=16))
GRAPH = build_graph(SPEC)
WEIGHTS = common.lively(SPEC, "backbone.stage3.block2.expand.bn")
BLOCKS = [(stage, block) for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1), 1) for block in range(1, count + 1)]


class Ours(keras.Model):
    """A class of somebody's own around the functional model."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x, training=False):
        return self.inner(x, training=training)


class Resized(layers.Layer):
    """The first map at the size of the second."""

    def __init__(self, method="bilinear", **options):
        super().__init__(**options)
        self.method = method

    def call(self, values):
        x, like = values
        made = keras.ops.image.resize(x, keras.ops.shape(like)[1:3], interpolation=self.method)
        return keras.ops.cast(made, x.dtype)

    def compute_output_spec(self, values):
        return keras.KerasTensor((None, None, None, values[0].shape[-1]), self.compute_dtype)


def channels(node):
    return GRAPH.by_name[node].op.out_channels


def make(*, dtype="float64", fault=""):
    """The model; most faults of Keras can only be built in."""

    def norm(x, name, epsilon=1e-3):
        return layers.BatchNormalization(epsilon=epsilon, name=f"{name}_BN", dtype=dtype)(x)

    def conv(x, node, name, *, stride=1, epsilon=1e-3, kernel=1):
        bias = fault == "bias" and name == "expanded_conv_6_project"
        x = layers.Conv2D(
            channels(node), kernel, strides=stride, padding="same", use_bias=bias, bias_initializer="ones",
            name=name, dtype=dtype,
        )(x)  # fmt: skip
        return norm(x, name, epsilon)

    def relu(x, name, top=6.0):
        return layers.ReLU(top, name=name, dtype=dtype)(x)

    image = keras.Input((None, None, 3), dtype=dtype)
    x = relu(conv(image, "backbone.stem.conv", "Conv", stride=2, kernel=3), "Conv_Relu6")
    for number, (stage, block) in enumerate(BLOCKS):
        node, name = f"backbone.stage{stage}.block{block}", f"expanded_conv_{number}" if number else "expanded_conv"
        op, before = GRAPH.by_name[f"{node}.depthwise.conv"].op, x
        if number:
            top = None if fault == "relu" and number == 4 else 6.0
            early = 2 if fault == "stride" and number == 3 else 1
            x = conv(x, f"{node}.expand.conv", f"{name}_expand", stride=early)
            x = relu(x, f"{name}_expand_relu", top)
        stride = 1 if fault == "stride" and number == 3 else op.stride
        rate = 1 if fault == "dilation" and number == 15 else op.dilation
        x = layers.DepthwiseConv2D(
            3, strides=stride, dilation_rate=rate, padding="same", use_bias=False, name=f"{name}_depthwise", dtype=dtype
        )(x)
        x = norm(x, f"{name}_depthwise", 1e-5 if fault == "epsilon" and number == 9 else 1e-3)
        x = relu(x, f"{name}_depthwise_relu")
        x = conv(x, f"{node}.project.conv", f"{name}_project")
        if f"{node}.add" in GRAPH.by_name:
            x = layers.Add(name=f"{name}_add", dtype=dtype)([before, x])
    pooled = layers.GlobalAveragePooling2D(keepdims=True, dtype=dtype)(x)
    pooled = relu(conv(pooled, "aspp.image_pooling.conv", "image_pooling", epsilon=1e-5), "pool_relu", None)
    pooled = Resized(dtype=dtype)([pooled, x])
    branch = relu(conv(x, "aspp.branch0.conv", "aspp0", epsilon=1e-5), "aspp0_relu", None)
    x = layers.Concatenate(dtype=dtype)([pooled, branch])
    x = relu(conv(x, "aspp.fusion.conv", "concat_projection", epsilon=1e-5), "projection_relu", None)
    x = layers.Conv2D(SPEC.num_classes, 1, name="logits_semantic", dtype=dtype)(layers.Dropout(0.1, dtype=dtype)(x))
    method = "nearest" if fault == "resize" else "bilinear"
    model = keras.Model(image, Resized(method, dtype=dtype)([x, image]))
    values = common.foreign(WEIGHTS, SPEC, "bonlime", "keras2-h5")
    for variable in model.variables:
        layer, _, kind = variable.path.rpartition("/")
        kind = "depthwise_kernel" if layer.endswith("_depthwise") else kind
        if f"{layer}/{kind}" in values:
            variable.assign(values[f"{layer}/{kind}"])
    return model


FAULTS = ("dilation", "epsilon", "bias", "stride", "resize", "relu")
results = {fault: common.attempt(make(fault=fault), spec=SPEC) for fault in FAULTS}
right = make()
results["right"] = common.attempt(right, spec=SPEC)
results["no spec"] = common.attempt(right)
results["float32"] = common.attempt(make(dtype="float32"), spec=SPEC)
x = np.random.default_rng(0).standard_normal((2, 3, 65, 81))
results["of a class"] = common.attempt(Ours(right), x=x, spec=SPEC)
results["left as it was"] = not any("call" in vars(layer) for layer in right.layers)
spec = dz.spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3)).narrowed(8)
results["ours"] = common.attempt(
    dz.build(spec, backend=f"keras/{keras.backend.backend()}", dtype="float64"), bound=1e-11
)
print(json.dumps(results))
