"""Recorded goldens: whole when recorded, silent when nothing changed, loud when something did, harmless when hostile."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import tracemalloc

import numpy as np
import pytest
from test_cli import call, fails

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, DeepLabZooError, FormatError, GraphError, WeightsError
from deeplabzoo.parity import golden as goldens
from deeplabzoo.parity import golden_file, judge
from deeplabzoo.parity.golden import check, record, recorded_rows
from deeplabzoo.parity.golden_file import Golden, check_limits
from deeplabzoo.parity.sketch import Gradients, digest_of, grid_of, norm_errors, sketch_outputs
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model
from deeplabzoo.weights_converter.formats import safetensors
from deeplabzoo.zoo.models import named_spec

SPEC = named_spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3), num_classes=5).narrowed(8)
GRAPH = build_graph(SPEC)
SIZE = (33, 49)


@pytest.fixture
def kept(monkeypatch, worker):
    """The session's workers in place of new ones: the same processes, started once."""

    class Kept:
        def __init__(self, name, *, device="cpu", python=None):
            self.process = worker(name)

        def __getattr__(self, name):
            return getattr(self.process, name)

        def __enter__(self):
            return self

        def __exit__(self, *failure):
            pass

        def close(self):
            pass

    monkeypatch.setattr(goldens, "Worker", Kept)
    return Kept


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A golden of ONNX alone, which starts fast, with the referee's gradients; and its file."""
    golden = record(SPEC, backends=["onnx"], sizes=[SIZE])
    path = tmp_path_factory.mktemp("golden") / "small.golden"
    golden.save(path)
    return golden, path


def reload(golden, path):
    golden.save(path, force=True)
    return Golden.load(path)


def changed(golden, place, **changes):
    """The golden with other fields in one record."""
    records = list(golden.records)
    records[place] = dataclasses.replace(records[place], **changes)
    return dataclasses.replace(golden, records=tuple(records))


def with_output(golden, place, **changes):
    """The golden with other fields in the output of one record."""
    output = dataclasses.replace(golden.records[place].outputs[0]["out"], **changes)
    return changed(golden, place, outputs=({"out": output},))


def rewritten(path, change, target, *, sealed=True):
    """The file with other JSON or tensors; sealed anew, as one who forges it would."""
    stored = safetensors.read(path)
    arrays = {name: np.array(array) for name, array in stored.tensors.items()}
    data = json.loads(stored.metadata[golden_file._KEY])
    data = change(data, arrays) or data
    text = json.dumps(data)
    seal = golden_file._seal(text, arrays) if sealed else stored.metadata[golden_file._SEAL]
    safetensors.write(target, arrays, {golden_file._KEY: text, golden_file._SEAL: seal})
    return target


def test_every_backend(requested, kept, tmp_path):
    """Nothing changed: every bit is the same, in the file and out of it."""
    names = (*requested, "onnx")
    golden = record(SPEC, backends=names, sizes=[SIZE])
    read = reload(golden, tmp_path / "all.golden")
    assert read.to_dict() == golden.to_dict()
    for ours, theirs in zip(golden.records, read.records, strict=True):
        np.testing.assert_array_equal(ours.outputs[0]["out"].grid, theirs.outputs[0]["out"].grid)
        assert len(theirs.gradients) == (theirs.name != "onnx")
    assert (tmp_path / "all.golden").stat().st_size < 300_000
    assert len(read.records) == 1 + 2 * len(names)
    assert all(one.versions for one in read.records[1:])

    drift = check(read)
    assert drift.passed
    assert not drift.changes
    assert list(drift.left_out) == ["onnx"]
    forward = [row for row in drift.rows if row.check == "forward"]
    assert len(forward) == 2 * len(names)
    assert all(row.bits and row.labels and row.drift == 0 for row in forward)
    gradients = [row for row in drift.rows if row.check == "gradients"]
    assert len(gradients) == 2 * len(requested)
    assert all(row.drift <= row.bound / 1000 for row in gradients)
    float64 = [row.truth for row in drift.rows if row.dtype == "float64"]
    assert 0 < max(float64) < 1e-12
    assert json.loads(json.dumps(drift.to_dict()))["passed"]


