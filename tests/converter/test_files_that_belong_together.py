"""Weights, the spec file beside them, the ledger and the source: which belongs to which, and none over another."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import digests, lively, small_spec

from deeplabzoo.errors import BackendError, LayoutError, OutputError, WeightsError
from deeplabzoo.files import beside_then_rename
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical, find_sidecar, fingerprint
from deeplabzoo.weights_converter.convert import check_ledger, convert, read_source, write_model
from deeplabzoo.zoo.presets import tensorflow

SPEC = tensorflow.template(width=0.35, num_classes=3)
OTHER = SPEC.replace(output=SPEC.output.replace(align_corners=False))
"""Equal tensors, another network: only the file beside the weights tells."""


def test_the_spec_file_is_named_and_known_to_be_of_other_weights(tmp_path):
    model = lively(OTHER)
    write_model(model, tmp_path / "m.npz", layout="tensorflow")
    read = read_source(tmp_path / "m.npz")
    assert read.model.spec == OTHER
    assert "spec from m.npz.toml" in read.notes
    # Trained on and saved under the old name: the spec still holds, and it is said whose it is.
    held = formats.read(tmp_path / "m.npz").tensors
    trained = {name: np.asarray(array + array.dtype.type(1)) for name, array in held.items()}
    formats.write(tmp_path / "m.npz", trained, force=True)
    assert any("was written for other weights" in note for note in read_source(tmp_path / "m.npz").notes)
    # A spec file by hand has no fingerprint, and nothing is said.
    text = (tmp_path / "m.npz.toml").read_text()
    (tmp_path / "m.npz.toml").write_text("\n".join(line for line in text.splitlines() if "fingerprint" not in line))
    assert "spec from m.npz.toml" in read_source(tmp_path / "m.npz").notes


def test_the_fingerprint_tells_weights_apart():
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    same = {"b": tensors["b"].copy(), "a": np.asfortranarray(tensors["a"])}
    assert fingerprint(same) == fingerprint(tensors)
    for changed in (
        {**tensors, "a": tensors["a"] + 1},
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "a": tensors["a"].astype(np.float64)},
        {**tensors, "c": tensors["b"]},
        {"a": tensors["b"], "b": tensors["a"]},
    ):
        assert fingerprint(changed) != fingerprint(tensors)


def test_every_name_of_a_tensorflow_checkpoint_finds_the_spec(tmp_path):
    (tmp_path / "folder").mkdir()
    write_model(lively(OTHER), tmp_path / "folder" / "m.ckpt", layout="tensorflow")
    names = ("m.ckpt", "m.ckpt.index", "m.ckpt.data-00000-of-00001", ".")
    for name in names:
        assert read_source(tmp_path / "folder" / name).model.spec == OTHER, name


def test_a_hub_folder_and_the_file_in_it_find_the_spec(tmp_path):
    from deeplabzoo.zoo.presets import smp

    spec = smp.template("v3", "resnet18", 3)
    other = spec.replace(output=spec.output.replace(align_corners=False))
    write_model(lively(other), f"{tmp_path}/hub/", layout="smp")
    for name in ("hub", "hub/model.safetensors"):
        assert read_source(tmp_path / name).model.spec == other, name


def test_links(tmp_path):
    """The spec goes to the file that the link points to, and is found under both names."""
    (tmp_path / "store").mkdir()
    write_model(lively(SPEC), tmp_path / "store" / "m.npz", layout="tensorflow")
    (tmp_path / "latest.npz").symlink_to(tmp_path / "store" / "m.npz")
    write_model(lively(OTHER), tmp_path / "latest.npz", layout="tensorflow", force=True)
    assert not (tmp_path / "latest.npz.toml").exists()
    for name in ("latest.npz", "store/m.npz"):
        assert read_source(tmp_path / name).model.spec == OTHER
    assert find_sidecar(tmp_path / "latest.npz") == tmp_path / "store" / "m.npz.toml"


@pytest.mark.parametrize("name", ["m.npz", "out.pth", "out.pth.toml"])
def test_a_ledger_never_takes_the_place_of_another_file(tmp_path, name):
    write_model(lively(SPEC), tmp_path / "m.npz", layout="tensorflow")
    with pytest.raises(OutputError, match="the source, the output or its spec file"):
        check_ledger(tmp_path / name, tmp_path / "m.npz", tmp_path / "out.pth", None)
    check_ledger(tmp_path / "ledger.json", tmp_path / "m.npz", tmp_path / "out.pth", None)


def test_a_source_inside_the_output_folder(tmp_path):
    from deeplabzoo.zoo.presets import smp

    write_model(lively(smp.template("v3", "resnet18", 3)), f"{tmp_path}/hub/", layout="smp")
    before = (tmp_path / "hub" / "model.safetensors").read_bytes()
    for source in ("hub", "hub/model.safetensors"):
        with pytest.raises(LayoutError, match="source and output are the same"):
            convert(tmp_path / source, f"{tmp_path}/hub/", to_layout="smp", dtype="float16", force=True)
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == before


def test_a_file_that_came_in_the_meantime_stays(tmp_path):
    with (
        pytest.raises(OutputError, match="exists by now"),
        beside_then_rename(tmp_path / "x", force=False) as beside,
    ):
        beside.write_text("ours")
        (tmp_path / "x").write_text("theirs")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "theirs"}
    with beside_then_rename(tmp_path / "y", force=False) as beside:
        beside.write_text("ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(95, "not supported")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    with beside_then_rename(tmp_path / "x", force=False) as beside:
        beside.write_text("ours")
    assert (tmp_path / "x").read_text() == "ours"
    with (
        pytest.raises(OutputError, match="exists by now"),
        beside_then_rename(tmp_path / "x", force=False) as beside,
    ):
        beside.write_text("again")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_cast_loses_is_said(tmp_path):
    model = lively(small_spec())
    name = next(n for n in model.weights if n.endswith("running_var"))
    for value, dtype, what in ((1e6, "float16", "infinite"), (1e-8, "float16", "zero")):
        weights = {**model.weights, name: np.full_like(model.weights[name], value)}
        wide = convert(Canonical(model.spec, weights).weights, None, spec=model.spec).source.model
        done = write_model(wide, tmp_path / f"{value}.npz", dtype=dtype)
        assert any(what in note for note in done.notes), (value, dtype)
    quiet = write_model(model, tmp_path / "quiet.npz", dtype="float64")
    assert quiet.notes == ()


def test_bfloat16_reaches_further_than_float16(tmp_path):
    """Both have two bytes: it is the range that tells."""
    import ml_dtypes

    model = lively(small_spec())
    name = next(n for n in model.weights if n.endswith("running_var"))
    weights = {n: a.astype(ml_dtypes.bfloat16) for n, a in model.weights.items()}
    weights[name] = np.full(weights[name].shape, 1e6, ml_dtypes.bfloat16)
    write_model(Canonical(model.spec, weights), tmp_path / "b.safetensors")
    done = convert(tmp_path / "b.safetensors", tmp_path / "h.safetensors", dtype="float16")
    assert any("infinite" in note for note in done.notes)


def test_verification_sees_a_lost_spec(tmp_path):
    from deeplabzoo.verification import verify

    model = lively(OTHER)
    write_model(model, tmp_path / "m.ckpt", layout="tensorflow")
    (tmp_path / "m.ckpt.toml").unlink()
    with pytest.raises(WeightsError, match=r"reads as another network.*output.align_corners = True, expected False"):
        verify(tmp_path / "m.ckpt", model, ("torch",))


def test_verification_sees_a_wrong_cast(tmp_path):
    from deeplabzoo.verification import verify

    model = lively(small_spec())
    write_model(model, tmp_path / "m.safetensors", dtype="float16")
    name = next(n for n, a in model.weights.items() if a.ndim == 4)
    changed = Canonical(model.spec, {**model.weights, name: model.weights[name] * 1.01}, model.card)
    with pytest.raises(WeightsError, match="is not the source's tensor"):
        verify(tmp_path / "m.safetensors", changed, ("torch",))


def test_convert_without_an_output_builds(tmp_path, requested):
    """A backend that is named is one, whatever the source is."""
    write_model(lively(small_spec()), tmp_path / "m.safetensors")
    with pytest.raises(BackendError, match="unknown backend 'tf'"):
        convert(tmp_path / "m.safetensors", to="tf")
    with pytest.raises(WeightsError, match=r"did you mean 'v3_resnet50\.torchvision_coco"):
        convert("v3_resnet50.torchvision_coca")
    read = convert(tmp_path / "m.safetensors", to="keras", dry_run=True)
    assert digests(read.source.model.weights) == digests(lively(small_spec()).weights)


def test_outputs_are_checked_before_the_source_is_read(tmp_path):
    (tmp_path / "out.npz").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="exists"):
        convert(tmp_path / "none.pth", tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_bytes() == b"theirs"
