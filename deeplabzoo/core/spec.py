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
from deeplabzoo.core.sections import ASPPSpec, AuxSpec, ClassifierSpec, DecoderSpec, HeadSpec, OutputSpec
from deeplabzoo.errors import SpecError, near_match, unknown

ARCHITECTURES = ("v1", "v2", "v3", "v3plus")

_DEFAULT_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""DeepLab v3, section 3.3: (6, 12, 18) at stride 16, doubled at 8; halved at 32 by the same rule."""

_SHORT = {
    "width": "backbone",
    "multi_grid": "backbone",
    "first_block_dilation": "backbone",
    "stride_in": "backbone",
    "cascade": "backbone",
    "low_level": "decoder",
}
"""Fields of sections that may be given to `make_spec` by their own name; `rates` go to ASPP or head."""

_BOTTLENECK = {"stride_in": "conv1", "first_block_dilation": "full", "pool_ceil": True}
_CAFFE_OPTIONS: dict[str, dict[str, Any]] = {"resnet50": _BOTTLENECK, "resnet101": _BOTTLENECK}
"""Options of the Caffe networks by backbone (MSRA's ResNet, section 4.1 of v2); VGG-16 has them by default."""


_SECTIONS: dict[str, type[Section]] = {
    "backbone": BackboneSpec,
    "aspp": ASPPSpec,
    "head": HeadSpec,
    "decoder": DecoderSpec,
    "classifier": ClassifierSpec,
    "aux": AuxSpec,
    "output": OutputSpec,
}


_OPTIONAL = ("aspp", "head", "decoder", "aux")


@dataclass(frozen=True, kw_only=True)
class ArchSpec(Section):
    """A DeepLab: equal values compute the same function and hash equal; different functions are different values.

    Attributes:
        arch: `v1`, `v2`, `v3` or `v3plus`.
        backbone: options of the backbone; their class follows from the backbone's name.
        output_stride: input size over the size of the backbone's last map: 8, 16 or 32.
        num_classes: channels of the logits.
        in_channels: channels of the image.
        aspp: atrous spatial pyramid pooling of v3 and v3+.
        head: summed branches of v1 and v2; of v3 where it has no ASPP (cascaded).
        decoder: the v3+ decoder; none for the others.
        classifier: the last 1x1.
        aux: auxiliary head, or none.
        output: what the network returns.
    """

    arch: str
    backbone: BackboneSpec
    output_stride: int
    num_classes: int
    aspp: ASPPSpec | None = None
    head: HeadSpec | None = None
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
            if not isinstance(value, kind) and not (value is None and field in _OPTIONAL):
                raise SpecError(f"{field} = {value!r}: expected a {kind.__name__}; from_dict reads tables")
        self._check_sections()
        taps = self.backbone.taps(self.output_stride)
        if self.decoder is not None:
            check_choice("decoder.low_level", self.decoder.low_level, taps)
        if self.aux is not None:
            check_choice("aux.tap", self.aux.tap, taps)

    def _check_sections(self) -> None:
        """Which sections each architecture has."""
        if self.arch != "v3plus" and self.decoder is not None:
            raise SpecError(f"arch = {self.arch!r} has no decoder: leave the section out, or use arch = 'v3plus'")
        if self.arch == "v3plus" and self.decoder is None:
            raise SpecError("arch = 'v3plus' needs a decoder: expected a section decoder with its low_level tap")
        if self.arch in ("v1", "v2", "v3plus"):
            needed, other = ("aspp", "head") if self.arch == "v3plus" else ("head", "aspp")
            if getattr(self, needed) is None or getattr(self, other) is not None:
                raise SpecError(
                    f"arch = {self.arch!r} needs a section {needed} and no section {other}: leave {other} out, or use "
                    "another arch"
                )
        elif (self.aspp is None) == (self.head is None):
            raise SpecError("arch = 'v3' has either a section aspp (parallel) or a section head (cascaded)")
        if self.arch == "v1" and len(self.required_head.rates) != 1:
            raise SpecError(
                f"head.rates = {list(self.required_head.rates)}: arch = 'v1' has one branch; v2 sums several"
            )
        if self.head is not None and self.output.resize == "features":
            raise SpecError("output.resize = 'features' is for networks with an ASPP; expected 'logits' with a head")

    @property
    def required_head(self) -> HeadSpec:
        """The head of an architecture that has one.

        Raises:
            SpecError: it has an ASPP instead.
        """
        if self.head is None:
            raise SpecError(f"{self.title} has no section head: it has an ASPP")
        return self.head

    @property
    def required_aspp(self) -> ASPPSpec:
        """The ASPP of an architecture that has one.

        Raises:
            SpecError: it has a head of summed branches instead.
        """
        if self.aspp is None:
            raise SpecError(f"{self.title} has no section aspp: it has a head of summed branches")
        return self.aspp

    @property
    def rates(self) -> tuple[int, ...]:
        """Dilations of the atrous branches of ASPP or head."""
        return self.required_head.rates if self.aspp is None else self.aspp.rates

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
        except (ValueError, TypeError, RecursionError) as error:  # a number of thousands of digits is a ValueError
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
        except (ValueError, TypeError, RecursionError) as error:
            raise SpecError(f"the spec is not TOML: {error}") from None

    def at_output_stride(self, output_stride: int) -> ArchSpec:
        """The same weights at another output stride, rates rescaled as the papers do (v3, section 3.3).

        Raises:
            SpecError: a stride the backbone can't give, or rates that do not divide.
        """
        check_choice("output_stride", output_stride, OUTPUT_STRIDES)
        if output_stride == self.output_stride:
            return self
        if self.head is not None and self.head.kernel == 1:  # a 1x1 has no rate to rescale
            return self.replace(output_stride=output_stride)
        scaled = [rate * self.output_stride / output_stride for rate in self.rates]
        if any(rate != int(rate) or rate < 1 for rate in scaled):
            raise SpecError(
                f"output_stride = {output_stride}: the rates {list(self.rates)} at stride {self.output_stride} "
                f"would become {scaled}, expected whole numbers; give the rates in a spec"
            )
        rates = tuple(int(rate) for rate in scaled)
        if self.aspp is None:
            return self.replace(output_stride=output_stride, head=self.required_head.replace(rates=rates))
        return self.replace(output_stride=output_stride, aspp=self.aspp.replace(rates=rates))

    def with_small_rates(self) -> ArchSpec:
        """The same wiring with rates 1, 2, 3, ... in the branches, so that every tap is live on a small image."""
        rates = tuple(range(1, len(self.rates) + 1))
        if self.aspp is None:
            return self.replace(head=self.required_head.replace(rates=rates))
        return self.replace(aspp=self.aspp.replace(rates=rates))

    def narrowed(self, divisor: int) -> ArchSpec:
        """The same wiring with all channel counts but the classes' divided, to judge a large model in seconds.

        Raises:
            SpecError: a divisor below 1.
        """
        check_int("divisor", divisor)

        def less(channels: int) -> int:
            return max(4, channels // divisor)

        changes: dict[str, Any] = {"backbone": self.backbone.replace(width=self.backbone.width / divisor)}
        if self.aspp is not None:
            changes["aspp"] = self.aspp.replace(channels=less(self.aspp.channels))
        if self.head is not None:
            changes["head"] = self.head.replace(hidden=tuple(less(channels) for channels in self.head.hidden))
        if self.decoder is not None:
            low_level, channels = less(self.decoder.low_level_channels), less(self.decoder.channels)
            changes["decoder"] = self.decoder.replace(low_level_channels=low_level, channels=channels)
        if self.aux is not None:
            changes["aux"] = self.aux.replace(channels=less(self.aux.channels))
        return self.replace(**changes)

    @property
    def title(self) -> str:
        """A short name for people, `v3plus_resnet50`."""
        return f"{self.arch}_{self.backbone.name}"


def make_spec(
    arch: str | ArchSpec = "v3plus",
    *,
    backbone: str | Mapping[str, Any] | BackboneSpec | None = None,
    output_stride: int | None = None,
    num_classes: int = 21,
    aux: bool | Mapping[str, Any] | AuxSpec | None = None,
    **options: Any,
) -> ArchSpec:
    """A spec from a few words; everything else takes the default named here.

    Defaults: `vgg16` at stride 8 for v1 and v2, `resnet50` at stride 16 for v3 and v3+; rates of the papers. Options of
    the backbone are torchvision's (ResNet, MobileNetV3) or TF research/deeplab's (Xception, MobileNetV2), Caffe's in v1
    and v2. v1 and v2 have the papers' heads; v3's head is torchvision's (plain branches, 3x3 after the fusion, dropout
    0.5), or, with a section `head`, the plain classifier of the cascaded v3; v3+ has the decoder of the v3+ paper and
    TF (separable convolutions with batch norm and ReLU, dropout 0.1). Output: logits at the input's size, resized with
    align_corners in v1 and v2.

    Args:
        arch: `v1`, `v2`, `v3` or `v3plus`; a finished spec is returned as it is.
        backbone: a name, a table with `name` and options, or a `BackboneSpec`.
        output_stride: 8, 16 or 32.
        num_classes: at least 1.
        aux: true for an auxiliary head at the backbone's usual tap, or its fields.
        **options: `in_channels`, the sections `aspp`, `head`, `decoder`, `classifier`, `output` as tables, or one of
            the short names rates, width, multi_grid, first_block_dilation, stride_in, cascade, low_level.

    Raises:
        SpecError: a field that is unknown, wrong or contradicts another.
    """
    if isinstance(arch, ArchSpec):
        return arch
    check_choice("arch", arch, ARCHITECTURES)
    caffe = arch in ("v1", "v2")
    output_stride = (8 if caffe else 16) if output_stride is None else output_stride
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    branches = "head" if caffe or (arch == "v3" and options.get("head") is not None) else "aspp"
    tables = _tables(("vgg16" if caffe else "resnet50") if backbone is None else backbone, options, branches)
    name = str(tables["backbone"].get("name"))
    family = BACKBONES.get(name)
    if family is None:
        raise SpecError(unknown("backbone", tables["backbone"].get("name"), BACKBONES))
    data: dict[str, Any] = {
        "arch": arch,
        "backbone": {**(_CAFFE_OPTIONS.get(name, {}) if caffe else {}), **tables["backbone"]},
        "output_stride": output_stride,
        "num_classes": num_classes,
        "classifier": tables["classifier"],
        "output": {
            **({"align_corners": tables["output"].get("size") != "feature"} if caffe else {}),
            **tables["output"],
        },
    }
    if arch == "v1" and name == "vgg16":
        data["backbone"] = {"average_pool": True, **data["backbone"]}
    if branches == "head":
        data["head"] = {**_default_head(arch, name, output_stride, tables["head"]), **tables["head"]}
    else:
        data["aspp"] = {**_default_aspp(arch, output_stride, tables["aspp"]), **tables["aspp"]}
    if arch == "v3plus" or tables["decoder"]:
        data["decoder"] = {
            "low_level": family.from_dict(data["backbone"], where="backbone.").default_low_level,
            **tables["decoder"],
        }
    if aux:
        fields = {} if aux is True else aux.to_dict() if isinstance(aux, AuxSpec) else aux
        check_table("aux", fields)
        data["aux"] = {"tap": family.DEFAULT_AUX, **fields}
    return ArchSpec.from_dict({**data, **options})


def _default_head(arch: str, backbone: str, output_stride: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """LargeFOV (v1, section 4.1), ASPP-L (v2, section 4.1.2), or the one 1x1 of v1 on a ResNet and of cascaded v3."""
    hidden = [1024, 1024] if backbone == "vgg16" else []
    if arch == "v2":
        if output_stride == 32 and "rates" not in given:
            raise SpecError(
                "output_stride = 32: the rates 6, 12, 18, 24 of v2 are for stride 8 and would not be whole numbers; "
                "expected 8 or 16, or rates of your own in a spec"
            )
        return {"rates": [rate * 8 // output_stride for rate in (6, 12, 18, 24)], "hidden": hidden}
    if hidden:
        return {"rates": [12 * 8 // output_stride], "hidden": hidden}
    return {"rates": [1], "kernel": 1}


def _default_aspp(arch: str, output_stride: int, given: Mapping[str, Any]) -> dict[str, Any]:
    order = given.get("order")
    atrous = not isinstance(order, list | tuple) or "atrous" in order
    head = {"branch": "separable_bn_relu", "dropout": 0.1} if arch == "v3plus" else {"post_conv": "plain"}
    return {"rates": _DEFAULT_RATES[output_stride] if atrous else (), **head}


def _tables(
    backbone: str | Mapping[str, Any] | BackboneSpec, options: dict[str, Any], branches: str
) -> dict[str, dict[str, Any]]:
    """Take the sections and the short names out of `options`; `branches` is the section that has the rates."""
    if isinstance(backbone, BackboneSpec):
        backbone = backbone.to_dict()
    if not isinstance(backbone, str):
        check_table("backbone", backbone)
    tables: dict[str, dict[str, Any]] = {
        "backbone": {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    }
    for section in ("aspp", "head", "decoder", "classifier", "output"):
        given = options.pop(section, None)
        given = {} if given is None else given
        given = given.to_dict() if isinstance(given, Section) else given
        check_table(section, given)
        tables[section] = dict(given)
    other = "aspp" if branches == "head" else "head"
    if tables[other]:
        raise SpecError(f"a section {other} was given to a network that has a section {branches}: leave it out")
    for name, section in {**_SHORT, "rates": branches}.items():
        if name in options:
            tables[section][name] = options.pop(name)
    legal = ["in_channels", *tables, "rates", *_SHORT]
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
