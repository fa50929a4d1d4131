"""Files in, files out: bit-exact there and back, nothing half-written, one line for everything that is wrong."""

from __future__ import annotations

import itertools
import tomllib

import numpy as np
import pytest
from helpers import digests, lively, small_spec, with_counters

from deeplabzoo.core.spec import make_spec
from deeplabzoo.errors import FormatError, LayoutError, OutputError, SpecError, WeightsError
from deeplabzoo.models import canonical_model
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical, Card, sidecar_path
from deeplabzoo.weights_converter.convert import convert, read_source, write_model
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.ledger import to_foreign
from deeplabzoo.zoo.presets import tensorflow, torchvision

SUFFIXES = (".safetensors", ".pth", ".pdparams", ".weights.h5")


@pytest.fixture
def model():
    return lively(small_spec(aux={"channels": 8}))


def write(model, path, **options):
    write_model(model, path, **options)
    return path


@pytest.mark.parametrize("second", SUFFIXES)
@pytest.mark.parametrize("first", SUFFIXES)
def test_there_and_back(tmp_path, model, first, second):
    """safetensors, torch, Paddle and Keras files in every order keep every bit, the spec and the card."""
    card = Card(None, ("a", "b", "c", "d", "e"), {"source": "here"})
    model = Canonical(model.spec, model.weights, card)
    one = write(model, tmp_path / f"one{first}")
    two = tmp_path / f"two{second}"
    done = convert(one, two)
    assert done.path == two
    back = convert(two, tmp_path / f"back{first}")
    for read in (done.source, back.source, read_source(tmp_path / f"back{first}")):
        assert digests(read.model.weights) == digests(model.weights)
        assert list(read.model.weights) == list(model.weights)
        assert read.model.spec == model.spec
        assert read.model.card.classes == card.classes
        assert read.model.card.provenance == card.provenance
        assert sorted(row.canonical for row in read.ledger if row.canonical) == sorted(model.weights)
    a, b = formats.read(one), formats.read(tmp_path / f"back{first}")
    assert list(a.tensors) == list(b.tensors)
    assert one.read_bytes() == (tmp_path / f"back{first}").read_bytes() or first == ".weights.h5"
    assert digests(a.tensors) == digests(b.tensors)


def test_weights_are_aligned_wherever_they_lie_in_the_file(tmp_path, model):
    """A pickle has its tensors at any address; frameworks may take the memory as it is."""
    path = tmp_path / "m.pdparams"
    write_model(model, path)
    assert not all(array.flags.aligned for array in formats.read(path).tensors.values())
    for lazy in (True, False):
        assert all(array.flags.aligned for array in read_source(path, lazy=lazy).model.weights.values())


def test_sidecar_or_metadata(tmp_path, model):
    for suffix in SUFFIXES:
        path = write(model, tmp_path / f"m{suffix}")
        beside = sidecar_path(path)
        assert beside.exists() == (suffix != ".safetensors")
        if beside.exists():
            assert beside.name == f"m{suffix}.toml"
            assert tomllib.loads(beside.read_text())["arch"] == "v3plus"
            beside.write_text(model.spec.replace(output_stride=16).to_toml())
            assert read_source(path).model.spec.output_stride == 16
            beside.write_text("arch = ")
            with pytest.raises(SpecError, match="is not TOML"):
                read_source(path)
    metadata = formats.read(tmp_path / "m.safetensors").metadata
    assert metadata["written_by"].startswith("deeplabzoo ")
    formats.write(tmp_path / "broken.safetensors", model.weights, metadata={"deeplabzoo": '{"spec": {"arch": "v9"}}'})
    with pytest.raises(FormatError, match="metadata are broken"):
        read_source(tmp_path / "broken.safetensors")


def test_without_sidecar(tmp_path, model):
    for suffix in (".pth", ".pdparams", ".weights.h5"):
        path = write(model, tmp_path / f"m{suffix}")
        sidecar_path(path).unlink()
        read = read_source(path)
        assert digests(read.model.weights) == digests(model.weights)
        assert read.model.spec.backbone.width == 0.35
        assert "output_stride = 16" in read.assumed
        assert "num_classes = 5" in read.told