def test_a_backend_that_was_not_recorded(requested, kept, small):
    """It is judged against the recorded truth, gradients too."""
    drift = check(small[0], backends=requested[:1])
    assert drift.passed
    assert {row.check for row in drift.rows} == {"forward", "gradients"}
    assert {row.dtype for row in drift.rows} == {"float64", "float32"}
    assert all(row.drift is None and row.bits is None for row in drift.rows)


def nudged_weight(graph, weights, by=1e-6):
    name = "backbone.stage2.block1.expand.conv.weight"
    assert name in weights
    return graph, {**weights, name: weights[name].astype(np.float64) * (1 + by)}


def with_op(graph, name, **changes):
    assert name in graph.by_name
    nodes = (
        dataclasses.replace(n, op=dataclasses.replace(n.op, **changes)) if n.name == name else n for n in graph.nodes
    )
    return Graph(tuple(nodes), graph.outputs)


FAULTS = {
    "a weight": nudged_weight,
    "an epsilon": lambda g, w: (with_op(g, "aspp.fusion.bn", epsilon=float(np.float32(1.1e-5))), w),
    "the corners": lambda g, w: (with_op(g, "output.resize", align_corners=True), w),
    "a rate": lambda g, w: (with_op(g, "aspp.branch3.depthwise.conv", dilation=1, padding=(1, 1, 1, 1)), w),
}


def faulty(monkeypatch, kept, fault):
    """Backends build another network than they are asked for."""

    class Faulty(kept):
        def load(self, graph, weights, *, dtype="float32"):
            self.process.load(*fault(graph, weights), dtype=dtype)

    monkeypatch.setattr(goldens, "Worker", Faulty)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_backend(kept, monkeypatch, small, fault):
    faulty(monkeypatch, kept, FAULTS[fault])
    drift = check(small[0])
    assert not drift.passed
    (row,) = (row for row in drift.rows if row.dtype == "float64")
    assert not row.passed
    assert row.drift > row.bound
    assert row.truth > row.bound
    assert not row.bits


def test_float32_is_judged_by_its_own_bound(kept, monkeypatch, small):
    """What float32 can't tell from rounding is found in float64 alone."""
    faulty(monkeypatch, kept, nudged_weight)
    assert [row.passed for row in check(small[0]).rows] == [False, True]
    assert [row.passed for row in check(small[0], bounds={"forward": 1e-4}).rows] == [True, True]
    faulty(monkeypatch, kept, lambda graph, weights: nudged_weight(graph, weights, by=1e-2))
    assert [row.passed for row in check(small[0]).rows] == [False, False]


def test_a_fault_in_a_gradient(requested, kept, monkeypatch, small):
    name = "decoder.low_level.conv.weight"

    class Wrong(kept):
        def gradients(self, image, labels):
            loss, found = self.process.gradients(image, labels)
            return loss, {**found, name: found[name] * 1.2}

    monkeypatch.setattr(goldens, "Worker", Wrong)
    drift = check(small[0], backends=requested[:1])
    bad = [row for row in drift.rows if not row.passed]
    assert [(row.check, row.name) for row in bad] == [("gradients", name)] * 2
    assert all(row.truth == pytest.approx(0.2, rel=0.1) for row in bad)


def test_a_kink_of_float32(requested, kept, monkeypatch, small):
    """Gradients of float32 alone may differ because a ReLU changed its side; who reads the verdict is told so."""

    class Kinked(kept):
        def load(self, graph, weights, *, dtype="float32"):
            self.wrong = dtype == "float32"
            self.process.load(graph, weights, dtype=dtype)

        def gradients(self, image, labels):
            loss, found = self.process.gradients(image, labels)
            return loss, {**found, "input": found["input"] * (1 + 0.2 * self.wrong)}

    monkeypatch.setattr(goldens, "Worker", Kinked)
    result = call("golden", "check", small[1], "--backends", requested[0], code=1)
    assert "note: in float32 an input of a ReLU" in result.stderr
    assert "float64 passed" in result.stderr
    call("golden", "check", small[1], "--backends", requested[0], "--bound", "gradients=0.5")
    with pytest.raises(BackendError, match=r"gradients input is .* take another seed or size, or another bound"):
        record(SPEC, backends=requested[:1], sizes=[SIZE])


