"""Watching a live model run: what each of its modules gives, in PyTorch, Paddle and Keras.

No framework is imported here: whoever made the model has done so.
"""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deeplabzoo.backends import Backend, resolve
from deeplabzoo.core.weights import plain
from deeplabzoo.errors import BackendError, DeepLabZooError
from deeplabzoo.weights_converter.native import checkpoint_of_arrays

Take = Callable[[str, Any], None]
"""Called with a module's path and what it gave: arrays N, C, H, W in the place of tensors."""

_NUMPY_FLOATS = ("float64", "float32", "float16")
_SCORES = ("out", "logits")


class LiveModel(ABC):
    """A native model of any class, ready to run in evaluation mode.

    Attributes:
        backend: the framework.
        modules: every module below the network by its path; in Keras every layer by its name.
        dtype: in which it computes.
        separator: what stands between a module and a tensor of it in the tensor's name.
        epsilon_name: attribute of a batch norm in float64; empty where the framework rounds it to float32.
        exact: whether all of the framework's own ops work in float64 where the model does: resizes of Paddle and Keras
            do not.
    """

    backend: Backend
    modules: Mapping[str, Any]
    dtype: str
    separator: str
    epsilon_name = ""
    exact = False
    notes: tuple[str, ...] = ()
    """What was run, where that is not the model that was given."""

    @property
    def leaves(self) -> list[str]:
        """Paths of the modules that hold no others."""
        inside = {path.rpartition(".")[0] for path in self.modules}
        return [path for path in self.modules if path not in inside]

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """Images as the model takes them, in a type that numpy has."""
        return x.astype(self.dtype if self.dtype in _NUMPY_FLOATS else "float32")

    def epsilon(self, path: str) -> float | None:
        """What a batch norm adds to the variance in float64; None for another module, or where float32 decides."""
        value = getattr(self.modules[path], self.epsilon_name, None)
        return value if isinstance(value, float) else None

    def run(self, x: np.ndarray, watched: Collection[str], take: Take) -> Any:
        """Run the network on images N, C, H, W in evaluation mode and hand over each result of the modules watched.

        The model is left as it was.

        Returns:
            What the network returns, with arrays N, C, H, W in the place of tensors.

        Raises:
            BackendError: the network does not run on these images, in the framework's own words.
        """
        try:
            return self._run(x, watched, take)
        except (DeepLabZooError, OSError):  # of this package, and of the disk
            raise
        except Exception as error:  # each framework has classes of its own
            reason = " ".join(str(error).split())[:400]
            raise BackendError(
                f"the model does not run on images of {x.shape}: {type(error).__name__}: {reason}; give images that it "
                "takes, or a model whose call takes images alone"
            ) from error

    @abstractmethod
    def _run(self, x: np.ndarray, watched: Collection[str], take: Take) -> Any: ...


def live_model(model: Any, tensors: Collection[str], file_format: str) -> LiveModel:
    """The model, and the network in it that the tensors belong to, whose modules are named from there.

    Args:
        model: of PyTorch, Paddle or Keras.
        tensors: names that `native.checkpoint_of` gave.
        file_format: that it gave.
    """
    if file_format == "keras2-h5":
        return _KerasModel(model)
    parts = "named_modules" if file_format == "torch" else "named_sublayers"
    inside = dict.fromkeys((model, *(module for _, module in getattr(model, parts)())))  # the innermost last
    network = [module for module in inside if set(tensors) <= set(module.state_dict())][-1]
    around = [module for module in inside if any(one is network for _, one in getattr(module, parts)())]
    return (_TorchModel if file_format == "torch" else _PaddleModel)([*around, network])


