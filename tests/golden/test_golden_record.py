"""Recorded goldens: whole when recorded, silent when nothing changed, loud when something did."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal

import numpy as np
import pytest
from golden_changes import GRAPH, SIZE, SPEC, changed, reload, with_output
from test_cli import call, fails

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, FormatError, WeightsError
from deeplabzoo.parity import golden as goldens
from deeplabzoo.parity import judge
from deeplabzoo.parity.golden import check, record, recorded_rows
from deeplabzoo.parity.golden_file import Golden
from deeplabzoo.parity.run import environment
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model


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
    assert re.search(r"nearest to its bound is .*: FAILED: onnx did not run$", result.stderr.strip())


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
    fails("golden", "check", golden, code=1, match=r"recorded with mine\.safetensors, .* \(weights=, --weights\)")
    fails("golden", "check", golden, "--weights", other, code=1, match=r"have SHA-256 \w{64}, those of the golden")
    assert "passed" in call("golden", "check", golden, "--weights", path).stderr
    drift = check(small[0], weights={**seeded_weights(GRAPH, 0, statistics="lively")})
    assert drift.passed
    with pytest.raises(WeightsError, match="give the ones it was recorded with"):
        check(small[0], weights=nudged_weight(GRAPH, seeded_weights(GRAPH, 0, statistics="lively"))[1])


def test_a_file_name_that_is_no_line(kept, tmp_path):
    """It is kept as a golden may hold it, and the golden can be read and replayed."""
    for name in ("a\x1b[2J\n\u202eb.safetensors", "\x01" * 200):
        path = tmp_path / name
        write_model(Canonical(SPEC, seeded_weights(GRAPH, 4, statistics="lively")), tmp_path / "mine.safetensors")
        (tmp_path / "mine.safetensors").rename(path)
        golden = record(weights=path, backends=["onnx"], sizes=[SIZE], dtypes=["float64"], gradients=False)
        golden = reload(golden, tmp_path / "g")
        assert golden.weights == name.encode("unicode_escape").decode()[:500]
        assert golden.weights[:100] in golden.model
        assert check(golden, weights=path).passed


def test_a_machine_whose_name_is_no_line(kept, monkeypatch, small, tmp_path):
    monkeypatch.setattr(goldens, "environment", lambda: {**environment(), "system": "\x1b[2J" + "x" * 600})
    golden = record(SPEC, backends=["onnx"], sizes=[SIZE], dtypes=["float64"], gradients=False)
    golden = reload(golden, tmp_path / "g")
    assert golden.environment["system"].startswith(r"\x1b[2Jx")
    assert not check(golden).changes


def test_another_numpy_that_draws_other_numbers(kept, monkeypatch, small):
    real = judge.seeded_image
    monkeypatch.setattr(judge, "seeded_image", lambda *given: real(*given) * (1 + 1e-6))
    older = dataclasses.replace(small[0], environment={**small[0].environment, "numpy": "1.0"})
    drew = rf"numpy 1\.0 drew others than {re.escape(np.__version__)} does; use the one it was recorded with, or record"
    same = rf"numpy {re.escape(np.__version__)} drew both, so that the digest in the golden is wrong .* record again"
    for golden, why in ((older, drew), (small[0], same)):
        with pytest.raises(FormatError, match=f"input 2x33x49, seed 0, have SHA-256 .* in the golden: {why}"):
            check(golden)
    # The last bit of another machine's logarithm makes no other input.
    monkeypatch.setattr(judge, "seeded_image", lambda *given: np.nextafter(real(*given), 0))
    assert check(small[0]).passed
    monkeypatch.setattr(goldens, "seeded_weights", lambda graph, seed, **_: seeded_weights(graph, seed + 1))
    for golden, why in ((older, drew), (small[0], same)):
        with pytest.raises(WeightsError, match=why):
            check(golden)


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


def test_recorded_rows(small):
    rows = list(recorded_rows(small[0]))
    assert [row.dtype for row in rows] == ["float64", "float32"]
    assert all(0 < row.truth <= row.bound for row in rows)
