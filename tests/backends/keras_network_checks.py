"""Whole networks of the Keras backend against the numpy referee.

Run by `test_native_keras.py` in a process of the engine, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import op_cases
import pytest
from keras_common import (
    ENGINE,
    FLOAT32,
    FLOAT64,
    SMALL,
    assert_equals_reference,
    assert_equals_truth,
    built,
    images,
    network,
)

from deeplabzoo.backends.keras import build, run
from deeplabzoo.backends.keras import ops as layers
from deeplabzoo.core import reference
from deeplabzoo.errors import BackendError


def check_forward() -> None:
    """Rates as small as the maps, so that every tap of every atrous kernel reads real pixels."""
    for arch in ("v3", "v3plus"):
        for backbone in ("resnet50", "mobilenet_v2"):
            for stride, rates in ((8, (2, 4, 6)), (16, (1, 2, 3))):
                graph = network(arch, backbone=backbone, output_stride=stride, rates=rates)
                title = f"{arch} {backbone} {stride}"
                model, values = built(graph, "float64")
                for height, width in ((96, 128), (97, 131)):
                    x = images(2, height, width)
                    truth = reference.forward(graph, values, x)
                    assert_equals_truth(title, run.forward(model, x), truth, FLOAT64)
                found = run.forward(built(graph, "float32")[0], x)
                assert_equals_truth(title, found, truth, FLOAT32)


def check_briefly() -> None:
    graph = network("v3plus", backbone=SMALL, aux=True)
    for dtype, bound in (("float64", FLOAT64), ("float32", FLOAT32)):
        model, values = built(graph, dtype)
        assert_equals_reference("brief", model, graph, values, images(2, 65, 82), bound)


def check_every_op() -> None:
    for labels in (False, True):
        graph = op_cases.every_op(labels=labels)
        model, values = built(graph, "float64")
        for height, width in ((33, 49), (40, 58))[: 1 if ENGINE == "jax" else 2]:
            assert_equals_reference("every op", model, graph, values, images(2, height, width), 1e-13)
    for dtype, bound in (("float32", FLOAT32), ("bfloat16", 0.2)):
        model, values = built(op_cases.every_op(), dtype)
        assert_equals_reference("every op", model, op_cases.every_op(), values, images(2, 33, 49), bound)


def for_all_sizes(model: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """`run.forward`; on TensorFlow one graph for images of any size, where `run.forward` traces one for each of two."""
    if ENGINE != "tensorflow":
        return lambda x: run.forward(model, x)
    import tensorflow as tf

    free = tf.TensorSpec((None, None, None, 3), model.inputs[0].dtype)
    call = tf.function(lambda x: model(x, training=False), input_signature=[free])

    def forward(x: np.ndarray) -> dict[str, np.ndarray]:
        made = call(tf.constant(x.transpose(0, 2, 3, 1), model.inputs[0].dtype))
        made = made if isinstance(made, dict) else {"out": made}
        return {name: made[name].numpy().transpose(0, 3, 1, 2) for name, _ in model.graph.outputs}

    return forward


def check_variants() -> None:
    last = {"name": "resnet50", "stride_in": "last_unit", "padding": "same"}
    grid = {"name": "resnet50", "multi_grid": (2, 2, 2)}
    decoders = [{"conv": kind, "bias": True} for kind in ("plain", "separable", "separable_bn")]
    for title, options in {
        "TF slim": {"arch": "v3", "backbone": last, "output_stride": 8, "rates": (1, 2, 3)},
        "TF slim at 32": {"arch": "v3", "backbone": last, "output_stride": 32, "rates": (1,)},
        "Caffe": {"arch": "v3", "backbone": {"name": "resnet50", "stride_in": "conv1", "pool_ceil": True}},
        "strided and dilated": {"arch": "v3", "backbone": grid, "output_stride": 32, "rates": (1,)},
        "the same with same": {"arch": "v3", "backbone": {**grid, "padding": "same"}, "output_stride": 32},
        "full dilation": {"arch": "v3", "backbone": {"name": "resnet50", "first_block_dilation": "full"}},
        "small map": {"arch": "v3", "backbone": SMALL, "output": {"size": "feature"}},
        "corners": {"arch": "v3plus", "backbone": SMALL, "output": {"align_corners": True}},
        "decoder corners": {"arch": "v3plus", "backbone": SMALL, "decoder": {"align_corners": True}},
        "features": {"arch": "v3plus", "backbone": SMALL, "output": {"resize": "features"}},
        "labels": {"arch": "v3plus", "backbone": SMALL, "output": {"values": "labels"}},
        "probabilities": {"arch": "v3plus", "backbone": SMALL, "output": {"values": "probabilities"}, "aux": True},
        "aux": {"arch": "v3", "backbone": SMALL, "aux": True},
        "aux on small maps": {"arch": "v3", "backbone": SMALL, "aux": True, "output": {"size": "feature"}},
        "bias": {"arch": "v3plus", "backbone": SMALL, "aspp": {"bias": True, "pool_bias": True}},
        "fusion": {"arch": "v3", "backbone": SMALL, "aspp": {"fusion_kernel": 3, "post_conv": "separable"}},
        "symmetric": {"arch": "v3plus", "backbone": {**SMALL, "padding": "symmetric"}},
        "one branch": {"arch": "v3", "backbone": SMALL, "aspp": {"order": ("conv1x1",)}},
        **{f"decoder {d['conv']}": {"arch": "v3plus", "backbone": SMALL, "decoder": d} for d in decoders},
    }.items():
        graph = network(**options)
        model, values = built(graph, "float64")
        forward = for_all_sizes(model)
        for batch, height, width in ((2, 97, 131), (1, 96, 128)):
            x = images(batch, height, width)
            truth = reference.forward(graph, values, x)
            assert_equals_truth(title, forward(x), truth, 0 if title == "labels" else FLOAT64)
        if title == "labels":
            assert forward(x)["out"].dtype == "int64"


def check_half_precision() -> None:
    graph = network("v3plus", backbone=SMALL)
    for dtype, bound in (("float16", 1e-2), ("bfloat16", 1e-1))[: 1 if ENGINE == "jax" else 2]:
        model, values = built(graph, dtype)
        assert {str(layer.dtype) for layer in model.layers} == {dtype}
        assert_equals_reference(dtype, model, graph, values, images(2, 65, 81), bound)


def check_configuration() -> None:
    """A user's Keras configuration does not change the meaning of a model, and a build leaves it alone."""
    graph = network("v3plus", backbone=SMALL, aux=True)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, values = built(graph)
        assert_equals_reference("configured", model, graph, values, images(2, 65, 81, "float32"), FLOAT32)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_dtype_policy("float32")
    with pytest.raises(BackendError, match="unknown dtype 'mixed_float16': expected one of float64, float32"):
        build.build(graph, dtype="mixed_float16")
    if ENGINE == "jax":
        import jax

        jax.config.update("jax_enable_x64", False)
        try:
            with pytest.raises(BackendError, match="64-bit types are switched off: run jax"):
                build.build(graph, dtype="float64")
            assert layers.Argmax()(np.zeros((1, 1, 1, 2), "float32")).dtype == "int32"
        finally:
            jax.config.update("jax_enable_x64", True)
    assert "cpu" in run.devices()
    assert run.device_name("cpu") == "CPU"
