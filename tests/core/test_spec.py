"""The spec: plain data both ways, equal values for equal functions, one clear error for a wrong field."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

import deeplabzoo
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.fields import Section
from deeplabzoo.core.spec import ArchSpec, make_spec, read_spec
from deeplabzoo.errors import SpecError
from deeplabzoo.zoo.presets import tensorflow

RESNET = make_spec("v3plus", aux=True, decoder={"dropout": [0.5, 0.1]})
MOBILENET = make_spec("v3plus", backbone="mobilenet_v2", aux=True, decoder={"dropout": [0.5, 0.1]})
V3 = make_spec("v3", output_stride=8)
FAMILIES = {
    "resnet": RESNET,
    "mobilenet": MOBILENET,
    "basic": make_spec("v3", backbone="resnet18", output_stride=8),
    "vgg": make_spec("v2"),
    "xception": make_spec("v3plus", backbone="xception41"),
    "classic": make_spec("v3", backbone="xception"),
    "mobilenet_v3": make_spec("v3", backbone="mobilenet_v3_large"),
}
SPECS = {
    **FAMILIES,
    "v1": make_spec("v1"),
    "v1 resnet": make_spec("v1", backbone="resnet101"),
    "v3": V3,
    "cascade": make_spec("v3", head={}, cascade=3),
    "tf": tensorflow.template(),
}

# Another legal value for every field, by its dotted name.
CHANGES = {
    "output_stride": 8,
    "num_classes": 7,
    "in_channels": 4,
    "aspp.rates": (1, 2, 3),
    "aspp.channels": 64,
    "aspp.order": ("image_pooling", "conv1x1", "atrous"),
    "aspp.branch": "separable",
    "aspp.bias": True,
    "aspp.pool_bias": True,
    "aspp.fusion_kernel": 3,
    "aspp.dropout": 0.3,
    "aspp.dropout_channels": True,
    "aspp.post_conv": "separable_bn",
    "aspp.epsilon": 1e-3,
    "aspp.momentum": 0.5,
    "decoder.low_level": {"resnet": "stage2", "mobilenet": "stage2"},
    "decoder.low_level_channels": 12,
    "decoder.order": ("low_level", "aspp"),
    "decoder.conv": "plain",
    "decoder.convs": None,  # tied to the number of dropout rates: see below
    "decoder.kernel": 1,
    "decoder.channels": 64,
    "decoder.bias": True,
    "decoder.dropout": (0.2, 0.1),
    "decoder.dropout_channels": True,
    "decoder.align_corners": True,
    "decoder.epsilon": 1e-3,
    "decoder.momentum": 0.5,
    "classifier.bias": False,
    "aux.tap": {"resnet": "stage2", "mobilenet": "stage3"},
    "aux.channels": 10,
    "aux.dropout": 0.5,
    "aux.dropout_channels": True,
    "aux.epsilon": 1e-3,
    "aux.momentum": 0.5,
    "output.size": "feature",
    "output.align_corners": True,
    "output.resize": "features",
    "output.values": "labels",
    "head.rates": (1, 2, 3, 4),
    "head.kernel": None,  # needs other rates: see below
    "head.hidden": (64,),
    "head.dropout": 0.2,
    "backbone.name": {"resnet": "resnet101", "basic": "resnet34", "xception": "xception71"},
    "backbone.width": 0.5,
    "backbone.end": {"resnet": "stage3", "mobilenet": "last", "basic": "stage3", "vgg": "stage4", "xception": "middle",
                     "classic": "block11", "mobilenet_v3": "stage6"},
    "backbone.stem": "beta",
    "backbone.shortcut": {"resnet": "avg_pool", "basic": "avg_pool", "xception": "relu"},
    "backbone.stride_in": {"resnet": "conv1"},
    "backbone.first_block_dilation": {
        "resnet": "full", "mobilenet": "full", "basic": "full", "mobilenet_v3": "previous"
    },
    "backbone.basic_dilation": {"basic": "conv1"},
    "backbone.multi_grid": {"resnet": (1, 2, 4), "basic": (1, 2), "xception": (1, 2, 4)},
    "backbone.multi_grid_mode": {"resnet": "replace", "basic": "replace"},
    "backbone.cascade": 3,
    "backbone.padding": {"resnet": "same", "basic": "same", "mobilenet": "symmetric", "xception": "same"},
    "backbone.stem_padding": "none",
    "backbone.pool_padding": "same",
    "backbone.pool_ceil": {"resnet": True, "basic": True, "vgg": False},
    "backbone.average_pool": True,
    "backbone.exit_activation": "before_each",
    "backbone.exit_stride": 1,
    "backbone.exit_dilated": False,
    "backbone.depth_divisor": 16,
    "backbone.epsilon": 2e-3,
    "backbone.exact_epsilon": True,
    "backbone.momentum": 0.5,
}  # fmt: skip
SKIPPED = ("arch", "decoder.convs", "head.kernel")
"""`arch` takes sections with it, the others are tied to a list of rates: tested apart."""
ABSENT = ("aspp", "head", "decoder", "aux")
"""Sections that an architecture may lack."""


def fields(section: Section, prefix: str = "") -> list[str]:
    """Dotted names of all fields."""
    names = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        name = prefix + field.name
        names += fields(value, f"{name}.") if isinstance(value, Section) else [name]
    return names


def with_field(spec: ArchSpec, name: str, value: object) -> ArchSpec:
    section, _, field = name.rpartition(".")
    if not section:
        return spec.replace(**{field: value})
    return spec.replace(**{section: getattr(spec, section).replace(**{field: value})})


def cases() -> list[tuple[str, str]]:
    """Every field of the first two families, of the others those of the backbone and the head."""
    found = []
    for family, spec in FAMILIES.items():
        for name in fields(spec):
            value = CHANGES.get(name)
            whole = family in ("resnet", "mobilenet") or name.startswith(("backbone.", "head."))
            if whole and name not in (*SKIPPED, *ABSENT) and not (isinstance(value, dict) and family not in value):
                found.append((family, name))
    return found


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_round_trips(spec):
    for again in (
        ArchSpec.from_toml(spec.to_toml()),
        ArchSpec.from_json(spec.to_json()),
        ArchSpec.from_dict(json.loads(json.dumps(spec.to_dict()))),
    ):
        assert again == spec
        assert hash(again) == hash(spec)
        assert build_graph(again).digest() == build_graph(spec).digest()
        assert again.to_json() == spec.to_json()


def test_every_field_has_another_value_here():
    met = {name for _, name in cases()}
    everything = {name for spec in SPECS.values() for name in fields(spec)}
    assert everything - {*SKIPPED, *ABSENT} == met, "a new field needs a line in CHANGES"


@pytest.mark.parametrize(("family", "name"), cases())
def test_every_field_counts(family, name):
    spec = SPECS[family]
    if name == "backbone.multi_grid_mode":
        spec = with_field(spec, "backbone.multi_grid", CHANGES["backbone.multi_grid"][family])  # else both modes agree
    if name == "backbone.exit_dilated":
        spec = spec.at_output_stride(8)  # else nothing is dilated there
    if name == "backbone.average_pool":
        spec = make_spec("v2")
    if name == "backbone.depth_divisor":
        spec = with_field(spec, "backbone.width", 0.35)  # else the paper's channels are multiples already
    value = CHANGES[name]
    changed = with_field(spec, name, value[family] if isinstance(value, dict) else value)
    assert changed != spec
    assert hash(changed) != hash(spec)
    assert ArchSpec.from_toml(changed.to_toml()) == changed
    # Every field of the spec decides what is computed, in inference or in training.
    assert build_graph(changed).digest() != build_graph(spec).digest()


def test_number_of_decoder_convolutions_counts():
    one, two = (make_spec("v3plus", decoder={"convs": n}) for n in (1, 2))
    assert one != two
    assert build_graph(one).digest() != build_graph(two).digest()


def test_kernel_of_the_head_counts():
    one, three = (make_spec("v1", backbone="resnet50", head={"kernel": k}) for k in (1, 3))
    assert one != three
    assert build_graph(one).digest() != build_graph(three).digest()


def test_architectures_differ():
    assert make_spec("v3") != make_spec("v3plus")
    assert build_graph(make_spec("v3")).digest() != build_graph(make_spec("v3plus")).digest()


def test_equal_specs_however_said():
    assert make_spec("v3plus", rates=[6, 12, 18]) == make_spec("v3plus", aspp={"rates": (6, 12, 18)}) == make_spec()
    assert make_spec("v3", backbone={"name": "mobilenet_v2", "width": 1}) == make_spec("v3", backbone="mobilenet_v2")
    assert make_spec("v3", backbone="mobilenet_v2", width=0.5).backbone.width == 0.5
    assert deeplabzoo.spec("v3plus_resnet101") == make_spec("v3plus", backbone="resnet101")


WRONG = [
    ({"arch": "v4"}, ("arch", "'v4'", "v3plus")),
    ({"arch": "v3pluss"}, ("arch", "did you mean 'v3plus'")),
    ({"backbone": "resnet5"}, ("backbone", "'resnet5'", "mobilenet_v2", "did you mean 'resnet50'")),
    ({"backbone": {"name": "resnet50", "depth": 3}}, ("backbone.depth", "stride_in")),
    ({"backbone": {"width": 1.0}}, ("backbone", "resnet50")),
    ({"backbone": "resnet50", "width": -0.5}, ("backbone.width", "> 0")),
    ({"backbone": {"name": "resnet50", "end": "stage5"}}, ("backbone.end", "'stage5'", "stage4")),
    ({"backbone": {"name": "resnet50", "end": "stage2"}}, ("output_stride", "'stage2'", "stride 8")),
    ({"backbone": {"name": "resnet50", "stem": "v1d"}}, ("backbone.stem", "did you mean 'v1c'")),
    ({"backbone": {"name": "resnet50", "shortcut": "pool"}}, ("backbone.shortcut", "avg_pool")),
    ({"backbone": {"name": "resnet50", "basic_dilation": "conv1"}}, ("backbone.basic_dilation", "no basic blocks")),
    ({"backbone": {"name": "resnet18", "basic_dilation": "conv2"}}, ("backbone.basic_dilation", "conv1")),
    ({"backbone": {"name": "resnet18", "stride_in": "conv1"}}, ("backbone.stride_in", "first 3x3")),
    ({"cascade": 9}, ("backbone.cascade", "at most 8")),
    ({"cascade": -1}, ("backbone.cascade", "at least 0")),
    ({"backbone": {"name": "mobilenet_v2", "stem_padding": "valid"}}, ("backbone.stem_padding", "none")),
    ({"backbone": {"name": "xception65", "shortcut": "conv"}}, ("backbone.shortcut", "raw")),
    ({"backbone": {"name": "xception65", "exit_activation": "none"}}, ("backbone.exit_activation", "after_each")),
    ({"backbone": {"name": "xception65", "exit_stride": 4}}, ("backbone.exit_stride", "1, 2")),
    ({"backbone": {"name": "xception65", "exit_dilated": 1}}, ("backbone.exit_dilated", "true or false")),
    ({"backbone": {"name": "xception65", "multi_grid": (1, 2)}}, ("backbone.multi_grid", "3 positive")),
    ({"backbone": {"name": "xception65", "padding": "valid"}}, ("backbone.padding", "symmetric")),
    ({"backbone": {"name": "vgg16", "average_pool": "no"}}, ("backbone.average_pool", "true or false")),
    ({"backbone": {"name": "vgg16", "pool_ceil": 2}}, ("backbone.pool_ceil", "true or false")),
    ({"backbone": {"name": "mobilenet_v3_large", "first_block_dilation": "new"}}, ("first_block_dilation", "full")),
    ({"decoder": {"convs": 17}}, ("decoder.convs", "at most 16")),
    ({"rates": tuple(range(1, 20))}, ("aspp.rates", "at most 16")),
    ({"backbone": {"name": "resnet50", "end": "stage3"}, "aux": {"tap": "stage4"}}, ("aux.tap", "'stage4'")),
    ({"arch": "v2", "head": {"rates": ()}}, ("head.rates", "one rate a branch")),
    ({"arch": "v2", "head": {"rates": (6, 0)}}, ("head.rates", "positive")),
    ({"arch": "v2", "head": {"kernel": 5}}, ("head.kernel", "1, 3")),
    ({"arch": "v2", "head": {"kernel": 1}}, ("head.rates", "a 1x1 convolution has no rate")),
    ({"arch": "v2", "head": {"hidden": (0,)}}, ("head.hidden", "positive")),
    ({"arch": "v2", "head": {"dropout": 1}}, ("head.dropout", "< 1")),
    ({"arch": "v2", "output_stride": 32}, ("output_stride", "6, 12, 18, 24", "8 or 16")),
    ({"arch": "v2", "output_stride": 32, "rates": (1, 0)}, ("head.rates", "positive")),
    ({"arch": "v1", "rates": (6, 12)}, ("head.rates", "one branch")),
    ({"arch": "v1", "aspp": {"rates": (6,)}}, ("aspp", "leave it out")),
    ({"arch": "v2", "decoder": {"convs": 1}}, ("arch", "no decoder")),
    ({"arch": "v2", "output": {"resize": "features"}}, ("output.resize", "logits")),
    ({"head": {"kernel": 3}}, ("section head", "section aspp", "leave it out")),
    ({"backbone": 3}, ("backbone", "3", "table")),
    ({"output_stride": 4}, ("output_stride", "4", "8, 16, 32")),
    ({"output_stride": True}, ("output_stride", "True")),
    ({"output_stride": "16"}, ("output_stride", "'16'")),
    ({"num_classes": 0}, ("num_classes", "0", "at least 1")),
    ({"num_classes": 2.5}, ("num_classes", "2.5")),
    ({"num_classes": True}, ("num_classes", "True")),
    ({"in_channels": 0}, ("in_channels", "at least 1")),
    ({"classes": 3}, ("classes", "expected one of")),
    ({"rates": (6, -12, 18)}, ("aspp.rates", "-12", "positive")),
    ({"rates": (0,)}, ("aspp.rates", "positive")),
    ({"rates": 6}, ("aspp.rates", "6")),
    ({"rates": ()}, ("aspp.rates", "aspp.order", "contradict")),
    ({"aspp": {"order": ("conv1x1",), "rates": (6,)}}, ("aspp.order", "contradict")),
    ({"aspp": {"order": ()}}, ("aspp.order",)),
    ({"aspp": {"order": ("conv1x1", "conv1x1", "atrous")}}, ("aspp.order", "at most once")),
    ({"aspp": {"order": ("conv1x1", "atrous", "pool")}}, ("aspp.order", "'pool'", "image_pooling")),
    ({"aspp": {"channels": 0}}, ("aspp.channels", "at least 1")),
    ({"aspp": {"branch": "seperable"}}, ("aspp.branch", "did you mean 'separable'")),
    ({"aspp": {"bias": 1}}, ("aspp.bias", "true or false")),
    ({"aspp": {"pool_bias": "no"}}, ("aspp.pool_bias", "true or false")),
    ({"aspp": {"fusion_kernel": 2}}, ("aspp.fusion_kernel", "1, 3")),
    ({"aspp": {"fusion_kernel": True}}, ("aspp.fusion_kernel", "True")),
    ({"aspp": {"dropout": 1}}, ("aspp.dropout", ">= 0 and < 1")),
    ({"aspp": {"dropout": -0.1}}, ("aspp.dropout", "-0.1")),
    ({"aspp": {"dropout": math.nan}}, ("aspp.dropout", "nan")),
    ({"aspp": {"dropout_channels": 2}}, ("aspp.dropout_channels",)),
    ({"aspp": {"post_conv": "3x3"}}, ("aspp.post_conv", "none")),
    ({"aspp": {"epsilon": 0}}, ("aspp.epsilon", "> 0")),
    ({"aspp": {"momentum": 1}}, ("aspp.momentum", "< 1")),
    ({"aspp": {"epsilon": "1e-5"}}, ("aspp.epsilon", "'1e-5'")),
    ({"aspp": 5}, ("aspp", "5", "table")),
    ({"decoder": {"low_level": "stage9"}}, ("decoder.low_level", "'stage9'", "stage1")),
    ({"decoder": {"low_level_channels": 0}}, ("decoder.low_level_channels",)),
    ({"decoder": {"order": ("aspp",)}}, ("decoder.order", "either order")),
    ({"decoder": {"conv": "full"}}, ("decoder.conv", "plain")),
    ({"decoder": {"convs": 0}}, ("decoder.convs", "at least 1")),
    ({"decoder": {"kernel": 5}}, ("decoder.kernel", "5", "1, 3")),
    ({"decoder": {"channels": -1}}, ("decoder.channels",)),
    ({"decoder": {"bias": None}}, ("decoder.bias",)),
    ({"decoder": {"dropout": (0.1,)}}, ("decoder.dropout", "2 rates")),
    ({"decoder": {"dropout": (0.1, 1.5)}}, ("decoder.dropout", "1.5")),
    ({"decoder": {"dropout": 0.1}}, ("decoder.dropout", "0.1")),
    ({"decoder": {"dropout_channels": 0}}, ("decoder.dropout_channels",)),
    ({"decoder": {"align_corners": "yes"}}, ("decoder.align_corners",)),
    ({"decoder": {"epsilon": 2}}, ("decoder.epsilon", "2")),
    ({"decoder": {"momentum": -1}}, ("decoder.momentum", "-1")),
    ({"arch": "v3", "decoder": {"convs": 1}}, ("arch", "v3plus", "decoder")),
    ({"classifier": {"bias": 1}}, ("classifier.bias",)),
    ({"aux": {"tap": "stage5"}}, ("aux.tap", "'stage5'", "stage4")),
    ({"aux": {"channels": 0}}, ("aux.channels",)),
    ({"aux": {"dropout": 1.0}}, ("aux.dropout",)),
    ({"aux": {"dropout_channels": "x"}}, ("aux.dropout_channels",)),
    ({"aux": {"epsilon": 0}}, ("aux.epsilon",)),
    ({"aux": {"momentum": 1}}, ("aux.momentum",)),
    ({"output": {"size": "half"}}, ("output.size", "feature")),
    ({"output": {"align_corners": 0}}, ("output.align_corners",)),
    ({"output": {"resize": "both"}}, ("output.resize", "logits")),
    ({"output": {"values": "softmax"}}, ("output.values", "probabilities")),
    ({"output": {"size": "feature", "align_corners": True}}, ("output.size", "align_corners", "contradicts")),
    ({"stride_in": "conv3"}, ("backbone.stride_in", "last_unit")),
    ({"first_block_dilation": "first_only"}, ("backbone.first_block_dilation", "previous, full")),
    ({"multi_grid": (1, 2)}, ("backbone.multi_grid", "3 positive")),
    ({"multi_grid": (1, 0, 2)}, ("backbone.multi_grid", "positive")),
    ({"backbone": {"name": "resnet50", "multi_grid_mode": "add"}}, ("backbone.multi_grid_mode", "replace")),
    ({"backbone": {"name": "resnet50", "padding": "valid"}}, ("backbone.padding", "symmetric")),
    ({"backbone": {"name": "resnet50", "pool_padding": "valid"}}, ("backbone.pool_padding", "symmetric")),
    ({"backbone": {"name": "resnet50", "pool_ceil": 1}}, ("backbone.pool_ceil",)),
    ({"backbone": {"name": "resnet50", "epsilon": -1}}, ("backbone.epsilon",)),
    ({"backbone": {"name": "resnet50", "exact_epsilon": 1}}, ("backbone.exact_epsilon",)),
    ({"backbone": {"name": "resnet50", "momentum": 2}}, ("backbone.momentum",)),
    ({"backbone": "mobilenet_v2", "width": 0}, ("backbone.width", "> 0")),
    ({"backbone": {"name": "mobilenet_v2", "depth_divisor": 0}}, ("backbone.depth_divisor",)),
    ({"backbone": {"name": "mobilenet_v2", "first_block_dilation": "none"}}, ("first_only",)),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[json.dumps(words, default=str) for words, _ in WRONG])
def test_wrong_fields(words, told):
    with pytest.raises(SpecError) as caught:
        make_spec(**{"arch": "v3plus", **words})
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part in message, message
    assert caught.value.exit_code == 2


def test_every_field_is_shown_to_be_checked():
    named = {told[0] for _, told in WRONG}
    named |= {
        f"{section}.{key}"
        for words, _ in WRONG
        for section, table in words.items()
        if isinstance(table, dict)
        for key in table
    }
    everything = {name for spec in FAMILIES.values() for name in fields(spec)}
    assert not everything - named - {"backbone.name", *ABSENT}


@pytest.mark.parametrize("name", ["", "output_stride = ", "[aspp]\nrates = 3\n"])
def test_wrong_files(tmp_path, name):
    path = tmp_path / "spec.toml"
    path.write_text(name)
    with pytest.raises(SpecError, match=r"spec\.toml"):
        read_spec(path)
    with pytest.raises(SpecError, match=r"missing\.toml"):
        read_spec(tmp_path / "missing.toml")


def test_missing_fields_and_unknown_replacements():
    data = make_spec("v3").to_dict()
    del data["num_classes"]
    with pytest.raises(SpecError, match="num_classes is missing"):
        ArchSpec.from_dict(data)
    with pytest.raises(SpecError, match="did you mean 'num_classes'"):
        make_spec("v3").replace(num_clases=3)
    for text in ("{", "[]", "3", None, '{"output_stride": ' + "9" * 5000 + "}"):
        with pytest.raises(SpecError):
            ArchSpec.from_json(text)
    with pytest.raises(SpecError):
        ArchSpec.from_toml("output_stride = " + "9" * 5000)


def test_another_output_stride_rescales_rates():
    spec = make_spec("v3", output_stride=16)
    assert spec.at_output_stride(8).aspp.rates == (12, 24, 36)
    assert spec.at_output_stride(8).at_output_stride(16) == spec
    assert make_spec("v2").at_output_stride(16).rates == (3, 6, 9, 12)
    assert make_spec("v1").at_output_stride(32).head.rates == (3,)
    assert make_spec("v3", head={}, cascade=3).at_output_stride(8).rates == (1,)
    with pytest.raises(SpecError, match="whole numbers"):
        make_spec("v3", rates=(1, 2, 3)).at_output_stride(32)
    with pytest.raises(SpecError, match="whole numbers"):
        make_spec("v2").at_output_stride(32)
    with pytest.raises(SpecError, match="8, 16, 32"):
        spec.at_output_stride(64)


def test_the_low_level_of_tf_slim_lies_before_its_stride():
    spec = make_spec("v3plus", stride_in="last_unit")
    assert spec.decoder.low_level == "stage1.block2.conv3"
    assert spec.backbone.taps(16)[spec.decoder.low_level].stride == 4
    assert make_spec("v3plus").decoder.low_level == "stage1"


def test_numbers_of_thousands_of_digits():
    with pytest.raises(SpecError, match="thousands of digits"):
        make_spec("v3", output_stride=10**5000)
