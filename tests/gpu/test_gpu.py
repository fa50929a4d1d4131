"""Strict float32 on a GPU against the float64 truth of the referee on the CPU.

Run by `make test-gpu`. A backend that is not installed is skipped by name; where there is no GPU its tests skip and
say so. Builds for the CPU alone take part with their float64 outputs.
"""

import itertools

import numpy as np
import pytest

from deeplabzoo.backends import resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core import reference
from deeplabzoo.core.analysis import all_taps_live
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError
from deeplabzoo.parity.compare import BOUNDS, error

pytestmark = pytest.mark.gpu

ON_GPU = ("torch", "keras/jax", "keras/torch")
ON_CPU = ("paddle", "keras/tensorflow")
SIZES = ((129, 161), (128, 96))
MODELS = tuple(itertools.product(("v3", "v3plus"), ("resnet50", "mobilenet_v2"), (8, 16)))


def installed(name):
    if missing := resolve(name).missing():
        pytest.skip(f"{name}: {' and '.join(missing)} not installed")
    return name


@pytest.fixture(scope="module", params=ON_GPU)
def on_gpu(request):
    """A worker on the GPU, shared by all models."""
    try:
        worker = Worker(installed(request.param), device="gpu")
    except BackendError as failure:
        pytest.skip(str(failure))
    with worker:
        print(f"\n{request.param}: {worker.device_name}, {worker.versions}")
        yield worker


@pytest.fixture(scope="module", params=ON_CPU)
def on_cpu(request):
    """A worker on the CPU, shared by all models."""
    with Worker(installed(request.param)) as worker:
        yield worker


@pytest.fixture(scope="module")
def cases():
    """Graph, weights, images and the float64 truth of each model, made once."""
    made = {}

    def case(arch, backbone, stride):
        key = arch, backbone, stride
        if key not in made:
            rates = (2, 4, 6) if stride == 8 else (1, 2, 3)
            graph = build_graph(make_spec(arch, backbone=backbone, output_stride=stride, rates=rates))
            assert all_taps_live(graph, *SIZES[0])
            weights = seeded_weights(graph, 7, statistics="lively")
            images = [np.random.default_rng(n).standard_normal((2, 3, *size)) for n, size in enumerate(SIZES)]
            made[key] = graph, weights, images, [reference.forward(graph, weights, x)["out"] for x in images]
        return made[key]

    return case


@pytest.mark.parametrize(("arch", "backbone", "stride"), MODELS)
def test_float32_on_the_gpu_against_the_float64_truth(on_gpu, cases, arch, backbone, stride):
    graph, weights, images, truths = cases(arch, backbone, stride)
    on_gpu.load(graph, weights, dtype="float32")
    errors = [error(on_gpu.forward(x)["out"], truth) for x, truth in zip(images, truths, strict=True)]
    print(f"{on_gpu.backend.name} {arch} {backbone} stride {stride}: {max(errors):.1e}")
    assert max(errors) <= BOUNDS["float32"]


def test_two_runs_on_the_gpu_give_the_same_bits(on_gpu, cases):
    graph, weights, images, _ = cases("v3plus", "resnet50", 16)
    on_gpu.load(graph, weights, dtype="float32")
    first, second = (on_gpu.forward(images[0])["out"] for _ in range(2))
    assert np.array_equal(first, second)


def test_a_nudged_weight_shows_on_the_gpu(on_gpu, cases):
    graph, weights, images, truths = cases("v3", "mobilenet_v2", 16)
    name = "backbone.stage6.block2.depthwise.conv.weight"
    on_gpu.load(graph, {**weights, name: weights[name].transpose(0, 1, 3, 2)}, dtype="float32")
    assert error(on_gpu.forward(images[0])["out"], truths[0]) > 100 * BOUNDS["float32"]


@pytest.mark.parametrize(("arch", "backbone", "stride"), MODELS[::3])
def test_builds_for_the_cpu_take_part_in_float64(on_cpu, cases, arch, backbone, stride):
    graph, weights, images, truths = cases(arch, backbone, stride)
    on_cpu.load(graph, weights, dtype="float64")
    for x, truth in zip(images, truths, strict=True):
        assert error(on_cpu.forward(x)["out"], truth) <= BOUNDS["float64"]
