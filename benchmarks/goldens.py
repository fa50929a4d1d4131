"""Every public golden case through its project's layout, in every backend: one table of errors.

The error of a against b is max|a - b| / max|b|, b being what the project's own class answered (in float64 where the
case holds that, else its float32). Prints one table; run it with `make goldens`. Needs `DEEPLABZOO_DATA`.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from tabulate import tabulate

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.weights_converter.convert import read_source

BACKENDS = ("torch", "paddle", "keras")
DATA = Path(os.environ.get("DEEPLABZOO_DATA", "../shared/data"))


def module() -> ModuleType:
    """The reader of golden cases, which lies beside the data."""
    found = importlib.util.spec_from_file_location("goldens", DATA.parent / "goldens.py")
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


def main() -> None:
    """Run all cases, print the table, exit 1 where a bound does not hold."""
    goldens = module()
    rows, passed = [], True
    workers = {name: Worker(name) for name in BACKENDS}
    for folder in sorted((DATA / "goldens").glob("*/case.json")):
        name = folder.parent.name
        tensors, image, expected = goldens.load_case(name)
        if expected["case"]["input"]["layout"] == "NHWC":
            image = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
        source = read_source(tensors)
        graph, weights = build_graph(source.model.spec), dict(source.model.weights)
        dtypes = ("float32", "float64") if "grid64" in expected else ("float32",)
        cells = {}
        for dtype in dtypes:
            bound = 2e-5 if dtype == "float32" else 5e-6 if "paddleseg" in name else 1e-10
            for backend, worker in workers.items():
                worker.load(graph, weights, dtype=dtype)
                error, labels = goldens.check(expected, worker.forward(image)["out"])
                passed &= error <= bound and labels >= 0.9999
                cells[dtype, backend] = f"{error:.1e}" + ("" if labels == 1 else f" ({labels:.4%})")
        rows.append((name, source.layout, *(cells.get((d, b), "") for d in ("float32", "float64") for b in BACKENDS)))
        print(name, file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.close()
    headers = ("case", "layout", *(f"{b} {d}" for d in ("float32", "float64") for b in BACKENDS))
    print(tabulate(rows, headers=headers, disable_numparse=True, tablefmt="github"))
    print(
        "\nlabels equal to the project's on 100 % of pixels where nothing is said;",
        "all bounds hold" if passed else "OVER A BOUND",
    )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