def test_no_golden_of_what_is_wrong(kept, monkeypatch, tmp_path):
    faulty(monkeypatch, kept, FAULTS["the corners"])
    with pytest.raises(BackendError, match=r"onnx, float64, 2x33x49: forward out is .* off the referee, over 1e-11"):
        record(SPEC, backends=["onnx"], sizes=[SIZE], gradients=False)


def test_a_changed_record(kept, small, tmp_path):
    """What stands in the file counts: a value on the grid, the labels, a norm."""
    golden, _ = small
    path = tmp_path / "g"
    grid = golden.records[1].outputs[0]["out"].grid.copy()
    grid[0, 0, -1, -1] += 1e-9 * np.abs(grid).max()
    drift = check(reload(with_output(golden, 1, grid=grid), path))
    assert [row.passed for row in drift.rows] == [False, True]
    assert drift.rows[0].drift == pytest.approx(1e-9, rel=0.01)
    drift = check(reload(with_output(golden, 1, labels="0" * 64), path))
    assert [(row.labels, row.bits, row.passed) for row in drift.rows] == [(False, True, False), (True, True, True)]
    drift = check(reload(with_output(golden, 2, labels="0" * 64), path))
    assert [(row.labels, row.passed) for row in drift.rows] == [(True, True), (False, True)]  # float32: told alone
    drift = check(reload(with_output(golden, 1, digest="0" * 64), path))
    assert [(row.bits, row.passed) for row in drift.rows] == [(False, True), (True, True)]


def test_a_changed_norm(requested, kept, small, tmp_path):
    golden, _ = small
    made = golden.truth.gradients[0]
    norms = made.norms.copy()
    norms[3] *= 1 + 1e-6
    one = changed(golden, 0, gradients=(dataclasses.replace(made, norms=norms),))
    drift = check(reload(one, tmp_path / "g"), backends=requested[:1])
    assert [row.passed for row in drift.rows if row.check == "gradients"] == [False, True]


def test_versions_that_changed(kept, small, tmp_path):
    versions = small[0].records[1].versions
    golden = changed(small[0], 1, versions={**versions, "onnx": "0.1", "gone": "2"})
    golden = dataclasses.replace(golden, environment={**golden.environment, "numpy": "1.0"})
    drift = check(reload(golden, tmp_path / "g"))
    told = {change.what: (change.then, change.now) for change in drift.changes}
    assert told["numpy"] == ("1.0", np.__version__)
    assert told["onnx: onnx"][0] == "0.1"
    assert told["onnx: gone"] == ("2", "-")
    assert set(told) == {"numpy", "onnx: onnx", "onnx: gone"}


def test_one_dies_and_the_others_go_on(monkeypatch, requested, kept, small):
    class Dying(Worker):
        def forward(self, x):
            os.kill(self._process.pid, signal.SIGKILL)
            return super().forward(x)

    def start(name, **options):
        return Dying(name, **options) if name == "onnx" else kept(name)

    monkeypatch.setattr(goldens, "Worker", start)
    drift = check(small[0], backends=["onnx", requested[0]])
    assert not drift.passed
    assert "onnx died" in drift.failures["onnx"]
    assert drift.rows
    assert all(row.passed and row.side != "onnx" for row in drift.rows)
    result = call("golden", "check", small[1], "--backends", f"onnx,{requested[0]}", code=1)
    assert "onnx: failed: worker for onnx died" in result.stderr
    assert result.stderr.strip().endswith("FAILED")


