"""segmentation_models_pytorch: `DeepLabV3` and `DeepLabV3Plus` on its own encoders.

Source: qubvel-org/segmentation_models.pytorch, decoders/deeplabv3, encoders and base (MIT), names as in their
`state_dict()`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from deeplabzoo.core.backbones import MobileNetV2, ResNet
from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.formats import Checkpoint, shown
from deeplabzoo.weights_converter.layouts.base import Entry, unlike
from deeplabzoo.weights_converter.layouts.keras_facts import is_rate
from deeplabzoo.weights_converter.layouts.rules import Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import TORCHVISION_PLACES, mobilenet_v2, resnet
from deeplabzoo.zoo.presets import smp

_CLASSES = "classification_head.3.weight"
"""Of the image-level head that `aux_params` asks for; no part of the segmentation."""
_ACTIVATIONS = {
    None: "logits", "identity": "logits", "softmax": "probabilities", "softmax2d": "probabilities",
    "sigmoid": "probabilities",
}  # fmt: skip
_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")


def with_other_branches(spec: ArchSpec) -> ArchSpec:
    """With `decoder_aspp_separable` as it is not by default: separable branches in v3, plain ones in v3+."""
    aspp = spec.required_aspp.replace(branch="separable" if spec.arch == "v3" else "plain")
    return spec.replace(aspp=aspp)


def _other_branches(arch: str, encoder: str) -> ArchSpec:
    return with_other_branches(smp.template(arch, encoder))


def _head(aspp: str, post: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (
        *units(r"aspp\.branch(\d)", rf"{aspp}.convs.\1", ".0", ".1"),
        (r"aspp\.branch(\d)\.depthwise\.conv", rf"{aspp}.convs.\1.0.0"),
        *units(r"aspp\.branch(\d)\.pointwise", rf"{aspp}.convs.\1", ".0.1", ".1"),
        *units(r"aspp\.image_pooling", f"{aspp}.convs.4", ".1", ".2"),
        *units(r"aspp\.fusion", f"{aspp}.project", ".0", ".1"),
        *post,
        *units(r"decoder\.low_level", "decoder.block1", ".0", ".1"),
        (r"decoder\.conv1\.depthwise\.conv", "decoder.block2.0.0"),
        *units(r"decoder\.conv1\.pointwise", "decoder.block2", ".0.1", ".1"),
        (r"classifier\.conv", "segmentation_head.0"),
    )


HEADS = {
    "v3": _head("decoder.aspp", units(r"aspp\.post", "decoder", ".conv", ".bn")),
    "v3plus": _head(
        "decoder.aspp.0",
        (
            (r"aspp\.post\.depthwise\.conv", "decoder.aspp.1.0"),
            *units(r"aspp\.post\.pointwise", "decoder.aspp", ".1.1", ".2"),
        ),
    ),
}
_OLD_V3 = {"decoder.0.": "decoder.aspp.", "decoder.1.": "decoder.conv.", "decoder.2.": "decoder.bn."}
"""Files of versions before 0.4 have v3's decoder as a plain list."""


