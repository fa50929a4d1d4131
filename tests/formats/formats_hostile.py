"""Files that lie about themselves: archives, tables, trees and messages made to cost, to loop or to lead elsewhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from formats_payloads import text
from formats_targets import KERNEL, LEGACY_HEAD, archive, graph_node, index, npy, table_block, torch_pickle
from wire import counted, flat, number, packed, varint

from deeplabzoo.weights_converter import formats

BIG = np.zeros(2**20, "f4")

HOSTILE: dict[str, tuple[Callable[[Path], Path], str | None]] = {}
"""By name: what makes the file in a folder, and what its refusal says; None where it is read and does no harm."""


def _attack(name: str, said: str | None) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        HOSTILE[name] = make, said
        return make

    return register


def _plain(name: str, said: str | None, file: str, content: Callable[[], bytes]) -> None:
    def make(folder: Path) -> Path:
        (folder / file).write_bytes(content())
        return folder / file

    HOSTILE[name] = make, said


def _zipped(name: str, said: str | None, file: str, entries: Callable[[], dict[str, bytes]], kind: int = 0) -> None:
    HOSTILE[name] = lambda folder: archive(folder / file, entries(), kind), said


# Zip archives.

SOUND = {"a/data.pkl": torch_pickle(), "a/data/0": KERNEL.tobytes()}


def _keras_parts() -> dict[str, bytes]:
    file = io.BytesIO()
    with h5py.File(file, "w") as made:
        made["layers/conv2d/vars/0"] = KERNEL
    return {"config.json": b"{}", "model.weights.h5": file.getvalue()}


for _name in ("../../evil", "/etc/evil", "a/../../evil", "C:\\evil", "..\\..\\evil"):
    _zipped(f"zip slip in torch, {_name}", None, "x.pth", lambda name=_name: {**SOUND, name: b"x"})
    _zipped(f"zip slip in keras, {_name}", None, "x.keras", lambda name=_name: {**_keras_parts(), name: b"x"})
    _zipped(
        f"zip slip in npz, {_name}", "leads elsewhere|not a checkpoint", "x.npz",
        lambda name=_name: {"a.npy": npy(KERNEL), f"{name}.npy": npy(KERNEL)},
    )  # fmt: skip


@_attack("a zip entry that is a link", None)
def _link(folder: Path) -> Path:
    path = archive(folder / "x.pth", SOUND)
    with zipfile.ZipFile(path, "a") as opened:
        info = zipfile.ZipInfo("a/data/1")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        opened.writestr(info, "/etc/passwd")
    return path


@_attack("a name twice in a zip", "a name twice|damaged or truncated|not a checkpoint")
def _twice(folder: Path) -> Path:
    path = archive(folder / "x.pth", SOUND)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as opened:
        warnings.simplefilter("ignore")
        opened.writestr("a/data.pkl", b"\x80\x02cos\nsystem\n.")
    return path


def _bomb() -> bytes:
    """Ten megabytes of zeros, and the like in an archive in an archive."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros", bytes(10_000_000))
    return inner.getvalue()


_zipped("a nested zip bomb beside tensors", None, "x.pth", lambda: {**SOUND, "a/bomb.zip": _bomb()})
_zipped("a pickle that is a bomb", "compressed", "x.pth", lambda: {**SOUND, "a/data.pkl": b"N0" * 10**7}, 8)
_zipped("an array that is a bomb", "takes", "x.npz", lambda: {"a.npy": npy(KERNEL) + bytes(10**8)}, 8)
_zipped(
    "weights that are a bomb",
    "do not shrink",
    "x.keras",
    lambda: _keras_parts() | {"model.weights.h5": bytes(10**8)},
    8,
)
_zipped(
    "a configuration that is a bomb",
    "the limit is",
    "x.keras",
    lambda: _keras_parts() | {"config.json": b" " * 10**8},
    8,
)


