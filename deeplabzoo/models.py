"""From words, files and arrays to canonical models, native models and their outputs."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.backends import Backend, resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import MobileNetV2, Xception
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import check_weights, classifier_names, plain, seeded_weights
from deeplabzoo.errors import BackendError, SpecError, WeightsError, near_match
from deeplabzoo.weights_converter.canonical import Canonical, Card
from deeplabzoo.weights_converter.layouts.base import described
from deeplabzoo.weights_converter.source import read_source, still_open
from deeplabzoo.zoo.fetch import fetch_model
from deeplabzoo.zoo.models import PRESETS, PUBLISHED, changed, named_spec

DTYPES = ("float64", "float32", "float16", "bfloat16")
DEVICES = ("cpu", "gpu")

WeightsLike = str | Path | Mapping[str, np.ndarray] | Canonical
"""Name of published weights, path of a file, canonical arrays by name, or a canonical model."""


def build(
    arch: str | ArchSpec | None = None,
    *,
    backend: str = "torch",
    weights: WeightsLike | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    reset_classifier: bool = False,
    **options: Any,
) -> Any:
    """A native model in evaluation mode, in this process.

    A `torch.nn.Module`, `paddle.nn.Layer`, `keras.Model`, or an `onnx.ModelProto`.

    Args:
        arch: `v3`, `v3plus`, a preset such as `v3_resnet50.torchvision`, or a spec; None takes that of `weights`
            (`v3plus` without weights).
        backend: `torch`, `paddle`, `keras` (on TensorFlow), `keras/jax`, `keras/torch` or `onnx`.
        weights: name of published weights, file, or canonical arrays by name; seeded weights by default.
        seed: of the seeded weights, the same in every backend.
        dtype: `float64`, `float32`, `float16` or `bfloat16`.
        device: `cpu` or `gpu`.
        reset_classifier: load everything but the classifier, whose weights are seeded anew.
        **options: `backbone`, `output_stride`, `num_classes`, ... as for `spec`.

    Raises:
        SpecError, WeightsError, FormatError, LayoutError, DownloadError: wrong input.
        BackendError: the backend is unknown, not installed or can't live in this process.
    """
    chosen = resolve(backend)
    check_runtime(chosen, dtype, device)
    model, _ = canonical_model(arch, weights=weights, seed=seed, reset_classifier=reset_classifier, **options)
    chosen.check_device(device)
    native = chosen.module("build").build(model.graph, dtype=dtype, device=device)
    chosen.module("weights").load_weights(native, {name: plain(array) for name, array in model.weights.items()})
    # So that `convert` knows what no tensor tells.
    if chosen.folder == "onnx":
        for key, value in model.metadata().items():
            native.metadata_props.add(key=key, value=value)
    else:
        native.spec = model.spec
    return native


def graph(arch: str | ArchSpec = "v3plus", **options: Any) -> Graph:
    """The graph of a spec, an architecture or a preset; options as for `spec`.

    Raises:
        SpecError: an unknown name or a wrong option.
    """
    return build_graph(named_spec(arch, **options))


def load(file: WeightsLike, *, backend: str = "torch", spec: ArchSpec | None = None, **options: Any) -> Any:
    """The native model of a weights file of any known format and layout; options as for `build`."""
    return build(spec, weights=file, backend=backend, **options)


def canonical_model(
    arch: str | ArchSpec | None = None,
    *,
    weights: WeightsLike | None = None,
    seed: int = 0,
    reset_classifier: bool = False,
    **options: Any,
) -> tuple[Canonical, list[str]]:
    """The canonical model that `build` would make native, and the names of the tensors initialised anew.

    Raises:
        SpecError, WeightsError, FormatError, LayoutError, DownloadError: wrong input.
    """
    if weights is None:
        if reset_classifier:
            raise WeightsError("--reset-classifier needs --weights: without weights everything is initialised anew")
        spec = named_spec(arch or "v3plus", **options)
        published = PRESETS[arch].preprocessing if isinstance(arch, str) and arch in PRESETS else None
        preprocessing = default_preprocessing(spec) if published is None else published.to_dict()
        card = Card(preprocessing, provenance={"source": f"seeded weights, seed {seed}"})
        return Canonical(spec, seeded_weights(build_graph(spec), seed), card), sorted(build_graph(spec).parameters())
    base = _read(arch, weights, options)
    if isinstance(arch, str):
        wanted = named_spec(arch)
        if (wanted.arch, wanted.backbone.name) != (base.spec.arch, base.spec.backbone.name) and (
            arch != base.spec.arch
        ):
            raise SpecError(f"arch = {arch!r} was asked for, but the weights are {base.spec.title}; leave it out")
    spec = base.spec if isinstance(weights, Mapping) else changed(base.spec, options)
    model, anew = _with_classes(base, spec, seed, reset_classifier)
    model = _without_guesses(model, options)
    if isinstance(
        weights, Mapping | Canonical
    ):  # nobody has looked at them yet; with a new classifier the old one's shape is free
        check_weights(model.graph, model.weights)
    return model, anew


def run(
    model: Any,
    x: np.ndarray,
    *,
    backend: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    python: str | None = None,
) -> Any:
    """Run a model in inference mode in an isolated worker.

    Args:
        model: a native model built by this package, a weights file, the name of published weights, or a `Canonical`.
        x: preprocessed images N, C, H, W, any real dtype.
        backend: where to run; a native model's own by default, else `torch`.
        dtype: to compute in.
        device: `cpu` or `gpu`.
        python: another Python interpreter for the worker.

    Returns:
        What the network returns, N, C, H, W; a dict with `out` and `aux` where the spec has an auxiliary output.

    Raises:
        BackendError, WorkerError: the backend is not there, or died.
        GraphError: the image does not fit.
    """
    graph, weights, own = graph_and_weights(model)
    chosen = resolve(backend or (own.name if own else "torch"))
    check_runtime(chosen, dtype, device)
    images = check_images(graph, x)
    with Worker(chosen.name, device=device, python=python) as worker:
        worker.load(graph, weights, dtype=dtype)
        outputs = worker.forward(images)
    return outputs if len(graph.outputs) > 1 else outputs["out"]


def graph_and_weights(model: Any) -> tuple[Graph, Mapping[str, np.ndarray], Backend | None]:
    """Graph and canonical weights of a file or a native model, and the native model's own backend.

    Raises:
        BackendError: an object that is no model built here.
    """
    if isinstance(model, str | Path | Canonical):
        canonical, _ = canonical_model(weights=model)
        return canonical.graph, canonical.weights, None
    graph = getattr(model, "graph", None)
    if hasattr(model, "metadata_props"):  # ONNX's `graph` is its own
        graph = resolve("onnx").module("build").graph_of(model)
    if not isinstance(graph, Graph):
        raise BackendError(
            f"{type(model).__module__}.{type(model).__name__} is no model built by this package: expected one, or a "
            "weights file; convert the weights with deeplabzoo.convert"
        )
    backend = _backend_of(model)
    weights = backend.module("weights").read_weights(model)
    return graph, weights, backend


def default_preprocessing(spec: ArchSpec) -> dict[str, Any]:
    """The usual preprocessing: Caffe's for v1 and v2, [-1, 1] for TF's backbones, else ImageNet's mean and std."""
    from deeplabzoo.inference.preprocessing import CAFFE, IMAGENET, TF_DEEPLAB

    if spec.arch in ("v1", "v2"):
        return CAFFE.to_dict()
    if isinstance(spec.backbone, MobileNetV2 | Xception):
        return TF_DEEPLAB.replace(resize="none", size=None, pad_to=None).to_dict()
    return IMAGENET.to_dict()


