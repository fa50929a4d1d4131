"""What the configuration in a checkpoint of mmsegmentation tells: Python text, of which only a few literals are read.

Source of the meaning: open-mmlab/mmsegmentation, mmseg/models/backbones/resnet.py and mobilenet_v2.py (Apache-2.0).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from deeplabzoo.core.backbones import ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import SpecError
from deeplabzoo.weights_converter.formats import shown

_TEXT_LIMIT = 2**18
"""Characters of a configuration: the longest published ones take ten thousand."""

_TOKEN = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|[(\[{)\]}]")
_VALUE = r"(\([\d,\s]{0,200}\)|\[[\d,\s]{0,200}\]|True|False|None)"
_KEYS = {
    "backbone": ("strides", "dilations", "multi_grid", "contract_dilation"),
    "decode_head": ("dilations", "align_corners"),
}
_STAGES: dict[str, tuple[int, tuple[int, ...]]] = {
    "resnet": (4, (1, 2, 2, 2)),
    "mobilenet_v2": (2, (1, 2, 2, 2, 1, 2, 1)),
}
"""Stride of the stem, and those of the stages before dilation takes their place."""


def with_config(spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str], list[str]]:
    """`spec` with what the configuration in the file says, the fields that it settled, and notes on what is not taken.

    Args:
        spec: what the tensors tell, with the published defaults.
        facts: of the checkpoint; `meta.config` is the text.
    """
    meta = facts.get("meta")
    text = meta.get("config") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return spec, [], []
    if len(text) > _TEXT_LIMIT:
        return spec, [], [f"the file's configuration of {len(text)} characters is not read: at most {_TEXT_LIMIT} are"]
    backbone, head = (_literals(text, section) for section in _KEYS)
    told: list[str] = []
    notes: list[str] = []
    for name, value, change in (
        ("backbone.strides", backbone.get("strides"), _strides),
        ("backbone.multi_grid", backbone.get("multi_grid"), _multi_grid),
        ("backbone.contract_dilation", backbone.get("contract_dilation"), _first_dilation),
        ("decode_head.dilations", head.get("dilations"), _rates),
        ("decode_head.align_corners", head.get("align_corners"), _corners),
    ):
        if value is None:
            continue
        try:
            spec, fields = change(spec, value)
            told += fields
        except (SpecError, ValueError):
            notes.append(
                f"the file's configuration says {name} = {shown(value)}, which no network here has and is not taken along"
            )
    dilations, expected = backbone.get("dilations"), _stages(spec)[1]
    if dilations is not None and dilations not in (expected, list(expected)):
        notes.append(
            f"the file's configuration says backbone.dilations = {shown(dilations)}, where output_stride = "
            f"{spec.output_stride} makes them {expected}: the network that is read computes something else"
        )
    return spec, told, notes


def _literals(text: str, section: str) -> dict[str, Any]:
    """Keys of a `dict(...)` in the configuration that are numbers, true or false; those of dicts inside it too."""
    start = re.search(rf"\b{section}['\"]?\s*[=:]\s*(?:dict\(|\{{)", text)
    if start is None:
        return {}
    depth, end = 1, len(text)
    for token in _TOKEN.finditer(text, start.end()):
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if not depth:
            end = token.start()
            break
    found = {}
    for key in _KEYS[section]:
        value = re.search(rf"\b{key}['\"]?\s*[=:]\s*{_VALUE}", text[start.end() : end])
        if value is not None:
            found[key] = _literal(value[1])
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # numbers without a comma between them, or with leading zeros
        return text


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(type(number) is int for number in value):
        raise ValueError("no list of whole numbers")
    return tuple(value)


def _stages(spec: ArchSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations of the stages as mmsegmentation spells them: the first stages bear the strides."""
    reached, whole = _STAGES["resnet" if isinstance(spec.backbone, ResNet) else "mobilenet_v2"]
    strides, dilations, dilation = [], [], 1
    for stride in whole:
        strides.append(stride if reached < spec.output_stride else 1)
        reached *= strides[-1]
        dilation *= stride // strides[-1]
        dilations.append(dilation)
    return tuple(strides), tuple(dilations)


def _strides(spec: ArchSpec, value: Any) -> tuple[ArchSpec, list[str]]:
    stem = _STAGES["resnet" if isinstance(spec.backbone, ResNet) else "mobilenet_v2"][0]
    changed = spec.replace(output_stride=stem * math.prod(_numbers(value)))
    if _stages(changed)[0] != tuple(value):
        raise ValueError("strides of other stages")
    return changed, ["output_stride"]


def _multi_grid(spec: ArchSpec, value: Any) -> tuple[ArchSpec, list[str]]:
    grid = _numbers(value)
    backbone = spec.backbone.replace(multi_grid=grid, multi_grid_mode="replace")
    return spec.replace(backbone=backbone), ["backbone.multi_grid", "backbone.multi_grid_mode"]


def _first_dilation(spec: ArchSpec, value: Any) -> tuple[ArchSpec, list[str]]:
    if not isinstance(value, bool) or not isinstance(spec.backbone, ResNet):
        raise ValueError("neither true nor false")
    backbone = spec.backbone.replace(first_block_dilation="previous" if value else "full")
    return spec.replace(backbone=backbone), ["backbone.first_block_dilation"]


def _rates(spec: ArchSpec, value: Any) -> tuple[ArchSpec, list[str]]:
    first, *rates = _numbers(value) or (0,)
    if first != 1 or len(rates) != len(spec.rates):  # the first branch is the 1x1
        raise ValueError("other branches")
    return spec.replace(aspp=spec.required_aspp.replace(rates=tuple(rates))), ["aspp.rates"]


def _corners(spec: ArchSpec, value: Any) -> tuple[ArchSpec, list[str]]:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    spec = spec.replace(output=spec.output.replace(align_corners=value))
    if spec.decoder is None:
        return spec, ["output.align_corners"]
    spec = spec.replace(decoder=spec.decoder.replace(align_corners=value))
    return spec, ["decoder.align_corners", "output.align_corners"]
