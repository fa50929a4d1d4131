"""Archives and lists of tensors that lie about themselves."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from formats_hostile import HOSTILE, attack, keras_parts, plain, zipped
from formats_payloads import text
from formats_targets import KERNEL, LEGACY_HEAD, archive, npy, torch_pickle

BIG = np.zeros(2**20, "f4")


# Zip archives.

SOUND = {"a/data.pkl": torch_pickle(), "a/data/0": KERNEL.tobytes()}


for _name in ("../../evil", "/etc/evil", "a/../../evil", "C:\\evil", "..\\..\\evil"):
    zipped(f"zip slip in torch, {_name}", None, "x.pth", lambda name=_name: {**SOUND, name: b"x"})
    zipped(f"zip slip in keras, {_name}", None, "x.keras", lambda name=_name: {**keras_parts(), name: b"x"})
    zipped(
        f"zip slip in npz, {_name}", "leads elsewhere|not a checkpoint", "x.npz",
        lambda name=_name: {"a.npy": npy(KERNEL), f"{name}.npy": npy(KERNEL)},
    )  # fmt: skip


@attack("a zip entry that is a link", None)
def _link(folder: Path) -> Path:
    path = archive(folder / "x.pth", SOUND)
    with zipfile.ZipFile(path, "a") as opened:
        info = zipfile.ZipInfo("a/data/1")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        opened.writestr(info, "/etc/passwd")
    return path


@attack("a name twice in a zip", "a name twice|damaged or truncated|not a checkpoint")
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


zipped("a nested zip bomb beside tensors", None, "x.pth", lambda: {**SOUND, "a/bomb.zip": _bomb()})
zipped("a pickle that is a bomb", "compressed", "x.pth", lambda: {**SOUND, "a/data.pkl": b"N0" * 10**7}, 8)
zipped("an array that is a bomb", "takes", "x.npz", lambda: {"a.npy": npy(KERNEL) + bytes(10**8)}, 8)
zipped(
    "weights that are a bomb",
    "do not shrink",
    "x.keras",
    lambda: keras_parts() | {"model.weights.h5": bytes(10**8)},
    8,
)
zipped(
    "a configuration that is a bomb",
    "the limit is",
    "x.keras",
    lambda: keras_parts() | {"config.json": b" " * 10**8},
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


@attack("a list of entries that claims two gigabytes", "damaged|truncated|limit")
def _long_list(folder: Path) -> Path:
    path = archive(folder / "x.pth", SOUND)
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = (2**31).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    return path


@attack("twenty thousand entries", None)
def _many_entries(folder: Path) -> Path:
    return archive(folder / "x.pth", {**SOUND, **{f"a/x/{i}": b"" for i in range(20_000)}})


# Tensors of torch and Paddle.


@attack("torch's archive of before 2017", "tar archive")
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


zipped(
    "torch tensors that are all the same storage", "share their bytes", "x.pth",
    lambda: {"a/data.pkl": _many(_storage(10**6), 50_000), "a/data/0": bytes(4 * 10**6)},
)  # fmt: skip
zipped(
    "a torch storage of two gigabytes", "claims", "x.pth", lambda: {**SOUND, "a/data.pkl": _many(_storage(2**29), 1)}
)
plain(
    "an old torch storage of a negative size", "claims -1", "x.pth",
    lambda: LEGACY_HEAD + torch_pickle() + pickle.dumps(["0"], 2) + struct.pack("<q", -1),
)  # fmt: skip
plain(
    "an old torch file that lists storages without end", "claims|truncated", "x.pth",
    lambda: LEGACY_HEAD + torch_pickle() + pickle.dumps(["0"] * 100_000, 2) + struct.pack("<q", 24) + KERNEL.tobytes(),
)  # fmt: skip
plain(
    "Paddle's tensors that are all the same array", "share their bytes", "x.pdparams",
    lambda: pickle.dumps(dict.fromkeys(map(str, range(5000)), BIG), 4),
)  # fmt: skip
plain(
    "text of Paddle that is not as long as it says", "takes|bytes", "x.pdparams",
    lambda: pickle.dumps({"a": KERNEL}, 2).replace(b"K\x02K\x03", b"K\x7fK\x7f"),
)  # fmt: skip


# safetensors.


def _header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def _entry(shape: list[object], offsets: list[object], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


plain("a safetensors header longer than the file", "claims", "x.st", lambda: _header(b"{", length=10**8))
plain("a safetensors header of a hundred megabytes", "the limit is", "x.st", lambda: _header(b"{" + b" " * (10**8 - 2)))
plain("deep JSON", "damaged", "x.st", lambda: _header(b'{"a":' * 800_000))
plain("a long number in JSON", "damaged", "x.st", lambda: _header(b'{"a":' + b"9" * 10**6 + b"}"))
plain(
    "NaN in JSON",
    "whole numbers",
    "x.st",
    lambda: _header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"abcd"),
)
plain(
    "infinity in JSON",
    "whole numbers",
    "x.st",
    lambda: _header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'),
)
plain("a name twice in JSON", "name twice", "x.st", lambda: _header(b'{"a":{},"a":{}}'))
plain(
    "tensors that overlap",
    "overlaps",
    "x.st",
    lambda: _header({"a": _entry([2], [0, 8]), "b": _entry([2], [4, 12])}, bytes(12)),
)
plain(
    "a hole between tensors",
    "hole",
    "x.st",
    lambda: _header({"a": _entry([1], [0, 4]), "b": _entry([1], [8, 12])}, bytes(12)),
)
plain("bytes after the tensors", "overlong", "x.st", lambda: _header({"a": _entry([1], [0, 4])}, bytes(8)))
plain("a negative size", "whole numbers", "x.st", lambda: _header({"a": _entry([-1, -4], [0, 16])}, bytes(16)))
plain("sizes whose product overflows", "takes", "x.st", lambda: _header({"a": _entry([2**32, 2**32], [0, 0])}))
plain(
    "thirty thousand empty tensors", None, "x.st", lambda: _header({str(i): _entry([0], [0, 0]) for i in range(30_000)})
)


# npz.


def _npy_header(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


zipped(
    "code in the header of an array",
    "objects",
    "x.npz",
    lambda: {"a.npy": _npy_header("__import__('os').system('true')")},
)
zipped("a header that is deep", "objects", "x.npz", lambda: {"a.npy": _npy_header("(" * 9000)})
zipped(
    "an array of terabytes", "takes", "x.npz",
    lambda: {"a.npy": _npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", bytes(8))},
)  # fmt: skip
