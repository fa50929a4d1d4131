"""What is fuzzed: for each reader small sound files, and how a changed one comes back into a file.

Where a format keeps check sums, most changed files get no further than those. Its inner parts are therefore targets
too: what is changed is then the part, which is put into a file whose check sums fit.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pickle
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from wire import counted, fixed, flat, number, packed, varint

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats import _leveldb
from deeplabzoo.weights_converter.formats._crc32c import crc32c, mask

KERNEL = np.arange(24, dtype="f4").reshape(2, 3, 2, 2)
TENSORS = {"a.w": KERNEL, "a.b": np.array([1, -1], "f4"), "n": np.array(3, "i8"), "h": np.ones(5, "f2")}
LEGACY_HEAD = b"".join(
    pickle.dumps(value, 2)
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader, or a part of one.

    Attributes:
        name: for tables.
        format: the reader's.
        seeds: contents that are sound.
        place: makes the files that a content stands for in a folder, and returns the path to read.
    """

    name: str
    format: str
    seeds: tuple[bytes, ...]
    place: Callable[[Path, bytes], Path]


def examine(path: Path) -> bool:
    """Read everything of a file; tells whether that went well, and fails where the error is not one clear line."""
    try:
        checkpoint = formats.read(path)
        for name in checkpoint.tensors:
            value = checkpoint.tensors[name]
            assert isinstance(value.shape, tuple)
            value.tobytes()
        json.dumps([checkpoint.facts, checkpoint.metadata, checkpoint.notes, checkpoint.labels])
    except FormatError as error:
        assert re.match(rf"{re.escape(str(path))}(/[\w.-]+)?: ", str(error)), error  # of a folder, the file in it
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return False
    return True


def _file(suffix: str) -> Callable[[Path, bytes], Path]:
    def place(folder: Path, content: bytes) -> Path:
        path = folder / f"x{suffix}"
        path.write_bytes(content)
        return path

    return place


def _entry(suffix: str, entry: str, others: dict[str, bytes], kind: int = zipfile.ZIP_STORED):
    """Put a content into an archive as one of its entries, with the check sum that it needs."""

    def place(folder: Path, content: bytes) -> Path:
        return archive(folder / f"x{suffix}", {entry: content, **others}, kind)

    return place


def _folder(files: dict[str, bytes], read: str) -> Callable[[Path, bytes], Path]:
    """Replace one of several files: which one, the first byte of a content says."""
    names = sorted(files)

    def place(folder: Path, content: bytes) -> Path:
        changed = {names[content[0] % len(names)]: content[1:]} if content else {}
        for name, data in (files | changed).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / read

    return place


def _each(files: dict[str, bytes]) -> tuple[bytes, ...]:
    return tuple(bytes([index]) + files[name] for index, name in enumerate(sorted(files)))


