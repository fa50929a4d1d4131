"""The tensors of a model that lives in memory, without importing any framework: whoever made it has done so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter.formats import Checkpoint

_BASES = {"torch.nn.modules.module.Module": "torch", "paddle.nn.layer.layers.Layer": "paddle"}


def is_native(model: object) -> bool:
    """Whether `model` is a module of PyTorch, a layer of Paddle or a model of Keras."""
    return _framework(model) is not None


def checkpoint_of(model: Any) -> tuple[Checkpoint, ArchSpec | None]:
    """The tensors of a native model under the names that its framework would save them by, copied to the CPU.

    Returns:
        The tensors (format `torch`, `paddle` or `keras2-h5`, which names a Keras variable by layer and variable), and
        the spec where this package built the model.

    Raises:
        FormatError: the model has no variables yet, or its spec is no longer that of its graph.
    """
    framework = _framework(model)
    if framework == "keras":
        tensors, framework = dict(_keras(model)), "keras2-h5"
    else:
        tensors = {str(name): _numpy(tensor) for name, tensor in model.state_dict().items()}
    if not tensors:
        raise FormatError("the model has no tensors: build it, or call it once, before it is converted")
    spec = getattr(model, "spec", None)
    graph = getattr(model, "graph", None)
    if not isinstance(spec, ArchSpec):
        # Models of transformers know what they were made of.
        to_dict = getattr(getattr(model, "config", None), "to_dict", None)
        facts = {"config": to_dict()} if callable(to_dict) else {}
        return Checkpoint(tensors, str(framework), facts=facts), None
    if graph != build_graph(spec):
        raise FormatError("the model's `spec` is not the one that it was built from; leave the attribute alone")
    return Checkpoint(tensors, str(framework)), spec


def _framework(model: object) -> str | None:
    for base in type(model).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in _BASES:
            return _BASES[name]
        if base.__qualname__ == "Model" and base.__module__.split(".")[0] == "keras":
            return "keras"
    return None


def _numpy(tensor: Any) -> np.ndarray:
    """A copy on the CPU; bfloat16, which the frameworks can't hand to numpy, through its bits."""
    tensor = tensor.detach().cpu() if hasattr(tensor, "detach") else tensor
    if "bfloat16" in str(tensor.dtype):
        import ml_dtypes

        # Widening loses nothing, nor does narrowing what was narrow before.
        wide = tensor.float() if hasattr(tensor, "float") else tensor.astype("float32")
        return np.array(wide.numpy()).astype(ml_dtypes.bfloat16)
    return np.array(tensor.numpy())


def _keras(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    for variable in model.weights:
        value = variable.numpy() if hasattr(variable, "numpy") else variable.value
        yield "/".join(str(variable.path).split("/")[-2:]), np.array(value)
