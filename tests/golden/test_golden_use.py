"""How goldens are asked for: words, devices, interpreters of other environments, commands."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import pytest
from golden_changes import SIZE, SPEC
from test_cli import call, fails

from deeplabzoo.cli.golden_command import _verdict
from deeplabzoo.errors import BackendError, GraphError
from deeplabzoo.parity import golden as goldens
from deeplabzoo.parity.drift import Drift
from deeplabzoo.parity.golden import check, record, recorded_rows


def test_wrong_words():
    with pytest.raises(BackendError, match="did you mean 'float64'"):
        record(SPEC, backends=["onnx"], dtypes=["float46"])
    with pytest.raises(BackendError, match="did you mean 'torch'"):
        record(SPEC, backends=["toch"])
    with pytest.raises(BackendError, match="no backend was named"):
        record(SPEC, backends=[])
    with pytest.raises(BackendError, match="bound = 0 for forward"):
        record(SPEC, backends=["onnx"], bounds={"forward": 0})
    with pytest.raises(BackendError, match="unknown check 'training': expected one of forward, gradients"):
        record(SPEC, backends=["onnx"], bounds={"training": 1})
    with pytest.raises(
        BackendError, match="an interpreter was given for torch, which takes no part: expected one of onnx"
    ):
        record(SPEC, backends=["onnx"], pythons={"torch": sys.executable})
    with pytest.raises(BackendError, match="keras/tensorflow was given two interpreters"):
        record(SPEC, backends=["keras"], pythons={"keras": "/a", "keras/tensorflow": "/b"})
    for seed in (2**63, -1):
        with pytest.raises(BackendError, match=f"seed = {seed}: expected a whole number from 0 to {2**63 - 1}"):
            record(SPEC, backends=["onnx"], seed=seed)
    with pytest.raises(GraphError, match="17 inputs: a golden holds 1 to 16"):
        record(SPEC, backends=["onnx"], sizes=[SIZE] * 17)


def test_a_device_that_is_not_there(small, requested):
    with pytest.raises(BackendError, match=r"unknown device 'gup'.*did you mean 'gpu'"):
        check(small[0], device="gup")
    result = call("golden", "check", small[1], "--backends", "onnx", "--device", "gpu", code=1)
    assert "onnx: failed: onnx on device 'gpu': expected one of cpu" in result.stderr
    assert "nobody could be judged: FAILED" in result.stderr


def test_on_a_gpu_float32_is_judged_against_the_truth(kept, small, requested):
    """The path, with workers of the CPU in the place of those of a GPU."""
    drift = check(small[0], backends=["onnx", requested[0]], device="gpu")
    assert drift.passed
    assert {row.dtype for row in drift.rows} == {"float32"}
    assert all(row.drift is None for row in drift.rows)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_another_interpreter(small, tmp_path):
    """The wrapper leaves a mark, so that nobody can pass by running the usual one."""
    other = script(tmp_path / "python", f'touch {tmp_path}/ran\nexec {sys.executable} "$@"')
    result = call("golden", "check", small[1], "--python", f"onnx={other}")
    assert "passed" in result.stderr
    assert (tmp_path / "ran").exists()
    bare = script(tmp_path / "bare", f'exec {sys.executable} -S "$@"')
    result = call("golden", "check", small[1], "--python", f"onnx={bare}", code=1)
    first, last = result.stderr.strip().splitlines()
    assert re.match(r"onnx: failed: .*numpy", first)
    assert last.endswith("nobody could be judged: FAILED")


def test_an_interpreter_by_the_short_name(small, monkeypatch):
    """`keras` names the interpreter of `keras/tensorflow`."""
    started = {}

    def start(name, *, device="cpu", python=None):
        started[name] = python
        raise BackendError("enough")

    monkeypatch.setattr(goldens, "Worker", start)
    check(small[0], backends=["keras"], pythons={"keras": "/other/python"})
    assert started == {"keras/tensorflow": "/other/python"}
    with pytest.raises(BackendError, match="enough"):
        record(SPEC, backends=["keras/tensorflow"], sizes=[SIZE], gradients=False, pythons={"keras": "/third/python"})
    assert started == {"keras/tensorflow": "/third/python"}


def test_wrong_interpreters(small, tmp_path):
    (tmp_path / "text").write_text("no program")
    common = ("golden", "check", small[1], "--python")
    fails(*common, "onnx", code=2, match="'onnx': expected BACKEND=PATH, such as")
    fails(*common, "onnx=", code=2, match="expected BACKEND=PATH")
    fails(*common, f"onxn={sys.executable}", code=2, match="unknown backend 'onxn'.*did you mean 'onnx'")
    fails(*common, "onnx=/nowhere/python", code=2, match="'/nowhere/python' for onnx is no program here")
    fails(*common, f"onnx={tmp_path / 'text'}", code=2, match="is no program here")
    fails(
        *common, f"onnx={sys.executable}", "--python", "onnx=/bin/sh", code=2, match="onnx was given two interpreters"
    )
    fails(
        *common,
        f"paddle={sys.executable}",
        code=2,
        match="--python is for paddle, which takes no part: expected one of onnx",
    )


def test_commands(tmp_path):
    path = tmp_path / "v3plus.golden"
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.to_toml())
    words = ("golden", "record", "--spec", spec, "--backends", "onnx", "--size", "33x49", "--output", path)
    result = call(*words, "--dtype", "float64")
    assert "onnx: no gradients: an exported model has no gradients" in result.stderr
    assert f"wrote {path}" in result.stderr
    assert result.stdout.splitlines()[2].split()[:4] == ["onnx", "float64", "2x33x49", "out"]
    fails(*words, code=1, match="exists; give another name, or --force")
    told = call(*words, "--dtype", "float64", "--force", "--json")
    assert json.loads(told.stdout)["spec"] == SPEC.to_dict()
    before = spec.read_bytes()
    fails(*words[:-1], spec, "--force", code=2, match="--output .*spec.toml is what is read; give another name")
    assert spec.read_bytes() == before
    fails("golden", "record", "--backends", ",", "--output", "x", code=2, match="names none")
    fails("golden", "record", "--backends", "onxn", "--output", "x", code=2, match="did you mean 'onnx'")
    fails(*words, "--force", "--seed", 2**63, code=2, match="--seed")
    fails("golden", "check", path, "--bound", "training=1", code=2, match="a golden has no training steps")
    fails(*words, "--force", "--dtype", "f8", code=2, match="unknown dtype 'f8'")
    result = call("golden", "check", path)
    row = result.stdout.splitlines()[2].split()
    assert row[:5] == ["onnx", "float64", "2x33x49", "out", "0.0e+00"]
    assert row[6:] == ["equal", "equal", "1e-11", "ok"]
    assert result.stderr.strip().endswith("passed")
    data = json.loads(call("golden", "check", path, "--json").stdout)
    assert data["passed"]
    assert data["rows"][0]["drift"] == 0
    shown = call("golden", "show", path).stdout
    assert "seed 0, SHA-256" in shown
    assert "onnxruntime" in shown
    data = json.loads(call("golden", "show", path, "--json").stdout)
    assert data["spec"] == SPEC.to_dict()
    assert list(tmp_path.glob(".*")) == []


def test_weights_are_not_written_over(tmp_path):
    """They are what the golden is of, and it does not hold them."""
    path, link = tmp_path / "victim.safetensors", tmp_path / "link"
    path.write_bytes(b"precious")
    link.symlink_to(path)
    for weights, output in (
        (path, path),
        (link, path),
        (path, link),
        (path, tmp_path / ".." / tmp_path.name / path.name),
    ):
        for force in ([], ["--force"]):
            fails("golden", "record", "--weights", weights, "--backends", "onnx", "--output", output, *force, code=2,
                  match="--output .* is what is read; give another name")  # fmt: skip
    assert path.read_bytes() == b"precious"


def test_who_died_after_a_part(small):
    """Every row passes; the last line says why the check did not."""
    golden, _ = small
    row = next(recorded_rows(golden))
    drift = Drift("model", "cpu", (row,), (), {"onnx": "it died", "torch": "absent"}, {})
    assert _verdict(drift) == "FAILED: onnx did not finish, torch did not run"
    assert _verdict(dataclasses.replace(drift, failures={})) == "passed"
    over = dataclasses.replace(row, truth=1.0)
    assert _verdict(dataclasses.replace(drift, rows=(over,))) == "FAILED"
