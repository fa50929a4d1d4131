"""Every public project's names, as its own class lists them: recognised, read, and written back the same."""

from __future__ import annotations

import golden_cases
import numpy as np
import pytest
from golden_cases import LAYOUT
from helpers import digests

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import convert, read_source
from deeplabzoo.weights_converter.layouts import LAYOUTS, get_layout
from deeplabzoo.weights_converter.ledger import to_foreign

SUFFIX = {
    "torch": ".pth",
    "paddle": ".pdparams",
    "tf-checkpoint": ".ckpt",
    "keras2-h5": ".h5",
    "keras-h5": ".weights.h5",
}


@pytest.mark.parametrize("name", LAYOUT)
def test_recognised_and_listed(goldens, name):
    """By names alone; the table has the file's names in the file's order, each parameter once."""
    tensors = golden_cases.hollow_case(goldens, name)
    read = read_source(tensors)
    case = goldens.read_case(name)
    assert read.layout == LAYOUT[name]
    assert read.model.spec.num_classes == case["num_classes"]
    assert read.model.spec.output_stride == case["output_stride"]
    assert set(read.model.weights) >= set(build_graph(read.model.spec).parameters())
    assert [row.foreign for row in read.ledger] == list(tensors)
    layout = get_layout(read.layout)
    fresh = [entry.foreign for entry in layout.entries(read.model.spec, layout.writes[0])]
    if read.layout == "tensorflow":  # a checkpoint of a training script has its step counter
        assert fresh.pop() == "global_step"
    if read.layout == "kerashub":  # an HDF5 file has no order
        fresh, tensors = sorted(fresh), sorted(tensors)
    assert fresh == list(tensors)


@pytest.mark.parametrize("name", LAYOUT)
def test_no_other_layout_takes_them(goldens, name):
    """Equal tensors do not mean an equal network: names decide, and one project's are not another's."""
    checkpoint = formats.Checkpoint(golden_cases.hollow_case(goldens, name), "arrays")
    for other, layout in LAYOUTS.items():
        if other != LAYOUT[name]:
            with pytest.raises(LayoutError):
                layout.recognise(checkpoint)


@pytest.mark.parametrize("name", ["hf_mobilenet_v2", "bonlime_mobilenetv2", "tf_mobilenetv2_os8",
                                  "smp_deeplabv3plus_resnet50_os16", "paddleseg_deeplabv3p_resnet50_vd_os8",
                                  "kerashub_deeplab_v3_plus_resnet50"])  # fmt: skip
def test_there_and_back(goldens, name, tmp_path):
    """Foreign file -> canonical safetensors -> foreign file: same names, order, dtypes and bits."""
    tensors = goldens.load_case(name)[0]
    layout = get_layout(LAYOUT[name])
    native = layout.writes[0]
    first, last = (tmp_path / f"{which}{SUFFIX[native]}" for which in ("first", "last"))
    formats.write(first, tensors, format=native)
    convert(first, tmp_path / "canonical.safetensors")
    done = convert(tmp_path / "canonical.safetensors", last, to_layout=layout.name)
    a, b = formats.read(first).tensors, formats.read(last).tensors
    assert list(a) == list(b)
    assert digests(a) == digests(b) == digests(tensors)
    assert {n: x.dtype for n, x in a.items()} == {n: x.dtype for n, x in b.items()}
    assert done.layout == layout.name
    assert [row.foreign for row in done.ledger if row.foreign in b] == (
        list(a) if native != "tf-checkpoint" else [row.foreign for row in done.ledger]
    )


