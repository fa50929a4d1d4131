"""TensorFlow's checkpoints written here: TensorFlow reads them, and a kill at any moment leaves a whole one."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from formats_samples import run_framework, same, sample, table

from deeplabzoo.errors import FormatError, OutputError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats import _leveldb, _tf_writer
from deeplabzoo.weights_converter.formats._tf_writer import data_of, index_of

REAL = Path(__file__).parents[3] / "shared/data/weights/deeplabv3_mnv2_pascal_trainval/model.ckpt-30000"

READ = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
def listing(prefix):
    reader = tf.train.load_checkpoint(prefix)
    values = {name: np.asarray(reader.get_tensor(name)) for name in sorted(reader.get_variable_to_shape_map())}
    return {name: [v.dtype.name, list(v.shape), digest(v.tobytes())] for name, v in values.items()}
print(json.dumps([listing(prefix) for prefix in sys.argv[1:]]))
"""


def several(count: int = 5, *, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"net/layer{i}/weights": random.normal(size=(3, 3, 2, i)).astype("f4") for i in range(count)}


def test_tensorflow_reads_what_is_written(tmp_path, monkeypatch):
    tensors = sample(unsigned=True) | {
        "small": np.arange(6, dtype=ml_dtypes.float8_e4m3fn).reshape(2, 3),
        "complex": np.array([1j, 2], "c8"),
    }
    formats.write(tmp_path / "model.ckpt-30000", tensors)
    monkeypatch.setattr(_leveldb, "_BLOCK_SIZE", 500)
    blocks = several(300)
    formats.write(tmp_path / "blocks.ckpt", blocks)
    monkeypatch.undo()
    # What a kill leaves in the middle of a replacement.
    formats.write(tmp_path / "killed.ckpt", several(seed=1))
    monkeypatch.setattr(Path, "replace", _then_fail(Path.replace, after=1))
    with pytest.raises(OutputError, match=r"killed\.ckpt can't be written"):
        formats.write(tmp_path / "killed.ckpt", several(seed=2), force=True)
    assert not data_of(tmp_path / "killed.ckpt").samefile(data_of(tmp_path / "killed.ckpt", 0, 2))
    prefixes = [tmp_path / name for name in ("model.ckpt-30000", "blocks.ckpt", "killed.ckpt")]
    assert run_framework("tensorflow", READ, *prefixes) == [table(tensors), table(blocks), table(several(seed=2))]
    for prefix, expected in zip(prefixes, (tensors, blocks, several(seed=2)), strict=True):
        assert formats.detect(prefix) == "tf-checkpoint"
        same(expected, formats.read(prefix).tensors, ordered=False)


def _then_fail(function: Callable[..., Any], *, after: int) -> Callable[..., Any]:
    calls = 0

    def wrapped(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.EIO, "Input/output error")
        return function(*arguments)

    return wrapped


