"""Errors and images a second on a GPU, or with `--device cpu` on the CPU, of presets in every backend that has the device.

Errors are those of `deeplabzoo parity` against the float64 truth of the numpy referee: of the forward pass in float32,
float16 and bfloat16, and in float32 of gradients and of ten training steps. The branches have rates 1, 2, 3, so that
every tap of every atrous kernel is live on a small image.

Images a second are those of a process of its own that holds one model: the median of `--repeats` forward passes of a
batch from a numpy array to a numpy array, after one that compiles. The classifier's own small map comes back, as
`deeplabzoo predict` asks for it. Prints a Markdown table; run it with `make benchmarks-gpu`.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys

from deeplabzoo.backends import resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.analysis import smallest_live_size
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError
from deeplabzoo.parity.cases import case_of
from deeplabzoo.parity.judge import Answers, Exam, answers_of_referee, answers_of_worker, compare, make_exam
from deeplabzoo.parity.report import CHECKS, Row
from deeplabzoo.parity.run import LESSON_BATCH
from deeplabzoo.zoo.models import named_spec

PRESETS = ("v3plus_mobilenet_v2", "v3plus_resnet50", "v3_resnet50.torchvision", "v3plus_xception65.tf")
BACKENDS = ("torch", "keras/jax", "keras/torch", "keras/tensorflow", "paddle", "onnx")
DTYPES = ("float32", "float16", "bfloat16")
HEADERS = ("preset", "backend", "dtype", "forward", "labels equal", "gradients", "ten steps", "images/s")

TIMED = """
import json
import statistics
import sys
import time
import numpy as np
from deeplabzoo.backends import resolve
name, device, presets, narrow, dtypes, batch, height, width, repeats = json.loads(sys.argv[1])
backend = resolve(name)
run = backend.module("run")
run.configure(device)
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.zoo.models import named_spec
for preset in presets:
    spec = named_spec(preset).narrowed(narrow)
    graph = build_graph(spec.replace(output=spec.output.replace(size="feature")))
    weights = seeded_weights(graph, 0, statistics="lively")
    images = np.random.default_rng(0).standard_normal((batch, 3, height, width)).astype(np.float32)
    for dtype in dtypes:
        model = backend.module("build").build(graph, dtype=dtype, device=device)
        backend.module("weights").load_weights(model, weights)
        model = getattr(run, "prepare", lambda made: made)(model)
        run.forward(model, images)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            run.forward(model, images)
            seconds.append(time.perf_counter() - start)
        print(json.dumps([preset, dtype, batch / statistics.median(seconds)]), flush=True)
"""


@functools.cache
def question(preset: str, narrow: int) -> tuple[Exam, Answers]:
    """Every check on the smallest odd input at which every tap is live, and the truth."""
    spec = named_spec(preset).narrowed(narrow).with_small_rates()
    graph = build_graph(spec)
    side = smallest_live_size(graph, 32)
    case, lesson = case_of(graph, 2, side, side + 32), case_of(graph, LESSON_BATCH, side, side + 32)
    exam = make_exam(graph, seeded_weights(graph, 0, statistics="lively"), [case], checks=CHECKS, lesson=lesson)
    return exam, answers_of_referee(exam)


def rows_of(exam: Exam, truth: Answers, worker: Worker, dtype: str) -> list[Row]:
    """A worker in a dtype against the truth; in half precision the forward pass alone."""
    if dtype != "float32":
        exam = dataclasses.replace(exam, checks=("forward",), labels=(), lesson=None)
    answers = Answers()
    answers_of_worker(exam, worker, dtype, answers)
    return list(compare(exam, truth, {worker.backend.name: answers}, dtype=dtype))


def images_a_second(name: str, given: argparse.Namespace, presets: list[str]) -> dict[tuple[str, str], float]:
    """By preset and dtype."""
    dtypes = [dtype for dtype in DTYPES if dtype in resolve(name).flags.DTYPES]
    height, width = map(int, given.size.split("x"))
    question = [name, given.device, presets, given.narrow, dtypes, given.batch, height, width, given.repeats]
    environment = {**os.environ, "KERAS_BACKEND": resolve(name).engine, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-W", "ignore", "-c", TIMED, json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        print(f"{name}: died of status {done.returncode}:\n{done.stderr[-2000:]}", file=sys.stderr)
    lines = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return {(preset, dtype): rate for preset, dtype, rate in lines}


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", nargs="*", default=list(PRESETS))
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--narrow", type=int, default=1, help="divide all channel counts by this")
    parser.add_argument("--size", default="513x513", help="of the images that are timed")
    parser.add_argument("--batch", type=int, default=8, help="of the images that are timed")
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    over, taking_part = [], []
    for name in given.backends.split(","):
        try:
            with Worker(name, device=given.device) as worker:
                found = {
                    (preset, dtype): rows_of(*question(preset, given.narrow), worker, dtype)
                    for preset in given.preset
                    for dtype in DTYPES
                    if dtype in worker.backend.flags.DTYPES
                }
                told = ", ".join(f"{what} {version}" for what, version in worker.versions.items())
                taking_part.append(f"{name} on {worker.device_name}: {told}")
        except BackendError as failure:
            print(failure, file=sys.stderr)
            continue
        if len(taking_part) == 1:
            print(f"| {' | '.join(HEADERS)} |\n|{' --- |' * len(HEADERS)}", flush=True)
        rates = images_a_second(name, given, given.preset)
        for (preset, dtype), rows in found.items():
            over += [f"{preset} {name} {dtype} {row.check}" for row in rows if not row.passed]
            worst = {check: max((r.error for r in rows if r.check == check), default=None) for check in CHECKS}
            errors = ["-" if worst[check] is None else f"{worst[check]:.1e}" for check in CHECKS]
            labels = f"{min(row.labels for row in rows if row.labels is not None):.2%}"
            rate = f"{rates[preset, dtype]:.3g}" if (preset, dtype) in rates else "-"
            print(f"| `{preset}` | {' | '.join((name, dtype, errors[0], labels, *errors[1:], rate))} |", flush=True)
    if not taking_part:
        sys.exit(f"none of {given.backends} has device {given.device} here")
    channels = "" if given.narrow == 1 else f"channels divided by {given.narrow}, "
    print(f"\n{channels}batches of {given.batch} images of {given.size}; {'; '.join(taking_part)}")
    sys.exit(f"over the bound: {', '.join(dict.fromkeys(over))}" if over else 0)


if __name__ == "__main__":
    main()
