"""Reports made by hand, so that pages and files are shown without a framework."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.parity.cases import REFEREE, Case
from deeplabzoo.parity.report import CHECKS, Picture, Report, Row, Side
from deeplabzoo.parity.trace import NodeRow, Trace
from deeplabzoo.zoo.models import named_spec

SPEC = named_spec("v3plus", backbone="mobilenet_v2").narrowed(8)
GRAPH = build_graph(SPEC)
NODES = [node.name for node in GRAPH.nodes]
SIDES = ("torch", "paddle", "keras")
BOUNDS = {"forward": 1e-11, "gradients": 1e-9, "training": 1e-8}
CASES = (Case(2, 417, 449, True), Case(2, 96, 128, False))
PHOTO = Case(1, 120, 160, True, "street.jpg")
BLAMED = "aspp.branch2.depthwise.conv"

HOSTILE = "</style></title><script>document.title='owned'</script><img src=x onerror=alert(1)>\x00\x1b[2J\udc80\u202e\"'&<\n]]>"
"""What a name or a message might hold: markup, control characters, half a surrogate, a turned direction, a line break."""


def error_of(*keys: object, scale: float = 1e-15) -> float:
    """An error that looks like rounding, the same for the same keys."""
    seed = [sum(str(key).encode()) for key in keys]
    return float(scale * 10 ** np.random.default_rng(seed).uniform(-0.5, 1.5))


def sides(*names: str) -> tuple[Side, ...]:
    """Sides that did well."""
    return tuple(
        Side(
            name,
            "float64",
            "cpu",
            "a processor of two cores",
            {name: "3.1.4", "numpy": "2.2.0", "python": "3.11.9"},
            {"start": 2.5, "load": 0.25, "forward": 1.5, "gradients": 4.0, "training": 8.0},
        )
        for name in names
    )


def rows(*names: str, checks: tuple[str, ...] = CHECKS) -> tuple[Row, ...]:
    """Every comparison of these sides and the referee, all good."""
    made = []
    for first, second in [*itertools.combinations(names, 2), *((name, REFEREE) for name in names)]:
        for case in CASES if "forward" in checks else ():
            error = error_of(first, second, case)
            made.append(Row("forward", case, "out", first, second, error, BOUNDS["forward"], labels=1.0))
        for case, name in itertools.product(CASES if "gradients" in checks else (), ("input", *GRAPH.parameters())):
            error = error_of(first, second, case, name, scale=1e-13)
            made.append(Row("gradients", case, name, first, second, error, BOUNDS["gradients"]))
        for step, name in itertools.product((1, 10) if "training" in checks else (), ("loss", *GRAPH.parameters())):
            error = error_of(first, second, step, name, scale=1e-13 * step)
            made.append(Row("training", CASES[0], name, first, second, error, BOUNDS["training"], step=step))
    return tuple(made)


def trace(*names: str, blamed: dict[str, str] | None = None) -> Trace:
    """Errors that look like rounding, and far above it from the blamed node of a side on."""
    shapes = GRAPH.shapes(97, 129, 1)
    made, guilty = [], dict.fromkeys(names)
    for name in NODES:
        for side in names:
            late = blamed and side in blamed and NODES.index(name) >= NODES.index(blamed[side])
            error = error_of(side, name, scale=2e-4 if late else 1e-16) if name != "input" else 0.0
            op = GRAPH.by_name[name].op
            attributes = " ".join(f"{key}={value}" for key, value in op.attributes().items())
            row = NodeRow(name, f"{op.kind} {attributes}".strip(), tuple(shapes[name]), side, error, 0.125, 1.5, 7.75)
            made.append(row)
            if blamed and blamed.get(side) == name:
                guilty[side] = row
    return Trace(
        "v3+", GRAPH.digest(), "float64", CASES[0], REFEREE, 1e-11, {}, tuple(made), guilty, outputs=(NODES[-1],)
    )


def photo() -> np.ndarray:
    """Something like a photo: a sky, a road, a bright disc."""
    down, right = np.mgrid[0:120, 0:160]
    sky = np.stack([90 + down, 140 + down // 2, 220 - down // 3], axis=-1)
    road = np.stack([80 + right // 4] * 3, axis=-1)
    scene = np.where((down > 70)[..., None], road, sky)
    return np.where(((down - 30) ** 2 + (right - 110) ** 2 < 300)[..., None], [250, 240, 170], scene).astype(np.uint8)


def picture(first: str, second: str, *pixels: tuple[int, int]) -> Picture:
    """The photo, and the pixels at these rows and columns differing."""
    differs = np.zeros((120, 160), np.bool_)
    for pixel in pixels:
        differs[pixel] = True
    return Picture(PHOTO, first, second, photo(), differs)


def passed() -> Report:
    """Three sides that agree in everything, a trace, labels that are all the same."""
    pictures = (picture("torch", "paddle"), picture("torch", REFEREE))
    return Report(
        model="DeepLabv3+ MobileNetV2, stride 16, seed 0, channels divided by 8",
        spec=SPEC.to_dict(),
        graph_digest=GRAPH.digest(),
        weights_digest="ab" * 32,
        weights="seed 0",
        dtype="float64",
        device="cpu",
        checks=CHECKS,
        sides=sides(*SIDES),
        rows=rows(*SIDES),
        trace=trace(*SIDES),
        pictures=pictures,
        environment={
            "machine": "x86_64",
            "system": "Linux 6.1",
            "python": "3.11.9",
            "numpy": "2.2.0",
            "deeplabzoo": "0.1.0",
        },
    )


def with_row(report: Report, error: float, **selected: object) -> Report:
    """The report with the error of all rows that have these values changed."""
    return dataclasses.replace(
        report,
        rows=tuple(
            dataclasses.replace(row, error=error) if all(getattr(row, k) == v for k, v in selected.items()) else row
            for row in report.rows
        ),
    )


def failed() -> Report:
    """Keras is wrong from a node on, onnx has no gradients, jax died."""
    good = passed()
    died = dataclasses.replace(
        sides("keras/jax")[0],
        versions={},
        seconds={"start": 3.0},
        failure="worker of keras/jax ended with signal 9 (out of memory?): give it more memory, or a smaller --size",
    )
    exported = dataclasses.replace(
        sides("onnx")[0],
        seconds={"start": 1.0, "load": 0.5, "forward": 1.0},
        left_out=dict.fromkeys(("gradients", "training"), "an exported model has no gradients"),
    )
    report = dataclasses.replace(
        good,
        sides=(*good.sides, exported, died),
        rows=(
            *good.rows,
            *(row for row in rows(*SIDES, "onnx", checks=("forward",)) if "onnx" in (row.first, row.second)),
        ),
        trace=trace(*SIDES, "onnx", blamed={"keras": BLAMED}),
        pictures=(
            picture("torch", "paddle"),
            picture("torch", "keras", (20, 30), *itertools.product(range(80, 90), range(100, 108))),
            picture("keras", REFEREE, (20, 30), *itertools.product(range(80, 90), range(100, 112, 2))),
        ),
    )
    for pair in (("torch", "keras"), ("paddle", "keras"), ("keras", REFEREE)):
        first, second = pair
        report = with_row(report, 3.4e-3, check="forward", first=first, second=second)
        report = with_row(
            report, 0.25, check="gradients", first=first, second=second, name="aspp.branch2.depthwise.conv.weight"
        )
        report = with_row(
            report, 0.011, check="training", first=first, second=second, name="aspp.branch2.depthwise.bn.running_var"
        )
        report = with_row(report, math.inf, check="training", first=first, second=second, step=10, name="loss")
    report = with_row(report, 5e-12, check="forward", first="torch", second="paddle")
    fault = {"check": "gradients", "first": "keras", "second": REFEREE, "name": f"{BLAMED}.weight"}
    return dataclasses.replace(
        report, blamed=tuple(row for row in report.rows if fault.items() <= vars(row).items())[:1]
    )


def hostile() -> Report:
    """The failed report with hostile text wherever text of others comes in."""
    report = failed()
    assert report.trace is not None
    renamed = {BLAMED: HOSTILE, "torch": f"torch {HOSTILE}"}
    side = dataclasses.replace(
        report.sides[0],
        name=renamed["torch"],
        device_name=HOSTILE,
        versions={HOSTILE: HOSTILE},
        failure=HOSTILE,
        left_out={"training": HOSTILE},
    )
    nodes = tuple(
        dataclasses.replace(row, node=renamed.get(row.node, row.node), op=HOSTILE, side=renamed.get(row.side, row.side))
        for row in report.trace.rows
    )
    guilty = {
        renamed.get(name, name): next((row for row in nodes if wrong and (row.node, row.side) == (HOSTILE, name)), None)
        for name, wrong in report.trace.blamed.items()
    }
    case = Case(1, 120, 160, True, HOSTILE)
    return dataclasses.replace(
        report,
        model=HOSTILE,
        weights=HOSTILE,
        spec={**report.spec, "note": HOSTILE.replace("\udc80", "")},
        sides=(side, *report.sides[1:]),
        rows=tuple(
            dataclasses.replace(row, first=renamed.get(row.first, row.first), name=f"{HOSTILE}{row.name}", case=case)
            for row in report.rows
        ),
        trace=dataclasses.replace(report.trace, rows=nodes, blamed=guilty),
        pictures=tuple(dataclasses.replace(one, case=case) for one in report.pictures),
        environment={**report.environment, HOSTILE: HOSTILE},
    )
