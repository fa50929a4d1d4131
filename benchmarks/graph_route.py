"""Compare the weight route (`deeplabzoo convert`) with the graph route (torch -> ONNX -> the other framework).

The graph route needs three environments whose packages exclude one another; they are made once in the folder `--envs`
(several gigabytes). Both routes start from one torchvision DeepLabV3-ResNet101 `.pth`. Besides time and memory the
table tells what one holds in the end: the largest error against torch at the size of the export and at another one, and
how many tensors are left (a graph has its batch norms folded away: it can't be trained on or moved on). Run it with `make benchmarks-graph`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

ENVIRONMENTS = {
    "torch": ("torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "-e", str(Path(__file__).parents[1])),
    "paddle": ("paddlepaddle==3.3.1", "x2paddle==1.6.0", "onnx==1.17.0", "setuptools<81"),
    "tf": (
        "tensorflow==2.21.0",
        "tf_keras==2.21.0",
        "onnx2tf==1.28.8",
        "onnx==1.23.2",
        "onnx_graphsurgeon==0.6.1",
        "onnxsim==0.8.1",
        "sng4onnx==2.0.1",
        "psutil",
        "ml_dtypes",
    ),
}
SIZES = ((321, 321), (257, 385))

PRELUDE = """
import json, os, resource, sys, time
from pathlib import Path
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
def done(**more):
    own, of = (resource.getrusage(w).ru_maxrss / 1024 for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print("\\n" + json.dumps({"peak": max(own, of), **more}))
"""

MAKE = """
import numpy as np
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model
from deeplabzoo.zoo.presets.torchvision import template
spec = template("resnet101", 21, aux=True)
weights = seeded_weights(Canonical(spec, {}).graph, 0, statistics="lively")
write_model(Canonical(spec, weights), Path("model.pth"), layout="torchvision")
"""

TORCH = """
import numpy as np, torch
import deeplabzoo
class Out(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.m = deeplabzoo.load("model.pth", backend="torch")
    def forward(self, x):
        return self.m(x)["out"]
model = Out().eval()
"""

REFERENCE = """
generator, held = np.random.default_rng(0), {}
for i, size in enumerate(json.loads(sys.argv[1])):
    held[f"x{i}"] = generator.standard_normal((1, 3, *size)).astype(np.float32)
    with torch.no_grad():
        held[f"y{i}"] = model(torch.from_numpy(held[f"x{i}"])).numpy()
np.savez("reference.npz", **held)
done(kept=sum(not name.endswith("num_batches_tracked") for name in model.m.state_dict()))
"""

# x2paddle knows no dilations at a pooling, even of 1; opset 9 would give another resize (error 0.3, without a word). What
# it makes of this graph stops at the expansion behind the image pooling, with free sizes or without.
EXPORT_FOR_PADDLE = """
import onnx
torch.onnx.export(model, (torch.zeros(1, 3, 321, 321),), "model.onnx", input_names=["image"], output_names=["logits"],
                  dynamo=False, opset_version=11)
graph = onnx.load("model.onnx")
for node in graph.graph.node:
    if node.op_type == "MaxPool":
        kept = [a for a in node.attribute if a.name != "dilations"]
        del node.attribute[:]
        node.attribute.extend(kept)
onnx.save(graph, "model.onnx")
done()
"""

# onnx2tf stops at the exporter's dynamic sizes.
EXPORT_FOR_TF = """
torch.onnx.export(model, (torch.zeros(1, 3, 321, 321),), "model.onnx", input_names=["image"], output_names=["logits"],
                  dynamo=True, external_data=False)
done()
"""

X2PADDLE = """
import subprocess
subprocess.run([str(Path(sys.executable).with_name("x2paddle")), "--framework=onnx", "--model=model.onnx",
                "--save_dir=paddle"], check=True, stdout=subprocess.DEVNULL)
done()
"""

# The photos that onnx2tf would fetch from its project for a check of its own.
ONNX2TF = """
import subprocess
import numpy as np
photos = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
np.save("calibration_image_sample_data_20x128x128x3_float32.npy", photos)
subprocess.run([str(Path(sys.executable).with_name("onnx2tf")), "-i", "model.onnx", "-o", "tf", "-osd", "-n"],
               check=True, stdout=subprocess.DEVNULL)
done()
"""

ERRORS = """
import numpy as np
held = np.load("reference.npz")
def judge(call, kept):
    told = []
    for i in range(len(held.files) // 2):
        try:
            y, truth = call(held[f"x{i}"]), held[f"y{i}"]
            told.append(f"{np.abs(y - truth).max() / np.abs(truth).max():.1e}" if y.shape == truth.shape else "shape")
        except Exception as error:
            told.append(type(error).__name__)
    done(errors=told, kept=kept)
"""

RUN_PADDLE = """
import paddle
sys.path.insert(0, "paddle")
import x2paddle_code
layers = [getattr(x2paddle_code, n) for n in dir(x2paddle_code) if isinstance(getattr(x2paddle_code, n), type)]
model = next(one for one in layers if issubclass(one, paddle.nn.Layer))()
state = paddle.load("paddle/model.pdparams")
model.set_state_dict(state)
model.eval()
with paddle.no_grad():
    judge(lambda x: model(paddle.to_tensor(x)).numpy(), sum(value.ndim > 0 for value in state.values()))
"""

RUN_TF = """
import tensorflow as tf
loaded = tf.saved_model.load("tf")
call = loaded.signatures["serving_default"]
key = next(iter(call.structured_input_signature[1]))
def forward(x):
    return next(iter(call(**{key: tf.constant(x.transpose(0, 2, 3, 1))}).values())).numpy().transpose(0, 3, 1, 2)
judge(forward, len(getattr(loaded, "variables", ())))
"""

OURS = """
from deeplabzoo.weights_converter.convert import convert
convert("model.pth", sys.argv[1])
done()
"""

RUN_OURS = """
from deeplabzoo.backends.worker import Worker
from deeplabzoo.weights_converter.convert import convert
model = convert(sys.argv[1]).source.model
with Worker(sys.argv[2]) as worker:
    worker.load(model.graph, model.weights)
    judge(lambda x: worker.forward(x)["out"], len(model.weights))
"""


def run(python: Path, code: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run code in a fresh interpreter of an environment; what it printed last, and the seconds of the process."""
    start = time.perf_counter()
    command = [str(python), "-W", "ignore", "-c", PRELUDE + code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    lines = done.stdout.strip().splitlines()
    return {"seconds": time.perf_counter() - start, **(json.loads(lines[-1]) if lines else {})}


def environment(folder: Path, name: str) -> Path:
    """Interpreter of an environment; the environment is made where it is missing."""
    python = folder / f"{name}env" / "bin" / "python"
    if not python.exists():
        print(f"making the environment {python.parents[1]}")
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]], check=True)
    return python


def main() -> None:
    """Make the file, go both ways to Paddle and to TensorFlow, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=Path(".graph-route"), help="folder of the three environments")
    envs = parser.parse_args().envs.absolute()
    torch, paddle, tf = (environment(envs, name) for name in ENVIRONMENTS)
    own = Path(sys.executable)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(own, MAKE, folder)
        truth = run(torch, TORCH + REFERENCE, folder, json.dumps(SIZES))

        def add(title: str, steps: list[dict[str, Any]], judged: dict[str, Any], least: float | None) -> float:
            seconds = sum(step["seconds"] for step in steps)
            rows.append(
                (
                    title,
                    f"{seconds:.1f}",
                    f"{seconds / (least or seconds):.0f}",
                    f"{max(step['peak'] for step in steps):.0f}",
                    *judged["errors"],
                    f"{judged['kept']} of {truth['kept']}",
                )
            )
            return seconds

        for target, backend, export, python, convert, judge in (
            ("model.pdparams", "paddle", EXPORT_FOR_PADDLE, paddle, X2PADDLE, RUN_PADDLE),
            ("model.weights.h5", "keras", EXPORT_FOR_TF, tf, ONNX2TF, RUN_TF),
        ):
            ours = run(own, OURS, folder, target)
            least = add(
                f"deeplabzoo convert, {target}", [ours], run(own, ERRORS + RUN_OURS, folder, target, backend), None
            )
            steps = [run(torch, TORCH + export, folder), run(python, convert, folder)]
            add(
                f"torch, ONNX, {'x2paddle' if python == paddle else 'onnx2tf'}",
                steps,
                run(python, ERRORS + judge, folder),
                least,
            )
    sizes = [f"error at {h}x{w}" for h, w in SIZES]
    print("torchvision deeplabv3_resnet101.pth to another framework; seconds and peak memory of whole processes\n")
    print(tabulate(rows, headers=("way", "s", "x ours", "peak MiB", *sizes, "tensors"), disable_numparse=True))


if __name__ == "__main__":
    main()
