"""Gradients and training steps of presets in every backend: largest errors in float64 and float32.

Gradients are of every parameter and of the image, in evaluation mode, by the rule of `parity.compare.gradient_errors`.
Training is ten steps of SGD with momentum and weight decay on four images: with the batch's statistics, with frozen
batch norm, and with seeded dropout; compared are the loss, all parameters and all running statistics after the first
and the last step. Every tap of every atrous kernel is live. Channels are divided by `--narrow`, and the
branches have rates 1, 2, 3. Prints a Markdown table.
"""

import argparse
import os
import sys

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.analysis import smallest_live_size
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.training import Training
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.parity.cases import case_of
from deeplabzoo.parity.compare import GRADIENT_BOUNDS, TRAINING_BOUNDS
from deeplabzoo.parity.judge import judge
from deeplabzoo.parity.run import LESSON_BATCH
from deeplabzoo.zoo.presets import PRESETS

ONE_AN_ARCHITECTURE = (
    "v1_vgg16",
    "v2_vgg16",
    "v2_resnet101.kazuto",
    "v3_resnet50.torchvision",
    "v3_resnet50.cascade",
    "v3_mobilenet_v3_large.torchvision",
    "v3plus_resnet50.paddleseg",
    "v3plus_xception65.tf",
    "v3plus_mobilenet_v2.vainf",
)
STEPS = {
    "batch": Training(),
    "frozen": Training(batch_norm="frozen"),
    "dropout": Training(dropout="seeded"),
}


def errors(spec: ArchSpec, workers: list[Worker]) -> dict[str, float]:
    """Largest error of each check in each dtype, and how far over its bound the worst one is."""
    graph = build_graph(spec)
    weights = seeded_weights(graph, 0, statistics="lively")
    side = smallest_live_size(graph, 32)
    case, lesson = case_of(graph, 2, side, side + 32), case_of(graph, LESSON_BATCH, side, side + 32)
    worst: dict[str, float] = {}
    for dtype in GRADIENT_BOUNDS:
        computing = [(worker, dtype) for worker in workers]
        rows = judge(graph, weights, [case], computing, dtype=dtype, checks=["gradients"])
        worst[f"gradients {dtype}"] = max(row.error for row in rows)
        for name, training in STEPS.items():
            rows = judge(
                graph, weights, [case], computing, dtype=dtype, checks=["training"], training=training, lesson=lesson
            )
            worst[f"{name} {dtype}"] = max(row.error for row in rows)
    return worst


def main() -> None:
    """Judge the presets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="*", default=ONE_AN_ARCHITECTURE)
    parser.add_argument("--narrow", type=int, default=8)
    parser.add_argument("--backends", default="torch,paddle,keras")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    workers = [Worker(name) for name in given.backends.split(",")]
    over = []
    columns = [f"{name} {dtype}" for dtype in GRADIENT_BOUNDS for name in ("gradients", *STEPS)]
    print(f"| preset | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}", flush=True)
    for name in given.preset:
        found = errors(PRESETS[name].make().narrowed(given.narrow).with_small_rates(), workers)
        print(f"| `{name}` | {' | '.join(f'{found[column]:.1e}' for column in columns)} |", flush=True)
        for column, worst in found.items():
            kind, dtype = column.split()
            if worst > (GRADIENT_BOUNDS if kind == "gradients" else TRAINING_BOUNDS)[dtype]:
                over.append(f"{name} {column}")
    for worker in workers:
        worker.close()
    versions = ", ".join(f"{k} {v}" for worker in workers for k, v in worker.versions.items())
    print(f"\n{len(given.preset)} presets, channels divided by {given.narrow}, small rates; {versions}")
    sys.exit(f"over the bound: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