@pytest.mark.skipif(not index_of(REAL).exists(), reason="the published checkpoint is not at hand")
def test_the_published_checkpoint_comes_out_byte_for_byte(tmp_path):
    copy = tmp_path / "model.ckpt-30000"
    formats.write(copy, formats.read(REAL).tensors)
    for ours, theirs in zip(formats.outputs(copy), formats.outputs(REAL), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path, monkeypatch, links):
    """Every call that changes the folder is preceded and followed by a look at the folder as a kill would leave it."""
    folder, prefix = tmp_path / "folder", tmp_path / "folder/model.ckpt"
    folder.mkdir()
    # Equal sizes: only check sums would tell a mix of both.
    old, new = table(several(seed=1)), table(several(seed=2))
    seen: list[str] = []
    looks = itertools.count()

    def look() -> None:
        copy = tmp_path / f"look{next(looks)}"
        shutil.copytree(folder, copy)
        try:
            found = table(formats.read(copy / "model.ckpt").tensors)
        except FormatError as error:
            assert "no such file" in str(error)
            seen.append("none")
        else:
            seen.append({str(old): "old", str(new): "new"}[str(found)])

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            look()
            result = function(*arguments, **options)
            look()
            return result

        return wrapped

    def no_link(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    for name in ("replace", "unlink", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(os, "link", watched(os.link) if links else no_link)
    formats.write(prefix, several(seed=1))
    assert seen == sorted(seen)
    assert set(seen) == {"none", "old"}
    seen.clear()
    formats.write(prefix, several(seed=2), force=True)
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}
    assert sorted(folder.iterdir()) == sorted(formats.outputs(prefix))


def test_a_replacement_spares_other_data_files(tmp_path):
    prefix = tmp_path / "m.ckpt"
    formats.write(prefix, several())
    other = data_of(prefix, 0, 2)
    other.write_bytes(b"of another index")
    formats.write(prefix, several(2), force=True)
    assert other.read_bytes() == b"of another index"
    assert len(formats.read(prefix).tensors) == 2


def test_outputs_are_refused_where_one_of_the_files_exists(tmp_path):
    prefix = tmp_path / "m.ckpt"
    data, index = formats.outputs(prefix)
    assert (data.name, index.name) == ("m.ckpt.data-00000-of-00001", "m.ckpt.index")
    for existing in (data, index):
        existing.write_bytes(b"mine")
        with pytest.raises(OutputError, match=f"{existing.name} exists"):
            formats.write(prefix, several())
        assert list(tmp_path.iterdir()) == [existing]
        existing.unlink()
    assert formats.outputs(tmp_path / "m.pth") == (tmp_path / "m.pth",)


class Failing(Mapping[str, np.ndarray]):
    """Tensors of which the last one can't be had."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.tensors = several()

    def __getitem__(self, name: str) -> np.ndarray:
        if name == list(self.tensors)[-1]:
            raise self.error
        return self.tensors[name]

    def __iter__(self) -> Any:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (Failing(OSError(errno.ENOSPC, "No space left on device")), "can't be written: No space left"),
        (Failing(FormatError("x.pth: damaged")), "x.pth: damaged"),
        ({"a": np.array(["text"])}, "tensor 'a': format tf-checkpoint can't hold"),
        ({"\ud800": np.ones(1)}, "UTF-8"),
    ],
)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_failure_leaves_everything_as_it_was(tmp_path, tensors, said, replaced):
    prefix = tmp_path / "m.ckpt"
    if replaced:
        formats.write(prefix, several(2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises((OutputError, FormatError), match=said):
        formats.write(prefix, tensors, force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("replaced", [False, True])
def test_a_failure_before_the_new_index_is_in_place_leaves_everything_as_it_was(tmp_path, monkeypatch, replaced):
    prefix = tmp_path / "m.ckpt"
    if replaced:
        formats.write(prefix, several(2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "replace", _then_fail(Path.replace, after=0 if replaced else 1))
    with pytest.raises(OutputError, match="Input/output error"):
        formats.write(prefix, several(3), force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["model.ckpt", "model.ckpt-30000", "a.b.ckpt-0"])
def test_names_of_checkpoints(name):
    assert formats.format_of_suffix(name) == "tf-checkpoint"


@pytest.mark.parametrize("name", [".ckpt", "model.ckpt-", "model-30000", "model.ckpt-a", "model.ckpt.index"])
def test_names_that_are_not_of_checkpoints(name):
    with pytest.raises(FormatError, match="unknown suffix"):
        formats.format_of_suffix(name)


def test_keys_share_their_beginnings_and_start_anew():
    pairs = [(b"%05d" % number, b"v" * (number % 7)) for number in range(100)]
    assert list(_leveldb.entries(_leveldb.table(pairs))) == pairs
    long = [(b"", b""), (b"\xff\xff", b"x"), (b"\xff\xff\xff", b"y" * 300_000), (b"\xff\xff\xff\xff", b"z")]
    assert list(_leveldb.entries(_leveldb.table(long))) == long


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    import tracemalloc

    size = 2**22
    tensors = dict.fromkeys((f"t{i}" for i in range(20)), np.broadcast_to(np.float32(1), (size // 4,)))
    tracemalloc.start()
    _tf_writer.write(tmp_path / "m.ckpt", tensors, "tf-checkpoint")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data_of(tmp_path / "m.ckpt").stat().st_size == 20 * size
    assert peak < 8 * size  # the check sum needs room for a few blocks