class SMPLayout(TableLayout):
    """Tensor names of segmentation_models_pytorch, with its own encoders' dilation.

    Attributes:
        timm: whether the encoders are timm's, whose names start with `encoder.model.`.
    """

    name = "smp"
    title = "segmentation_models_pytorch"
    writes = ("torch", "safetensors", "npz", "hub-folder")
    presets = tuple(preset for preset in smp.PRESETS if not preset.name.endswith("_timm"))
    others = tuple(partial(_other_branches, arch, encoder) for arch in ("v3", "v3plus") for encoder in _ENCODERS)
    marks = (
        ("segmentation_head.0.weight", "decoder.aspp.project.0.weight"),
        ("segmentation_head.0.weight", "decoder.aspp.0.project.0.weight"),
    )
    free = (*TableLayout.free, "output.values")
    timm: ClassVar[bool] = False

    def recognise(self, checkpoint: Checkpoint) -> str:
        """Its heads, on encoders of its own."""
        evidence = super().recognise(checkpoint)
        encoder = next((name for name in checkpoint.tensors if name.startswith("encoder.")), "encoder.")
        if encoder.startswith("encoder.model.") is not self.timm:
            raise LayoutError(f"{encoder!r} is of {'no' if self.timm else 'an'} encoder of timm")
        return f"{evidence}, {encoder}"

    def standard(self, names: Collection[str]) -> Mapping[str, str]:
        """Old files have v3's decoder as a list."""
        if not any(name.startswith("decoder.0.") for name in names):
            return {}
        return {
            name: name.replace(old, new, 1) for name in names for old, new in _OLD_V3.items() if name.startswith(old)
        }

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone and architecture."""
        if isinstance(spec.backbone, ResNet):
            backbone = resnet("encoder.")
        elif isinstance(spec.backbone, MobileNetV2):
            backbone = mobilenet_v2("encoder.features.{}".format, TORCHVISION_PLACES)
        else:
            backbone = ()
        return (*backbone, *HEADS[spec.arch])

    def unused(self, spec: ArchSpec) -> tuple[str, list[Entry]]:
        """The image-level head of models with `aux_params`."""
        del spec
        return "segmentation_head.", [Entry(_CLASSES, ""), Entry(_CLASSES.replace("weight", "bias"), "")]

    def entries(self, spec: ArchSpec, file_format: str, names: Collection[str] = ()) -> list[Entry]:
        """The image-level head only where the file has it."""
        entries = super().entries(spec, file_format, names)
        return [entry for entry in entries if entry.canonical or entry.foreign in names]

    def informed(self, spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str]]:
        """The arguments of the class, which a hub folder's `config.json` has."""
        config = _config(facts)
        told, stride = [], config.get("encoder_output_stride")
        if is_rate(stride) and stride in OUTPUT_STRIDES:
            spec, told = spec.replace(output_stride=stride), ["output_stride"]
        rates = config.get("decoder_atrous_rates")
        if isinstance(rates, list) and len(rates) == len(spec.rates) and all(map(is_rate, rates)):
            spec = spec.replace(aspp=spec.required_aspp.replace(rates=tuple(rates)))
            told.append("aspp.rates")
        values = _values(config.get("activation"), spec.num_classes)
        if "activation" in config and values:
            spec = spec.replace(output=spec.output.replace(values=values))
            told.append("output.values")
        return spec, told

    def remarks(self, checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
        """Arguments of the class in a hub folder's `config.json` under which it computes what no spec here says."""
        config = _config(checkpoint.facts)
        notes = unlike(config, _arguments(spec))
        encoder, ours = config.get("encoder_name"), self.encoder(spec)
        if encoder is not None and str(encoder).partition(".")[0] != ours:  # timm's names may end in `.a1_in1k`
            notes.append(
                f"config.json says encoder_name = {shown(encoder)}, which has the tensors of {ours} and is read as that: "
                "compare what they compute"
            )
        activation, factor = config.get("activation"), config.get("upsampling")
        if _values(activation, spec.num_classes) is None:
            notes.append(
                f"config.json says activation = {shown(activation)}, which is not taken along: the network gives the "
                f"values before it; expected one of {', '.join(map(str, _ACTIVATIONS))} that suits the class count"
            )
        whole = _upsampling(spec)
        if factor not in (None, whole):
            notes.append(
                f"config.json says upsampling = {shown(factor)}, which is not taken along: the network resizes the "
                f"logits to the size of the image, as upsampling = {whole} does"
            )
        return notes

    def remembered(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of the class."""
        config = _config(facts)
        return {"config": config} if config else {}

    def config(self, model: Canonical) -> Mapping[str, Any]:
        """Smp's `save_pretrained` writes these, so that its `from_pretrained` can build the class again.

        What the source's own `config.json` said stands where the network does not depend on it, or no spec can say it.
        """
        spec = model.spec
        record = model.card.foreign or {}
        kept = _config(record) if record.get("layout") == self.name else {}
        made: dict[str, Any] = {
            **_arguments(spec),
            "encoder_name": kept.get("encoder_name") or self.encoder(spec),
            # No output depends on these two.
            "encoder_weights": kept.get("encoder_weights"),
            "decoder_aspp_dropout": kept.get("decoder_aspp_dropout", spec.required_aspp.dropout),
            "activation": None,
            "upsampling": None if spec.arch == "v3" else 4,
            "aux_params": None,
        }
        if spec.output.values == "probabilities":
            made["activation"] = "sigmoid" if spec.num_classes == 1 else "softmax2d"
        given = kept.get("activation")
        if _values(given, spec.num_classes) in (None, spec.output.values):
            made["activation"] = given
        if kept.get("upsampling") is not None:
            made["upsampling"] = kept["upsampling"]
        if _CLASSES in model.spares and record.get("layout") == self.name:
            before = kept.get("aux_params")
            classes = model.spares[_CLASSES].shape[0]
            made["aux_params"] = {**(before if isinstance(before, Mapping) else {}), "classes": classes}
        return {**kept, **made}

    def encoder(self, spec: ArchSpec) -> str:
        """Smp's name of the encoder."""
        return spec.backbone.name


def _arguments(spec: ArchSpec) -> dict[str, Any]:
    """The arguments of the class that a spec settles, and the name of the class."""
    aspp = spec.required_aspp
    return {
        "_model_class": "DeepLabV3" if spec.arch == "v3" else "DeepLabV3Plus",
        "encoder_depth": 5,
        "encoder_output_stride": spec.output_stride,
        "decoder_channels": aspp.channels,
        "decoder_atrous_rates": list(aspp.rates),
        "decoder_aspp_separable": aspp.branch == "separable",
        "in_channels": spec.in_channels,
        "classes": spec.num_classes,
    }


def _config(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `config` in facts or in a record, which may be anything; empty where it is no table."""
    config = facts.get("config")
    return config if isinstance(config, Mapping) else {}


def _values(activation: object, classes: int) -> str | None:
    """`output.values` for an activation of smp, or none where no spec says what it computes."""
    if not isinstance(activation, str | None) or activation not in _ACTIVATIONS:
        return None
    # A spec's probabilities are a softmax over classes, and a sigmoid of one class.
    suits = activation in (None, "identity") or (activation == "sigmoid") is (classes == 1)
    return _ACTIVATIONS[activation] if suits else None


def _upsampling(spec: ArchSpec) -> int:
    """The factor that brings the logits to the size of the image."""
    return spec.output_stride if spec.decoder is None else 4