def test_weights_from_a_file(tmp_path, small):
    """They are not kept: they are given again, and must be the same."""
    weights = seeded_weights(GRAPH, 4, statistics="lively")
    path, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    write_model(Canonical(SPEC, weights), path)
    write_model(Canonical(SPEC, seeded_weights(GRAPH, 5)), other)
    golden = tmp_path / "file.golden"
    call("golden", "record", "--weights", path, "--backends", "onnx", "--size", "33x49", "--dtype", "float64",
         "--no-gradients", "--output", golden)  # fmt: skip
    assert str(tmp_path).encode() not in golden.read_bytes()
    assert Golden.load(golden).weights == "mine.safetensors"
    fails("golden", "check", golden, code=1, match=r"recorded with mine\.safetensors, .* add --weights")
    fails("golden", "check", golden, "--weights", other, code=1, match=r"have SHA-256 \w{64}, those of the golden")
    assert "passed" in call("golden", "check", golden, "--weights", path).stderr
    drift = check(small[0], weights={**seeded_weights(GRAPH, 0, statistics="lively")})
    assert drift.passed
    with pytest.raises(WeightsError, match="give the ones it was recorded with"):
        check(small[0], weights=nudged_weight(GRAPH, seeded_weights(GRAPH, 0, statistics="lively"))[1])


def test_another_numpy_that_draws_other_numbers(kept, monkeypatch, small):
    real = judge.seeded_image
    monkeypatch.setattr(judge, "seeded_image", lambda *given: real(*given) * (1 + 1e-6))
    with pytest.raises(FormatError, match=r"input 2x33x49, seed 0, have SHA-256 .* numpy .* use that numpy, or record"):
        check(small[0])
    # The last bit of another machine's logarithm makes no other input.
    monkeypatch.setattr(judge, "seeded_image", lambda *given: np.nextafter(real(*given), 0))
    assert check(small[0]).passed
    monkeypatch.setattr(goldens, "seeded_weights", lambda graph, seed, **_: seeded_weights(graph, seed + 1))
    with pytest.raises(WeightsError, match="numpy draws others by now; record again"):
        check(small[0])


def test_gradients_that_can_not_be(kept, small, tmp_path):
    golden = record(SPEC, backends=["onnx"], sizes=[SIZE], gradients=False, dtypes=["float64"])
    assert not any(one.gradients for one in golden.records)
    assert golden.truth.left_out == "gradients were not asked for"
    softmax = SPEC.replace(output=SPEC.output.replace(values="probabilities"))
    golden = reload(record(softmax, backends=["onnx"], sizes=[SIZE], dtypes=["float64"]), tmp_path / "g")
    assert "has no logits for a loss" in golden.truth.left_out
    drift = check(golden)
    assert drift.passed
    assert not drift.left_out


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
        *common, f"paddle={sys.executable}", code=1, match="given for paddle, which takes no part: expected one of onnx"
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
    fails("golden", "record", "--backends", ",", "--output", "x", code=2, match="names none")
    fails("golden", "record", "--backends", "onxn", "--output", "x", code=2, match="did you mean 'onnx'")
    fails(*words, "--force", "--seed", 2**63, code=2, match="--seed")
    fails("golden", "check", path, "--bound", "training=1", code=2, match="a golden has no training steps")
    fails(*words, "--force", "--dtype", "f8", code=1, match="unknown dtype 'f8'")
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


# What a file may be


def test_files_that_are_no_goldens(small, tmp_path):
    _, path = small
    content = path.read_bytes()
    safetensors.write(tmp_path / "weights.safetensors", {"a": np.ones(3)})
    (tmp_path / "text.golden").write_text("no golden at all")
    (tmp_path / "empty.golden").write_bytes(b"")
    (tmp_path / "short.golden").write_bytes(content[:-100])
    (tmp_path / "shorter.golden").write_bytes(content[:100])
    flipped = bytearray(content)
    flipped[-5] ^= 1
    (tmp_path / "flipped.golden").write_bytes(flipped)
    for name, match in {
        "weights.safetensors": "safetensors, but not a golden: expected a file of `deeplabzoo golden record`",
        "text.golden": "not a golden: expected a file of",
        "empty.golden": "an empty file",
        "missing.golden": "no such file",
        "short.golden": "truncated",
        "shorter.golden": "the header claims",
        "flipped.golden": "damaged: its numbers are not those that were recorded",
        ".": "a folder; expected a golden",
    }.items():
        fails("golden", "show", tmp_path / name, code=1, match=match)
        with pytest.raises(FormatError, match=match):
            Golden.load(tmp_path / name)


