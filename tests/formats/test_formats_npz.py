"""NumPy's .npz: read and written without a pickle, mapped where it is not compressed, refused where it lies."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_samples import same, sample

from deeplabzoo.errors import FormatError, OutputError
from deeplabzoo.weights_converter import formats


def npy(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(value), **options)
    return stream.getvalue()


def header(text: str, data: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    encoded = text.encode()
    count = len(encoded) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", count) + encoded + data


def described(descr: str = "'<f4'", fortran: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def archive(path: Path, entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    return path


def test_numpy_and_we_read_each_other_bit_for_bit(tmp_path):
    tensors = sample(bfloat16=False, unsigned=True) | {"a/b.c:0": np.ones((2, 2), "f4")}
    formats.write(tmp_path / "ours.npz", tensors)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as loaded:
        same(tensors, dict(loaded))
    ours = formats.read(tmp_path / "ours.npz")
    assert ours.format == formats.detect(tmp_path / "ours.npz") == "npz"
    same(tensors, ours.tensors)
    for name, save in (("plain", np.savez), ("packed", np.savez_compressed)):
        save(tmp_path / f"{name}.npz", **tensors)
        same(tensors, formats.read(tmp_path / f"{name}.npz").tensors)
    formats.write(tmp_path / "again.npz", tensors)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "ours.npz").read_bytes()


def test_arrays_are_mapped_aligned_and_read_only(tmp_path):
    formats.write(tmp_path / "x.npz", {"a": np.arange(2_000_000, dtype="f4"), "b": np.arange(5, dtype="f8")})
    tracemalloc.start()
    tensors = formats.read(tmp_path / "x.npz").tensors
    array = tensors["a"]
    assert array[-1] == 1_999_999
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    for name in tensors:
        assert tensors[name].flags.aligned
        assert not tensors[name].flags.writeable


def test_headers_as_others_write_them(tmp_path):
    data = np.arange(4, dtype=">i2")
    entries = {
        "two.npy": npy(np.ones(2), version=(2, 0)),
        "three.npy": npy(np.ones(2), version=(3, 0)),
        "old.npy": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1L, 2L), }  \n", bytes(8)),
        "big.npy": npy(data),
        "fortran.npy": npy(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
        "zero.npy": npy(np.empty((0, 2**40), "f4")),
        "tight.npy": header("{'descr':'|u1','fortran_order':False,'shape':(2,)}", b"ab"),
    }
    tensors = formats.read(archive(tmp_path / "x.npz", entries)).tensors
    assert list(tensors) == [name.removesuffix(".npy") for name in entries]
    assert tensors["old"].shape == (1, 2)
    assert tensors["big"].tolist() == [0, 1, 2, 3]
    assert tensors["big"].dtype.isnative
    assert tensors["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["zero"].shape == (0, 2**40)
    assert tensors["tight"].tolist() == [97, 98]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy(np.array([None, {}]), allow_pickle=True), "objects"),
        (npy(np.zeros(2, [("x", "f4")])), "fields"),
        (npy(np.array(["text"])), "type <U4"),
        (npy(np.zeros(2, "M8[s]")), "objects"),
        (npy(np.zeros(2, "V2")), "bfloat16 perhaps"),
        (header(described("'<f3'"), bytes(6)), "type <f3"),
        (header(described("'<f999'"), bytes(8)), "type <f999"),
        (header(described("'__import__'"), bytes(8)), "objects"),
        (header("__import__('os').system('true')\n", bytes(8)), "objects"),
        (header("(" * 9000), "objects"),
        (header("-" * 9000), "objects"),
        (header(described(shape="(2, " + "1, " * 31 + ")"), bytes(8)), None),
        (header(described(shape="(2, " + "1, " * 32 + ")"), bytes(8)), "objects"),
        (header(described(shape="(3,)"), bytes(8)), "takes 12 bytes"),
        (header(described(shape="(1,)"), bytes(8)), "takes 4 bytes"),
        (header(described(shape="(-2,)"), bytes(8)), "objects"),
        (header(described(shape="(4294967296, 4294967296, 4294967296)"), bytes(8)), "takes"),
        (header(described(shape="(9999999999999999999,)"), bytes(8)), "takes"),
        (header(described(fortran="1"), bytes(8)), "objects"),
        (header(described(), bytes(8), length=60_000), "claims a header"),
        (header(described(), bytes(8), version=2, length=2**32 - 1), "claims a header"),
        (header(described(), bytes(8), version=4), "version 1 to 3"),
        (b"\x93NUMPY", "version 1 to 3"),
        (b"", "version 1 to 3"),
        (b"PK\x03\x04", "version 1 to 3"),
    ],
)
@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_lie(tmp_path, content, said, kind):
    path = archive(tmp_path / "x.npz", {"a.npy": content}, kind)
    if said is None:
        assert formats.read(path).tensors["a"].size == 2
        return
    began = time.monotonic()
    with pytest.raises(FormatError, match=said) as caught:
        dict(formats.read(path).tensors)
    assert time.monotonic() - began < 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../a.npy", "a/../../b.npy", "/etc/a.npy", "a\\b.npy", ".npy", "..\\..\\a.npy"])
def test_names_that_lead_elsewhere(tmp_path, name):
    path = archive(tmp_path / "x.npz", {"ok.npy": npy(np.ones(1)), name: npy(np.ones(1))})
    with pytest.raises(FormatError, match="leads elsewhere"):
        formats.read(path)
    assert not (tmp_path / "b.npy").exists()


def test_a_name_twice(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.npz", "w") as packed:
        warnings.simplefilter("ignore")
        packed.writestr("a.npy", npy(np.ones(1)))
        packed.writestr("a.npy", npy(np.zeros(1)))
    with pytest.raises(FormatError, match="holds a name twice"):
        formats.read(tmp_path / "x.npz")


def test_bombs_cost_little(tmp_path):
    bomb = header(described(shape="(250000,)"), bytes(100_000_000))
    big = header(described("'|u1'", shape="(100000000000,)"), bytes(1000))
    for content, said in ((bomb, "takes 1000000 bytes"), (big, "takes 100000000000 bytes")):
        path = archive(tmp_path / "x.npz", {"a.npy": content}, zipfile.ZIP_DEFLATED)
        tracemalloc.start()
        with pytest.raises(FormatError, match=said):
            formats.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()


def test_an_entry_that_holds_more_or_less_than_it_says(tmp_path):
    content = npy(np.zeros(1000))
    for other, text in ((900, "(0900,)"), (1100, "(1100,)")):
        changed = content.replace(b"(1000,)", text.encode())
        path = archive(tmp_path / "y.npz", {"a.npy": changed}, zipfile.ZIP_DEFLATED)
        size = len(content) + (other - 1000) * 8
        path.write_bytes(path.read_bytes().replace(len(changed).to_bytes(4, "little"), size.to_bytes(4, "little")))
        with pytest.raises(FormatError, match="holds another number"):
            formats.read(path).tensors["a"]


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_of_the_data_is_found(tmp_path, kind):
    path = archive(tmp_path / "x.npz", {"a.npy": npy(np.random.default_rng(0).normal(size=100))}, kind)
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"check sum|damaged|another number"):
        formats.read(path).tensors["a"]


def test_other_ways_to_pack(tmp_path):
    path = archive(tmp_path / "x.npz", {"a.npy": npy(np.ones(1))}, zipfile.ZIP_LZMA)
    with pytest.raises(FormatError, match="another method than deflate"):
        formats.read(path)
    formats.write(tmp_path / "y.npz", {"a": np.ones(1)})
    content = bytearray((tmp_path / "y.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "y.npz").write_bytes(content)
    with pytest.raises(FormatError, match="encrypted"):
        formats.read(tmp_path / "y.npz")


def test_a_list_of_entries_that_claims_gigabytes(tmp_path):
    path = tmp_path / "x.npz"
    formats.write(path, {"a": np.ones(1)})
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = (2**31).to_bytes(4, "little")
    path.write_bytes(bytes(4) + content)
    with pytest.raises(FormatError):
        formats.read(path)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged or truncated"):
        formats.read(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_anywhere_is_refused_or_harmless(tmp_path, kind):
    path = archive(tmp_path / "x.npz", {"a.npy": npy(np.ones((2, 3), "f4")), "b/c.npy": npy(np.array(3))}, kind)
    whole = path.read_bytes()
    random = np.random.default_rng(3)
    damaged = [whole[:cut] for cut in range(0, len(whole), 9)]
    for _ in range(400):
        content = bytearray(whole)
        for at in random.integers(0, len(whole), random.integers(1, 6)):
            content[at] = random.integers(0, 256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            for value in formats.read(path).tensors.values():
                value.tobytes()
        except FormatError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(whole) // 9


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({"a": np.array(["text"])}, None, "can't hold"),
        ({"a": np.array([None])}, None, "can't hold"),
        ({"a": [1]}, None, "expected a numpy array"),
        ({"../a": np.ones(1)}, None, "rename it"),
        ({"a\0": np.ones(1)}, None, "rename it"),
        ({"\ud800": np.ones(1)}, None, "rename it"),
        ({"a": np.ones(1)}, {"a": "b"}, "no place for metadata"),
    ],
)
def test_what_npz_has_no_place_for(tmp_path, tensors, metadata, said):
    with pytest.raises(OutputError, match=said):
        formats.write(tmp_path / "x.npz", tensors, metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_bfloat16_names_what_to_do(tmp_path):
    with pytest.raises(OutputError, match="dtype float32"):
        formats.write(tmp_path / "x.npz", {"b": sample()["b.bf16"]})