def test_keras_file_without_names_needs_its_spec(tmp_path, model):
    import h5py

    path = write(model, tmp_path / "m.weights.h5")
    sidecar_path(path).unlink()
    with h5py.File(path, "r+") as file:

        def strip(name, item):
            item.attrs.pop("name", None)

        file.visititems(strip)
    with pytest.raises(LayoutError, match="tells nothing but an order: give its spec with --spec"):
        read_source(path)
    assert digests(read_source(path, spec=model.spec).model.weights) == digests(model.weights)
    with pytest.raises(LayoutError, match="missing"):
        read_source(path, spec=make_spec("v3"))


def test_half_precision_and_counters(tmp_path):
    model = with_counters(lively(small_spec("v3")))
    mixed = {
        n: a.astype("f2") if n.startswith("aspp") else a.astype("f8") if "stem" in n else a
        for n, a in model.weights.items()
    }
    model = Canonical(model.spec, mixed, model.card)
    for suffix in (".safetensors", ".pth"):
        path = write(model, tmp_path / f"m{suffix}")
        assert digests(read_source(path).model.weights) == digests(mixed)
    half = read_source(write(model, tmp_path / "m.pdparams")).model.weights
    assert digests(half) == digests({n: a for n, a in mixed.items() if not n.endswith("tracked")})


def test_bfloat16(tmp_path):
    import ml_dtypes

    spec = small_spec("v3")
    model = Canonical(spec, {n: a.astype(ml_dtypes.bfloat16) for n, a in lively(spec).weights.items()})
    path = write(model, tmp_path / "m.pth")
    convert(path, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "n.pth")
    assert digests(formats.read(tmp_path / "n.pth").tensors) == digests(formats.read(path).tensors)
    assert {str(a.dtype) for a in formats.read(path).tensors.values()} == {"bfloat16"}


@pytest.mark.parametrize("layout", ["torchvision", "tensorflow"])
def test_the_way_back_to_a_public_layout(tmp_path, layout):
    """Names, order, dtypes, bytes, and which counters there were, through canonical safetensors."""
    spec = {
        "torchvision": torchvision.template("resnet50", 4, aux=True, channels=(3, 8, 8)),
        "tensorflow": tensorflow.template(width=0.35),
    }[layout]
    suffix, name = {"torchvision": (".pth", "torch"), "tensorflow": (".safetensors", "safetensors")}[layout]
    tensors, _ = to_foreign(with_counters(lively(spec)).weights, get_layout(layout), spec, name)
    tensors = {n: a.astype("f2") if n.endswith("bias") else a for n, a in tensors.items()}
    variants = {"as made": tensors, "another order": dict(sorted(tensors.items(), reverse=True))}
    if layout == "torchvision":
        variants["without counters"] = {n: a for n, a in tensors.items() if not n.endswith("tracked")}
        variants["some counters"] = {n: a for n, a in tensors.items() if "layer1.0.bn1.num" not in n}
    for case, given in variants.items():
        formats.write(tmp_path / f"a{suffix}", given, force=True)
        convert(tmp_path / f"a{suffix}", tmp_path / "canonical.safetensors", force=True)
        done = convert(tmp_path / "canonical.safetensors", tmp_path / f"b{suffix}", to_layout=layout, force=True)
        again = formats.read(tmp_path / f"b{suffix}").tensors
        assert digests(again) == digests(given), case
        assert list(again) == list(formats.read(tmp_path / f"a{suffix}").tensors), case
        assert [row.foreign for row in done.ledger if row.foreign in given] == list(again), case


@pytest.fixture(scope="module")
def golden_torchvision(goldens):
    return goldens.load_case("torchvision_deeplabv3_resnet50")


@pytest.mark.parametrize("aux", [True, False])
def test_torchvision_keys_are_those_of_torchvision(golden_torchvision, aux, tmp_path):
    listed = [(key, tuple(shape), dtype) for key, shape, dtype, *_ in golden_torchvision[2]["case"]["tensors"]]
    if not aux:
        listed = [row for row in listed if not row[0].startswith("aux")]
    tensors = {key: golden_torchvision[0][key] for key, *_ in listed}
    model = read_source(tensors).model
    assert (model.spec.aux is not None) == aux
    bare = Canonical(model.spec, {n: a for n, a in model.weights.items() if not n.endswith("tracked")})
    for source in (model, bare):  # with the record of the file it came from, and without anything
        done = write_model(source, tmp_path / "a.pth", layout="torchvision", dry_run=True)
        rows = [(row.foreign, tuple(row.shape), row.dtype) for row in done.ledger]
        assert rows == listed
    assert len(listed) == (370 if aux else 362)


