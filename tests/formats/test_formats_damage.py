"""Whatever happens to a file, reading it gives its tensors or a `FormatError`, and nothing else."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from formats_samples import small_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats._crc32c import crc32c

SUFFIXES = (".safetensors", ".pth", ".pdparams", ".weights.h5", ".index")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _sealed(block: bytes) -> bytes:
    crc = crc32c(np.frombuffer(block + b"\0", np.uint8))
    return block + b"\0" + (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def _bundle(prefix: Path, header: bytes, entry: bytes, data: bytes) -> None:
    """Write a TensorFlow checkpoint of one tensor, by hand."""

    def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(b"\0" + _varint(len(k)) + _varint(len(v)) + k + v for k, v in pairs)
        return body + b"\0\0\0\0\x01\0\0\0"

    entries, contents = block([(b"", header), (b"w", entry)]), None
    contents = block([(b"x", _varint(0) + _varint(len(entries)))])
    start = len(entries) + 5
    footer = _varint(0) + _varint(0) + _varint(start) + _varint(len(contents))
    footer = footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    Path(f"{prefix}.index").write_bytes(_sealed(entries) + _sealed(contents) + footer)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


def _entry(data: bytes, **changes: bytes) -> bytes:
    crc = crc32c(np.frombuffer(data, np.uint8))
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    fields = {
        "dtype": b"\x08\x01", "shape": b"\x12\x08\x12\x02\x08\x02\x12\x02\x08\x03", "shard": b"", "offset": b"",
        "size": b"\x28" + _varint(len(data)), "crc": b"\x35" + masked.to_bytes(4, "little"), "slices": b"",
    } | changes  # fmt: skip
    return b"".join(fields.values())


@functools.cache
def contents() -> dict[str, bytes]:
    """Bytes of one small valid file a format."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = small_files(folder)
        data = np.arange(6, dtype="f4").tobytes()
        _bundle(folder / "m", b"\x08\x01", _entry(data), data)
        result = {suffix: path.read_bytes() for suffix, path in files.items()}
        return result | {".index": (folder / "m.index").read_bytes(), "data": data}


def attempt(folder: Path, suffix: str, content: bytes) -> bool:
    """Read everything of a file with this content; tells whether that went well."""
    path = folder / f"m{suffix}"
    path.write_bytes(content)
    if suffix == ".index":
        (folder / "m.data-00000-of-00001").write_bytes(contents()["data"])
    try:
        checkpoint = formats.read(path)
        for value in checkpoint.tensors.values():
            value.tobytes()
    except FormatError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(str(path))
        return False
    return True


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_files_are_valid_before_they_are_damaged(tmp_path, suffix):
    assert attempt(tmp_path, suffix, contents()[suffix])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncation_at_any_point(tmp_path, suffix):
    whole = contents()[suffix]
    for cut in sorted({*range(min(64, len(whole))), *range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}):
        assert not attempt(tmp_path, suffix, whole[:cut]), cut


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_changes(tmp_path, suffix, data):
    content = bytearray(contents()[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "insert", "delete", "copy"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif change == "delete":
            del content[at : at + data.draw(st.integers(1, 8))]
        else:
            size = data.draw(st.integers(1, 16))
            to = data.draw(st.integers(0, len(content) - 1))
            content[to : to + size] = content[at : at + size]
        if not content:
            break
    attempt(tmp_path, suffix, bytes(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from(
        [b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x10" + b"\0" * 7 + b"{"]
    ),
    body=st.binary(max_size=300),
)
def test_random_bytes(tmp_path, start, body):
    attempt(tmp_path, ".bin", start + body)


PIECES = [
    b"(", b".", b"0", b"1", b"2", b"N", b"K\x01", b")", b"t", b"\x85", b"\x86", b"\x87", b"]", b"}", b"a", b"e", b"s",
    b"u", b"d", b"l", b"h\x00", b"q\x00", b"\x94", b"R", b"b", b"o", b"Q", b"\x81", b"X\x01\x00\x00\x00a",
    b"ccollections\nOrderedDict\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"c_codecs\nencode\n", b"cbuiltins\nset\n",
    b"X\x02\x00\x00\x00f4", b"X\x07\x00\x00\x00storage", b"X\x06\x00\x00\x00latin1", b"cbuiltins\neval\n", b"J\xff\xff\xff\xff",
    b"X\x05\x00\x00\x00model", b"cnumpy._core.numeric\n_frombuffer\n", b"C\x04abcd", b"cbuiltins\ntuple\n", b"ctorch\nSize\n",
]  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_random_programs(tmp_path, pieces):
    attempt(tmp_path, ".pdparams", b"\x80\x02" + b"".join(pieces) + b".")


@pytest.mark.parametrize(
    ("header", "changes", "said"),
    [
        (b"\x08\x01", {"dtype": b"\x08\x63"}, "element type 99"),
        (b"\x08\x01", {"dtype": b"\x08\x07"}, "no tensors"),
        (b"\x08\x01", {"shape": b"\x12\x04\x12\x02\x08\x07"}, "takes 28 bytes"),
        (b"\x08\x01", {"shape": b"\x12\x0d\x12\x0b\x08" + b"\xff" * 9 + b"\x01"}, "impossible shape"),
        (b"\x08\x01", {"shard": b"\x18\x01"}, "data file 1 of 1"),
        (b"\x08\x01", {"offset": b"\x20\x08"}, "truncated"),
        (b"\x08\x01", {"offset": b"\x20" + b"\xff" * 8 + b"\x7f"}, "truncated"),
        (b"\x08\x01", {"slices": b"\x3a\x00"}, "partitioned"),
        (b"\x08\x01\x10\x01", {}, "big-endian"),
        (b"\x08\xff\xff\xff\x0f", {}, "data files"),
        (b"\x0b", {}, "protocol buffer"),
        (b"\x0a\x05a", {}, "ends early"),
    ],
)
def test_lies_in_a_tensorflow_index(tmp_path, header, changes, said):
    data = np.arange(6, dtype="f4").tobytes()
    _bundle(tmp_path / "m", header, _entry(data, **changes), data)
    with pytest.raises(FormatError, match=said):
        formats.read(tmp_path / "m")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (b"<html>", "starts with b'<html>'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x93NUMPY\x01", "NumPy array"),
        (b"PK\x03\x04", "damaged or truncated"),
        (bytes(range(200, 256)), "known formats: safetensors, torch, paddle, keras-h5, tf-checkpoint"),
    ],
)
def test_files_of_no_known_format(tmp_path, content, said):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    for function in (formats.detect, formats.read):
        with pytest.raises(FormatError) as caught:
            function(path)
        assert said in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"no such file; check the path; did you mean 'model.pth'"):
        formats.read(tmp_path / "model.pht")
    with pytest.raises(FormatError, match="no such file"):
        formats.read(tmp_path / "nowhere/model.pht")
    with pytest.raises(FormatError, match="a folder"):
        formats.read(str(tmp_path))
    with pytest.raises(FormatError, match="not a regular file"):
        formats.detect("/dev/null")
    with pytest.raises(FormatError):
        formats.detect("a\0b")


def test_the_name_of_a_file_does_not_count(tmp_path):
    for suffix, path in small_files(tmp_path).items():
        other = path.rename(tmp_path / "model.bin")
        assert formats.detect(other) == formats.format_of_suffix(f"x{suffix}")
