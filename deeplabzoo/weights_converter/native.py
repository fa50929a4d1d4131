"""The tensors of a model that lives in memory, without importing any framework: whoever made it has done so."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter.formats import Checkpoint, Flaw, shown, without_prefixes

_BASES = {"torch.nn.modules.module.Module": "torch", "paddle.nn.layer.layers.Layer": "paddle"}


def is_native(model: object) -> bool:
    """Whether `model` is a module of PyTorch, a layer of Paddle or a model of Keras."""
    return _framework(model) is not None


def checkpoint_of(model: Any) -> tuple[Checkpoint, ArchSpec | None]:
    """The tensors of a native model under the names that its framework would save them by, copied to the CPU.

    What wraps a module of PyTorch or a layer of Paddle (`DataParallel`, `torch.compile`, a training module) is seen
    through, and a note says so. `facts["graph"]` says of such a module what `formats.onnx` says of a graph.

    Returns:
        The tensors (format `torch`, `paddle` or `keras2-h5`, which names a Keras variable by layer and variable), and
        the spec where this package built the model.

    Raises:
        FormatError: the model has no variables yet, or its spec is no longer that of its graph.
    """
    framework = _framework(model)
    if framework == "keras":
        checkpoint = Checkpoint(dict(_keras(model)), "keras2-h5")
    else:
        tensors = {str(name): _numpy(tensor) for name, tensor in model.state_dict().items()}
        checkpoint, prefixes = _unwrapped(Checkpoint(tensors, str(framework)), "the model")
        for prefix in prefixes:
            model = getattr(model, prefix.removesuffix("."))
        own, notes = set(model.state_dict()), checkpoint.notes
        if around := [name for name in checkpoint.tensors if prefixes and name not in own]:
            notes += (f"left out, of what is around the network: {', '.join(map(shown, around[:8]))}",)
        tensors = {name: checkpoint.tensors[name] for name in checkpoint.tensors if name not in around}
        checkpoint = Checkpoint(tensors, str(framework), notes=notes, facts={"graph": _graph(model)})
    if not checkpoint.tensors:
        raise FormatError("the model has no tensors: build it, or call it once, before it is converted")
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ArchSpec):
        return dataclasses.replace(checkpoint, facts={**checkpoint.facts, **_config(model)}), None
    if getattr(model, "graph", None) != build_graph(spec):
        raise FormatError("the model's `spec` is not the one that it was built from; leave the attribute alone")
    return checkpoint, spec


def checkpoint_of_arrays(arrays: Mapping[str, Any]) -> Checkpoint:
    """Tensors by name, those of a framework copied to the CPU, without the prefixes that wrappers leave.

    Raises:
        FormatError: what is called so is no tensor.
    """
    tensors = {}
    for name, value in arrays.items():
        try:
            tensors[str(name)] = _numpy(value) if hasattr(value, "numpy") else np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"{shown(name)} is a {type(value).__name__} that gives no array ({shown(error)}): expected a tensor"
            ) from None
    return _unwrapped(Checkpoint(tensors, "arrays"), "the tensors in memory")[0]


def _unwrapped(checkpoint: Checkpoint, what: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """`without_prefixes` for what lies in no file; `what` it is, for messages of its `FormatError`."""
    try:
        return without_prefixes(checkpoint)
    except Flaw as flaw:
        raise FormatError(f"{what}: {flaw}") from None


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


def _config(model: Any) -> dict[str, Any]:
    """What models of transformers and of Keras know they were made of, as their files hold it."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if callable(to_dict):
        return {"config": to_dict()}
    if _framework(model) == "keras":
        # A model of somebody's own class may have no configuration, or one that is no plain data.
        with contextlib.suppress(NotImplementedError, TypeError, ValueError):
            return {"config": json.loads(model.to_json())}
    return {}


def _graph(model: Any) -> dict[str, list[dict[str, Any]]]:
    """What the modules of a network say that its tensors do not, in the words of `formats.onnx`.

    The attributes are those of torch's Conv2d and BatchNorm2d, and of Paddle's, which have an underscore.
    """
    convolutions, batch_norms = [], []
    for name, module in model.named_modules() if hasattr(model, "named_modules") else model.named_sublayers():
        if getattr(module, "weight", None) is None:
            continue
        numbers = [_attribute(module, part) for part in ("stride", "dilation", "padding", "kernel_size")]
        group, epsilon = _attribute(module, "groups"), _attribute(module, "eps", "epsilon")
        turned = any("Transpose" in base.__name__ for base in type(module).__mro__)
        if isinstance(group, int) and not turned and (window := _window(*numbers)) is not None:
            convolutions.append(
                {"name": name, "weights": f"{name}.weight", **window, "group": group, "auto_pad": "NOTSET"}
            )
        elif isinstance(epsilon, float) and (hasattr(module, "running_var") or hasattr(module, "_variance")):
            batch_norms.append({"name": name, "epsilon": epsilon, "scale": f"{name}.weight"})
    return {"convolutions": convolutions, "batch_norms": batch_norms, "resizes": []}


def _attribute(module: Any, *names: str) -> Any:
    found = (getattr(module, prefix + name, None) for name in names for prefix in ("", "_"))
    return next((value for value in found if value is not None), None)


def _window(stride: Any, dilation: Any, padding: Any, kernel: Any) -> dict[str, list[int]] | None:
    """Strides, dilations and pads of a convolution over two axes; none where it is something else."""
    stride, dilation, kernel = _pair(stride), _pair(dilation), _pair(kernel)
    if stride is None or dilation is None or kernel is None:
        return None
    pads: list[int] = []  # where they are in words that nobody has seen here
    spans = [rate * (side - 1) for rate, side in zip(dilation, kernel, strict=True)]
    if isinstance(padding, str):
        begins = [span // 2 if padding.lower() == "same" else 0 for span in spans]
        ends = [span - begin if padding.lower() == "same" else 0 for span, begin in zip(spans, begins, strict=True)]
        pads = [*begins, *ends]
    elif pair := _pair(padding):
        pads = pair * 2
    elif isinstance(padding, Sequence) and len(padding) == 4:  # Paddle: both ends of one axis, then of the other
        pads = [padding[place] for place in (0, 2, 1, 3)]
    return {"strides": stride, "dilations": dilation, "pads": pads}


def _pair(value: Any) -> list[int] | None:
    pair = [value] * 2 if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    return pair if len(pair) == 2 and all(isinstance(one, int) for one in pair) else None


def _keras(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    for variable in model.weights:
        value = variable.numpy() if hasattr(variable, "numpy") else variable.value
        yield "/".join(str(variable.path).split("/")[-2:]), np.array(value)
