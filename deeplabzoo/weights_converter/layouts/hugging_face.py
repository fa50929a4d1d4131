"""Hugging Face transformers: `MobileNetV2ForSemanticSegmentation`.

Source: huggingface/transformers, models/mobilenet_v2/modeling_mobilenet_v2.py (Apache-2.0), names as in its
`state_dict()`. The classifier's 1x1 of 1280 channels is in its files though segmentation never uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from deeplabzoo.core.backbones import MobileNetV2
from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
from deeplabzoo.core.backbones.mobilenet_v2 import divisible
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.formats import Checkpoint, shown
from deeplabzoo.weights_converter.layouts.base import Entry, Reading, shapes_of, unlike
from deeplabzoo.weights_converter.layouts.keras_facts import is_rate
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import block_number
from deeplabzoo.zoo.presets import tensorflow

_UNIT = (".convolution", ".normalization")
_PARTS = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
_DEAD = "mobilenet_v2.conv_1x1"
_LAST, _RATIO = 1280, 6
_FIRST_EXPANSION = "mobilenet_v2.conv_stem.expand_1x1.convolution.weight"
_SECOND_EXPANSION = "mobilenet_v2.layer.0.expand_1x1.convolution.weight"
_KEPT = (
    "finegrained_output",
    "min_depth",
    "classifier_dropout_prob",
    "initializer_range",
    "semantic_loss_ignore_index",
)
"""Fields of `config.json` on which no output depends, written as they were."""


def _block(place: str) -> Callable[[re.Match[str]], str]:
    def name(match: re.Match[str]) -> str:
        number = block_number(match)
        where = "conv_stem" if number == 1 else f"layer.{number - 2}"
        return f"mobilenet_v2.{where}.{_PARTS[match[3]]}{place}"

    return name


_PART = r"backbone\.stage(\d)\.block(\d+)\.(expand|depthwise|project)"
_ACTIVATION = "relu6"
_RULES: tuple[Rule, ...] = (
    *units(r"backbone\.stem", "mobilenet_v2.conv_stem.first_conv", *_UNIT),
    (rf"{_PART}\.conv", _block(_UNIT[0])),
    (rf"{_PART}\.bn", _block(_UNIT[1])),
    *units(r"aspp\.image_pooling", "segmentation_head.conv_pool", *_UNIT),
    *units(r"aspp\.branch0", "segmentation_head.conv_aspp", *_UNIT),
    *units(r"aspp\.fusion", "segmentation_head.conv_projection", *_UNIT),
    (r"classifier\.conv", "segmentation_head.classifier.convolution"),
)


class HuggingFaceLayout(TableLayout):
    """Tensor names of transformers' MobileNetV2."""

    name = "hf"
    title = "transformers MobileNetV2ForSemanticSegmentation"
    writes = ("torch", "safetensors", "npz", "hub-folder")
    presets = tuple(preset for preset in tensorflow.PRESETS if preset.name.endswith(".hf"))
    marks = (
        ("mobilenet_v2.conv_stem.first_conv.convolution.weight", "segmentation_head.classifier.convolution.weight"),
    )

    moves = (Move(r"(segmentation_head\.)conv_pool\."),)
    free = (*TableLayout.free, "backbone.padding = symmetric", "backbone.epsilon")

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """One network at any width."""
        del spec
        return _RULES

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """The network at the width that the shapes tell.

        Raises:
            LayoutError: a `MobileNetV2Config` of another network, by its tensors or by `config.json`.
        """
        if _FIRST_EXPANSION in checkpoint.tensors:
            raise LayoutError(
                f"there is {_FIRST_EXPANSION!r}, as first_layer_is_expansion = false makes it: not supported; supported "
                "is true"
            )
        shape = shapes_of(checkpoint).get(_SECOND_EXPANSION, ())
        if len(shape) == 4 and shape[0] != divisible(shape[1] * _RATIO, 8):
            raise LayoutError(
                f"{_SECOND_EXPANSION!r} makes {shape[0]} channels of {shape[1]}: another expand_ratio than {_RATIO} is "
                "not supported"
            )
        return super().read_spec(checkpoint)

    def informed(self, spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str]]:
        """The fields of `config.json` on which the network depends."""
        config = _config(facts)
        if (activation := config.get("hidden_act", _ACTIVATION)) != _ACTIVATION:
            raise LayoutError(
                f"config.json says hidden_act = {shown(activation)}, which is not supported; supported is {_ACTIVATION}"
            )
        told, backbone, stride = [], spec.backbone, config.get("output_stride")
        if is_rate(stride) and stride in OUTPUT_STRIDES:
            spec, told = spec.replace(output_stride=stride), ["output_stride"]
        if isinstance(config.get("tf_padding"), bool):
            backbone = backbone.replace(padding="same" if config["tf_padding"] else "symmetric")
            told.append("backbone.padding")
        epsilon = config.get("layer_norm_eps")
        if isinstance(epsilon, float) and 0 < epsilon < 1:
            backbone = backbone.replace(epsilon=epsilon)
            told.append("backbone.epsilon")
        return spec.replace(backbone=backbone), told

    def remarks(self, checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
        """Fields of `config.json` that contradict the tensors, or that no network here has."""
        config = _config(checkpoint.facts)
        notes, names = unlike(config, _arguments(spec)), config.get("id2label")
        if isinstance(names, Mapping) and len(names) != spec.num_classes:
            notes.append(f"config.json names {len(names)} classes in id2label, but the network has {spec.num_classes}")
        return notes

    def named(self, count: int, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The classes that `config.json` names."""
        names = _config(facts).get("id2label")
        if not isinstance(names, Mapping) or len(names) != count:
            return ()
        ordered = [names.get(str(n), names.get(n)) for n in range(count)]
        if not all(isinstance(name, str) for name in ordered) or ordered[0] == "LABEL_0":  # transformers' own filling
            return ()
        return tuple(str(name) for name in ordered)

    def unused(self, spec: ArchSpec) -> tuple[str, list[Entry]]:
        """A 1x1 convolution of 1280 channels and its batch norm; neutral where the source had none."""
        backbone = spec.backbone
        if not isinstance(backbone, MobileNetV2):
            return "", []
        # transformers keeps 1280 at widths below 1, as the paper does.
        count = divisible(_LAST * max(1.0, backbone.width), 8)
        inputs = backbone.scaled(320)
        parts: list[tuple[str, tuple[int, ...], float]] = [
            (f"{_DEAD}.convolution.weight", (count, inputs, 1, 1), 0.0),
            *((f"{_DEAD}.normalization.{suffix}", (count,), value) for suffix, value in (
                ("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0),
            )),
        ]  # fmt: skip
        made = [Entry(name, "", spare=partial(np.full, shape, value, np.float32)) for name, shape, value in parts]
        made.append(Entry(f"{_DEAD}.normalization.num_batches_tracked", "", spare=partial(np.zeros, (), np.int64)))
        return "mobilenet_v2.", made

    def remembered(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields of `config.json` that no spec can say."""
        config = _config(facts)
        kept = {name: config[name] for name in _KEPT if isinstance(config.get(name), int | float)}
        names = config.get("id2label")
        if isinstance(names, Mapping) and all(isinstance(name, str) for name in names.values()):
            kept["id2label"] = dict(names)
        return {"config": kept} if kept else {}

    def config(self, model: Canonical) -> Mapping[str, Any]:
        """The fields of transformers' `MobileNetV2Config` that the network depends on, and what the source's said."""
        spec, backbone = model.spec, model.spec.backbone
        record = model.card.foreign or {}
        kept = _config(record) if record.get("layout") == self.name else {}
        if not isinstance(backbone, MobileNetV2):
            raise LayoutError(f"{self.title} has no {spec.title}; use --to-layout deeplabzoo")
        named = {str(n): name for n, name in enumerate(model.card.classes)}
        given = kept.get("id2label", {})
        names = (
            given
            if len(given) == spec.num_classes
            else named or {str(n): f"LABEL_{n}" for n in range(spec.num_classes)}
        )
        return {
            "architectures": ["MobileNetV2ForSemanticSegmentation"],
            **_arguments(spec),
            "depth_divisible_by": backbone.depth_divisor,
            "min_depth": 8,
            "finegrained_output": True,
            "classifier_dropout_prob": spec.required_aspp.dropout,
            "initializer_range": 0.02,
            "semantic_loss_ignore_index": 255,
            **{name: value for name, value in kept.items() if name in _KEPT},
            "id2label": names,
            "label2id": {name: int(n) for n, name in names.items()},
        }


def _arguments(spec: ArchSpec) -> dict[str, Any]:
    """The fields of `config.json` that a spec settles."""
    backbone = spec.backbone
    if not isinstance(backbone, MobileNetV2):
        return {}
    return {
        "model_type": "mobilenet_v2",
        "num_channels": spec.in_channels,
        "depth_multiplier": backbone.width,
        "expand_ratio": float(_RATIO),
        "output_stride": spec.output_stride,
        "first_layer_is_expansion": True,
        "hidden_act": _ACTIVATION,
        "tf_padding": backbone.padding == "same",
        "layer_norm_eps": backbone.epsilon,
    }


def _config(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    config = facts.get("config")
    return config if isinstance(config, Mapping) else {}
