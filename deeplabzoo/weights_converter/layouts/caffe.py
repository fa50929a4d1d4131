"""Caffe's DeepLab v1 and v2: VGG-16 with one or four branches, and MSRA's ResNet-101 with four.

Source: layer names of the authors' published prototxt files. A layer's blobs have numbers: a convolution's weight is
0, its bias 1. What others call batch norm is two layers, BatchNorm (statistics, times a common factor) and Scale.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.rules import Rule, TableLayout
from deeplabzoo.zoo.presets import papers

_NETWORKS = ("v1_vgg16", "v2_vgg16", "v2_resnet101")
_FACTOR = re.compile(r"(bn.+)/2")
# Training shows the image at three scales to layers that share their blobs; each is stored with every scale.
_SCALE = re.compile(r".+_res0\d+/\d")
_SCORES = re.compile(r"fc8(?:_.+?)?(_[1-4])?(/\d)|fc1(?:_.+)?(_c[0-3])(/\d)")


def _unit(match: re.Match[str]) -> str:
    """`2a_branch1`: the stages of many blocks number those after the first, the others have letters."""
    stage, block, part = int(match[1]) + 1, int(match[2]), match[3]
    letter = "abc"[block - 1] if stage in (2, 5) or block == 1 else f"b{block - 1}"
    return f"{stage}{letter}_branch" + (f"2{'abc'[int(part) - 1]}" if part else "1")


_RESNET: tuple[Rule, ...] = (
    (r"backbone\.stem\.conv", "conv1"),
    (r"backbone\.stem\.bn", "_conv1"),
    (r"backbone\.stage(\d)\.block(\d+)\.(?:shortcut\.conv|conv(\d))", lambda match: f"res{_unit(match)}"),
    (r"backbone\.stage(\d)\.block(\d+)\.(?:shortcut\.bn|bn(\d))", _unit),
    (r"classifier\.branch(\d)", r"fc1_c{\1}"),
)
_VGG: tuple[Rule, ...] = (
    (r"backbone\.stage(\d)\.conv(\d)", r"conv\1_\2"),
    (r"classifier\.branch(\d)", r"fc8_\1"),
    (r"classifier\.conv", "fc8"),
)


class CaffeLayout(TableLayout):
    """Layer names of the authors' own Caffe models."""

    name = "caffe"
    title = "Caffe's DeepLab v1 and v2"
    writes = ()
    presets = tuple(preset for preset in papers.PRESETS if preset.name in _NETWORKS)
    marks = (("conv1_1/0", "fc6/0"), ("conv1_1/0", "fc6_1/0"), ("conv1/0", "bn_conv1/0", "scale_conv1/0"))
    spelling = "caffe"

    def standard(self, names: Collection[str]) -> Mapping[str, str]:
        """The layers of scores without the data set in their names, `fc8_voc12_1` as `fc8_1`."""
        branches = "fc6_1/0" in names
        found = {}
        for name in names:
            if match := _SCORES.fullmatch(name):
                branch, blob = match[1] or match[3] or "", match[2] or match[4]
                numbered = branch if branches or match[3] else ""
                found[name] = f"fc{'1' if match[3] else '8'}{numbered}{blob}"
        return found

    def prepared(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Mean and variance as Caffe uses them: times one over the layer's third blob, or zero where that is zero."""
        return _Divided(tensors)

    def ignored(self, foreign: str) -> str | None:
        """The factor of a BatchNorm once it is used, and what training at several scales stores again."""
        if _FACTOR.fullmatch(foreign):
            return "the factor by which mean and variance were divided"
        return "shared with the layer of the full scale" if _SCALE.fullmatch(foreign) else None

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone; the branches of v2 on VGG-16 are whole columns of layers."""
        if spec.backbone.name != "vgg16":
            return _RESNET
        branch = r"_\1" if spec.arch == "v2" else ""
        hidden = ((rf"head\.branch(\d)\.hidden{n}\.conv", f"fc{5 + n}{branch}") for n in (1, 2))
        return (*_VGG, *hidden)


class _Divided(Mapping[str, np.ndarray]):
    """Blobs by name, statistics divided when they are asked for."""

    def __init__(self, blobs: Mapping[str, np.ndarray]) -> None:
        self._blobs = blobs
        self._layers = {match[1] for name in blobs if (match := _FACTOR.fullmatch(name))}

    def __getitem__(self, name: str) -> np.ndarray:
        blob = self._blobs[name]
        layer, _, index = name.rpartition("/")
        if layer not in self._layers or index not in ("0", "1"):
            return blob
        factor = self._blobs[f"{layer}/2"].reshape(-1)[:1]
        inverse = np.divide(1, factor, out=np.zeros_like(factor), where=factor != 0)
        return np.asarray(blob * inverse, blob.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def __contains__(self, name: object) -> bool:  # the inherited one would read the blob
        return name in self._blobs