def test_another_version(small, tmp_path):
    golden, path = small
    target = tmp_path / "g"

    def claims(match, change):
        with pytest.raises(FormatError, match=match) as caught:
            Golden.load(rewritten(path, change, target))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    claims(
        rf"format 2, written by deeplabzoo {golden.environment['deeplabzoo']}: this version .* reads format 1",
        lambda data, _: data.update(format=2),
    )
    claims(
        r"can't read its spec, written by deeplabzoo .*unknown field swiglu",
        lambda data, _: data["spec"].update(swiglu=1),
    )
    other = SPEC.replace(aspp=SPEC.aspp.replace(epsilon=2e-5))
    text = claims(
        "the spec in it or the builder of the graph has changed", lambda data, _: data.update(spec=other.to_dict())
    )
    assert golden.graph_digest in text
    assert build_graph(other).digest() in text
    flipped = SPEC.replace(output=SPEC.output.replace(align_corners=not SPEC.output.align_corners))
    claims("another graph than when it was recorded", lambda data, _: data.update(spec=flipped.to_dict()))


HOSTILE = (None, True, -1, 2**70, 2**31, 1.5, float("nan"), "", "x" * 600, "\x1b[2J", [], [[]], {}, {"a": {}})


def places(data, path=()):
    """Ways to everything in plain data."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def test_every_claim_is_checked(small, tmp_path):
    """Anything else anywhere in the JSON, with a right seal: read or refused, never more than that."""
    _, path = small
    stored = safetensors.read(path)
    arrays = {name: np.array(array) for name, array in stored.tensors.items()}
    text = stored.metadata[golden_file._KEY]
    random = np.random.default_rng(0)
    ways = [way for way in places(json.loads(text)) if way]
    target, refused = tmp_path / "g", 0
    tracemalloc.start()
    for n in range(200):
        data = json.loads(text)
        *before, last = ways[n] if n < len(ways) else ways[random.integers(len(ways))]
        inner = data
        for key in before:
            inner = inner[key]
        inner[last] = HOSTILE[random.integers(len(HOSTILE))]
        forged = json.dumps(data)
        safetensors.write(
            target, arrays, {golden_file._KEY: forged, golden_file._SEAL: golden_file._seal(forged, arrays)}
        )
        refused += _harmless(target)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert refused > 130


def test_any_bytes(small, tmp_path):
    content = small[1].read_bytes()
    random = np.random.default_rng(1)
    header = int.from_bytes(content[:8], "little") + 8
    for n in range(300):
        damaged = bytearray(content)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(8 if n % 2 else header)] = random.integers(256)
        if n % 5 == 0:
            del damaged[random.integers(len(damaged)) :]
        (tmp_path / "g").write_bytes(damaged)
        if bytes(damaged) != content:
            assert _harmless(tmp_path / "g")


def _harmless(path):
    try:
        Golden.load(path)
    except DeepLabZooError as error:
        assert isinstance(error, FormatError)
        text = str(error)
        assert text.isprintable()
        assert str(path) in text
        assert len(text) < 1000
        return True
    return False


def test_claims_of_size(small, tmp_path):
    """What is replayed must not take all the memory there is."""
    _, path = small
    target = tmp_path / "g"
    for change, match in (
        (lambda data, arrays: data["inputs"][0].update(height=2**40), "a golden allows 134217728; take a smaller size"),
        (lambda data, arrays: data["inputs"][0].update(batch=2**60), "a golden allows"),
        (lambda data, arrays: data.update(inputs=data["inputs"] * 17), "inputs: expected a list of at most 16"),
        (lambda data, arrays: arrays.update(extra=np.ones(3)), "tensor 'extra' is missing or not expected"),
        (lambda data, arrays: arrays.__delitem__("record0.input0.out"), "tensor 'record0.input0.out' is missing"),
        (lambda data, arrays: data["records"].__delitem__(0), "expected"),
        (lambda data, arrays: arrays["record1.input0.out"].fill(np.nan), "expected finite float64"),
        (lambda data, arrays: arrays["record0.input0.gradients"].fill(-1), "a norm below zero"),
        (lambda data, arrays: data["inputs"][0]["grids"]["out"][0].reverse(), "expected rising places below 33"),
    ):
        with pytest.raises(FormatError, match=match):
            Golden.load(rewritten(path, change, target))
    wide = named_spec("v3plus", backbone={"name": "xception65", "width": 9.0})

    def widen(data, arrays):
        data.update(spec=wide.to_dict(), graph_sha256=build_graph(wide).digest())

    with pytest.raises(FormatError, match=r"a network of \d+ parameters: a golden holds at most 268435456"):
        Golden.load(rewritten(path, widen, target))
    with target.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(FormatError, match="a golden takes at most"):
        Golden.load(target)
    check_limits(GRAPH, [(2, *SIZE)])


# What is kept


@pytest.mark.parametrize("shape", [(2, 5, 33, 49), (2, 21, 513, 513), (1, 1, 7, 900), (2, 4000, 65, 65), (1, 2, 1, 1)])
def test_the_grid_has_all_borders_and_is_small(shape):
    rows, columns = grid_of(shape)
    for places_, side in ((rows, shape[2]), (columns, shape[3])):
        assert places_[0] == 0
        assert places_[-1] == side - 1
        assert sorted(set(places_)) == list(places_)
        assert len(places_) <= min(24, side)
    values = shape[0] * shape[1] * len(rows) * len(columns)
    assert values <= max(4096, 4 * shape[0] * shape[1])


def test_digests_tell_dtype_shape_and_bits():
    a = np.arange(6.0)
    digests = {digest_of([one]) for one in (a, a.astype(np.float32), a.reshape(2, 3), -a, np.nextafter(a, 9))}
    assert len(digests) == 5
    assert digest_of([a.astype(">f8")]) == digest_of([a])
    assert digest_of([np.asfortranarray(a.reshape(2, 3))]) == digest_of([a.reshape(2, 3)])
    values = np.random.default_rng(0).standard_normal((1, 3, 4, 4))
    sketch = {
        n: sketch_outputs({"out": v}, {"out": ((0,), (0,))})["out"]
        for n, v in (("a", values), ("b", values * 2), ("c", values[:, ::-1]))
    }
    assert sketch["a"].labels == sketch["b"].labels != sketch["c"].labels


def test_norm_errors():
    sizes = {"a": 4, "b": 100, "zero": 9}
    truth = Gradients(2.0, np.array([2.0, 10.0, 1e-18]), np.array([1.0, 5.0, 1e-18]))

    def errors(loss=2.0, norms=(2.0, 10.0, 1e-18), sums=(1.0, 5.0, 1e-18)):
        return norm_errors(Gradients(loss, np.array(norms), np.array(sums)), truth, sizes)

    assert errors() == dict.fromkeys(("loss", "a", "b", "zero"), 0.0)
    assert errors(loss=2.2)["loss"] == pytest.approx(0.1)
    assert errors(norms=(2.0, 11.0, 1e-18))["b"] == pytest.approx(0.1)
    assert errors(sums=(1.0, 15.0, 1e-18))["b"] == pytest.approx(0.1)  # 10 over 10 * sqrt(100)
    assert errors(sums=(-1.0, 5.0, 1e-18))["a"] == pytest.approx(0.5)
    assert errors(norms=(2.0, 10.0, 5e-18))["zero"] < 1e-12  # rounding of what is zero
    assert errors(norms=(2.0, 10.0, 3.0))["zero"] == pytest.approx(1e4)
    assert errors(norms=(np.nan, 10.0, 0.0))["a"] == np.inf
    with pytest.raises(WeightsError, match="judges nothing"):
        norm_errors(truth, Gradients(2.0, np.zeros(3), np.zeros(3)), sizes)


def test_recorded_rows(small):
    rows = list(recorded_rows(small[0]))
    assert [row.dtype for row in rows] == ["float64", "float32"]
    assert all(0 < row.truth <= row.bound for row in rows)
