"""A corpus of attacks: each one is refused in one line, soon, in little memory, and nothing of it happens."""

from __future__ import annotations

import json
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import formats_hostile_archives  # noqa: F401 - fills HOSTILE
import formats_hostile_costs  # noqa: F401 - as well
import formats_hostile_trees  # noqa: F401 - as well
import pytest
from formats_hostile import HOSTILE
from formats_payloads import ODD, firing
from formats_prison import imprisoned
from formats_targets import LEGACY_HEAD, archive

SECONDS = 2  # of the processor
MEGABYTES = 300


def _npz(path: Path, program: bytes) -> Path:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    return archive(path, {"a.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + program})


def _hub(path: Path, program: bytes) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    archive(path / "pytorch_model.bin", {"archive/data.pkl": program})
    return path


def _plain(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# Where a pickle can stand.
PLACES = {
    "torch": lambda folder, program: archive(folder / "x.pth", {"archive/data.pkl": program, "archive/data/0": b""}),
    "torch, old": lambda folder, program: _plain(folder / "x.pth.tar", LEGACY_HEAD + program + pickle.dumps([], 2)),
    "paddle": lambda folder, program: _plain(folder / "x.pdparams", program),
    "npz": lambda folder, program: _npz(folder / "x.npz", program),
    "hub": lambda folder, program: _hub(folder / "hub", program),
}
KINDS = [f"{place}: {name}" for place in ("torch", "torch, old", "paddle") for name in (*firing("x"), *ODD)]
# The hub's reader is torch's, and that of npz looks at no pickle.
KINDS += [f"{place}: {name}" for place in ("npz", "hub") for name in ("eval", "in a dictionary", "pip")] + [*HOSTILE]


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    return tmp_path_factory.mktemp("canary") / "fired"


@pytest.fixture(scope="module")
def results(tmp_path_factory, canary):
    """What reading each file of the corpus did: see `imprisoned`."""
    corpus = tmp_path_factory.mktemp("corpus")
    programs = firing(str(canary)) | ODD
    paths: dict[str, Path] = {}
    for number, kind in enumerate(KINDS):
        folder = corpus / str(number)
        folder.mkdir()
        place, _, name = kind.partition(": ")
        paths[kind] = PLACES[place](folder, programs[name]) if place in PLACES else HOSTILE[kind][0](folder)
    read = imprisoned(list(paths.values()))
    return {kind: {**result, "path": paths[kind]} for kind, result in zip(paths, read, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus(results, canary, kind):
    result = results[kind]
    expected = HOSTILE[kind][1] if kind in HOSTILE else "refuses|damaged pickle|objects, fields|not a checkpoint"
    assert result["seen"] == []
    assert not canary.exists()
    if expected is None:
        assert result["said"] is None
    else:
        assert result["said"] is not None
        assert result["said"].startswith(str(result["path"]))
        assert re.search(expected, result["said"]), result["said"]
        assert "\n" not in result["said"]
        assert result["said"].isprintable()
        assert len(result["said"]) < 700 + len(str(result["path"]))
    assert result["seconds"] < SECONDS
    assert result["megabytes"] < MEGABYTES


def test_nothing_of_the_corpus_was_extracted(results, canary):
    assert not canary.exists()
    for stray in ("evil", "evil.npy"):
        assert not list(canary.parent.parent.rglob(stray))
        assert not Path("/etc", stray).exists()


# The same payloads do fire elsewhere; otherwise nothing would be shown above.

FIRE = """
import json, os, pickle, sys, time
import numpy as np
canary, listed = sys.argv[1], json.load(sys.stdin)
def fired(load):
    copy = os.fork()
    if copy == 0:
        try:
            load()
        finally:
            os._exit(0)
    os.waitpid(copy, 0)
    for _ in range(500):  # what a payload starts may take a while
        if os.path.exists(canary):
            (os.rmdir if os.path.isdir(canary) else os.remove)(canary)
            return True
        time.sleep(0.01)
    return False
loads = {name: lambda h=h: pickle.loads(bytes.fromhex(h)) for name, h in listed["programs"].items()}
loads["npz"] = lambda: np.load(listed["npz"], allow_pickle=True)["a"]
print(json.dumps({name: fired(load) for name, load in loads.items()}))
"""


def test_the_payloads_are_real(tmp_path):
    target = tmp_path / "fired"
    programs = firing(str(target))
    listed: dict[str, Any] = {"programs": {name: program.hex() for name, program in programs.items()}}
    listed["npz"] = str(_npz(tmp_path / "x.npz", programs["eval"]))
    done = subprocess.run(
        [sys.executable, "-c", FIRE, str(target)], input=json.dumps(listed), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {name for name, fired in json.loads(done.stdout).items() if not fired} == set()


def test_the_prison_sees_time_memory_and_deeds(tmp_path):
    """A reader that is slow, takes memory, runs something or dies would be noticed."""
    code = """
import sys, formats_prison, formats_watch
from pathlib import Path
from deeplabzoo.weights_converter import formats
def eager(path):
    name = path.name
    if name == "slow":
        sum(range(10**8))
    elif name == "large":
        bytes(b"x") * 400_000_000
    elif name == "imports":
        import this
    elif name == "writes":
        (path.parent / "new").write_bytes(b"")
    elif name == "elsewhere":
        Path("/etc/passwd").read_bytes()
    elif name == "runs":
        __import__("os").system("true")
    elif name == "dies":
        __import__("ctypes").string_at(0)
    return formats.Checkpoint({}, "npz")
formats.read = eager
folder = Path(sys.argv[1])
results = {name: formats_prison._one(folder / name) for name in sys.argv[2:]}
assert results["slow"]["seconds"] > 1, results
assert results["large"]["megabytes"] > 300, results
assert all(results[name]["seen"] for name in ("imports", "writes", "elsewhere", "runs")), results
assert "signal" in results["dies"]["said"], results
assert results["nothing"]["seen"] == [] and results["nothing"]["said"] is None, results
"""
    names = ["slow", "large", "imports", "writes", "elsewhere", "runs", "dies", "nothing"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *names],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
