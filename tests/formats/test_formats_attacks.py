"""Files made to execute something, to lead elsewhere, or to make their reader work for ever: refused, in one line."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats

SUFFIXES = (".pth", ".legacy.pth", ".pdparams")
LEGACY_HEAD = b"".join(
    pickle.dumps(value, 2)
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
)


def wrap(folder: Path, suffix: str, program: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """Put a pickle where each format keeps its own."""
    path = folder / f"evil{suffix}"
    if suffix == ".pth":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            for key, data in (storages or {}).items():
                archive.writestr(f"archive/data/{key}", data)
            archive.writestr("archive/version", b"3\n")
    elif suffix == ".legacy.pth":
        path.write_bytes(LEGACY_HEAD + program + pickle.dumps([], 2))
    else:
        path.write_bytes(program)
    return path


class Reduce:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def programs(command: str) -> dict[str, tuple[bytes, str]]:
    """Kind of attack -> pickle that would run `command`, and the name that the refusal must contain."""
    tensor = np.arange(3.0)
    call = b"X" + struct.pack("<I", len(command)) + command.encode()
    return {
        "reduce": (pickle.dumps(Reduce(os.system, command), 2), f"{os.name}.system"),
        "reduce4": (pickle.dumps(Reduce(os.system, command), 4), f"{os.name}.system"),
        "reduce5": (pickle.dumps(Reduce(os.system, command), 5), f"{os.name}.system"),
        "global": (b"\x80\x02cos\nsystem\n(" + call + b"tR.", "os.system"),
        "global py2": (b"\x80\x02c__builtin__\neval\n(" + call + b"tR.", "builtins.eval"),
        "inst": (b"\x80\x02(" + call + b"ios\nsystem\n.", "os.system"),
        "obj": (b"\x80\x02(cos\nsystem\n" + call + b"o.", "os.system"),
        "newobj": (b"\x80\x02csubprocess\nPopen\n(" + call + b"t\x81.", "subprocess.Popen"),
        "newobj_ex": (b"\x80\x04csubprocess\nPopen\n(" + call + b"t}\x92.", "subprocess.Popen"),
        "stack_global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + call + b"tR.", "os.system"),
        "dotted stack_global": (b"\x80\x04\x8c\x05torch\x8c\x0b_utils.exec\x93(" + call + b"tR.", "torch._utils.exec"),
        "nested": (pickle.dumps({"w": tensor, "x": Reduce(os.system, command)}, 4), f"{os.name}.system"),
        "deep": (pickle.dumps({"model": {"w": tensor, "x": [(Reduce(exec, command),)]}}, 2), "builtins.exec"),
        "as key": (pickle.dumps({Reduce(os.system, command): tensor}, 4), f"{os.name}.system"),
        "getattr": (pickle.dumps({"w": Reduce(getattr, tensor, "tofile")}, 4), "builtins.getattr"),
        "build": (pickle.dumps({"w": Reduce(contextlib.ExitStack, state={"a": 1})}, 2), "contextlib.ExitStack"),
        "eval": (pickle.dumps({"w": Reduce(eval, command, {"data": tensor})}, 4), "builtins.eval"),
        "eval data": (pickle.dumps({"w": Reduce(eval, "data", {"data": 1})}, 4), "builtins.eval"),
        "import": (pickle.dumps({"w": Reduce(__import__, "antigravity")}, 4), "builtins.__import__"),
        "torch.load": (b"\x80\x02ctorch\nload\n(" + call + b"tR.", "torch.load"),
        "numpy.load": (b"\x80\x02cnumpy\nload\n(" + call + b"tR.", "numpy.load"),
        "runstring": (
            b"\x80\x02cnumpy.testing._private.utils\nrunstring\n)R.",
            "numpy.testing._private.utils.runstring",
        ),
        "codecs": (pickle.dumps(Reduce(__import__("codecs").decode, b"", "rot13"), 4), "_codecs.decode"),
        "name with newlines": (b"\x80\x04\x8c\x03o\ns\x8c\x07\x1b[2Jsys\x93)R.", "o\\ns.\\x1b[2Jsys"),
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", list(programs("")))
def test_pickles_that_call_are_refused_by_name(tmp_path, suffix, kind):
    witness = tmp_path / "executed"
    program, name = programs(f"touch {witness}")[kind]
    path = wrap(tmp_path, suffix, program)
    with pytest.raises(FormatError) as caught:
        formats.read(path)
    message = str(caught.value)
    assert f"refuses to call {name}" in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert not witness.exists()


def test_the_corpus_is_real(tmp_path):
    # The same program does execute in the standard machine: otherwise the tests above would show nothing.
    witness = tmp_path / "executed"
    for kind in ("reduce", "global", "inst", "obj", "stack_global"):
        pickle.loads(programs(f"touch {witness}")[kind][0])
        witness.unlink()


BUILDS = {
    "state of a dictionary that is none": b"\x80\x02]}b.",
    "state of None": b"\x80\x02N}b.",
    "state of a tuple": b"\x80\x02)}(" + text("__class__") + b"K\x01ub.",
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "persistent id line": b"\x80\x02Pabc\n.",
    "extension": b"\x80\x02\x82\x01.",
    "call of a list": b"\x80\x02])R.",
    "call of a string": b"\x80\x02" + text("os.system") + b")R.",
    "keyword arguments": b"\x80\x04ccollections\nOrderedDict\n)}" + text("a") + b"K\x01s\x92.",
    "arguments that are no tuple": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "append to a tuple": b"\x80\x02)K\x01a.",
    "items of a list": b"\x80\x02]K\x01K\x02s.",
    "nothing": b"\x80\x02.",
    "no stop": b"\x80\x02}",
    "unmarked": b"\x80\x02t.",
    "recall": b"\x80\x02h\x05.",
    "object array": pickle.dumps({"a": np.array([None, {}])}, 4),
    "structured array": pickle.dumps({"a": np.zeros(2, [("x", "f4")])}, 4),
    "big-endian array": pickle.dumps({"a": np.zeros(2, ">f4")}, 4),
    "string array": pickle.dumps({"a": np.array(["x"])}, 4),
    "datetime array": pickle.dumps({"a": np.zeros(2, "M8[s]")}, 4),
    "subclass of array": pickle.dumps({"a": np.ma.zeros(2)}, 4),
    "array without data": b"\x80\x04}" + text("a") + pickle.dumps(np.zeros(1), 4)[2:-2] + b"s.",
    "unhashable key": b"\x80\x02}](K\x01es.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "quoted string": b"\x80\x02S'a'\n.",
    "unknown opcode": b"\x80\x02\xff.",
    "text that is no number": b"\x80\x02I12x\n.",
    "long number": b"\x80\x02I" + b"9" * 4000 + b"x\n.",
    "endless line": b"\x80\x02cos" + b"a" * 10000,
    "module not text": b"\x80\x04K\x01K\x02\x93.",
    "empty object": b"\x80\x02(o.",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", list(BUILDS))
def test_other_misuse_of_pickles_is_refused(tmp_path, suffix, kind):
    path = wrap(tmp_path, suffix, BUILDS[kind])
    with pytest.raises(FormatError) as caught:
        dict(formats.read(path).tensors)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def _bombs() -> dict[str, bytes]:
    laughs = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(200))
    array = pickle.dumps(np.zeros(1), 4)[2:-1]
    return {
        "memo of four billion": b"\x80\x02}r\xff\xff\xff\xff.",
        "string of sixteen exabytes": b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        "text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
        "frame of sixteen exabytes": b"\x80\x04\x95" + b"\xff" * 8 + b".",
        "tuples that double, as a key": laughs + b"}h\xc8K\x01s.",
        "tuples that double, as a shape": laughs[:-1] + b"\xc8ctorch\nSize\nh\xc8\x85R.",
        "tuples that double, as a type": laughs + b"cnumpy\ndtype\nh\xc8\x85R.",
        "two million steps": b"\x80\x02" + b"N0" * 1_000_000 + b".",
        "two hundred thousand levels": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "long integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "huge shape": b"\x80\x04}" + text("a") + array.replace(b"K\x01\x85", b"\x8a\x07" + b"\xff" * 6 + b"\x7f\x85") + b"s.",
        "one dictionary a million times": b"\x80\x02}q\x00(" + b"".join(
            text(f"{i:05d}") + b"}" for i in range(3000)
        ) + b"u}q\x01(" + b"".join(text(f"{i:05d}") + b"h\x00" for i in range(3000)) + b"u.",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        # Counting what Python allocates makes steps slow, and they are those of one machine for all three formats.
        pytest.param(suffix, kind, marks=[pytest.mark.slow] if kind == "two million steps" and suffix != ".pth" else [])
        for kind in _bombs()
        for suffix in SUFFIXES
    ],
)
def test_bombs_cost_little(tmp_path, suffix, kind):
    path = wrap(tmp_path, suffix, _bombs()[kind])
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            formats.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6
    assert time.monotonic() - began < 60  # six seconds for the worst, most of them tracemalloc's


# torch: claims about storages.


def tensor(count: int, first: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0") -> bytes:
    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + numbers((count,))[1:-1] + b"tQ"
    )
    return (
        b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers((first,))[1:-1]
        + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((6, 0, (2, 3), (3, 1)), None),
        ((6, 0, (3, 2), (1, 3)), None),
        ((6, 5, (), ()), None),
        ((6, 6, (0, 4), (4, 1)), None),
        ((6, 1, (2, 3), (3, 1)), "storage has 6"),
        ((6, 6, (), ()), "storage has 6"),
        ((6, 0, (2, 3), (4, 1)), "storage has 6"),
        ((6, 0, (7,), (0,)), "storage has 6"),
        ((6, 0, (2**40, 2**40), (0, 0)), "storage has 6"),
        ((6, -1, (2,), (1,)), "impossible"),
        ((6, 0, (2,), (-1,)), "impossible"),
        ((6, 0, (-2,), (1,)), "impossible"),
        ((6, 0, (2,), (1, 1)), "storage has 6"),
        ((6, 0, (2**70,), (1,)), "impossible"),
        ((2**40, 0, (2**20, 2**20), (2**20, 1)), "the file holds 24"),
        ((-6, 0, (2,), (1,)), "impossible"),
        ((6, 0, (1,) * 40, (1,) * 40), "32 numbers"),
        ((6, 0, (2, 3), (3, 1), "1"), "not in the file"),
        ((6, 0, (2, 3), (3, 1), "../../x"), "not in the file"),
    ],
)
def test_claims_of_torch_tensors_are_checked(tmp_path, arguments, said):
    data = np.arange(6, dtype="f4")
    path = wrap(tmp_path, ".pth", tensor(*arguments), {"0": data.tobytes()})
    if said is None:
        _, first, shape, strides = arguments
        expected = np.lib.stride_tricks.as_strided(data[first:], shape, [s * 4 for s in strides])
        assert np.array_equal(formats.read(path).tensors["a"], expected)
    else:
        with pytest.raises(FormatError, match=said):
            formats.read(path)


def test_shared_storages_are_views_of_the_same_bytes(tmp_path):
    one = tensor(6, 0, (6,), (1,))
    two = tensor(6, 2, (2, 2), (2, 1))[3:].replace(text("a"), text("b"))
    path = wrap(tmp_path, ".pth", one[:-1] + two, {"0": np.arange(6, dtype="f4").tobytes()})
    tensors = formats.read(path).tensors
    assert tensors["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert tensors["b"].tolist() == [[2, 3], [4, 5]]


def _archive(path: Path, entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_archives_that_are_not_torch_s(tmp_path):
    program = tensor(6, 0, (6,), (1,))
    data = np.arange(6, dtype="f4").tobytes()
    whole = {"a/data.pkl": program, "a/data/0": data}
    for entries, kind, said in (
        ({"a/b": b""}, 0, "zip archive without data.pkl"),
        ({"w.npy": b""}, 0, "NumPy archive"),
        ({"config.json": b"", "model.weights.h5": b""}, 0, "whole Keras model"),
        (whole, zipfile.ZIP_DEFLATED, "compressed"),
        (whole | {"b/data.pkl": program}, 0, "2 pickles"),
        (whole | {"a/byteorder": b"big"}, 0, "byte order b'big'"),
        (whole | {"a/code/x.py": b"pass"}, 0, "TorchScript"),
        ({"a/data.pkl": program}, 0, "not in the file"),
        ({"a/data.pkl": program, "a/data/0": data[:-4]}, 0, "claims 24 bytes, the file holds 20"),
    ):
        with pytest.raises(FormatError, match=said):
            formats.read(_archive(tmp_path / "x.pth", entries, kind))
    path = _archive(tmp_path / "x.pth", whole)
    content = bytearray(path.read_bytes())
    content[content.index(data) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="check sum"):
        formats.read(path).tensors["a"]
