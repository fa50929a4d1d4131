from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats_samples import same, sample, small_files, table

from deeplabzoo.errors import FormatError, OutputError
from deeplabzoo.weights_converter import formats

REAL = Path(__file__).parents[3] / "shared/data/weights/deeplabv3_mnv2_pascal_trainval"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".pdparams"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, suffix):
    tensors = sample(unsigned=suffix not in {".pdparams"})
    path = tmp_path / f"x{suffix}"
    formats.write(path, tensors)
    checkpoint = formats.read(path)
    same(tensors, checkpoint.tensors, ordered=suffix != ".safetensors")
    assert checkpoint.format == formats.format_of_suffix(path) == formats.detect(path)
    assert list(tmp_path.iterdir()) == [path]


def test_keras_round_trip_keeps_labels_and_sorts_numbers_as_numbers(tmp_path):
    values = list(sample(unsigned=True).values())
    names = [f"layers/conv2d{f'_{i}' if i else ''}/vars/{j}" for i in range(12) for j in range(2)]
    tensors = dict(zip(names, values, strict=False))
    labels = {"": "model", "layers/conv2d": "stem", "layers/re_lu": "empty layer"}
    path = tmp_path / "x.weights.h5"
    formats.write(path, dict(reversed(tensors.items())), metadata=labels)
    checkpoint = formats.read(path)
    same(tensors, checkpoint.tensors)
    assert checkpoint.labels == labels
    assert checkpoint.format == "keras-h5"


def test_equal_input_gives_equal_bytes(tmp_path):
    for suffix in (".safetensors", ".pth", ".pdparams"):
        first, second = tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"
        formats.write(first, sample())
        formats.write(second, sample())
        assert first.read_bytes() == second.read_bytes()


def test_a_chain_through_all_formats_changes_nothing(tmp_path):
    tensors = {f"layers/l_{i}/vars/{i}": v for i, v in enumerate(sample().values())}
    current = tensors
    for suffix in (".pth", ".pdparams", ".safetensors", ".weights.h5", ".pth"):
        path = tmp_path / f"chain{len(list(tmp_path.iterdir()))}{suffix}"
        formats.write(path, current)
        current = formats.read(path).tensors
    same(tensors, current, ordered=False)


def test_tensors_are_lazy_and_read_only(tmp_path):
    for suffix, path in small_files(tmp_path).items():
        tensors = formats.read(path).tensors
        array = tensors[next(iter(tensors))]
        assert not array.flags.writeable
        assert array.dtype.isnative, suffix
        assert "no such" not in tensors
        with pytest.raises(KeyError):
            tensors["no such"]


def test_metadata_of_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    formats.write(path, {"a": np.ones(1)}, metadata={"spec": '{"x": 1}', "ü": "\ud800"})
    assert formats.read(path).metadata == {"spec": '{"x": 1}', "ü": "\ud800"}


def test_the_library_reads_our_safetensors_and_we_its(tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = {k: np.asarray(v, order="C", dtype=v.dtype.newbyteorder("=")) for k, v in sample(bfloat16=False).items()}
    formats.write(tmp_path / "ours.safetensors", tensors, metadata={"a": "b"})
    same(tensors, load_file(tmp_path / "ours.safetensors"), ordered=False)
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"a": "b"})
    checkpoint = formats.read(tmp_path / "theirs.safetensors")
    same(tensors, checkpoint.tensors, ordered=False)
    assert checkpoint.metadata == {"a": "b"}


def test_torch_entries_are_aligned_so_that_torch_can_map_them(tmp_path):
    import zipfile

    path = tmp_path / "x.pth"
    formats.write(path, sample())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            lengths = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
            assert (info.header_offset + 30 + sum(lengths)) % 64 == 0