def archive(path: Path, entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip archive."""
    with zipfile.ZipFile(path, "w", kind) as packed_:
        for name, data in entries.items():
            packed_.writestr(name, data)
    return path


def npy(array: np.ndarray) -> bytes:
    """A single array, as numpy saves it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def torch_pickle(storage: str = "FloatStorage", count: int = 24) -> bytes:
    """The pickle of a state dict of one tensor, in a wrapper with other things."""
    key = [b"(X\x07\0\0\0storage", f"ctorch\n{storage}\n".encode(), b"X\x01\0\0\0" + b"0X\x03\0\0\0cpu", b"K%c" % count]
    sizes = b"(K\x02K\x03K\x04t(K\x0cK\x04K\x01t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(key) + b"tQK\0" + sizes
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    wrapped = b"X\x0a\0\0\0state_dictccollections\nOrderedDict\n)R(X\x08\0\0\0module.a" + tensor + b"u"
    rest = b"X\x05\0\0\0epochK\x07X\x04\0\0\0meta}X\x01\0\0\0aG?\xf0\0\0\0\0\0\0s"
    return b"\x80\x02}q\x00(" + wrapped + rest + b"u."


def table_block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """A block of the index of a TensorFlow checkpoint."""
    body = b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
    return body + b"\0\0\0\0\x01\0\0\0"


def index(entries: bytes, compression: int = 0) -> bytes:
    """The index of a TensorFlow checkpoint with one block, whose check sums fit."""

    def sealed(block: bytes, kind: int) -> bytes:
        data = block + bytes([kind])
        return data + mask(crc32c(np.frombuffer(data, np.uint8))).to_bytes(4, "little")

    contents = table_block([(b"x", varint(0) + varint(len(entries)))])
    start = len(entries) + 5
    footer = varint(0) + varint(0) + varint(start) + varint(len(contents))
    footer = footer.ljust(40, b"\0") + _leveldb.MAGIC
    return sealed(entries, compression) + sealed(contents, 0) + footer


def _indexed(data: bytes, compression: int) -> Callable[[Path, bytes], Path]:
    def place(folder: Path, content: bytes) -> Path:
        (folder / "m.ckpt.index").write_bytes(index(content, compression))
        (folder / "m.ckpt.data-00000-of-00001").write_bytes(data)
        return folder / "m.ckpt"

    return place


def graph_node(name: str, op: str, *inputs: str, **attributes: bytes) -> bytes:
    """A node of a TensorFlow graph."""
    parts = counted(1, name) + counted(2, op) + b"".join(counted(3, one) for one in inputs)
    return counted(1, parts + b"".join(counted(5, counted(1, key) + counted(2, v)) for key, v in attributes.items()))


def _graph() -> bytes:
    def constant(name: str, kind: int, sizes: tuple[int, ...], values: bytes) -> bytes:
        shape = counted(2, b"".join(counted(2, number(1, size)) for size in sizes))
        return graph_node(name, "Const", value=counted(8, number(1, kind) + shape + values))

    return b"".join([
        constant("w", 1, (2, 3, 2, 2), counted(4, KERNEL.tobytes())),
        constant("g", 1, (2,), counted(5, np.ones(2, "f4").tobytes())),
        constant("half", 19, (3,), counted(13, packed([15360, 1]))),
        constant("block", 3, (2,), counted(7, packed([2, 2]))),
        graph_node("s", "SpaceToBatchND", "x", "block"),
        graph_node("i", "Identity", "w"),
        graph_node("c", "Conv2D", "s", "i", strides=counted(1, counted(3, packed([1, 2, 2, 1]))),
                   padding=counted(2, "SAME")),
        graph_node("bn", "FusedBatchNorm", "c", "g", "g", "g", "half", epsilon=fixed(4, 0.001)),
        graph_node("r", "ResizeBilinear", "bn", "block", align_corners=number(5, 1)),
    ])  # fmt: skip


def _onnx() -> bytes:
    weights = b"".join(number(1, size) for size in KERNEL.shape) + number(2, 1) + counted(9, KERNEL.tobytes())
    listed = number(1, 3) + number(2, 7) + counted(7, packed([1, -2, 300])) + counted(8, "i")
    halves = number(1, 2) + number(2, 10) + counted(5, packed([15360, 0])) + counted(8, "h")
    held = counted(1, "value") + counted(5, weights)
    dilations = counted(1, "dilations") + counted(8, packed([2, 2]))
    nodes = [
        counted(2, "c") + counted(4, "Constant") + counted(5, held),
        counted(1, "c") + counted(2, "same") + counted(4, "Identity"),
        counted(1, "x") + counted(1, "same") + counted(2, "y") + counted(4, "Conv") + counted(5, dilations),
    ]
    graph = b"".join(counted(1, node) for node in nodes) + counted(2, "graph")
    tensors = [weights + counted(8, "w"), listed, halves]
    return number(1, 9) + counted(7, graph + b"".join(counted(5, one) for one in tensors)) + counted(8, number(2, 17))


def _caffe(*, old: bool) -> bytes:
    values = counted(5, KERNEL.tobytes())
    if old:
        sizes = b"".join(number(axis, size) for axis, size in enumerate(KERNEL.shape, start=1))
        layer = counted(3, "data") + counted(4, "conv") + number(5, 4) + counted(6, sizes + values)
        return counted(1, "a net") + counted(2, layer + counted(10, number(3, 2) + number(17, 2)))
    blob = counted(7, counted(1, packed(list(KERNEL.shape)))) + values
    layer = (
        counted(1, "conv") + counted(2, "Convolution") + counted(7, blob) + counted(106, number(3, 2) + number(18, 2))
    )
    norm = counted(1, "bn") + counted(2, "BatchNorm") + counted(139, fixed(3, 0.25))
    return counted(1, "a net") + counted(100, layer) + counted(100, norm)


def _tflite() -> bytes:
    tensors = [
        {0: [1, 8, 8, 1], 1: ("B", 0), 2: ("I", 0), 3: "image"},
        {0: list(KERNEL.shape), 1: ("B", 0), 2: ("I", 1), 3: "kernel"},
        {0: [1, 4, 4, 2], 1: ("B", 0), 2: ("I", 0), 3: "map"},
    ]
    options = {0: ("b", 0), 1: ("i", 2), 2: ("i", 2), 3: ("b", 3), 4: ("i", 1), 5: ("i", 1)}
    operators = [{0: ("I", 0), 1: [0, 1, -1], 2: [2], 4: options}]
    network = {0: tensors, 1: [0], 2: [2], 3: operators, 4: "main"}
    return flat({0: ("I", 3), 1: [{0: ("b", 3)}], 2: [network], 4: [{}, {0: KERNEL.tobytes()}]})


@functools.cache
def targets() -> dict[str, Target]:
    """All targets by name; every format has at least one."""
    with tempfile.TemporaryDirectory() as name:
        made = _targets(Path(name))
    assert {target.format for target in made} == set(formats.FORMATS)
    return {target.name: target for target in made}


def _targets(folder: Path) -> list[Target]:
    def written(name: str, tensors: dict[str, np.ndarray] = TENSORS, **options: object) -> bytes:
        formats.write(folder / name, tensors, **options)
        return (folder / name).read_bytes()

    keras_tensors = {"layers/conv2d/vars/0": KERNEL, "layers/conv2d_1/vars/0": TENSORS["h"], "vars/0": TENSORS["n"]}
    h5 = written("x.weights.h5", keras_tensors, metadata={"layers/conv2d": "stem", "layers/conv2d_1": "ünï"})
    h5_packed = _packed_h5(folder)
    keras2 = written("x.h5", {name.replace(".", "/"): KERNEL for name in ("a.w", "a.b", "c.w")})
    config = {"class_name": "Functional", "config": {"layers": [{"class_name": "Conv2D", "config": {"name": "stem"}}]}}
    config_text = json.dumps(config).encode()
    keras = {"config.json": config_text, "model.weights.h5": h5}
    program = torch_pickle()
    torch_rest = {"archive/data/0": KERNEL.tobytes(), "archive/version": b"3\n"}
    legacy = LEGACY_HEAD + program + pickle.dumps(["0"], 2) + struct.pack("<q", 24) + KERNEL.tobytes()
    pickled = {"a.w": KERNEL, "b": ("b_0", np.ones(3)), "epoch": 3}
    formats.write(folder / "m.ckpt", TENSORS)
    bundle = {path.name: path.read_bytes() for path in formats.outputs(folder / "m.ckpt")}
    data = bundle["m.ckpt.data-00000-of-00001"]
    block = table_block(
        [(key, value) for key, value in _leveldb.entries(bundle["m.ckpt.index"]) if key in (b"", b"a.w")]
    )
    compressed = varint(len(block)) + b"\xf0" + bytes([len(block) - 1]) + block
    graph = _graph()
    saved = {"s/saved_model.pb": b"\x08\x01" + counted(2, counted(1, number(1, 1)) + counted(2, graph))}
    variables = {f"s/variables/{name.replace('m.ckpt', 'variables')}": data for name, data in bundle.items()}
    formats.write(folder / "hub", TENSORS, format="hub-folder", metadata={"config": json.dumps({"classes": 21})})
    hub = {f"hub/{path.name}": path.read_bytes() for path in (folder / "hub").iterdir()}
    shard = {"hub/model-1.safetensors": hub["hub/model.safetensors"], "hub/config.json": hub["hub/config.json"]}
    listed = {"weight_map": dict.fromkeys(TENSORS, "model-1.safetensors")}
    shard["hub/model.safetensors.index.json"] = json.dumps(listed).encode()
    kind = {"class_name": "DeepLabV3Backbone", "config": {"dilation_rates": [6, 12, 18]}}
    preset = {"p/model.weights.h5": h5, "p/task.weights.h5": h5, "p/config.json": json.dumps(kind).encode()}
    preset["p/task.json"] = json.dumps({"config": {"backbone": kind, "activation": None}}).encode()
    plain = archive(folder / "plain.npz", {"a.npy": npy(KERNEL), "b/c.npy": npy(TENSORS["n"])}).read_bytes()
    deflated = archive(folder / "d.npz", {"a.npy": npy(KERNEL)}, zipfile.ZIP_DEFLATED).read_bytes()
    pth = archive(folder / "x.pth", {"archive/data.pkl": program, **torch_rest}).read_bytes()
    whole = archive(folder / "x.keras", keras).read_bytes()
    return [
        Target("safetensors", "safetensors", (written("x.safetensors", metadata={"a": "b"}),), _file(".safetensors")),
        Target("torch", "torch", (pth,), _file(".pth")),
        Target("torch: pickle", "torch", (program,), _entry(".pth", "archive/data.pkl", torch_rest)),
        Target("torch: old format", "torch", (legacy,), _file(".pth")),
        Target("paddle", "paddle", (written("x.pdparams"), *(pickle.dumps(pickled, n) for n in (2, 4))), _file(".pdparams")),
        Target("keras-h5", "keras-h5", (h5, h5_packed), _file(".weights.h5")),
        Target("keras", "keras", (whole,), _file(".keras")),
        Target("keras: weights", "keras", (h5,), _entry(".keras", "model.weights.h5", {"config.json": config_text})),
        Target("keras: config", "keras", (config_text,), _entry(".keras", "config.json", {"model.weights.h5": h5})),
        Target("keras2-h5", "keras2-h5", (keras2, _variable_h5(folder)), _file(".h5")),
        Target("keras-preset", "keras-preset", _each(preset), _folder(preset, "p")),
        Target("npz", "npz", (plain, deflated), _file(".npz")),
        Target("npz: array", "npz", (npy(KERNEL), npy(np.asfortranarray(KERNEL))), _entry(".npz", "a.npy", {})),
        Target("npz: array, deflated", "npz", (npy(KERNEL),), _entry(".npz", "a.npy", {}, zipfile.ZIP_DEFLATED)),
        Target("tf-checkpoint", "tf-checkpoint", _each(bundle), _folder(bundle, "m.ckpt")),
        Target("tf-checkpoint: entries", "tf-checkpoint", (block,), _indexed(data, 0)),
        Target("tf-checkpoint: snappy", "tf-checkpoint", (compressed,), _indexed(data, 1)),
        Target("saved-model: constants", "saved-model", _each(saved), _folder(saved, "s")),
        Target("saved-model", "saved-model", _each(saved | variables), _folder(saved | variables, "s")),
        Target("tf-graph", "tf-graph", (graph,), _file(".pb")),
        Target("onnx", "onnx", (_onnx(),), _file(".onnx")),
        Target("caffemodel", "caffemodel", (_caffe(old=False), _caffe(old=True)), _file(".caffemodel")),
        Target("tflite", "tflite", (_tflite(),), _file(".tflite")),
        Target("hub-folder", "hub-folder", _each(hub), _folder(hub, "hub")),
        Target("hub-folder: shards", "hub-folder", _each(shard), _folder(shard, "hub")),
    ]  # fmt: skip


def _packed_h5(folder: Path) -> bytes:
    """Chunked, compressed and resizable datasets, and one of big-endian numbers."""
    import h5py

    with h5py.File(folder / "packed.h5", "w") as file:
        file.create_dataset("a/vars/0", data=KERNEL, chunks=(1, 3, 2, 2), compression="gzip", shuffle=True)
        file.create_dataset("a/vars/1", data=np.arange(4.0), maxshape=(None,), fletcher32=True)
        file["b/vars/0"] = np.arange(3, dtype=">f4")
        file["b/vars"].attrs["name"] = "a layer"
    return (folder / "packed.h5").read_bytes()


def _variable_h5(folder: Path) -> bytes:
    """What Keras 2 writes, with text of no fixed length in the attributes."""
    import h5py

    with h5py.File(folder / "variable.h5", "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array(["a", "empty"], object)
        group.create_group("empty").attrs["weight_names"] = np.empty(0)
        group.create_group("a").attrs["weight_names"] = np.array(["a/kernel:0"], object)
        group["a/a/kernel:0"] = KERNEL
        file.attrs["model_config"] = json.dumps({"class_name": "Functional"})
    return (folder / "variable.h5").read_bytes()
