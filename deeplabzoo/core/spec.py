"""`ArchSpec`: everything that decides which function a DeepLab computes, as one frozen value.

The sections carry every difference found between the public implementations, because equal tensor names and shapes do
not mean an equal network. `make_spec` fills in sound defaults and says where they come from.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deeplabzoo.core.backbones import BACKBONES, BackboneSpec
from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
from deeplabzoo.core.fields import Section, check_choice, check_int, check_table
from deeplabzoo.core.sections import ASPPSpec, AuxSpec, ClassifierSpec, DecoderSpec, OutputSpec
from deeplabzoo.errors import SpecError, near_match, unknown

ARCHITECTURES = ("v3", "v3plus")

_DEFAULT_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""DeepLab v3, section 3.3: (6, 12, 18) at stride 16, doubled at 8; halved at 32 by the same rule."""

_SHORT = {
    "rates": "aspp",
    "width": "backbone",
    "multi_grid": "backbone",
    "first_block_dilation": "backbone",
    "stride_in": "backbone",
    "low_level": "decoder",
}
"""Fields of sections that may be given to `make_spec` by their own name."""


_SECTIONS: dict[str, type[Section]] = {
    "backbone": BackboneSpec,
    "aspp": ASPPSpec,
    "decoder": DecoderSpec,
    "classifier": ClassifierSpec,
    "aux": AuxSpec,
    "output": OutputSpec,
}


@dataclass(frozen=True, kw_only=True)
class ArchSpec(Section):
    """A DeepLab: equal values compute the same function and hash equal; different functions are different values.

    Attributes:
        arch: `v3` or `v3plus`.
        backbone: options of the backbone; their class follows from the backbone's name.
        output_stride: input size over the size of the backbone's last map: 8, 16 or 32.
        num_classes: channels of the logits.
        in_channels: channels of the image.
        aspp: atrous spatial pyramid pooling.
        decoder: the v3+ decoder; none for v3.
        classifier: the last 1x1.
        aux: auxiliary head, or none.
        output: what the network returns.
    """

    arch: str
    backbone: BackboneSpec
    output_stride: int
    num_classes: int
    aspp: ASPPSpec
    decoder: DecoderSpec | None = None
    classifier: ClassifierSpec = ClassifierSpec()  # noqa: RUF009 - frozen
    aux: AuxSpec | None = None
    output: OutputSpec = OutputSpec()  # noqa: RUF009 - frozen
    in_channels: int = 3

    def validate(self) -> None:
        """Check the fields against each other."""
        check_choice("arch", self.arch, ARCHITECTURES)
        check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)
        check_int("num_classes", self.num_classes)
        check_int("in_channels", self.in_channels)
        for field, kind in _SECTIONS.items():
            value = getattr(self, field)
            if not isinstance(value, kind) and not (value is None and field in ("decoder", "aux")):
                raise SpecError(f"{field} = {value!r}: expected a {kind.__name__}; from_dict reads tables")
        if self.arch == "v3" and self.decoder is not None:
            raise SpecError("arch = 'v3' has no decoder: leave the section out, or use arch = 'v3plus'")
        if self.arch == "v3plus" and self.decoder is None:
            raise SpecError("arch = 'v3plus' needs a decoder: expected a section decoder with its low_level tap")
        if self.decoder is not None:
            check_choice("decoder.low_level", self.decoder.low_level, self.backbone.taps())
        if self.aux is not None:
            check_choice("aux.tap", self.aux.tap, self.backbone.taps())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "") -> Self:
        """Read plain data; the name of the backbone decides which options its table may have."""
        check_table("the spec", data)
        table = data.get("backbone")
        if isinstance(table, str):
            table = {"name": table}
        if isinstance(table, Mapping):
            family = BACKBONES.get(str(table.get("name")))
            if family is None:
                raise SpecError(unknown("backbone.name", table.get("name"), BACKBONES))
            data = {**data, "backbone": family.from_dict(table, where="backbone.")}
        elif table is not None and not isinstance(table, BackboneSpec):
            check_table("backbone", table)
        return super().from_dict(data, where=where)

    def to_json(self) -> str:
        """JSON, the same text for equal specs."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`.

        Raises:
            SpecError: no JSON, or a wrong field.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise SpecError(f"the spec is not JSON: {error}") from None

    def to_toml(self) -> str:
        """TOML, the form that people edit."""
        import tomli_w  # only needed to write

        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Inverse of `to_toml`.

        Raises:
            SpecError: no TOML, or a wrong field.
        """
        try:
            return cls.from_dict(tomllib.loads(text))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise SpecError(f"the spec is not TOML: {error}") from None

    def at_output_stride(self, output_stride: int) -> ArchSpec:
        """The same weights at another output stride, rates rescaled as the papers do (v3, section 3.3).

        Raises:
            SpecError: a stride the backbone can't give, or rates that do not divide.
        """
        check_choice("output_stride", output_stride, OUTPUT_STRIDES)
        scaled = [rate * self.output_stride / output_stride for rate in self.aspp.rates]
        if any(rate != int(rate) or rate < 1 for rate in scaled):
            raise SpecError(
                f"output_stride = {output_stride}: the rates {list(self.aspp.rates)} at stride {self.output_stride} "
                f"would become {scaled}, expected whole numbers; give the rates in a spec"
            )
        aspp = self.aspp.replace(rates=tuple(int(rate) for rate in scaled))
        return self.replace(output_stride=output_stride, aspp=aspp)

    @property
    def title(self) -> str:
        """A short name for people, `v3plus_resnet50`."""
        return f"{self.arch}_{self.backbone.name}"


