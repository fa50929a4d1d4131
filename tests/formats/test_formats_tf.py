from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from formats_samples import run_framework, table

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats import _leveldb
from deeplabzoo.weights_converter.formats._crc32c import crc32c, mask
from deeplabzoo.weights_converter.formats._guard import Flaw
from deeplabzoo.weights_converter.formats._leveldb import encoded

REAL = Path(__file__).parents[3] / "shared/data/weights/deeplabv3_mnv2_pascal_trainval"

LISTING = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
def listing(prefix):
    reader = tf.train.load_checkpoint(prefix)
    names = [k for k in sorted(reader.get_variable_to_shape_map()) if reader.get_variable_to_dtype_map()[k] != tf.string]
    values = {k: np.asarray(reader.get_tensor(k)) for k in names}
    return {k: [v.dtype.name, list(v.shape), digest(v.tobytes())] for k, v in values.items()}
"""
WRITE = (
    LISTING
    + """
folder = sys.argv[1] + "/"
rng = np.random.default_rng(0)
kinds = ["float32", "float64", "float16", "int32", "int64", "uint8", "int8", "bool", "complex64", "uint16"]
values = {k: tf.constant((rng.normal(size=(5, 300)) * 9).astype(k)) for k in kinds}
values |= {"bfloat16": tf.cast(values["float32"], tf.bfloat16), "scalar": tf.constant(7, tf.int64),
           "empty": tf.zeros((0, 4)), "words": tf.constant(["a", "b"])}
def save(prefix, names):
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names),
                      tensors=[values[k] for k in names])
names = list(values)
os.makedirs(folder + "one"), os.makedirs(folder + "two"), os.makedirs(folder + "sliced")
save(folder + "one/model.ckpt-1", names)
save(folder + "p1", names[:5])
save(folder + "p2", names[5:])
tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[folder + "p1", folder + "p2"], destination_prefix=folder + "two/m",
                              delete_old_dirs=False)
tf.raw_ops.SaveV2(prefix=folder + "sliced/m", tensor_names=["v"], shape_and_slices=["4 2 0,2:0,2"],
                  tensors=[tf.ones((2, 2))])
