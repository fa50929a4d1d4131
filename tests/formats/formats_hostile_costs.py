"""Small files that would take hours or gigabytes: what is cheap to say once and dear to do, a million times over."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from formats_hostile import HOSTILE, attack, keras_parts, plain, zipped
from formats_payloads import called, name, text
from formats_targets import KERNEL, archive, index, npy, table_block, torch_pickle
from wire import varint

# Pickles.

SAME_HASH = 2**61 - 1  # whole numbers that differ by a multiple of it have equal hashes


def _pickle(title: str, said: str, program: Callable[[], bytes]) -> None:
    plain(title, said, "x.pdparams", lambda: b"\x80\x04" + program() + b"}.")


def _integer(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(data)]) + data


_pickle(
    "keys of equal hashes", "for a key",
    lambda: b"}(" + b"".join(_integer(i * SAME_HASH) + b"N" for i in range(50_000)) + b"u0",
)  # fmt: skip
_pickle(
    "keys that are tuples", "for a key",
    lambda: b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"\x85N" for i in range(50_000)) + b"u0",
)  # fmt: skip
_pickle(
    "numbers in the memo of equal hashes", "keeps a value",
    lambda: b"N" + b"".join(b"p%d\n" % (i * SAME_HASH) for i in range(50_000)) + b"0",
)  # fmt: skip
_pickle(
    "half a million arguments twenty thousand times", "arguments",
    lambda: b"(" + b"N" * 500_000 + b"tq\x010cargparse\nNamespace\nq\x020" + b"h\x02h\x01R0" * 20_000,
)  # fmt: skip
_pickle(
    "names made of long texts", "a name of 4000 characters",
    lambda: text("a" * 4000) + b"q\x010" + text("B" * 4000) + b"q\x020" + b"h\x01h\x02\x93" * 100_000,
)  # fmt: skip
_pickle(
    "long attributes of classes", "builtins.getattr",
    lambda: b"cbuiltins\ngetattr\nq\x010cpkg\nThing\n" + text("B" * 4000) + b"\x86q\x020" + b"h\x01h\x02R" * 100_000,
)  # fmt: skip
_pickle("names of strangers", "50000 objects", lambda: text("pkg") + b"q\x010" + b"h\x01h\x01\x93" * 100_000)
_pickle("calls of strangers", "50000 objects", lambda: name("pkg", "Thing") + b"q\x010" + b"h\x01)R" * 100_000)
_pickle(
    "short texts of four bytes a character", "short strings",
    lambda: (b"X" + struct.pack("<I", 4096) + b"a" * 4092 + "\U0001f600".encode()) * 8500,
)  # fmt: skip
_pickle("dictionaries, each kept", "1000000 steps", lambda: b"}\x94" * 600_000)
_pickle(
    "a call with a long name for a class", "without a tuple",
    lambda: name("p" * 250, "T" * 250) + b"NR" + called("os", "system", "true"),
)  # fmt: skip


def _shapes_of_ones() -> dict[str, bytes]:
    key = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x18tQ"
    shape = b"(" + b"K\x01" * 31 + b"l"
    first = b"ctorch._utils\n_rebuild_tensor_v2\nq\x010(" + key + b"K\0" + shape * 2 + b"\x89}tq\x020"
    return {"a/data.pkl": b"\x80\x02" + first + b"h\x01h\x02R" * 100_000 + b"}.", "a/data/0": bytes(96)}


zipped("tensors of many axes without end", "50000 objects", "x.pth", _shapes_of_ones)
HOSTILE["a kind of object in a note"] = (
    lambda folder: archive(
        folder / "x.pth",
        {
            "a/data.pkl": torch_pickle().replace(
                b"X\x05\0\0\0epochK\x07", text("x") + name("p" * 250, "T" * 250) + b")R"
            ),
            "a/data/0": KERNEL.tobytes(),
        },
    ),
    None,
)


# Archives.


def _described(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


zipped("a header that fits in a million ways", "damaged", "x.npz", lambda: {"a.npy": _described("1" * 40 + "x")})
zipped(
    "zeros that shrink to nothing", "shrink too much", "x.npz", lambda: {"a.npy": npy(np.zeros(2**25, "f4"))}, zipfile.ZIP_DEFLATED
)  # fmt: skip
zipped(
    "entries with long names", "the limit is|not a checkpoint", "x.npz",
    lambda: {f"{i}{'n' * 1000}.npy": b"" for i in range(4500)},
)  # fmt: skip


# HDF5 and what tells the names of its layers.


@attack("HDF5 zeros that shrink to nothing", "shrink too much")
def _zeros(folder: Path) -> Path:
    with h5py.File(folder / "x.weights.h5", "w") as file:
        file.create_dataset("a/vars/0", data=np.zeros(2**25, "f4"), chunks=(2**22,), compression="gzip")
    return folder / "x.weights.h5"


@attack("HDF5 groups whose names add up", "a name of")
def _long_paths(folder: Path) -> Path:
    with h5py.File(folder / "x.weights.h5", "w") as file:
        group = file
        for number in range(60):
            group = group.create_group("n" * 30_000 + str(number))
        for number in range(1000):
            group.create_group(str(number))
    return folder / "x.weights.h5"


@attack("ten thousand HDF5 groups", "more than 10000 objects")
def _many_groups(folder: Path) -> Path:
    with h5py.File(folder / "x.weights.h5", "w") as file:
        for number in range(10_001):
            file.create_group(str(number))
    return folder / "x.weights.h5"


def _model(layers: object, name: str = "Functional") -> dict[str, object]:
    return {"class_name": name, "config": {"layers": layers}}


def _configured(title: str, config: Callable[[], object]) -> None:
    """A .keras whose configuration has a convolution, as its weights do, and more."""
    zipped(
        title,
        None,
        "x.keras",
        lambda: {**keras_parts(), "config.json": json.dumps(config(), separators=(",", ":")).encode()},
    )


def _deep() -> object:
    config = _model([{"class_name": "Layer"}] * 20_000)
    for _ in range(15):
        config = _model([config], "C" * 100_000)
    return _model([{"class_name": "Conv2D"}, config])


_configured("models in models with long names", _deep)
_configured("a hundred thousand models", lambda: _model([{"class_name": "Conv2D"}] + [_model([], "M")] * 80_000))


@attack("a preset whose class has a long name", "names the class")
def _preset(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"class_name": "a" * 1_000_000}))
    with h5py.File(folder / "model.weights.h5", "w") as file:
        for number in range(1000):
            file[f"layers/l{number}/vars/0"] = np.ones(1, "f4")
    return folder


# TensorFlow.


@attack("an entry of a checkpoint that is all fields", "for the rest")
def _fields(folder: Path) -> Path:
    block = table_block([(b"", b"\x08\x01\x1a\x02\x08\x01"), (b"a", b"\x08\x01" * 2**23)])
    repeats, rest = divmod(len(block) - 68, 64)
    body = b"\xfe\x02\0" * repeats + (bytes([(rest - 1) << 2 | 2]) + b"\x02\0" if rest else b"")
    packed = varint(len(block)) + bytes([59 << 2]) + block[:60] + body + bytes([7 << 2]) + block[-8:]
    (folder / "m.ckpt.index").write_bytes(index(packed, 1))
    (folder / "m.ckpt.data-00000-of-00001").write_bytes(bytes(8))
    return folder / "m.ckpt"