def make_spec(
    arch: str | ArchSpec = "v3plus",
    *,
    backbone: str | Mapping[str, Any] | BackboneSpec = "resnet50",
    output_stride: int = 16,
    num_classes: int = 21,
    aux: bool | Mapping[str, Any] | AuxSpec | None = None,
    **options: Any,
) -> ArchSpec:
    """A spec from a few words; everything else takes the default named here.

    Defaults: backbone options of torchvision (ResNet) or TF research/deeplab (MobileNetV2); rates of the v3 paper;
    v3's head is torchvision's (plain branches, 3x3 after the fusion, dropout 0.5); v3+ has the decoder of the v3+
    paper and TF (separable convolutions with batch norm and ReLU, dropout 0.1). Output: logits at the input's size.

    Args:
        arch: `v3` or `v3plus`; a finished spec is returned as it is.
        backbone: a name, a table with `name` and options, or a `BackboneSpec`.
        output_stride: 8, 16 or 32.
        num_classes: at least 1.
        aux: true for an auxiliary head at the backbone's usual tap, or its fields.
        **options: `in_channels`, the sections `aspp`, `decoder`, `classifier`, `output` as tables, or one of the short
            names rates, width, multi_grid, first_block_dilation, stride_in, low_level.

    Raises:
        SpecError: a field that is unknown, wrong or contradicts another.
    """
    if isinstance(arch, ArchSpec):
        return arch
    check_choice("arch", arch, ARCHITECTURES)
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    tables = _tables(backbone, options)
    family = BACKBONES.get(str(tables["backbone"].get("name")))
    if family is None:
        raise SpecError(unknown("backbone", tables["backbone"].get("name"), BACKBONES))
    plus = arch == "v3plus"
    aspp: dict[str, Any] = {"rates": _DEFAULT_RATES[output_stride]}
    aspp |= {"branch": "separable_bn_relu", "dropout": 0.1} if plus else {"post_conv": "plain"}
    order = tables["aspp"].get("order")
    if isinstance(order, list | tuple) and "atrous" not in order:
        aspp["rates"] = ()
    data: dict[str, Any] = {
        "arch": arch,
        "backbone": tables["backbone"],
        "output_stride": output_stride,
        "num_classes": num_classes,
        "aspp": {**aspp, **tables["aspp"]},
        "classifier": tables["classifier"],
        "output": tables["output"],
    }
    if plus or tables["decoder"]:
        data["decoder"] = {"low_level": family.DEFAULT_LOW_LEVEL, **tables["decoder"]}
    if aux:
        fields = {} if aux is True else aux.to_dict() if isinstance(aux, AuxSpec) else aux
        check_table("aux", fields)
        data["aux"] = {"tap": family.DEFAULT_AUX, **fields}
    return ArchSpec.from_dict({**data, **options})


def _tables(backbone: str | Mapping[str, Any] | BackboneSpec, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take the sections and the short names out of `options`."""
    if isinstance(backbone, BackboneSpec):
        backbone = backbone.to_dict()
    if not isinstance(backbone, str):
        check_table("backbone", backbone)
    if not isinstance(backbone, str):
        check_table("backbone", backbone)
    tables: dict[str, dict[str, Any]] = {
        "backbone": {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    }
    for section in ("aspp", "decoder", "classifier", "output"):
        given = options.pop(section, {})
        given = given.to_dict() if isinstance(given, Section) else given
        check_table(section, given)
        tables[section] = dict(given)
    for name, section in _SHORT.items():
        if name in options:
            tables[section][name] = options.pop(name)
    legal = ["in_channels", *tables, *_SHORT]
    for name in options:
        if name != "in_channels":
            raise SpecError(f"unknown field {name}: expected one of {', '.join(legal)}{near_match(name, legal)}")
    return tables


def read_spec(path: Path) -> tuple[ArchSpec, dict[str, Any]]:
    """The spec in a TOML or JSON file (by suffix; TOML otherwise), and the table `deeplabzoo` that may stand beside it.

    Raises:
        SpecError: a file that is missing or unreadable, or a wrong field; the file is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"spec {path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"spec {path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    check_table(f"spec {path}", data)
    extra = data.pop("deeplabzoo", {})
    check_table(f"spec {path}: deeplabzoo", extra)
    try:
        return ArchSpec.from_dict(data), dict(extra)
    except SpecError as error:
        raise SpecError(f"spec {path}: {error}") from None