def test_torchvision_through_every_format(golden_torchvision, tmp_path):
    """torchvision -> .pth -> safetensors -> .pdparams -> .weights.h5 -> .pth, and back to torchvision's names."""
    tensors = {n: np.array(a + 5) if n.endswith("tracked") else a for n, a in golden_torchvision[0].items()}
    formats.write(tmp_path / "tv.pth", tensors)
    files = ["tv.pth", "a.safetensors", "b.pdparams", "c.weights.h5", "d.pth"]
    for source, dest in itertools.pairwise(files):
        convert(tmp_path / source, tmp_path / dest)
    canonical = read_source(tmp_path / "a.safetensors").model
    assert all(a == 5 for n, a in canonical.weights.items() if n.endswith("tracked"))
    plain = {n: a for n, a in canonical.weights.items() if not n.endswith("tracked")}
    for name in files[2:]:
        assert digests(read_source(tmp_path / name).model.weights) == digests(plain)
    convert(tmp_path / "a.safetensors", tmp_path / "back.pth", to_layout="torchvision")
    back = formats.read(tmp_path / "back.pth").tensors
    assert list(back) == list(tensors)
    assert digests(back) == digests(tensors)
    convert(tmp_path / "d.pth", tmp_path / "zero.pth", to_layout="torchvision")
    zeroed = formats.read(tmp_path / "zero.pth").tensors
    assert digests(zeroed) == digests(golden_torchvision[0])
    assert list(zeroed) == list(tensors)


def test_outputs_that_exist(tmp_path, model):
    source = write(model, tmp_path / "m.safetensors")
    for dest in ("x.pth", "x.weights.h5", "x.safetensors"):
        (tmp_path / dest).write_bytes(b"precious")
        with pytest.raises(OutputError, match="exists; give another name, or --force"):
            convert(source, tmp_path / dest)
        assert (tmp_path / dest).read_bytes() == b"precious"
    before = {p.name for p in tmp_path.iterdir()}
    assert before == {"m.safetensors", "x.pth", "x.weights.h5", "x.safetensors"}
    convert(source, tmp_path / "x.pth", force=True)
    assert digests(read_source(tmp_path / "x.pth").model.weights) == digests(model.weights)
    # A spec file of another model in the way is an output too.
    (tmp_path / "y.pdparams.toml").write_text("precious")
    with pytest.raises(OutputError, match=r"y\.pdparams\.toml exists"):
        convert(source, tmp_path / "y.pdparams")
    assert not (tmp_path / "y.pdparams").exists()
    with pytest.raises(LayoutError, match="the same file"):
        convert(source, source, force=True)
    assert digests(read_source(source).model.weights) == digests(model.weights)


