"""Inspect files of 4 GB in every format that can hold them: seconds, and the peak memory of the process.

The networks are wide ones, so that few tensors hold nearly all: up to 1.5 GB each in ours, one of 4 GB in TensorFlow's.
ONNX, frozen graphs, Caffe and TFLite files end at 2 GB by their formats and are left out. Prints one table; run it with
`make benchmarks`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

FILES = {
    "deeplabzoo": ("model.safetensors", "model.pth", "model.pdparams", "model.weights.h5", "model.npz"),
    "tensorflow": ("model.ckpt",),
    "bonlime": ("model.h5",),
}

MAKE = """
import sys
from pathlib import Path
import numpy as np
import deeplabzoo
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model
from deeplabzoo.weights_converter.ledger import LazyWeights
from deeplabzoo.zoo.presets.tensorflow import template
path, layout = Path(sys.argv[1]), sys.argv[2]
spec = deeplabzoo.spec("v3", backbone="resnet101") if layout == "deeplabzoo" else template()
spec = spec.replace(aspp=spec.aspp.replace(channels=6700 if layout == "deeplabzoo" else 23300))
shapes = Canonical(spec, {}).graph.parameters()
weights = LazyWeights({name: lambda shape=shape: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()})
write_model(Canonical(spec, weights), path, layout=layout)
"""

INSPECT = """
import json, resource, sys, time
from deeplabzoo.cli import main
start = time.perf_counter()
try:
    main(["inspect", sys.argv[1]], standalone_mode=False)
finally:
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6]))
"""


def main() -> None:
    """Make each file, inspect it, throw it away; print the table."""
    rows = []
    for layout, names in FILES.items():
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                subprocess.run([sys.executable, "-c", MAKE, str(path), layout], check=True)
                size = sum(one.stat().st_size for one in Path(folder).iterdir()) / 1e9
                done = subprocess.run(
                    [sys.executable, "-c", INSPECT, str(path)], check=True, capture_output=True, text=True
                )
                *lines, last = done.stdout.splitlines()
                seconds, peak = json.loads(last)
                told = next(line.split()[1] for line in lines if line.startswith("layout"))
                rows.append((name, told, f"{size:.2f}", f"{seconds:.1f}", f"{peak:.0f}"))
    print("deeplabzoo inspect, one fresh process a file\n")
    print(tabulate(rows, headers=("file", "layout", "GB", "s", "peak MB"), disable_numparse=True))


if __name__ == "__main__":
    main()