def check_runtime(backend: Backend, dtype: str, device: str) -> None:
    """`BackendError` where dtype or device is unknown."""
    for what, value, legal in (("dtype", dtype, DTYPES), ("device", device, DEVICES)):
        if value not in legal:
            raise BackendError(f"{what} = {value!r}: expected one of {', '.join(legal)}")
    backend.require()


def check_images(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The images as an array N, C, H, W; `GraphError` or `WeightsError` where they do not fit."""
    try:
        images = plain(x)
    except (ValueError, TypeError) as error:  # a ragged list
        raise WeightsError(f"images can't be made an array: {error}; expected numbers N x C x H x W") from None
    if images.ndim != 4:
        raise WeightsError(f"images of shape {images.shape}: expected N x C x H x W")
    graph.shapes(images.shape[2], images.shape[3], images.shape[0])
    if images.shape[1] != graph.input.op.attributes()["channels"]:
        raise WeightsError(f"images of {images.shape[1]} channels: expected {graph.input.op.attributes()['channels']}")
    return images


def _read(arch: str | ArchSpec | None, weights: WeightsLike, options: Mapping[str, Any]) -> Canonical:
    if not isinstance(weights, Canonical | Mapping | str | Path):
        raise WeightsError(f"weights = {weights!r}: expected a name, a path, arrays by name, or a canonical model")
    if isinstance(weights, Canonical):
        return dataclasses.replace(weights, spec=arch) if isinstance(arch, ArchSpec) else weights
    if isinstance(weights, Mapping):
        given = named_spec(arch or "v3plus", **options)
        return Canonical(given, weights, Card(default_preprocessing(given), provenance={"source": "arrays in memory"}))
    spec = arch if isinstance(arch, ArchSpec) else None
    return read_source(local_source(weights), spec=spec).model


def local_source(weights: str | Path) -> str | Path:
    """A path as it is; for the name of published weights that of their file, downloaded and converted if need be.

    Raises:
        WeightsError: no file, but nearly the name of published weights, or that of a preset.
        DownloadError: the weights can't be had.
    """
    name = str(weights)
    if os.path.lexists(weights) or "/" in name:
        return weights
    if name in PUBLISHED:
        return fetch_model(name, progress=sys.stderr is not None and sys.stderr.isatty()).path
    if name in PRESETS:
        raise WeightsError(
            f"weights = {name!r} is a preset, which has no weights of its own: expected a file or "
            f"{_published_for(name)}"
        )
    if hint := near_match(name, PUBLISHED):
        raise WeightsError(f"weights = {name!r}: there is neither such a file nor published weights{hint}")
    return weights


def _published_for(preset: str) -> str:
    names = [name for name, weights in PUBLISHED.items() if weights.preset == preset]
    return f"one of {', '.join(names)}" if names else "published weights (`deeplabzoo list` shows them)"


def _with_classes(base: Canonical, spec: ArchSpec, seed: int, reset_classifier: bool) -> tuple[Canonical, list[str]]:
    if spec.num_classes != base.spec.num_classes and not reset_classifier:
        raise WeightsError(
            f"num_classes = {spec.num_classes}: the weights have {base.spec.num_classes} classes; leave it out, or load "
            "everything but the classifier with --reset-classifier"
        )
    if not reset_classifier:
        return Canonical(spec, base.weights, base.card), []
    graph = build_graph(spec)
    anew = classifier_names(graph)
    fresh = seeded_weights(graph, seed)
    weights = {**base.weights, **{name: fresh[name] for name in anew}}
    # Names of the old classes and the way back to the old file say nothing about the new classifier.
    card = Card(
        base.card.preprocessing,
        (),
        {**base.card.provenance, "classifier": f"initialised anew, seed {seed}"},
    )
    return Canonical(spec, weights, card), anew


def _without_guesses(model: Canonical, said: Mapping[str, Any]) -> Canonical:
    """The model, with no field called an assumption that the caller has just said; the others at their present values."""
    if not said or not (assumed := model.card.provenance.get("assumed")):
        return model
    now = {line.split(" = ")[0]: line for line in described(model.spec.to_dict())}
    left = "; ".join(still_open(assumed.split("; "), said, now))
    rest = {name: value for name, value in model.card.provenance.items() if name != "assumed"}
    card = dataclasses.replace(model.card, provenance={**rest, **({"assumed": left} if left else {})})
    return dataclasses.replace(model, card=card)


def _backend_of(model: Any) -> Backend:
    module = type(model).__module__.split(".")
    if module[:2] == ["deeplabzoo", "backends"]:
        folder = module[2]
    else:
        roots = {base.__module__.split(".")[0] for base in type(model).__mro__}
        folder = next(name for name in ("keras", "paddle", "torch", "onnx") if name in roots)
    if folder == "keras":
        return resolve(f"keras/{sys.modules['keras'].backend.backend()}")
    return resolve(folder)
