"""Pickles that would make a file when they are loaded, in the many ways that a pickle can ask for something."""

from __future__ import annotations

import argparse
import cProfile
import functools
import importlib
import io
import marshal
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import struct
import subprocess
import timeit
import webbrowser
from typing import Any

import numpy as np


class Reduce:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts

    def __call__(self, *arguments: Any) -> None:
        """What is called must look as if it could be."""


def text(value: str) -> bytes:
    """Push a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    """Push what a name stands for; unlike the older instruction it may hold dots."""
    return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"


def called(module: str, name: str, *arguments: str) -> bytes:
    """Push the result of a call with texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR"


def firing(canary: str) -> dict[str, bytes]:
    """Pickles that make the file `canary` in the standard machine."""
    command = f"touch {canary}"
    code = f"open({canary!r}, 'w')"
    compiled = marshal.dumps(compile(code, "x", "exec"))
    system = b"cos\nsystem\n"
    argument = text(command)
    weights = np.arange(3.0)
    mapped = b"cnumpy\nmemmap\n(" + text(canary) + text("uint8") + text("w+") + b"K\x00K\x01\x85t"

    def dumped(*parts: Any, protocol: int = 4, state: Any = None) -> bytes:
        return pickle.dumps(Reduce(*parts, state=state), protocol)

    imported = Reduce(importlib.import_module, "os")
    by_protocol = {f"os.system, protocol {n}": dumped(os.system, command, protocol=n) for n in range(6)}
    return by_protocol | {
        "posix.system": b"\x80\x02" + called("posix", "system", command) + b".",
        "os.popen": b"\x80\x02" + called("os", "popen", command) + b".",
        "Python 2's name for builtins": b"\x80\x02" + called("__builtin__", "eval", code) + b".",
        "subprocess.Popen": dumped(subprocess.Popen, ["touch", canary]),
        "subprocess.call": dumped(subprocess.call, ["touch", canary]),
        "subprocess.check_output": dumped(subprocess.check_output, ["touch", canary]),
        "subprocess.getoutput": dumped(subprocess.getoutput, command),
        "eval": dumped(eval, code),
        "exec": dumped(exec, code),
        "eval of compiled code": dumped(eval, Reduce(compile, code, "x", "eval")),
        "exec of marshalled code": dumped(exec, Reduce(marshal.loads, compiled)),
        "a function from a code object": (
            b"\x80\x04ctypes\nFunctionType\n(cmarshal\nloads\n(B" + struct.pack("<I", len(compiled)) + compiled
            + b"tR}" + text("open") + b"cio\nopen\nstR)R."
        ),
        "__import__ and getattr": dumped(Reduce(getattr, Reduce(__import__, "os"), "system"), command),
        "importlib and getattr": dumped(Reduce(getattr, imported, "system"), command),
        "operator.attrgetter": dumped(Reduce(Reduce(operator.attrgetter, "system"), imported), command),
        "operator.methodcaller": dumped(Reduce(operator.methodcaller, "system", command), imported),
        "functools.partial": dumped(Reduce(functools.partial, os.system, command)),
        "map": dumped(list, Reduce(map, os.system, [command])),
        "filter": dumped(list, Reduce(filter, os.system, [command])),
        "pathlib": dumped(pathlib.Path.touch, Reduce(pathlib.PosixPath, canary)),
        "builtins.open": dumped(open, canary, "w"),
        "io.FileIO": dumped(io.FileIO, canary, "w"),
        "os.mkdir": dumped(os.mkdir, canary),
        "shutil.copyfile": dumped(shutil.copyfile, "/etc/hostname", canary),
        "runpy": dumped(runpy._run_code, Reduce(compile, code, "x", "exec"), {}),
        "timeit": dumped(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "cProfile": dumped(cProfile.run, code, "/dev/null"),
        "webbrowser": dumped(
            Reduce(getattr, Reduce(webbrowser.GenericBrowser, ["touch", "%s"]), "open"), canary
        ),
        "numpy's runstring": dumped(np.testing._private.utils.runstring, code, {}),
        "an array's method": dumped(Reduce(getattr, weights, "tofile"), canary),
        "numpy.memmap": dumped(np.memmap, canary, "uint8", "w+", 0, (1,)),
        "numpy.savetxt": dumped(np.savetxt, canary, weights),
        "inst": b"\x80\x02(" + argument + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cio\nFileIO\n" + text(canary) + text("w") + b"o.",
        "newobj": b"\x80\x02" + mapped + b"\x81.",
        "newobj_ex": b"\x80\x04" + mapped + b"}\x92.",
        "stack_global": b"\x80\x04" + name("os", "system") + b"(" + argument + b"tR.",
        "stack_global with memoised names": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940}0h\x00h\x01\x93(" + argument + b"tR.",
        "a name with dots": b"\x80\x04" + name("argparse", "_os.system") + b"(" + argument + b"tR.",
        "memoised, recalled": b"\x80\x02" + system + b"q\x050}(" + text("a") + b"h\x05(" + argument + b"tRu.",
        "called and thrown away": b"\x80\x02" + system + b"(" + argument + b"tR0}.",
        "thrown away with a mark": b"\x80\x02(" + system + b"(" + argument + b"tR1}.",
        "in a dictionary": pickle.dumps({"w": weights, "x": Reduce(os.system, command)}, 4),
        "as a key": pickle.dumps({Reduce(os.system, command): weights}, 4),
        "in a set": pickle.dumps({Reduce(os.system, command)}, 4),
        "deep in": pickle.dumps({"state_dict": {"w": weights, "x": [({"y": (Reduce(exec, code),)},)]}}, 2),
        "__setstate__ put in by a state": (
            b"\x80\x02cargparse\nNamespace\n)R}(" + text("__setstate__") + system + b"ub" + argument + b"b."
        ),
        "the state of an object": pickle.dumps(
            Reduce(argparse.Namespace, state={"a": Reduce(os.system, command)}), 4
        ),
        "a pickle in a pickle": dumped(pickle.loads, dumped(os.system, command)),
    }  # fmt: skip


# What would need more than the standard machine to do harm, and must be refused all the same.
ODD = {
    "torch.load": b"\x80\x02" + called("torch", "load", "/tmp/x") + b".",
    "torch.hub.load": b"\x80\x02" + called("torch.hub", "load", "a/b", "c") + b".",
    "torch.jit.load": b"\x80\x02" + called("torch.jit", "load", "/tmp/x") + b".",
    "torch.storage._load_from_bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n(C\x01atR.",
    "torch.utils.cpp_extension": b"\x80\x02" + called("torch.utils.cpp_extension", "load", "a", "b") + b".",
    "numpy.load": b"\x80\x02" + called("numpy", "load", "/tmp/x") + b".",
    "pip": b"\x80\x02" + called("pip._internal", "main", "x") + b".",
    "a dotted way out of torch": b"\x80\x04" + name("torch", "_utils.sys.modules.clear") + b")R.",
    "globals of a function": b"\x80\x04" + name("numpy.core.multiarray", "_reconstruct.__globals__") + b".",
    "a class's class": b"\x80\x04" + name("collections", "OrderedDict.__subclasses__") + b")R.",
    "a name that is no name": b"\x80\x04" + name("other", "__class__()[0].") + b")R.",
    "an empty name": b"\x80\x04" + name("", "") + b")R.",
    "the extension registry": b"\x80\x02\x82\x01.",
    "the extension registry, long": b"\x80\x02\x84\x01\x00\x00\x00.",
    "a persistent id": b"\x80\x02" + text("x") + b"Q.",
    "a call of what a getattr gave": b"\x80\x02cbuiltins\ngetattr\n(cpkg.Thing\n" + text("x") + b"tR)R.",
    "a call of a stranger's instance": b"\x80\x02cpkg\nThing\n)R)R.",
    "a stranger that is a function": b"\x80\x02" + called("pkg", "run", "x") + b".",
    "keyword arguments": b"\x80\x04csubprocess\nPopen\n)}" + text("args") + text("x") + b"s\x92.",
    "bytes in a row": b"\x80\x05\x97.",
}
