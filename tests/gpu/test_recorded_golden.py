"""Backends without a build for the device take part by what they gave in float64 elsewhere: a recorded golden.

`deeplabzoo golden record --arch v3plus_mobilenet_v2 --narrow 8 --backends paddle,keras --dtype float64 --size 289x321`
made it; Paddle and TensorFlow need not be here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from device_common import DEVICE, needed

GOLDEN = Path(__file__).with_name("v3plus_mobilenet_v2.golden")


@pytest.fixture(scope="module")
def golden():
    return needed("deeplabzoo.parity.golden_file").Golden.load(GOLDEN)


def test_what_was_recorded_holds(golden):
    """Every side within its bound of the same truth, on an input at which every tap is live."""
    rows = list(needed("deeplabzoo.parity.golden").recorded_rows(golden))
    assert {row.side for row in rows} == {"paddle", "keras/tensorflow"}
    assert {row.dtype for row in rows} == {"float64"}
    assert {row.check for row in rows} == {"forward", "gradients"}
    assert all(row.passed for row in rows)
    assert all(one.case.live for one in golden.inputs)


@pytest.mark.gpu
def test_the_device_agrees_with_the_record(golden, on_device):
    name, check = on_device.backend.name, needed("deeplabzoo.parity.golden").check
    drift = check(golden, backends=[name], device=DEVICE)
    assert not drift.failures
    for row in drift.rows:
        print(f"{name} {row.dtype} {row.check}: {row.truth:.1e} off the recorded truth, bound {row.bound:g}")
    assert drift.passed
    assert {row.dtype for row in drift.rows} == {"float32" if DEVICE == "gpu" else "float64"}


@pytest.mark.gpu
def test_a_record_of_other_values_is_refused(golden, on_device):
    """The first value on the grid off by a thousandth of the largest."""
    truth = golden.records[0]
    moved = {name: dataclasses.replace(one, grid=one.grid.copy()) for name, one in truth.outputs[0].items()}
    moved["out"].grid.flat[0] += 1e-3 * abs(moved["out"].grid).max()
    wrong = dataclasses.replace(truth, outputs=(moved, *truth.outputs[1:]))
    other = dataclasses.replace(golden, records=(wrong, *golden.records[1:]))
    drift = needed("deeplabzoo.parity.golden").check(other, backends=[on_device.backend.name], device=DEVICE)
    assert not drift.failures
    assert not all(row.passed for row in drift.rows if row.check == "forward")
