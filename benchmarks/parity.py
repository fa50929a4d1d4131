"""Overhead of a three-backend float32 parity run over the plain imports and forward passes of its workers.

Plain is, for each backend, a fresh Python process that imports the framework, builds the native model of the same weights
file and runs it on the same images; nothing is compared. The three are measured one after another and side by side.
The parity run is the command line: it does the same in workers, computes the truth with the numpy referee, and compares.

Every repetition measures all of it in turn, and ratios are taken within a repetition, so that whatever else the machine
does counts on both sides; the table shows their medians. Seconds of processor time count all processes. Prints one
table; run it with `make benchmarks`.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model
from deeplabzoo.zoo.models import named_spec

BACKENDS = ("torch", "paddle", "keras")
BOUND = 1.3

MODELS = (
    ("mobilenet_v2", 8, ("97x129", "64x96")),
    ("resnet50", 8, ("97x129", "64x96")),
    ("mobilenet_v2", 1, ("289x321", "96x128")),
    ("resnet50", 1, ("289x321", "96x128")),
)
"""Backbone of a v3+, what its channels are divided by, and image sizes: small ones, and those of `parity` itself."""

PLAIN = """
import sys
import numpy as np
from deeplabzoo.backends import resolve
backend, file, *sizes = sys.argv[1:]
run = resolve(backend).module("run")
run.configure("cpu")
from deeplabzoo.models import build
model = build(weights=file, backend=backend)
for place, size in enumerate(sizes):
    height, width = map(int, size.split("x"))
    run.forward(model, np.random.default_rng([0, place]).standard_normal((2, 3, height, width)))
"""

# Workers ask for the same: frameworks' own notes are no part of the comparison.
QUIET = ("-W", "ignore")


def plain(backend: str, file: Path, sizes: Sequence[str]) -> list[str]:
    """Command of one plain process."""
    return [sys.executable, *QUIET, "-c", PLAIN, backend, str(file), *sizes]


def parity(file: Path, sizes: Sequence[str]) -> list[str]:
    """Command of the parity run."""
    chosen = [word for size in sizes for word in ("--size", size)]
    options = ["--backends", ",".join(BACKENDS), "--dtype", "float32", "--weights", str(file)]
    return [sys.executable, *QUIET, "-m", "deeplabzoo", "parity", *options, *chosen]


def measure(*commands: Sequence[str]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of commands that run side by side."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start, before = time.perf_counter(), spent()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    said = [process.communicate()[0].decode(errors="replace") for process in running]
    for process, text in zip(running, said, strict=True):
        if process.returncode != 0:
            raise SystemExit(f"{process.args} failed with status {process.returncode}:\n{text}")
    return time.perf_counter() - start, spent() - before


def main() -> None:
    """Measure every model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="repetitions of each model (default 5)")
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name holds it, such as resnet50/8")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for backbone, narrow, sizes in MODELS:
            name = backbone if narrow == 1 else f"{backbone}/{narrow}"
            if given.only not in name:
                continue
            spec = named_spec("v3plus", backbone=backbone).narrowed(narrow)
            file = Path(folder) / "model.safetensors"
            weights = seeded_weights(build_graph(spec), 0, statistics="lively")
            write_model(Canonical(spec, weights), file, force=True)
            alone = [plain(backend, file, sizes) for backend in BACKENDS]
            runs = []
            for _ in range(given.repeats):
                after = [measure(command) for command in alone]
                beside, ours = measure(*alone), measure(parity(file, sizes))
                runs.append((sum(seconds for seconds, _ in after), *beside, *ours))
            rows.append(
                (
                    name,
                    " ".join(sizes),
                    *(f"{statistics.median(run[place] for run in runs):.1f}" for place in (0, 1, 3)),
                    f"{statistics.median(run[3] / run[1] for run in runs):.2f}",
                    f"{statistics.median(run[3] / run[0] for run in runs):.2f}",
                    f"{statistics.median(run[4] / run[2] for run in runs):.2f}",
                )
            )
    print(f"{', '.join(BACKENDS)}; v3+ in float32, batch 2; median of {given.repeats}; bound {BOUND}\n")
    headers = ("model", "images", "one after another s", "side by side s", "parity s", "x side by side", "x one after another", "x processor time")  # fmt: skip
    print(tabulate(rows, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()