save(folder + "p1", names[:5])
names = {"v": "stem/kernel", "w": None, "x": "twice", "y": "twice", "z": "x/.ATTRIBUTES/VARIABLE_VALUE"}
model = tf.train.Checkpoint(**{key: tf.Variable([1.0, 2.0], name=name) for key, name in names.items()})
model.write(folder + "object")
print(json.dumps([listing(folder + "one/model.ckpt-1"), listing(folder + "two/m"), listing(folder + "object")]))
"""
)


@pytest.mark.skipif(not REAL.exists(), reason="the published checkpoint is not at hand")
def test_the_published_checkpoint_bit_for_bit():
    expected = run_framework(
        "tensorflow", LISTING + "print(json.dumps(listing(sys.argv[1])))", REAL / "model.ckpt-30000"
    )
    checkpoint = formats.read(REAL)
    assert len(checkpoint.tensors) == 273  # 272 variables and global_step
    assert table(checkpoint.tensors) == expected
    assert list(checkpoint.tensors) == sorted(expected)
    for name in ("model.ckpt-30000", "model.ckpt-30000.index", "model.ckpt-30000.data-00000-of-00001"):
        assert formats.detect(REAL / name) == "tf-checkpoint"
        assert list(formats.read(REAL / name).tensors) == list(checkpoint.tensors)


def test_checkpoints_of_many_types_and_shards(tmp_path):
    one, two, tree = run_framework("tensorflow", WRITE, tmp_path)
    checkpoint = formats.read(tmp_path / "one")
    assert table(checkpoint.tensors) == one
    assert len(one) == 13
    assert checkpoint.notes == ("ignored entries that are no numbers: words (string)",)
    assert len(list((tmp_path / "two").glob("m.data-*"))) == 2
    assert table(formats.read(tmp_path / "two/m").tensors) == two
    objects = formats.read(tmp_path / "object")
    # By the variables' names, but for those that two share, and one that is another's key.
    renamed = {"v": "stem/kernel", "w": "Variable"}
    keys = {key: renamed.get(key, f"{key}/.ATTRIBUTES/VARIABLE_VALUE") for key in "vwxyz"}
    assert table(objects.tensors) == {keys[key[0]]: value for key, value in tree.items()}
    assert objects.notes == ("tensors called by the names of their variables, not by their keys in the file: 2",)
    with pytest.raises(FormatError, match="partitioned"):
        formats.read(tmp_path / "sliced")
    with pytest.raises(FormatError, match="one TensorFlow checkpoint; found object, p1"):
        formats.read(tmp_path)
    next((tmp_path / "two").glob("m.data-00001*")).unlink()
    with pytest.raises(FormatError, match=r"data file m\.data-00001-of-00002 is missing"):
        formats.read(tmp_path / "two")


@pytest.fixture
def copied(tmp_path):
    if not REAL.exists():
        pytest.skip("the published checkpoint is not at hand")
    return Path(shutil.copytree(REAL, tmp_path / "copy", copy_function=shutil.copyfile)) / "model.ckpt-30000"


def test_a_flipped_bit_is_noticed(copied):
    data = Path(f"{copied}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.chmod(0o644)
    data.write_bytes(content)
    tensors = formats.read(copied).tensors
    failures = 0
    for name in tensors:
        try:
            assert tensors[name].size
        except FormatError as error:
            failures += 1
            assert "check sum" in str(error)
    assert failures == 1


def test_truncation_is_noticed_everywhere(copied):
    index, data = Path(f"{copied}.index"), Path(f"{copied}.data-00000-of-00001")
    whole = index.read_bytes()
    for path in (index, data):
        path.chmod(0o644)
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(FormatError, match="truncated"):
        formats.read(copied)
    for cut in (0, 1, 8, 47, 48, len(whole) // 2, len(whole) - 1):
        index.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            formats.read(copied)
        index.write_bytes(whole[len(whole) - cut :])
        with pytest.raises(FormatError):
            formats.read(copied)


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(FormatError, match="a folder"):
        formats.read(tmp_path)


def _slow_crc32c(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 * (state & 1))
    return state ^ 0xFFFFFFFF


def test_crc32c_against_published_values_and_the_definition():
    assert crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283
    assert crc32c(np.zeros(32, np.uint8)) == 0x8A9136AA
    assert crc32c(np.full(32, 255, np.uint8)) == 0x62A8AB43
    data = np.random.default_rng(0).integers(0, 256, 9000, dtype=np.uint8)
    for size in (*range(40), 255, 256, 257, 4095, 4097, 9000):
        assert crc32c(data[:size]) == _slow_crc32c(data[:size].tobytes())


def test_snappy():
    # Literals, and copies with one, two and four bytes of distance, the first of which overlaps itself.
    assert _leveldb.snappy(b"\x03\x08abc") == b"abc"
    assert _leveldb.snappy(b"\x08\x00a" + bytes([(7 - 4) << 2 | 1, 1])) == b"a" * 8
    assert _leveldb.snappy(b"\x06\x08abc" + bytes([(3 - 1) << 2 | 2, 3, 0])) == b"abcabc"
    assert _leveldb.snappy(b"\x06\x08abc" + bytes([(3 - 1) << 2 | 3, 3, 0, 0, 0])) == b"abcabc"
    assert _leveldb.snappy(b"\x64" + bytes([60 << 2, 99]) + b"x" * 100) == b"x" * 100
    for bad in (b"", b"\x05\x08abc", b"\x08\x00a\x0d\x02", b"\xff\xff\xff\xff\x0f", b"\x08\x00a\x0d", b"\x03\x20a"):
        with pytest.raises(Flaw):
            _leveldb.snappy(bad)


def _table(block: bytes, contents: bytes | None = None, compression: int = 0) -> bytes:
    """Return a table of one block by hand, or with this table of contents."""

    def sealed(data: bytes, kind: int) -> bytes:
        data += bytes([kind])
        return data + mask(crc32c(np.frombuffer(data, np.uint8))).to_bytes(4, "little")

    handle = b"\0" + encoded(len(block))
    first = sealed(block, compression)
    contents = b"\0\x01" + encoded(len(handle)) + b"x" + handle if contents is None else contents
    last = contents + NO_RESTARTS
    footer = (b"\0\0" + encoded(len(first)) + encoded(len(last))).ljust(40, b"\0") + _leveldb.MAGIC
    return first + sealed(last, 0) + footer


NO_RESTARTS = b"\0\0\0\0\x01\0\0\0"
HEADER = b"\0\0\x02\x08\x01"
LONG = b"\0" + encoded(60_000) + b"\x02" + b"k" * 60_000 + b"\x08\x07"


@pytest.mark.parametrize(
    ("index", "said"),
    [
        # A key of a few bytes that repeats a long one, a hundred thousand times over.
        (_table(HEADER + LONG + (encoded(60_000) + b"\0\x02\x08\x07") * 100_000 + NO_RESTARTS), "more than 67108864"),
        (_table(b"\0" + encoded(10**5) + b"\x02" + b"k" * 10**5 + b"\x08\x07" + NO_RESTARTS), "takes 100000 bytes"),
        (_table(HEADER + b"\x00\x01\x02k\x08\x07" * 60_000 + NO_RESTARTS), "more than 50000 entries"),
        (_table(NO_RESTARTS, b"\0\x01\x02x\0\x08" * 100_000), "too many"),
        # A copy of a byte four million times over, and more than was promised.
        (_table(encoded(2**20) + b"\0a" + b"\xfe\x01\0" * 2**18, compression=1), "claims 1048576 bytes"),
    ],
)
def test_indexes_that_would_take_for_ever_are_refused_soon(tmp_path, index, said):
    (tmp_path / "m.index").write_bytes(index)
    start = time.monotonic()
    with pytest.raises(FormatError, match=said):
        formats.read(tmp_path / "m")
    assert time.monotonic() - start < 20