def test_outputs_are_not_replaced_unless_forced_and_failures_leave_nothing(tmp_path):
    path = tmp_path / "x.pth"
    formats.write(path, {"a": np.ones(1)})
    with pytest.raises(OutputError, match="exists"):
        formats.write(path, {"a": np.ones(2)})
    formats.write(path, {"a": np.ones(2)}, force=True)
    assert formats.read(path).tensors["a"].shape == (2,)
    for bad in ({"a": np.array(["text"])}, {"a": [1, 2]}, {"a": np.array([None])}):
        for suffix in (".pth", ".pdparams", ".safetensors"):
            with pytest.raises(OutputError, match="tensor 'a'"):
                formats.write(tmp_path / f"bad{suffix}", bad)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_format_has_no_place_for_is_refused(tmp_path):
    one = {"a": np.ones(1, "f4")}
    for suffix in (".pth", ".pdparams", ".ckpt"):
        with pytest.raises(OutputError, match="no place for metadata"):
            formats.write(tmp_path / f"m{suffix}", one, metadata={"a": "b"})
    with pytest.raises(OutputError, match="text -> text"):
        formats.write(tmp_path / "m.safetensors", one, metadata={"a": 1})
    with pytest.raises(OutputError, match="__metadata__"):
        formats.write(tmp_path / "m.safetensors", {"__metadata__": np.ones(1)})
    with pytest.raises(OutputError, match="uint16"):
        formats.write(tmp_path / "m.pdparams", {"a": np.ones(1, "u2")})
    with pytest.raises(OutputError, match="StructuredToParameterName"):
        formats.write(tmp_path / "m.pdparams", {"StructuredToParameterName@@": np.ones(1)})
    with pytest.raises(OutputError, match="path of a Keras variable"):
        formats.write(tmp_path / "m.weights.h5", one)
    with pytest.raises(OutputError, match="keras-h5"):
        formats.write(tmp_path / "m.weights.h5", {"a/vars/0": np.ones(1), "a/vars/0/vars/1": np.ones(1)})
    with pytest.raises(OutputError, match="only be read"):
        formats.write(tmp_path / "m", one, format="tf-graph")
    for none in ({}, {1: np.ones(1)}, {"": np.ones(1)}):
        with pytest.raises(OutputError, match="at least one tensor"):
            formats.write(tmp_path / "m.pth", none)
    with pytest.raises(FormatError, match="did you mean 'torch'"):
        formats.write(tmp_path / "m", one, format="torhc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.pdparam", "did you mean '.pdparams'"),
        ("a", "unknown suffix ''"),
        ("a.h", "did you mean '.h5'"),
        (".pth", "unknown suffix"),
    ],
)
def test_unknown_suffixes(name, said):
    with pytest.raises(FormatError, match="unknown suffix") as caught:
        formats.format_of_suffix(name)
    assert said in str(caught.value)


def test_no_framework_is_imported(tmp_path):
    small_files(tmp_path)
    code = """
import sys, pathlib
from deeplabzoo.weights_converter import formats
folder, real = map(pathlib.Path, sys.argv[1:])
for path in sorted(folder.iterdir()):
    tensors = formats.read(path).tensors
    formats.write(folder / f"copy-{path.name}", dict(tensors))
if real.exists():
    checkpoint = formats.read(real)
    assert sum(value.size for value in checkpoint.tensors.values()) > 2_000_000
heavy = {"torch", "tensorflow", "keras", "paddle", "jax", "onnx", "safetensors", "ml_dtypes", "scipy"}
print(sorted(heavy & set(sys.modules)))
assert not heavy & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(REAL)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_bfloat16_without_ml_dtypes_says_what_to_install(tmp_path, monkeypatch):
    for suffix in (".safetensors", ".pth", ".pdparams"):
        path = tmp_path / f"b{suffix}"
        formats.write(path, {"b": sample()["b.bf16"], "a": np.ones(2, "f4")})
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "ml_dtypes", None)
            tensors = formats.read(path).tensors
            assert tensors["a"].tolist() == [1, 1]
            with pytest.raises(FormatError, match="pip install ml_dtypes"):
                tensors["b"]


def test_a_file_that_changes_under_its_reader_is_noticed(tmp_path):
    path = tmp_path / "x.pth"
    formats.write(path, {"a": np.ones(3)})
    tensors = formats.read(path).tensors
    formats.write(path, {"a": np.ones(4)}, force=True)
    with pytest.raises(FormatError, match="changed since"):
        tensors["a"]
    path.unlink()
    with pytest.raises(FormatError):
        tensors["a"]


def test_sharing_names_and_tables(tmp_path):
    # One array under two names is written twice: the way back has no shared storage, and equal values.
    one = np.arange(3.0)
    path = tmp_path / "x.pth"
    formats.write(path, {"a": one, "b": one})
    assert len(set(map(str, table(formats.read(path).tensors).values()))) == 1
