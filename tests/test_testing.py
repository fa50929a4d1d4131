"""Lines that a team holds in its own suite: what passes, what fails, and what the failure says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import python

import deeplabzoo as dz
import deeplabzoo.testing
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, FormatError, SpecError
from deeplabzoo.parity.golden import record
from deeplabzoo.testing import assert_golden, assert_parity
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model

SPEC = dz.spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3)).narrowed(8)
WEIGHTS = seeded_weights(build_graph(SPEC), 0, statistics="lively")
WRONG = "aspp.branch2.depthwise.conv"
SMALL = {"backends": ["onnx"], "sizes": [(49, 65)]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of the same network, one tensor of the second off by 1e-4."""
    folder = tmp_path_factory.mktemp("weights")
    write_model(Canonical(SPEC, WEIGHTS), folder / "a.safetensors")
    other = {**WEIGHTS, f"{WRONG}.weight": WEIGHTS[f"{WRONG}.weight"] * np.float32(1.0001)}
    write_model(Canonical(SPEC, other), folder / "b.pth")
    return folder


def test_what_passes(files):
    report = assert_parity(files / "a.safetensors", **SMALL)
    assert report.passed
    assert [side.name for side in report.sides] == ["onnx"]
    assert report.trace is None
    assert assert_parity(SPEC, **SMALL, dtype="float32").dtype == "float32"
    assert assert_parity("v3plus", narrow=16, num_classes=3, **SMALL).spec["num_classes"] == 3


def test_what_fails_names_the_first_node(files):
    with pytest.raises(AssertionError) as failure:
        assert_parity(str(files / "a.safetensors"), against=str(files / "b.pth"), **SMALL)
    title, header, _, row, blame = str(failure.value).splitlines()
    assert title.endswith("not the same function in float64 on cpu")
    assert header.split() == ["check", "input", "of", "sides", "error", "bound"]
    assert row.split()[:6] == ["forward", "2x49x65", "out", "onnx", "against", "numpy"]
    assert row.endswith("1e-11")
    assert blame.startswith("onnx: the error jumps to ")
    assert f"at {WRONG}, " in blame


def test_a_bound_that_is_held(files):
    """The same two files are the same network to whoever says so."""
    assert assert_parity(files / "a.safetensors", against=files / "b.pth", bound=0.01, **SMALL).passed


def test_a_check_that_nobody_could_make():
    with pytest.raises(AssertionError, match="gradients: nobody was judged"):
        assert_parity(SPEC, checks=("forward", "gradients"), **SMALL)


def test_a_backend_that_fails_is_named():
    with pytest.raises(AssertionError) as failure:
        assert_parity(SPEC, pythons={"onnx": sys.executable}, time_limit=1e-3, **SMALL)
    assert "onnx: worker for onnx" in str(failure.value)


def test_gradients_are_blamed_on_a_parameter(monkeypatch, files):
    """A report in which only gradients are wrong: no trace, and the parameter nearest to the fault."""
    report = assert_parity(files / "a.safetensors", **SMALL)
    row = dataclasses.replace(report.rows[0], check="gradients", bound=1e-9)
    names = ("backbone.stem.conv.weight", f"{WRONG}.weight", "classifier.conv.weight")
    errors = (1e-3, 1e-2, 1e-15)
    rows = tuple(dataclasses.replace(row, name=name, error=error) for name, error in zip(names, errors, strict=True))
    wrong = dataclasses.replace(report, checks=("gradients",), rows=rows)
    monkeypatch.setattr(deeplabzoo.testing, "parity", lambda **question: wrong)
    with pytest.raises(AssertionError) as failure:
        assert_parity(SPEC, checks=("gradients",), backends=["onnx"])
    assert str(failure.value).splitlines()[-1] == f"onnx: gradients first go wrong at {WRONG}.weight, error 1.0e-02"


