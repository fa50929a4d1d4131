"""Every preset in every backend: parameters, legal strides, largest errors in float64 and float32.

Prints a Markdown table (docs/presets.md). Channels are divided by `--narrow`; parameters are those of the whole model.
The inputs are the parity command's: an odd one at which every tap of every atrous kernel is live, and an even one.
"""

import argparse
import fnmatch
import os
import sys

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.analysis import parameter_count, stride_differences
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import SpecError
from deeplabzoo.parity.cases import REFEREE, default_cases
from deeplabzoo.parity.compare import BOUNDS
from deeplabzoo.parity.judge import judge
from deeplabzoo.zoo.presets import PRESETS

HEADERS = (
    "preset", "classes", "stride", "parameters", "same branches at", "float64, pairs", "float64, referee",
    "float32, truth", "source",
)  # fmt: skip


def exact_strides(spec: ArchSpec) -> str:
    """Other strides at which backbone and atrous branches have the same values on the common grid."""
    graph, found = build_graph(spec), []
    for stride in OUTPUT_STRIDES:
        try:
            other = build_graph(spec.at_output_stride(stride))
        except SpecError:
            continue
        coarse, fine = (other, graph) if stride > spec.output_stride else (graph, other)
        if stride != spec.output_stride and not stride_differences(coarse, fine):
            found.append(str(stride))
    return ", ".join(found) or "none"


def errors(spec: ArchSpec, workers: list[Worker]) -> tuple[float, float, float]:
    """Largest error between pairs and against the referee in float64, and against the float64 truth in float32."""
    graph = build_graph(spec)
    weights = seeded_weights(graph, 0, statistics="lively")
    worst = {"pairs": 0.0, "float64": 0.0, "float32": 0.0}
    for dtype in ("float64", "float32"):
        for row in judge(graph, weights, default_cases(spec), [(w, dtype) for w in workers], dtype=dtype):
            key = dtype if row.second == REFEREE else "pairs"
            worst[key] = max(worst[key], row.error)
    return worst["pairs"], worst["float64"], worst["float32"]


def main() -> None:
    """Judge the presets that match and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="*", default=["*"])
    parser.add_argument("--narrow", type=int, default=8)
    parser.add_argument("--backends", default="torch,paddle,keras")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    names = [name for name in PRESETS if any(fnmatch.fnmatchcase(name, pattern) for pattern in given.pattern)]
    workers = [Worker(name) for name in given.backends.split(",")]
    print(f"| {' | '.join(HEADERS)} |\n|{' --- |' * len(HEADERS)}", flush=True)
    failed = []
    for name in names:
        spec = PRESETS[name].make()
        count = parameter_count(build_graph(spec))
        found = errors(spec.narrowed(given.narrow), workers)
        if found[0] > BOUNDS["float64"] or found[1] > BOUNDS["float64"] or found[2] > BOUNDS["float32"]:
            failed.append(name)
        cells = (f"`{name}`", spec.num_classes, spec.output_stride, f"{count:,}", exact_strides(spec))
        print(
            f"| {' | '.join(map(str, cells))} | {' | '.join(f'{e:.1e}' for e in found)} | {PRESETS[name].source} |",
            flush=True,
        )
    for worker in workers:
        worker.close()
    versions = ", ".join(f"{k} {v}" for worker in workers for k, v in worker.versions.items())
    print(f"\n{len(names)} presets, channels divided by {given.narrow}; {versions}")
    sys.exit(f"over the bound: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
