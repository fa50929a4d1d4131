"""Trees, tables and messages made to cost, to loop or to lead elsewhere."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from formats_hostile import HOSTILE, attack, keras_parts, plain, zipped
from formats_targets import KERNEL, graph_node, index, table_block
from wire import counted, flat, number, packed, varint

from deeplabzoo.weights_converter import formats

# HDF5.


def _h5(name: str, said: str | None, fill: Callable[[h5py.File], object]) -> None:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "x.weights.h5", "w") as file:
            file["ok/vars/0"] = KERNEL
            fill(file)
        return folder / "x.weights.h5"

    HOSTILE[name] = make, said


def _plugin(file: h5py.File) -> None:
    space, plist = h5py.h5s.create_simple((4,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)  # blosc
    h5py.h5d.create(file["ok/vars"].id, b"1", h5py.h5t.NATIVE_FLOAT, space, plist)


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2**40,), "f4")
    layout[:2] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset("ok/vars/1", layout)


def _names(file: h5py.File) -> None:
    file["ok/vars"].attrs.create("name", np.array(["x" * 10_000] * 1000, object))


_h5(
    "an HDF5 link to another file",
    "ExternalLink",
    lambda f: f.__setitem__("ok/vars/1", h5py.ExternalLink("/etc/x", "/")),
)
_h5("an HDF5 link to itself", "SoftLink", lambda f: f.__setitem__("ok/vars/1", h5py.SoftLink("/ok/vars/1")))
_h5(
    "HDF5 links in a circle",
    "SoftLink",
    lambda f: (f.__setitem__("p", h5py.SoftLink("/q")), f.__setitem__("q", h5py.SoftLink("/p"))),
)
_h5("an HDF5 group in itself", "holds itself", lambda f: f.__setitem__("ok/vars/loop", f["ok"]))
_h5(
    "one HDF5 dataset under a thousand names",
    "there twice",
    lambda f: [f.__setitem__(f"ok/vars/{i}", f["ok/vars/0"]) for i in range(1, 1000)],
)
_h5(
    "HDF5 data in another file",
    "another file",
    lambda f: f.create_dataset("ok/vars/1", (10,), "u1", external=[("/etc/passwd", 0, 10)]),
)
_h5("a virtual HDF5 dataset", "another file", _virtual)
_h5("an HDF5 filter from a plug-in", "filter", _plugin)
_h5(
    "HDF5 chunks that are not there",
    "the file holds",
    lambda f: f.create_dataset("ok/vars/1", (2**40,), "f4", chunks=(1024,), compression="gzip"),
)
_h5(
    "an HDF5 chunk of four gigabytes",
    "the file holds",
    lambda f: f.create_dataset("ok/vars/1", (2**30,), "f4", chunks=(2**29,), compression="gzip"),
)
_h5("HDF5 data that is not there", "the file holds", lambda f: f.create_dataset("ok/vars/1", (2**45,), "f8"))
_h5(
    "an HDF5 fill value for a terabyte",
    "the file holds",
    lambda f: f.create_dataset("ok/vars/1", (2**38,), "f4", fillvalue=1, chunks=(2**20,)),
)
_h5("HDF5 groups in groups", "too deep", lambda f: f.require_group("/".join("abcdefgh" * 20)))
_h5("five thousand HDF5 groups", None, lambda f: [f.create_group(f"g{i}") for i in range(5000)])
_h5("ten megabytes of HDF5 attributes", None, _names)
_h5("an HDF5 reference", None, lambda f: f.create_dataset("ok/vars/1", data=f.ref, dtype=h5py.ref_dtype))
_h5(
    "an HDF5 type of five hundred fields",
    None,
    lambda f: f.create_dataset("ok/vars/1", (1,), np.dtype([(f"f{i}", "u1") for i in range(500)])),
)
_h5(
    "HDF5 text of no fixed length as a tensor",
    None,
    lambda f: f.create_dataset("ok/vars/1", data=["x"] * 9, dtype=h5py.string_dtype()),
)
zipped(
    "code in the configuration of a Keras model", None, "x.keras",
    lambda: keras_parts() | {"config.json": json.dumps({"class_name": "Lambda", "config": {"function": ["4wEAAAA=", None, None]}}).encode()},
)  # fmt: skip


# TensorFlow.

_HEADER = (b"", b"\x08\x01\x1a\x02\x08\x01")


def _bundle(entries: bytes, kind: int = 0) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "m.ckpt.index").write_bytes(index(entries, kind))
        (folder / "m.ckpt.data-00000-of-00001").write_bytes(bytes(2**20))
        return folder / "m.ckpt"

    return make


def _described(size: int, offset: int = 0, shape: tuple[int, ...] | None = None) -> bytes:
    dims = b"".join(counted(2, number(1, n)) for n in ((size // 4,) if shape is None else shape))
    return number(1, 1) + counted(2, dims) + number(4, offset) + number(5, size) + b"\x35\0\0\0\0"


HOSTILE |= {
    "tensors of a checkpoint that overlap": (
        _bundle(table_block([_HEADER, *((b"%05d" % i, _described(2**20)) for i in range(5000))])),
        "overlaps",
    ),
    "a tensor of a checkpoint with a huge shape": (_bundle(table_block([_HEADER, (b"a", _described(8, 0, (2**40, 2**40)))])), "takes"),
    "an offset of a checkpoint beyond its data": (_bundle(table_block([_HEADER, (b"a", _described(8, 2**62))])), "truncated"),
    "a restart count beyond the block": (_bundle(table_block([_HEADER])[:-4] + b"\xff\xff\xff\x7f"), "more entries than"),
    "a key that shares more than there is": (_bundle(b"\x7f\x01\x01aa" + b"\0\0\0\0\x01\0\0\0"), "leaves its block"),
    "keys that repeat a long beginning": (
        _bundle(b"\0" + varint(60_000) + b"\0" + b"k" * 60_000 + (varint(60_000) + b"\0\0") * 100_000 + b"\0\0\0\0\1\0\0\0"),
        "names in the index|element type",
    ),
    "snappy that claims gigabytes": (_bundle(varint(2**32) + b"\0a", 1), "claims"),
    "snappy that repeats": (_bundle(varint(2**25) + b"\0a" + b"\xfe\1\0" * 500_000, 1), "damaged|truncated"),
    "snappy that points before its beginning": (_bundle(varint(9) + b"\0a\xfe\xff\xff", 1), "before its beginning"),
    "an unknown compression": (_bundle(table_block([_HEADER]), 7), "not known"),
}  # fmt: skip


@attack("block handles that all lead to one block", "overlap|too many")
def _handles(folder: Path) -> Path:
    whole = index(table_block([_HEADER, (b"a", _described(4))]))
    size = varint(len(table_block([_HEADER, (b"a", _described(4))])))
    contents = table_block([(b"%04d" % i, varint(0) + size) for i in range(4000)])
    sealed = index(contents)[: len(contents) + 5]
    body = whole[: int.from_bytes(size, "little") + 5] + sealed
    footer = varint(0) + varint(0) + varint(len(body) - len(sealed)) + varint(len(contents))
    (folder / "m.ckpt.index").write_bytes(body + footer.ljust(40, b"\0") + whole[-8:])
    (folder / "m.ckpt.data-00000-of-00001").write_bytes(bytes(2**20))
    return folder / "m.ckpt"


def _constant(count: int, values: bytes) -> bytes:
    return counted(8, number(1, 1) + counted(2, counted(2, number(1, count))) + values)


def _nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = counted(1, inner)
    return inner


plain(
    "constants of one value that claim gigabytes", "not all in the file", "x.pb",
    lambda: b"".join(
        graph_node(f"w{i}", "Const", value=_constant(2**24, counted(5, b"\0\0\x80?"))) + graph_node(f"c{i}", "Conv2D", "x", f"w{i}")
        for i in range(500)
    ),
)  # fmt: skip
plain(
    "nodes whose inputs are a circle",
    "without weights",
    "x.pb",
    lambda: (
        b"".join(graph_node(f"n{i}", "Identity", f"n{(i + 1) % 999}") for i in range(999))
        + graph_node("c", "Conv2D", "x", "n0")
    ),
)
plain(
    "operations that read and run",
    None,
    "x.pb",
    lambda: (
        graph_node("f", "ReadFile", "x")
        + graph_node("p", "PyFunc", "x")
        + graph_node("w", "Const", value=_constant(2, counted(4, bytes(8))))
        + graph_node("c", "Conv2D", "x", "w")
    ),
)
plain(
    "a message in a message, ten thousand deep",
    "fields|damaged|not a checkpoint|holds|layers|ends early",
    "x.onnx",
    lambda: number(1, 9) + counted(7, _nested(10_000)),
)
plain(
    "a hundred thousand empty nodes",
    "holds no|no initialisers",
    "x.onnx",
    lambda: number(1, 9) + counted(7, counted(2, "g") + b"\x0a\0" * 100_000),
)
plain(
    "millions of fields", "fields", "x.onnx", lambda: number(1, 9) + counted(7, counted(2, "g") + b"\x50\0" * 3_000_000)
)
plain(
    "a length beyond the file",
    "early",
    "x.caffemodel",
    lambda: counted(1, "net") + counted(100, counted(1, "a") + counted(2, "b") + b"\x3a\xff\xff\xff\x7f"),
)
plain(
    "a blob of exabytes",
    "takes",
    "x.caffemodel",
    lambda: counted(
        100,
        counted(1, "a")
        + counted(2, "b")
        + counted(7, counted(7, counted(1, packed([2**40, 2**20]))) + counted(5, bytes(4))),
    ),
)


@attack("ONNX data that lead out of the folder", "the name of a file")
def _outside(folder: Path) -> Path:
    entry = counted(13, counted(1, "location") + counted(2, "../../../../etc/passwd"))
    tensor = number(1, 4) + number(2, 1) + counted(8, "w") + entry + number(14, 1)
    (folder / "x.onnx").write_bytes(number(1, 9) + counted(7, counted(2, "g") + counted(5, tensor)))
    return folder / "x.onnx"


# Flat buffers.


def _lite(tensors: list[dict[int, object]], buffers: list[dict[int, object]]) -> bytes:
    return flat({0: ("I", 3), 2: [{0: tensors, 1: [0], 2: [0], 3: []}], 4: buffers})


plain(
    "a flat buffer whose tables are one another",
    "damaged|no network|no constants",
    "x.tflite",
    lambda: (
        struct.pack("<I4s", 8, b"TFL3")
        + struct.pack("<iHHHHHH", -4, 12, 8, 4, 4, 4, 4)
        + struct.pack("<I", 2**32 - 8) * 4
    ),
)
plain(
    "a vector of four billion tables",
    "damaged",
    "x.tflite",
    lambda: _lite([{0: [1], 3: "a"}], [{}]).replace(struct.pack("<I", 1), struct.pack("<I", 2**32 - 1)),
)
plain(
    "tensors of a flat buffer that are one buffer", "overlap", "x.tflite",
    lambda: _lite([{0: [2**18], 1: ("B", 0), 2: ("I", 1), 3: f"t{i}"} for i in range(2000)], [{}, {0: bytes(2**20)}]),
)  # fmt: skip


# Folders.


def _hub(folder: Path, config: bytes, placed: object = None) -> Path:
    (folder / "config.json").write_bytes(config)
    formats.write(folder / "model-1.safetensors", {"a": KERNEL})
    if placed is None:
        (folder / "model-1.safetensors").rename(folder / "model.safetensors")
    else:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


for _name in ("../x.safetensors", "/etc/passwd", "sub/../../x", "..", "model\\x", "a\0b"):
    HOSTILE[f"an index of the hub that leads to {_name!r}"] = (
        lambda folder, name=_name: _hub(folder, b"{}", {"a": name}),
        "same folder",
    )
HOSTILE |= {
    "an index of the hub that is its own shard": (
        lambda folder: _hub(folder, b"{}", {"a": "model.safetensors.index.json"}), "damaged|not a",
    ),
    "an index of the hub of fifty thousand tensors": (
        lambda folder: _hub(folder, b"{}", {str(i): "model-1.safetensors" for i in range(50_000)}), "do not hold them",
    ),
    "a deep configuration of the hub": (lambda folder: _hub(folder, b"[" * 10**6), "damaged"),
    "a long configuration of the hub": (lambda folder: _hub(folder, b" " * 10**8), "the limit is"),
}  # fmt: skip


@attack("a pipe in the place of a file", "not a regular file")
def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


@attack("a link that leads to itself", "no such file|damaged|symbolic")
def _circle(folder: Path) -> Path:
    (folder / "x.pth").symlink_to(folder / "x.pth")
    return folder / "x.pth"


@attack("a device in the place of a file", "not a regular file")
def _device(folder: Path) -> Path:
    (folder / "x.pth").symlink_to("/dev/zero")
    return folder / "x.pth"
