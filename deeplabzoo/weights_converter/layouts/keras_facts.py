"""What the configuration of a Keras model tells beside its tensors: dilations, epsilons, the activation at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from deeplabzoo.weights_converter.formats import shown
from deeplabzoo.weights_converter.layouts.base import Reading


def inner(config: object) -> Mapping[str, Any]:
    """What a serialized object of Keras was made with; nothing where there is no such object."""
    made = config.get("config") if isinstance(config, Mapping) else None
    return made if isinstance(made, Mapping) else {}


def layers_of(config: object) -> list[tuple[str, Mapping[str, Any]]]:
    """Class and settings of each layer of a serialized functional model, in the model's order."""
    listed = inner(config).get("layers")
    layers = listed if isinstance(listed, list) else []
    return [(str(layer.get("class_name")), inner(layer)) for layer in layers if isinstance(layer, Mapping)]


def graph_of(layers: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Dilations and epsilons as `graph_facts` takes them, tensors named by their layers in Keras 2's way."""
    convolutions, norms = [], []
    for kind, made in layers:
        name, rates = made.get("name"), made.get("dilation_rate")
        if not isinstance(name, str):
            continue
        if kind == "BatchNormalization":
            norms.append({"scale": f"{name}/gamma", "epsilon": made.get("epsilon")})
        elif kind in ("Conv2D", "DepthwiseConv2D") and isinstance(rates, list) and all(map(is_rate, rates)):
            kernel = "depthwise_kernel" if kind == "DepthwiseConv2D" else "kernel"
            convolutions.append({"weights": f"{name}/{kernel}", "dilations": rates})
    return {"convolutions": convolutions, "batch_norms": norms}


def is_rate(value: object) -> bool:
    """Whether a value is a dilation: a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def values_after(activation: object, num_classes: int) -> str | None:
    """`output.values` of a network that ends in an activation, by its name in Keras; none where no spec ends so."""
    if activation in (None, "linear"):
        return "logits"
    return "probabilities" if activation == ("softmax" if num_classes > 1 else "sigmoid") else None


def end_assumed(reading: Reading) -> Reading:
    """A reading that says so where it takes the end of the network for the usual one, as a file of weights makes it do."""
    line = f"output.values = {reading.spec.output.values}"
    if line in (*reading.told, *reading.assumed):
        return reading
    return dataclasses.replace(reading, assumed=(*reading.assumed, line))


def without_activation(activation: object, num_classes: int) -> list[str]:
    """A note where a network ends in an activation that no spec has."""
    if values_after(activation, num_classes) is not None:
        return []
    return [
        f"the file's network ends in {shown(activation)}, which is not taken along: with {num_classes} classes only "
        "softmax (sigmoid of a single class) is, so the network gives the values before it"
    ]