def test_wrong_questions(files):
    with pytest.raises(FormatError, match="model = None: expected an architecture"):
        assert_parity(None)
    with pytest.raises(FormatError, match="golden = None: expected the file of a golden"):
        assert_golden(None)
    for sizes, told in (([65], "65"), (65, "65"), ([(65,)], r"\(65,\)"), (["65x65"], "'65x65'")):
        with pytest.raises(BackendError, match=f"size {told}: expected height and width"):
            assert_parity(SPEC, backends=["onnx"], sizes=sizes)
    with pytest.raises(SpecError, match="did you mean 'v3plus_resnet50'"):
        assert_parity("v3plus_resnet5")
    with pytest.raises(FormatError, match=r"nothere\.pth"):
        assert_parity("nothere.pth", backends=["onnx"])
    with pytest.raises(BackendError, match="unknown check 'gradient'"):
        assert_parity(files / "a.safetensors", checks=("gradient",), backends=["onnx"])


LIVE = """
import json, sys
import torch
import deeplabzoo as dz
from deeplabzoo.testing import assert_parity

def attempt(**options):
    try:
        return assert_parity(model, **options).passed
    except (AssertionError, dz.DeepLabZooError) as error:
        return f"{type(error).__name__}: {error}"

folder, arch = sys.argv[1:]
model = dz.load(f"{folder}/a.safetensors", backend="torch", dtype="float64")
found = [attempt(), attempt(dtype="float64", sizes=[(49, 65), (65, 49)]), attempt(dtype="float32"),
         attempt(checks=("forward", "training")), attempt(against=f"{folder}/b.pth"), attempt(against=arch)]
model.get_submodule("decoder.conv1.depthwise.bn").eps = 0.1
found += [attempt(sizes=[(49, 65)]), attempt(against=model.spec, sizes=[(49, 65)], bound=0.9)]
found.append([attempt(backends=["torch"]), attempt(pythons={"torch": sys.executable}), attempt(nams={}),
              attempt(size=(49, 65)), attempt(sizes=[65]), attempt(against=arch, spec=model.spec),
              attempt(against=f"{folder}/b.pth", weights=f"{folder}/a.safetensors"),
              attempt(sizes=[(49, 65)], x=torch.zeros(1, 3, 49, 65).numpy())])
print(json.dumps(found))
"""


def test_a_live_model(files, requested):
    if "torch" not in requested:
        pytest.skip("torch is not in DEEPLABZOO_TEST_BACKENDS")
    right, sizes, dtype, checks, weights, arch, wrong, loose, refused = python(LIVE, files, "v3plus_mobilenet_v2")
    assert (right, sizes, loose) == (True, True, True)
    assert "dtype = 'float32' was asked for, but the model is in float64" in dtype
    assert checks.startswith("BackendError: checks = ('forward', 'training'): a live model is judged forward")
    assert f"the error jumps to 1.0e-04 at {WRONG} (" in weights
    assert "AssertionError: DeepLab in memory against v3plus_mobilenet_v2" in arch
    title, blame = wrong.removeprefix("AssertionError: ").splitlines()[:2]
    assert title == (
        "DeepLab in memory against v3plus_mobilenet_v2, stride 16: not the same function in float64, bound 1e-11"
    )
    assert "at decoder.conv1.depthwise.bn (decoder.conv1.depthwise.bn, BatchNorm2d)" in blame
    backends, pythons, option, size, number, *twice = refused
    assert backends == pythons
    assert backends.startswith("BackendError: a live model runs in its own framework and in this process: leave ")
    assert "unknown option of a live model 'nams'" in option
    assert "did you mean 'names'?" in option
    assert "did you mean 'sizes'?" in size
    assert number == "BackendError: size 65: expected height and width of each, such as sizes=[(65, 65)]"
    told = "both say what a live model is judged on: give one of them"
    assert twice == [
        f"BackendError: {a} and {b} {told}" for a, b in (("against", "spec"), ("against", "weights"), ("sizes", "x"))
    ]


def test_interpreters_by_any_name_of_a_backend(monkeypatch):
    """`keras` and its full name are one backend, in what is asked of `parity` too."""
    asked = {}

    def note(**question):
        asked.update(question)
        raise BackendError("enough")

    monkeypatch.setattr(deeplabzoo.testing, "parity", note)
    for backends in (["keras"], ["keras/tensorflow"]):
        with pytest.raises(BackendError, match="enough"):
            assert_parity(SPEC, backends=backends, pythons={"keras": "/other/python"})
        assert asked["backends"] == ["keras/tensorflow"]
        assert asked["pythons"] == {"keras/tensorflow": "/other/python"}
    with pytest.raises(BackendError, match="keras/tensorflow was given two interpreters"):
        assert_parity(SPEC, pythons={"keras": "/other/python", "keras/tensorflow": "/third/python"})