@pytest.mark.parametrize("name", ["hf_mobilenet_v2", "kazuto_deeplabv2_resnet101"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_there_and_back_in_half_precision(goldens, name, dtype):
    import ml_dtypes

    wanted = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    listed = golden_cases.hollow_case(goldens, name)
    tensors = {n: a if a.dtype.kind == "i" else np.full(a.shape, 0.37).astype(wanted) for n, a in listed.items()}
    read = read_source(tensors)
    back, _ = to_foreign(
        read.model.weights,
        get_layout(read.layout),
        read.model.spec,
        "torch",
        read.model.card.foreign,
        read.model.spares,
    )
    assert {n: (a.dtype, a.tobytes()) for n, a in back.items()} == {
        n: (a.dtype, a.tobytes()) for n, a in tensors.items()
    }


def test_what_no_network_uses_rides_along(goldens, tmp_path):
    """Hugging Face's dead 1x1: kept aside, given back to its own layout, told of elsewhere, neutral where there is none."""
    tensors = goldens.load_case("hf_mobilenet_v2")[0]
    dead = [name for name in tensors if name.startswith("mobilenet_v2.conv_1x1")]
    read = read_source(tensors)
    assert list(read.model.spares) == dead
    assert {row.transform for row in read.ledger if row.foreign in dead} == {"kept aside: no network uses it"}
    done = convert(tensors, tmp_path / "m.pdparams")
    told = [row for row in done.ledger if row.foreign in dead]
    assert len(told) == len(dead) == 6
    assert all(row.transform.startswith("left out: ") for row in told)
    bare = Canonical(read.model.spec, read.model.weights)
    fresh, rows = to_foreign(bare.weights, get_layout("hf"), bare.spec, "torch")
    assert list(fresh) == list(tensors)
    assert {name: fresh[name].shape for name in dead} == {name: tensors[name].shape for name in dead}
    assert {row.transform for row in rows if row.foreign in dead} == {"neutral: no network uses it"}


def doubled(seed=0):
    """A MobileNetV2 checkpoint of jfzhang95, which holds every tensor of the backbone twice."""
    from deeplabzoo.core.weights import seeded_weights
    from deeplabzoo.zoo.presets import pytorch

    spec = pytorch.jfzhang95("mobilenet_v2", 5)
    return dict(to_foreign(seeded_weights(build_graph(spec), seed), get_layout("jfzhang95"), spec, "torch")[0])


def test_doubled_tensors():
    tensors = doubled()
    assert len(tensors) == 668
    one, other = "backbone.features.3.conv.0.weight", "backbone.low_level_features.3.conv.0.weight"
    assert digests({"a": tensors[one]}) == digests({"a": tensors[other]})
    read = read_source(tensors)
    assert read.layout == "jfzhang95"
    rows = {row.foreign: row.canonical for row in read.ledger}
    assert rows[one] == rows[other] == "backbone.stage2.block2.expand.conv.weight"
    with pytest.raises(LayoutError, match=f"{one} and {other} are one tensor in this layout"):
        read_source({**tensors, other: tensors[other] + 1})


@pytest.mark.parametrize("wrapper", ["base.", "scale."])
def test_kazutos_wrappers(goldens, wrapper):
    tensors = golden_cases.hollow_case(goldens, "kazuto_deeplabv2_resnet101")
    wrapped = {wrapper + name: a for name, a in tensors.items()}
    read = read_source(wrapped)
    assert read.layout == "kazuto"
    back, _ = to_foreign(read.model.weights, get_layout("kazuto"), read.model.spec, "torch", read.model.card.foreign)
    assert list(back) == list(wrapped)
    assert set(read.model.weights) == set(read_source(tensors).model.weights)


def test_old_smp_names():
    from deeplabzoo.core.weights import seeded_weights
    from deeplabzoo.zoo.presets import smp

    spec = smp.template("v3", "resnet18", 4)
    tensors = dict(to_foreign(seeded_weights(build_graph(spec)), get_layout("smp"), spec, "torch")[0])
    old = {"decoder.aspp.": "decoder.0.", "decoder.conv.": "decoder.1.", "decoder.bn.": "decoder.2."}
    renamed = {next((n.replace(a, b, 1) for a, b in old.items() if n.startswith(a)), n): t for n, t in tensors.items()}
    assert set(renamed) != set(tensors)
    read = read_source(renamed)
    assert read.model.spec == spec
    assert digests(read.model.weights) == digests(read_source(tensors).model.weights)


@pytest.mark.parametrize("number", ["", "_7"])
def test_keras_numbers_ryancccs_classifier(number):
    from deeplabzoo.core.weights import seeded_weights
    from deeplabzoo.zoo.presets import PRESETS

    spec = PRESETS["v3plus_mobilenet_v2.ryanccc"].make()
    tensors = dict(to_foreign(seeded_weights(build_graph(spec)), get_layout("ryanccc"), spec, "keras2-h5")[0])
    renamed = {n.replace("conv2d/", f"conv2d{number}/"): a for n, a in tensors.items()}
    read = read_source(renamed)
    assert (read.layout, read.model.spec) == ("ryanccc", spec)
    back, _ = to_foreign(read.model.weights, get_layout("ryanccc"), spec, "keras2-h5", read.model.card.foreign)
    assert list(back) == list(renamed)


def test_bonlimes_custom_classifier(goldens):
    tensors = golden_cases.hollow_case(goldens, "bonlime_mobilenetv2")
    custom = {n.replace("logits_semantic", "custom_logits_semantic"): a for n, a in tensors.items()}
    assert read_source(custom).layout == "bonlime"
    # Keras 3 calls a depthwise kernel like any other.
    again = {n.replace("depthwise_kernel", "kernel"): a for n, a in custom.items()}
    read = read_source(again)
    assert read.layout == "bonlime"
    back, _ = to_foreign(
        read.model.weights, get_layout("bonlime"), read.model.spec, "keras2-h5", read.model.card.foreign
    )
    assert list(back) == list(again)


def test_names_that_fit_two_layouts(goldens):
    """Two networks in one mapping: nobody guesses."""
    both = {
        **golden_cases.hollow_case(goldens, "kazuto_deeplabv2_resnet101"),
        **golden_cases.hollow_case(goldens, "hf_mobilenet_v2"),
    }
    with pytest.raises(LayoutError, match="the names fit kazuto and hf alike: say which with --from-layout"):
        read_source(both)
    with pytest.raises(LayoutError, match=r"layout hf: .* the nearest, v3_mobilenet_v2, differs in 632 names"):
        read_source(both, layout="hf")