def _overlapping(folder: Path, kernel: bytes, names: list[str], *, quoted: bool) -> Path:
    """Entries that are all the same bytes; `quoted`: each holds the header of the next, and ends where the last does."""
    path = folder / "x.npz"
    inflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = inflater.compress(kernel) + inflater.flush()
    body, places = b"", []
    if quoted:
        tail = struct.pack("<4s5HIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, zlib.crc32(kernel), len(data), len(kernel), 5, 0)
        tail += b"z.npy" + data
        for name in reversed(names):
            header = struct.pack("<4s5HIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, 0, 0, 0, len(name), 5) + name.encode()
            tail = header + struct.pack("<BHH", 0, len(tail) % 65536, ~len(tail) % 65536) + tail
        body = tail
        places = [(i, name) for i, name in enumerate(names)]
    else:
        header = struct.pack("<4s5HIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, zlib.crc32(kernel), len(data), len(kernel), 5, 0)
        body = header + b"a.npy" + data
        places = [(0, name) for name in names]
    listing = b"".join(
        struct.pack(
            "<4s6HIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, 0, 0, zlib.crc32(kernel), len(body) - 40 - at, len(kernel),
            len(name), 0, 0, 0, 0, 0, at * (35 + len(name)) if quoted else 0,
        ) + name.encode()
        for at, name in places
    )  # fmt: skip
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, len(names), len(names), len(listing), len(body), 0)
    path.write_bytes(body + listing + end)
    return path


_NAMES = [f"{i:04d}.npy" for i in range(1000)]
HOSTILE["entries that are the same bytes"] = (
    lambda folder: _overlapping(folder, npy(BIG), _NAMES, quoted=False),
    "overlaps|damaged or truncated",
)
HOSTILE["entries that hold one another"] = (
    lambda folder: _overlapping(folder, npy(BIG[:1000]), _NAMES[:50], quoted=True),
    "overlaps|damaged or truncated",
)


@_attack("a list of entries that claims two gigabytes", "damaged|truncated|limit")
def _long_list(folder: Path) -> Path:
    path = archive(folder / "x.pth", SOUND)
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = (2**31).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    return path


@_attack("twenty thousand entries", None)
def _many_entries(folder: Path) -> Path:
    return archive(folder / "x.pth", {**SOUND, **{f"a/x/{i}": b"" for i in range(20_000)}})


# Tensors of torch and Paddle.


@_attack("torch's archive of before 2017", "tar archive")
def _tar(folder: Path) -> Path:
    path = folder / "x.pth"
    with tarfile.open(path, "w") as opened:
        for name, data in (("pickle", b"cos\nsystem\n."), ("../storages", b"x"), ("tensors", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return path


def _many(tensor: bytes, count: int) -> bytes:
    """A dictionary where the value that `tensor` pushes stands under many names."""
    again = b"".join(text(f"t{i}") + b"h\xff" for i in range(count))
    return b"\x80\x02}(" + text("t") + tensor + b"q\xff" + again + b"u."


def _storage(count: int) -> bytes:
    key = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    numbers = b"J" + struct.pack("<i", count)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + numbers + b"tQK\0(" + numbers + b"t(K\x01t\x89"
        b"ccollections\nOrderedDict\n)RtR"
    )


_zipped(
    "torch tensors that are all the same storage", "share their bytes", "x.pth",
    lambda: {"a/data.pkl": _many(_storage(10**6), 50_000), "a/data/0": bytes(4 * 10**6)},
)  # fmt: skip
_zipped(
    "a torch storage of two gigabytes", "claims", "x.pth", lambda: {**SOUND, "a/data.pkl": _many(_storage(2**29), 1)}
)
_plain(
    "an old torch storage of a negative size", "claims -1", "x.pth",
    lambda: LEGACY_HEAD + torch_pickle() + pickle.dumps(["0"], 2) + struct.pack("<q", -1),
)  # fmt: skip
_plain(
    "an old torch file that lists storages without end", "claims|truncated", "x.pth",
    lambda: LEGACY_HEAD + torch_pickle() + pickle.dumps(["0"] * 100_000, 2) + struct.pack("<q", 24) + KERNEL.tobytes(),
)  # fmt: skip
_plain(
    "Paddle's tensors that are all the same array", "share their bytes", "x.pdparams",
    lambda: pickle.dumps(dict.fromkeys(map(str, range(5000)), BIG), 4),
)  # fmt: skip
_plain(
    "text of Paddle that is not as long as it says", "takes|bytes", "x.pdparams",
    lambda: pickle.dumps({"a": KERNEL}, 2).replace(b"K\x02K\x03", b"K\x7fK\x7f"),
)  # fmt: skip


# safetensors.


def _header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def _entry(shape: list[object], offsets: list[object], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


_plain("a safetensors header longer than the file", "claims", "x.st", lambda: _header(b"{", length=10**8))
_plain("a safetensors header of a hundred megabytes", "damaged", "x.st", lambda: _header(b"{" + b" " * (10**8 - 2)))
_plain("deep JSON", "damaged", "x.st", lambda: _header(b'{"a":' * 10**6))
_plain("a long number in JSON", "damaged", "x.st", lambda: _header(b'{"a":' + b"9" * 10**6 + b"}"))
_plain(
    "NaN in JSON",
    "whole numbers",
    "x.st",
    lambda: _header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"abcd"),
)
_plain(
    "infinity in JSON",
    "whole numbers",
    "x.st",
    lambda: _header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'),
)
_plain("a name twice in JSON", "name twice", "x.st", lambda: _header(b'{"a":{},"a":{}}'))
_plain(
    "tensors that overlap",
    "overlaps",
    "x.st",
    lambda: _header({"a": _entry([2], [0, 8]), "b": _entry([2], [4, 12])}, bytes(12)),
)
_plain(
    "a hole between tensors",
    "hole",
    "x.st",
    lambda: _header({"a": _entry([1], [0, 4]), "b": _entry([1], [8, 12])}, bytes(12)),
)
_plain("bytes after the tensors", "overlong", "x.st", lambda: _header({"a": _entry([1], [0, 4])}, bytes(8)))
_plain("a negative size", "whole numbers", "x.st", lambda: _header({"a": _entry([-1, -4], [0, 16])}, bytes(16)))
_plain("sizes whose product overflows", "takes", "x.st", lambda: _header({"a": _entry([2**32, 2**32], [0, 0])}))
_plain("thirty thousand empty tensors", None, "x.st", lambda: _header({str(i): _entry([0], [0, 0]) for i in range(30_000)}))


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
_zipped(
    "code in the configuration of a Keras model", None, "x.keras",
    lambda: _keras_parts() | {"config.json": json.dumps({"class_name": "Lambda", "config": {"function": ["4wEAAAA=", None, None]}}).encode()},
)  # fmt: skip


# npz.


def _npy_header(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


_zipped(
    "code in the header of an array",
    "objects",
    "x.npz",
    lambda: {"a.npy": _npy_header("__import__('os').system('true')")},
)
_zipped("a header that is deep", "objects", "x.npz", lambda: {"a.npy": _npy_header("(" * 9000)})
_zipped(
    "an array of terabytes", "takes", "x.npz",
    lambda: {"a.npy": _npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", bytes(8))},
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


@_attack("block handles that all lead to one block", "overlap|too many")
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


_plain(
    "constants of one value that claim gigabytes", "not all in the file", "x.pb",
    lambda: b"".join(
        graph_node(f"w{i}", "Const", value=_constant(2**24, counted(5, b"\0\0\x80?"))) + graph_node(f"c{i}", "Conv2D", "x", f"w{i}")
        for i in range(500)
    ),
)  # fmt: skip
_plain(
    "nodes whose inputs are a circle",
    "without weights",
    "x.pb",
    lambda: (
        b"".join(graph_node(f"n{i}", "Identity", f"n{(i + 1) % 999}") for i in range(999))
        + graph_node("c", "Conv2D", "x", "n0")
    ),
)
_plain(
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
_plain(
    "a message in a message, ten thousand deep",
    "fields|damaged|not a checkpoint|holds|layers|ends early",
    "x.onnx",
    lambda: number(1, 9) + counted(7, _nested(10_000)),
)
_plain(
    "a hundred thousand empty nodes",
    "holds no|no initialisers",
    "x.onnx",
    lambda: number(1, 9) + counted(7, counted(2, "g") + b"\x0a\0" * 100_000),
)
_plain(
    "millions of fields", "fields", "x.onnx", lambda: number(1, 9) + counted(7, counted(2, "g") + b"\x50\0" * 3_000_000)
)
_plain(
    "a length beyond the file",
    "early",
    "x.caffemodel",
    lambda: counted(1, "net") + counted(100, counted(1, "a") + counted(2, "b") + b"\x3a\xff\xff\xff\x7f"),
)
_plain(
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


@_attack("ONNX data that lead out of the folder", "the name of a file")
def _outside(folder: Path) -> Path:
    entry = counted(13, counted(1, "location") + counted(2, "../../../../etc/passwd"))
    tensor = number(1, 4) + number(2, 1) + counted(8, "w") + entry + number(14, 1)
    (folder / "x.onnx").write_bytes(number(1, 9) + counted(7, counted(2, "g") + counted(5, tensor)))
    return folder / "x.onnx"


# Flat buffers.


def _lite(tensors: list[dict[int, object]], buffers: list[dict[int, object]]) -> bytes:
    return flat({0: ("I", 3), 2: [{0: tensors, 1: [0], 2: [0], 3: []}], 4: buffers})


_plain(
    "a flat buffer whose tables are one another",
    "damaged|no network|no constants",
    "x.tflite",
    lambda: (
        struct.pack("<I4s", 8, b"TFL3")
        + struct.pack("<iHHHHHH", -4, 12, 8, 4, 4, 4, 4)
        + struct.pack("<I", 2**32 - 8) * 4
    ),
)
_plain(
    "a vector of four billion tables",
    "damaged",
    "x.tflite",
    lambda: _lite([{0: [1], 3: "a"}], [{}]).replace(struct.pack("<I", 1), struct.pack("<I", 2**32 - 1)),
)
_plain(
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


@_attack("a pipe in the place of a file", "not a regular file")
def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


@_attack("a link that leads to itself", "no such file|damaged|symbolic")
def _circle(folder: Path) -> Path:
    (folder / "x.pth").symlink_to(folder / "x.pth")
    return folder / "x.pth"


@_attack("a device in the place of a file", "not a regular file")
def _device(folder: Path) -> Path:
    (folder / "x.pth").symlink_to("/dev/zero")
    return folder / "x.pth"