def test_goldens(tmp_path):
    golden = record(SPEC, backends=["onnx"], dtypes=["float64"], sizes=[(49, 65)], gradients=False)
    golden.save(tmp_path / "a.golden")
    assert assert_golden(tmp_path / "a.golden").passed
    with pytest.raises(AssertionError) as failure:
        assert_golden(golden, bounds={"forward": 1e-20})
    title, header, _, row = str(failure.value).splitlines()[:4]
    assert title.endswith(": not what was recorded")
    assert header.split() == ["check", "input", "of", "side", "dtype", "error", "bound"]
    assert row.split()[:5] == ["forward", "2x49x65", "out", "onnx", "float64"]


SUITE = """
import sys

def test_nothing_was_imported():
    assert not {"numpy", "torch", "paddle", "keras", "tensorflow"} & set(sys.modules)

def test_all_is_well(parity):
    assert parity("v3plus", narrow=16, sizes=[(49, 65)]).sides[0].name == "onnx"

def test_another_backend(parity):
    from deeplabzoo.errors import BackendError
    import pytest
    with pytest.raises(BackendError, match="unknown backend 'tocrh'"):
        parity("v3plus", backends=["tocrh"])

def test_our_line(parity):
    parity(%r, against=%r, sizes=[(49, 65)])
"""


def suite(folder, *arguments, code=0):
    """pytest in a folder of its own, warnings being errors."""
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_plugin(files, tmp_path):
    (tmp_path / "test_lines.py").write_text(SUITE % (str(files / "a.safetensors"), str(files / "b.pth")))
    told = suite(tmp_path, "--deeplabzoo-backends", "onnx", code=1)
    assert "1 failed, 3 passed" in told
    assert "AssertionError: v3plus_mobilenet_v2" in told
    assert f"at {WRONG}, " in told
    assert "testing.py" not in told  # no line of this package in the traceback
    (tmp_path / "pytest.ini").write_text("[pytest]\ndeeplabzoo_backends = onnx\n")
    assert "2 passed" in suite(tmp_path, "-k", "well or nothing")


def test_the_plugin_is_told_nonsense(tmp_path):
    assert "'paddle': expected NAME=PATH" in suite(tmp_path, "--deeplabzoo-python", "paddle", code=4)
    two = ("--deeplabzoo-python", "keras=/a/python", "--deeplabzoo-python", "keras/tensorflow=/b/python")
    assert "keras/tensorflow was given two interpreters" in suite(tmp_path, *two, code=4)
    assert "unknown backend 'tocrh'" in suite(tmp_path, "--deeplabzoo-python", "tocrh=/a/python", code=4)
    (tmp_path / "test_lines.py").write_text("def test_line(parity): parity('v3plus', narrow=16)")
    told = suite(tmp_path, "--deeplabzoo-backends=onnx", "--deeplabzoo-python=paddle=/nowhere/python", code=1)
    assert "an interpreter was given for paddle, which takes no part" in told


def test_the_plugin_and_a_live_model(tmp_path, requested):
    """Backends of the command line are not for it."""
    if "torch" not in requested:
        pytest.skip("torch is not in DEEPLABZOO_TEST_BACKENDS")
    live = "import torch\ndef test_line(parity): parity(torch.nn.Linear(3, 4))"
    (tmp_path / "test_lines.py").write_text(live)
    assert "LayoutError: the layout of 2 tensors" in suite(tmp_path, "--deeplabzoo-backends=onnx", code=1)


def test_the_plugin_costs_nothing():
    """Every suite of the environment loads it."""
    (entry,) = importlib.metadata.entry_points(group="pytest11", name="deeplabzoo")
    code = f"import json, sys, pytest, {entry.value}; print(json.dumps(sorted(sys.modules)))"
    assert not {"numpy", "click", "deeplabzoo.testing", "deeplabzoo.errors"} & set(python(code))
    assert json.loads(json.dumps(entry.value)) == "deeplabzoo.pytest_plugin"