class _ModuleTree(LiveModel):
    """What PyTorch and Paddle have in common: modules by path, and a training mode each.

    Args:
        chain: the model that was given, what it holds the network in, and the network itself.
    """

    separator = "."

    def __init__(self, chain: Sequence[Any]) -> None:
        self._chain, self._model = chain, chain[-1]
        self._first = next(value for value in self._model.state_dict().values() if "float" in str(value.dtype))
        self.dtype = str(self._first.dtype).rpartition(".")[2]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode; afterwards each module has its own mode again, because parts may be frozen."""
        modes = [(module, module.training) for module in self._all_modules()]
        self._chain[0].eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def _returned(self, image: Any) -> Any:
        """What the model returns; a training module that does nothing when it is called is seen through."""
        for model in self._chain[:-1]:
            # What is compiled runs no hooks, and returns what the module within does.
            if type(model).__name__ != "OptimizedModule":
                with contextlib.suppress(NotImplementedError):
                    return model(image)
            name = type(model).__name__
            self.notes += (f"not run: {name}, which is around the network; give the model that you call",)
        return self._model(image)

    @abstractmethod
    def _all_modules(self) -> Iterator[Any]: ...

    def _watch(self, register: str, watched: Collection[str], take: Take) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for path in watched:

            def hook(module: Any, inputs: Any, output: Any, path: str = path) -> None:
                del module, inputs
                take(path, _arrays(output))

            stack.callback(getattr(self.modules[path], register)(hook).remove)
        return stack


class _TorchModel(_ModuleTree):
    epsilon_name, exact = "eps", True

    def __init__(self, chain: Sequence[Any]) -> None:
        super().__init__(chain)
        self.backend = resolve("torch")
        self.modules = {name: module for name, module in self._model.named_modules() if name}

    def _all_modules(self) -> Iterator[Any]:
        return iter(self._chain[0].modules())

    def _run(self, x: np.ndarray, watched: Collection[str], take: Take) -> Any:
        torch = sys.modules["torch"]
        image = torch.from_numpy(np.ascontiguousarray(x)).to(device=self._first.device, dtype=self._first.dtype)
        with self._evaluating(), self._watch("register_forward_hook", watched, take), torch.no_grad():
            return _arrays(self._returned(image))


class _PaddleModel(_ModuleTree):
    def __init__(self, chain: Sequence[Any]) -> None:
        super().__init__(chain)
        self.backend = resolve("paddle")
        self.modules = dict(self._model.named_sublayers())

    def _all_modules(self) -> Iterator[Any]:
        return iter(self._chain[0].sublayers(include_self=True))

    def _run(self, x: np.ndarray, watched: Collection[str], take: Take) -> Any:
        paddle = sys.modules["paddle"]
        image = paddle.to_tensor(np.ascontiguousarray(x), dtype=self.dtype, place=self._first.place)
        with self._evaluating(), self._watch("register_forward_post_hook", watched, take), paddle.no_grad():
            return _arrays(self._returned(image))


class _KerasModel(LiveModel):
    """A model of Keras whose maps are N, H, W, C, functional or of a class of its own, models within models too."""

    separator, epsilon_name = "/", "epsilon"

    def __init__(self, model: Any) -> None:
        keras = sys.modules["keras"]
        self._model, self._convert = model, keras.ops.convert_to_tensor
        self.backend = resolve(f"keras/{keras.backend.backend()}")
        # `layers` lists those of the model alone, and this is what it is made of.
        layers = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
        self.modules = {name: layer for name, layer in layers.items() if not isinstance(layer, keras.layers.InputLayer)}
        self.dtype = next(str(layer.compute_dtype) for layer in layers.values() if layer.weights)

    @property
    def leaves(self) -> list[str]:
        """Names of the layers that hold no others."""
        return [name for name, layer in self.modules.items() if not layer._flatten_layers(include_self=False)]

    def _run(self, x: np.ndarray, watched: Collection[str], take: Take) -> Any:
        image = self._convert(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), dtype=self.dtype)
        with contextlib.ExitStack() as stack:
            for name in watched:
                self._patch(name, take, stack)
            return _arrays(self._model(image, training=False), channels_last=True)

    def _patch(self, name: str, take: Take, stack: contextlib.ExitStack) -> None:
        """Keras has no hooks; an attribute of the layer's own hides the method of its class for the time being."""
        layer = self.modules[name]
        call = layer.call

        def watching(*arguments: Any, **options: Any) -> Any:
            output = call(*arguments, **options)
            take(name, _arrays(output, channels_last=True))
            return output

        vars(layer)["call"] = watching
        stack.callback(vars(layer).pop, "call")


def _arrays(value: Any, *, channels_last: bool = False) -> Any:
    """Copies of tensors as arrays N, C, H, W, in the lists and mappings that they came in.

    An object with the attribute `out` or `logits` becomes a mapping of those and `aux`.
    """
    if isinstance(value, Mapping):
        return {str(name): _arrays(one, channels_last=channels_last) for name, one in value.items()}
    if not hasattr(value, "dtype") and any(hasattr(value, name) for name in _SCORES):
        named = {name: getattr(value, name) for name in (*_SCORES, "aux") if hasattr(value, name)}
        return _arrays(named, channels_last=channels_last)
    if isinstance(value, list | tuple):
        return [_arrays(one, channels_last=channels_last) for one in value]
    if not hasattr(value, "dtype"):
        return value
    (array,) = checkpoint_of_arrays({"value": value}).tensors.values()
    array = plain(array)
    return array.transpose(0, 3, 1, 2) if channels_last and array.ndim == 4 else array
