"""Half precision: errors of presets in float16 and bfloat16 against the float64 truth, and what faults look like there.

Each preset runs with seeded lively weights and images, with every tap of every atrous kernel live: channels divided by
`--narrow` with several seeds, and a few at full width with one; the branches have rates 1, 2, 3. An error counts the
rounding of weights and image too, as the framework rounds them. Prints a Markdown table a dtype, by backend the largest
error, with the smallest share of pixels that keep the label of the truth; and a table of faults, whose smallest error is
what the bounds must stay below.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.analysis import smallest_live_size
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import Weights, seeded_weights
from deeplabzoo.parity.cases import case_of
from deeplabzoo.parity.compare import BOUNDS
from deeplabzoo.parity.judge import Answers, Exam, answers_of_referee, answers_of_worker, compare, make_exam
from deeplabzoo.parity.report import Row
from deeplabzoo.zoo.presets import PRESETS

DTYPES = ("float16", "bfloat16")
NARROW = (
    "v1_vgg16",
    "v2_resnet101.kazuto",
    "v3_resnet50.torchvision",
    "v3_mobilenet_v3_large.torchvision",
    "v3plus_resnet50.paddleseg",
    "v3plus_resnet50.kerashub",
    "v3plus_xception65.tf",
    "v3plus_xception.vainf",
    "v3plus_mobilenet_v2.vainf",
)
WHOLE = ("v1_vgg16", "v3plus_mobilenet_v2", "v3_resnet50.torchvision", "v3plus_xception65.tf")
FAULTY = "v3plus_resnet50"


def exam_of(spec: ArchSpec, seed: int) -> Exam:
    """The smallest odd input at which every tap is live."""
    graph = build_graph(spec)
    side = smallest_live_size(graph, 32)
    weights = seeded_weights(graph, seed, statistics="lively")
    return make_exam(graph, weights, [case_of(graph, 2, side, side + 32)], seed=seed)


def judged(exam: Exam, truth: Answers, worker: Worker, dtype: str) -> list[Row]:
    """A worker in a dtype against the truth."""
    answers = Answers()
    answers_of_worker(exam, worker, dtype, answers)
    return list(compare(exam, truth, {worker.backend.name: answers}, dtype=dtype))


def preset_rows(spec: ArchSpec, seeds: int, workers: list[Worker]) -> Iterator[tuple[str, Row]]:
    """Every comparison of a preset, with its dtype."""
    for seed in range(seeds):
        exam = exam_of(spec, seed)
        truth = answers_of_referee(exam)
        for worker in workers:
            for dtype in DTYPES:
                if dtype in worker.backend.flags.DTYPES:
                    yield from ((dtype, row) for row in judged(exam, truth, worker, dtype))


Fault = Callable[[Graph, Weights], tuple[Graph, Weights]]


def changed(node: str, **attributes: object) -> Fault:
    """A node with other attributes."""

    def make(graph: Graph, weights: Weights) -> tuple[Graph, Weights]:
        nodes = (
            dataclasses.replace(one, op=dataclasses.replace(one.op, **attributes)) if one.name == node else one
            for one in graph.nodes
        )
        return Graph(tuple(nodes), graph.outputs), weights

    return make


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """A tensor with other values."""
    return lambda graph, weights: (graph, {**weights, name: change(weights[name])})


FAULTS: dict[str, Fault] = {
    "a kernel transposed": tensor("backbone.stage2.block2.conv2.weight", lambda a: a.swapaxes(0, 1)),
    "a kernel mirrored": tensor("aspp.fusion.conv.weight", lambda a: a[::-1]),
    "rate 3 for 2": changed("aspp.branch2.depthwise.conv", dilation=3, padding=(3, 3, 3, 3)),
    "no dilation in a block": changed("backbone.stage4.block2.conv2", dilation=1, padding=(1, 1, 1, 1)),
    "epsilon 1 for 1e-5": changed("backbone.stage3.block2.bn1", epsilon=1.0),
    "epsilon 1e-3 for 1e-5": changed("backbone.stage3.block2.bn1", epsilon=float(np.float32(1e-3))),
    "align_corners": changed("output.resize", align_corners=True),
    "a kernel off by 1e-4": tensor("backbone.stage4.block1.conv1.weight", lambda a: a * np.float32(1 + 1e-4)),
}


def fault_rows(narrow: int, seeds: int, worker: Worker) -> Iterator[tuple[str, list[float]]]:
    """Each fault with its smallest error over the seeds in float64 and in each half dtype."""
    spec = PRESETS[FAULTY].make().narrowed(narrow).with_small_rates()
    exams = [exam_of(spec, seed) for seed in range(seeds)]
    truths = [answers_of_referee(exam) for exam in exams]
    for name, fault in FAULTS.items():
        faulty = [dataclasses.replace(exam, other=fault(exam.graph, exam.weights)) for exam in exams]
        yield (
            name,
            [
                min(
                    row.error
                    for exam, truth in zip(faulty, truths, strict=True)
                    for row in judged(exam, truth, worker, dtype)
                )
                for dtype in ("float64", *DTYPES)
            ],
        )


def line(*cells: object) -> None:
    """A row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def head(*names: str) -> None:
    """Its first two lines."""
    line(*names)
    line(*["---"] * len(names))