def test_nothing_half_written(tmp_path, model, monkeypatch):
    """A failure in the middle of writing leaves no file, neither under the name nor beside it."""
    source = write(model, tmp_path / "m.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    cut = {n: a for n, a in model.weights.items() if n != "classifier.conv.bias"}
    with pytest.raises(WeightsError, match=r"classifier\.conv\.bias"):
        write_model(Canonical(model.spec, cut), out / "m.pth")
    with pytest.raises(FormatError, match="unknown suffix"):
        convert(source, out / "m.mnn")
    with pytest.raises(OutputError, match="there is no folder"):
        convert(source, out / "nowhere" / "m.pth")
    with pytest.raises(OutputError, match="is a folder"):
        (tmp_path / "folder.pth").mkdir()
        convert(source, tmp_path / "folder.pth")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(source.read_bytes()[:-1000])
    for suffix in SUFFIXES:
        with pytest.raises(FormatError):
            convert(truncated, out / f"m{suffix}")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for suffix in SUFFIXES:
        with pytest.raises(OutputError, match="No space left on device"):
            convert(source, out / f"m{suffix}")
    assert list(out.iterdir()) == []


def test_suffix_and_backend_must_agree(tmp_path, model):
    source = write(model, tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match=r"but torch was asked for: name it \*\.pth, or ask for the other"):
        convert(source, tmp_path / "m.pdparams", to="torch")
    with pytest.raises(FormatError, match="did you mean 'paddle'"):
        convert(source, tmp_path / "m.bin", to="padle")
    assert convert(source, tmp_path / "m.bin", to="paddle").format == "paddle"
    assert convert(source, tmp_path / "n.weights.h5", to="keras/jax").format == "keras-h5"


def test_dry_run(tmp_path, model):
    source = write(model, tmp_path / "m.safetensors")
    done = convert(source, tmp_path / "m.weights.h5", dry_run=True)
    assert (done.path, done.sidecar) == (None, None)
    assert list(tmp_path.iterdir()) == [source]
    kernel = next(row for row in done.ledger if row.canonical == "backbone.stem.conv.weight")
    assert kernel.foreign == "layers/conv2d/vars/0"
    assert (kernel.shape, kernel.transform) == ((3, 3, 3, 16), "HWIO -> OIHW")
    assert len(done.ledger) == len(model.weights)
    assert convert(source).ledger == ()


def test_another_output_stride(tmp_path, model):
    source = write(model, tmp_path / "m.safetensors")
    convert(source, tmp_path / "n.pth", output_stride=16)
    read = read_source(tmp_path / "n.pth").model
    assert (read.spec.output_stride, read.spec.aspp.rates) == (16, (1, 2, 3))
    with pytest.raises(SpecError, match="8, 16, 32"):
        convert(source, output_stride=4)


def test_reset_classifier(tmp_path):
    model = lively(small_spec(aux={"channels": 8}))
    path = write(model, tmp_path / "m.safetensors")
    for weights in (path, model):
        changed, anew = canonical_model(weights=weights, num_classes=3, reset_classifier=True, seed=4)
        assert anew == [
            "classifier.conv.weight",
            "classifier.conv.bias",
            "aux.classifier.weight",
            "aux.classifier.bias",
        ]
        assert changed.spec == model.spec.replace(num_classes=3)
        for name, array in model.weights.items():
            assert (name in anew) != np.array_equal(changed.weights[name], array), name
        assert changed.weights["classifier.conv.weight"].shape == (3, 24, 1, 1)
        assert changed.card.classes == ()
        again, _ = canonical_model(weights=weights, num_classes=3, reset_classifier=True, seed=5)
        assert not np.array_equal(again.weights["classifier.conv.weight"], changed.weights["classifier.conv.weight"])
    arrays, anew = canonical_model(model.spec, weights=model.weights, num_classes=3, reset_classifier=True)
    assert len(anew) == 4
    assert arrays.spec.num_classes == 3
    assert arrays.weights["classifier.conv.weight"].shape == (3, 24, 1, 1)
    cut = {n: a for n, a in model.weights.items() if n != "aspp.fusion.bn.bias"}
    for reset in (True, False):
        with pytest.raises(WeightsError, match=r"1 missing \(aspp.fusion.bn.bias\)"):
            canonical_model(model.spec, weights=cut, reset_classifier=reset)
    with pytest.raises(WeightsError, match="num_classes = 3: the weights have 5 classes"):
        canonical_model(weights=path, num_classes=3)
    with pytest.raises(WeightsError, match="needs --weights"):
        canonical_model(num_classes=3, reset_classifier=True)


def test_weights_and_words_must_agree(tmp_path):
    path = write(lively(small_spec()), tmp_path / "m.safetensors")
    assert canonical_model("v3plus", weights=path)[0].spec == small_spec()
    with pytest.raises(SpecError, match="arch = 'v3' was asked for"):
        canonical_model("v3", weights=path)
    with pytest.raises(SpecError, match="backbone = 'resnet50' was asked for"):
        canonical_model(weights=path, backbone="resnet50")
    with pytest.raises(FormatError):
        canonical_model(weights=tmp_path / "nowhere.pth")


def test_a_guess_stays_one_until_somebody_says(tmp_path):
    """What was assumed is told again by whoever reads the result, at its present value, and no longer once it is said."""
    spec = tensorflow.template(width=0.35, num_classes=3)
    write_model(lively(spec), tmp_path / "tf.npz", layout="tensorflow")
    sidecar_path(tmp_path / "tf.npz").unlink()
    first = convert(tmp_path / "tf.npz", tmp_path / "a.safetensors").source
    assert {"output_stride = 8", "output.align_corners = True"} <= set(first.assumed)
    said = {"output.align_corners": False}
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", output_stride=16, changes=said)
    again = read_source(tmp_path / "b.safetensors")
    assert set(first.assumed) - set(again.assumed) == {"output_stride = 8", "output.align_corners = True"}
    assert again.model.card.provenance["assumed"] == "; ".join(again.assumed)
    by_preset = read_source(tmp_path / "tf.npz", preset="v3_mobilenet_v2.tf")
    assert by_preset.told[0] == "preset v3_mobilenet_v2.tf"
    assert by_preset.assumed == ()
