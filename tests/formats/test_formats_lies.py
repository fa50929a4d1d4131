"""Headers of safetensors that lie, and HDF5 files that lead out of themselves."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats

# safetensors: a header that lies.


def _safetensors(path: Path, header: Any, data: bytes = b"\0" * 24, length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def _one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (_one(dtype="F99"), "unknown dtype F99"),
        (_one(dtype=["F32"]), "unknown dtype"),
        (_one(shape=[2, 4]), "takes 32 bytes"),
        (_one(shape=[-2, -3]), "whole numbers"),
        (_one(shape=[2.0, 3]), "whole numbers"),
        (_one(shape=[True, 6]), "whole numbers"),
        (_one(shape="x"), "whole numbers"),
        (_one(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), "overlong"),
        (_one(shape=[2**32, 2**32]), "takes"),
        (_one(data_offsets=[24, 0]), "impossible"),
        (_one(data_offsets=[0]), "impossible"),
        (_one(data_offsets=[8, 32]), "hole"),
        (_one(data_offsets=[-24, 0]), "whole numbers"),
        (_one(extra=1), "expected dtype, shape"),
        (_one() | {"b": _one()["a"]}, "overlaps"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, "overlong"),
        ({"a": 1}, "expected dtype"),
        ({"__metadata__": {"a": 1}} | _one(), "not text"),
        (b'{"a":1,"a":2}', "name twice"),
        (b'{"a":', "damaged"),
        (b'{"a":' * 200_000, "damaged"),
        (b'{"a":' + b"9" * 5000 + b"}", "damaged"),
        (b"{\xff}", "damaged"),
    ],
)
def test_lies_in_a_safetensors_header(tmp_path, header, said):
    with pytest.raises(FormatError, match=said):
        formats.read(_safetensors(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("length", [2**63, 2**40, 10_000, 0, 1])
def test_lies_about_the_length_of_a_safetensors_header(tmp_path, length):
    with pytest.raises(FormatError):
        formats.read(_safetensors(tmp_path / "x.safetensors", _one(), length=length))


# HDF5: files that lead out of themselves.


def _h5(path: Path, fill: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["ok/vars/0"] = np.ones(2, "f4")
        fill(file)
    return path


def _loop(file: Any) -> None:
    file["ok/vars/loop"] = file["ok"]


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2,))
    file.create_virtual_dataset("ok/vars/1", layout)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda f: f.__setitem__("ok/vars/1", h5py.ExternalLink("/etc/passwd", "/x")), "ExternalLink"),
        (lambda f: f.__setitem__("ok/vars/1", h5py.SoftLink("/ok/vars/0")), "SoftLink"),
        (lambda f: f.__setitem__("loop", h5py.SoftLink("/")), "SoftLink"),
        (_loop, "holds itself"),
        (_virtual, "another file"),
        (lambda f: f.create_dataset("ok/vars/1", (10,), "u1", external=[("/etc/passwd", 0, 10)]), "another file"),
        (lambda f: f.create_dataset("ok/vars/1", (2**40,), "f4", chunks=(1024,)), "the file holds 0"),
        (
            lambda f: f.create_dataset("ok/vars/1", (2**40,), "f4", chunks=(1024,), compression="gzip"),
            "the file holds 0",
        ),
        (lambda f: f.create_dataset("ok/vars/1", (100,), "f4", compression="lzf"), "filter"),
        (lambda f: f.require_group("/".join("abcdefgh" * 10)), "too deep"),
        (lambda f: f.__setitem__("t", np.dtype("f4")), "expected groups and datasets"),
        (lambda f: f.attrs.__setitem__("layer_names", ["a"]), "lists a layer 'a' that is not there"),
    ],
)
def test_hdf5_that_leads_elsewhere(tmp_path, fill, said):
    with pytest.raises(FormatError, match=said):
        formats.read(_h5(tmp_path / "x.weights.h5", fill))


def test_hdf5_with_other_things_in_it(tmp_path):
    def fill(file: Any) -> None:
        file["ok/vars/words"] = "text"
        file["elsewhere"] = np.ones(3)
        file.create_dataset("ok/vars/packed", data=np.zeros((50, 50), "f4"), compression="gzip", shuffle=True)
        file["ok/vars/big"] = np.ones(2, ">f8")

    checkpoint = formats.read(_h5(tmp_path / "x.weights.h5", fill))
    assert list(checkpoint.tensors) == ["ok/vars/0", "ok/vars/big", "ok/vars/packed"]
    assert checkpoint.tensors["ok/vars/big"].dtype == np.float64
    assert checkpoint.tensors["ok/vars/packed"].shape == (50, 50)
    assert "elsewhere, ok/vars/words" in checkpoint.notes[0]
    with h5py.File(tmp_path / "none.weights.h5", "w") as file:
        file["a"] = np.ones(1)
    with pytest.raises(FormatError, match="no variables"):
        formats.read(tmp_path / "none.weights.h5")


def test_hdf5_names_of_layers_however_they_are_stored(tmp_path):
    def fill(file: Any) -> None:
        file["fixed/vars/0"] = np.ones(1)
        file["fixed/vars"].attrs["name"] = np.bytes_(b"of fixed length")
        file["many/vars/0"] = np.ones(1)
        for index in range(30):  # enough to fill the header and go on elsewhere
            file["many/vars"].attrs[f"other{index}"] = "x" * 50
        file["many/vars"].attrs["name"] = "ünï" * 50
        file["number/vars/0"] = np.ones(1)
        file["number/vars"].attrs["name"] = 3
        file["list/vars/0"] = np.ones(1)
        file["list/vars"].attrs["name"] = ["a", "b"]
        file["empty/vars/0"] = np.ones(1)
        file["empty/vars"].attrs["name"] = ""

    checkpoint = formats.read(_h5(tmp_path / "x.weights.h5", fill))
    assert checkpoint.labels == {"empty": "", "fixed": "of fixed length", "many": "ünï" * 50}
    with h5py.File(tmp_path / "new.weights.h5", "w", libver="latest") as file:
        file["a/vars/0"] = np.ones(1)
    with pytest.raises(FormatError, match="libver='latest'"):
        formats.read(tmp_path / "new.weights.h5")


def test_a_damaged_heap_of_names_is_refused_within_bounds(tmp_path):
    path = _h5(tmp_path / "x.weights.h5", lambda f: f["ok/vars"].attrs.__setitem__("name", "a layer"))
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")
    for at, value in ((heap, 0), (heap + 4, 2), (heap + 15, 1), (heap + 16, 9), (heap + 31, 128), (heap + 24, 3)):
        content = bytearray(whole)
        content[at] = value
        path.write_bytes(content)
        with pytest.raises(FormatError, match="heap"):
            formats.read(path)