def main() -> None:
    """Judge everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="*", help="narrow ones instead of the usual, and none at full width")
    parser.add_argument("--narrow", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backends", default="torch,keras/tensorflow,keras/jax,keras/torch,onnx")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    chosen = [(name, given.narrow, given.seeds) for name in given.preset or NARROW]
    chosen += [] if given.preset else [(name, 1, 1) for name in WHOLE]
    workers = [Worker(name) for name in given.backends.split(",")]
    found: dict[tuple[str, int], list[tuple[str, Row]]] = {}
    for name, narrow, seeds in chosen:
        print(f"{name}, channels divided by {narrow}", file=sys.stderr, flush=True)
        spec = PRESETS[name].make().narrowed(narrow).with_small_rates()
        found[name, narrow] = list(preset_rows(spec, seeds, workers))
    over = []
    for dtype in DTYPES:
        able = [worker.backend.name for worker in workers if dtype in worker.backend.flags.DTYPES]
        print(f"\n{dtype}, bound {BOUNDS[dtype]:g}\n")
        head("preset", "channels", *able, "labels equal")
        for (name, narrow), rows in found.items():
            own = [row for kind, row in rows if kind == dtype]
            worst = [max(row.error for row in own if row.first == side) for side in able]
            over += [f"{name} {dtype}"] if max(worst) > BOUNDS[dtype] else []
            equal = min(row.labels or 0.0 for row in own)
            line(f"`{name}`", f"1/{narrow}" if narrow > 1 else "all", *(f"{e:.1e}" for e in worst), f"{equal:.2%}")
        every = [row for rows in found.values() for kind, row in rows if kind == dtype]
        errors = [row.error for row in every]
        largest = [max(row.error for row in every if row.first == side) for side in able]
        line("largest", "", *(f"{e:.1e}" for e in largest), f"{min(row.labels or 0.0 for row in every):.2%}")
        print(
            f"\nlargest error {max(errors):.1e}, median {np.median(errors):.1e}; the bound is "
            f"{BOUNDS[dtype] / max(errors):.1f} times the largest"
        )
    print(f"\nfaults in {FAULTY}, channels divided by {given.narrow}, in {workers[0].backend.name}\n")
    head("fault", "float64", *(f"{dtype} (bound {BOUNDS[dtype]:g})" for dtype in DTYPES))
    for fault, smallest in fault_rows(given.narrow, given.seeds, workers[0]):
        seen = [
            f"{e:.1e} {'found' if e > BOUNDS[d] else 'not seen'}" for d, e in zip(DTYPES, smallest[1:], strict=True)
        ]
        line(fault, f"{smallest[0]:.1e}", *seen)
    versions = {k: v for worker in workers for k, v in worker.versions.items()}
    print(f"\n{given.seeds} seeds, one at full width; {', '.join(f'{k} {v}' for k, v in versions.items())}")
    for worker in workers:
        worker.close()
    sys.exit(f"over the bound: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
