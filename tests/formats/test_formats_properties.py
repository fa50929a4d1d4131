"""What holds for any tensors and any bytes: a round trip is exact or refused, and reading gives tensors or one error."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from formats_killer import SUFFIXES
from formats_samples import table
from formats_targets import examine, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from wire import damaged

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter import formats

DTYPES = (
    "?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16", ">f4", ">i2",
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
)  # fmt: skip
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TARGETS = tuple(targets())


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """An array of any bits, type, shape and order in memory."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(stn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    count = math.prod(shape)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype.kind == "b":
        data = bytes(byte & 1 for byte in data)
    array = np.frombuffer(data, dtype).reshape(shape)
    order = draw(st.sampled_from(["plain", "transposed", "reversed"]))
    if order == "transposed":
        return array.T
    return array[::-1] if order == "reversed" and shape else array


def names(format: str) -> st.SearchStrategy[str]:
    """Any text; for Keras mostly paths that it knows, of any parts."""
    anything = st.text(min_size=1, max_size=12)
    part = st.text(st.characters(exclude_characters="/\0.", codec="utf-8"), min_size=1, max_size=6)
    number = st.integers(0, 20)
    if format == "keras-h5":
        return st.one_of(st.builds("{}/vars/{}".format, part, number), anything)
    if format == "keras2-h5":
        return st.one_of(st.builds("{}/{}".format, part, part), anything)
    return anything


def written(path: Path, format: str, tensors: dict[str, np.ndarray]) -> bool:
    """Write; tells whether that went well, and fails where a refusal is no clear line or leaves anything."""
    metadata = {"config": json.dumps({"a": 1})} if format == "hub-folder" else None
    try:
        formats.write(path, tensors, format=format, metadata=metadata)
    except OutputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        assert list(path.parent.iterdir()) == []
        return False
    return True


@pytest.mark.parametrize("format", SUFFIXES)
@settings(QUICK, max_examples=40)
@given(data=st.data())
def test_what_can_be_written_is_read_back_bit_for_bit(tmp_path, format, data):
    tensors = data.draw(st.dictionaries(names(format), arrays(), min_size=1, max_size=4))
    folder = tmp_path / "new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / f"x{SUFFIXES[format]}"
    if written(path, format, tensors):
        checkpoint = formats.read(path)
        assert checkpoint.format == format
        if not any("prefix" in note or "network" in note for note in checkpoint.notes):  # names that wrappers leave
            assert table(checkpoint.tensors) == table(tensors)


@pytest.mark.parametrize("format", SUFFIXES)
def test_plain_tensors_can_be_written_in_every_format(tmp_path, format):
    tensors = {"layers/a/vars/0": np.ones((2, 3), "f4"), "layers/b/vars/0": np.array(1, "i8")}
    path = tmp_path / f"x{SUFFIXES[format]}"
    assert written(path, format, tensors)
    assert table(formats.read(path).tensors) == table(tensors)


@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_are_sound(tmp_path, name):
    target = targets()[name]
    for seed in target.seeds:
        path = target.place(tmp_path, seed)
        assert examine(path)
        assert formats.detect(path) == target.format


@settings(QUICK, max_examples=250)
@given(
    name=st.sampled_from(TARGETS),
    begin=st.integers(0, 200),
    other=st.sampled_from(TARGETS),
    rest=st.one_of(st.binary(max_size=300), st.integers(0, 5000)),
)
def test_any_bytes_after_a_sound_beginning(tmp_path, name, begin, other, rest):
    """Random bytes, or another file from somewhere on, after the beginning of a sound file."""
    target = targets()[name]
    tail = rest if isinstance(rest, bytes) else targets()[other].seeds[0][rest:]
    with_tail = target.seeds[-1][:begin] + tail
    examine(target.place(_empty(tmp_path), with_tail))


@settings(QUICK, max_examples=100)
@given(content=st.binary(max_size=400), suffix=st.sampled_from(["", ".pth", ".h5", ".npz", ".ckpt", ".pb"]))
def test_any_bytes_at_all(tmp_path, content, suffix):
    path = _empty(tmp_path) / f"x{suffix}"
    path.write_bytes(content)
    assert not examine(path)


@pytest.mark.parametrize("name", TARGETS)
def test_a_hundred_changed_files(tmp_path, name):
    """The small sister of `make fuzz`."""
    target = targets()[name]
    refused = 0
    for seed in range(100):
        content = damaged(target.seeds[seed % len(target.seeds)], seed)
        refused += not examine(target.place(tmp_path, content))
    assert 50 < refused <= 100


def _empty(folder: Path) -> Path:
    inner = folder / "files"
    shutil.rmtree(inner, ignore_errors=True)
    inner.mkdir()
    return inner
