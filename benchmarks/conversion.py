"""Convert a 233 MB `.pth` to `.pdparams`, beside reading and writing the same bytes and `torch.load` + `paddle.save`.

Every way runs in a fresh process and is measured there: seconds of the work itself, seconds of the whole process with
its imports, and peak memory. Prints one table of ratios; run it with `make benchmarks`.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

REPEATS = 5

PRELUDE = """
import json, resource, sys, time
source, target = sys.argv[1:3]
def done(start, **more):
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    frameworks = [n for n in ("torch", "paddle", "tensorflow", "keras", "jax") if n in sys.modules]
    print(json.dumps({"seconds": seconds, "peak": peak, "frameworks": frameworks, **more}))
"""

MAKE = """
from pathlib import Path
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model
from deeplabzoo.zoo.presets.torchvision import template
spec = template("resnet101", 21, aux=True)
weights = seeded_weights(Canonical(spec, {}).graph, 0)
write_model(Canonical(spec, weights), Path(target), layout="torchvision", force=True)
done(time.perf_counter())
"""

NOTHING = "done(time.perf_counter())"

# What any conversion must do at least; on the disk at the end, as ours is.
COPY = """
import os
start = time.perf_counter()
with open(source, "rb") as file:
    data = file.read()
with open(target, "wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
done(start)
"""

OURS = """
from deeplabzoo.weights_converter.convert import convert
start = time.perf_counter()
convert(source, target, force=True)
done(start)
"""

# Two processes, because torch and paddle in one crash; the arrays cross as they would have to, through a file.
TORCH = """
import numpy, torch
start = time.perf_counter()
state = torch.load(source, weights_only=True)
numpy.savez(target, **{name: tensor.numpy() for name, tensor in state.items()})
done(start)
"""

PADDLE = """
import numpy, paddle
start = time.perf_counter()
with numpy.load(source) as arrays:
    state = {name: paddle.to_tensor(arrays[name]) for name in arrays.files}
paddle.save(state, target)
done(start)
"""


def measure(code: str, source: Path, target: Path) -> dict[str, float]:
    """Median of several fresh processes; what the code printed, and the seconds of the whole process."""
    runs = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        command = [sys.executable, "-W", "ignore", "-c", PRELUDE + code, str(source), str(target)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append({**json.loads(result.stdout.splitlines()[-1]), "process": time.perf_counter() - start})
    runs.sort(key=lambda run: run["seconds"])
    median = runs[len(runs) // 2]
    return {**median, "process": statistics.median(run["process"] for run in runs)}


def main() -> None:
    """Make the file, measure every way, print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "deeplabv3_resnet101.pth"
        subprocess.run([sys.executable, "-c", PRELUDE + MAKE, "-", str(source)], check=True, capture_output=True)
        size = source.stat().st_size / 2**20
        bare = measure(NOTHING, source, folder / "nothing")
        copy = measure(COPY, source, folder / "copy.pth")
        ours = measure(OURS, source, folder / "ours.pdparams")
        first = measure(TORCH, source, folder / "between.npz")
        second = measure(PADDLE, folder / "between.npz", folder / "theirs.pdparams")
        theirs = {
            "seconds": first["seconds"] + second["seconds"],
            "process": first["process"] + second["process"],
            "peak": max(first["peak"], second["peak"]),
            "frameworks": first["frameworks"] + second["frameworks"],
        }
        rows = [
            (
                title,
                f"{run['seconds']:.2f}",
                f"{run['seconds'] / copy['seconds']:.1f}",
                f"{run['process']:.2f}",
                f"{run['peak']:.0f}",
                f"{run['peak'] / size:.2f}",
                ", ".join(run["frameworks"]) or "none",
            )
            for title, run in (
                ("python that does nothing", bare),
                ("read and write the bytes", copy),
                ("deeplabzoo convert", ours),
                ("torch.load + paddle.save", theirs),
            )
        ]
        headers = ("way", "work s", "x copy", "process s", "peak MiB", "x file", "frameworks in sys.modules")
        print(f"{source.name} ({size:.0f} MiB) to .pdparams, median of {REPEATS} fresh processes\n")
        print(tabulate(rows, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()
