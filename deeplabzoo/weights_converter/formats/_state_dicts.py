"""Finding the dictionary of tensors among what training scripts keep in one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint
from deeplabzoo.weights_converter.formats._guard import Flaw, shown
from deeplabzoo.weights_converter.formats._pickle_parts import Buildable, Inert, View

# In the order of asking. Of the second kind is a running average of the network: taken where nothing else is there.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
_AVERAGES = (
    "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_state_dict_ema",
    "ema_model_state_dict", "params_ema",
)  # fmt: skip
# DataParallel, torch.compile, LightningModule and such, and AveragedModel under the same names.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "ema_model.", "model_ema.", "ema.")
# What training modules call their loss, whose class weights then lie among the network's tensors.
_LOSSES = ("criterion", "loss", "loss_fn", "loss_func", "loss_function")
_FEW = 10  # times as many tensors has the network as what lies around it
_RIVALS = {"student", "teacher"}
_DEPTH = 4
# State of the training, of no use to who only wants the network: key contains one of these.
_TRAINING = ("optim", "sched", "scaler", "callbacks", "loops", "rng_state", "message_hub")


@dataclasses.dataclass(frozen=True)
class Found:
    """The network in a file.

    Attributes:
        tensors: name -> tensor in the file's order.
        notes: what was stripped, chosen or ignored.
        beside: what else the file says, but for the state of the training: entries of the dictionaries that the tensors
            were in, those of one called `meta` among them.
    """

    tensors: dict[str, Any]
    notes: list[str]
    beside: dict[Any, Any]


def find_tensors(top: Any, is_tensor: Callable[[Any], bool]) -> Found:
    """Find the dictionary of tensors in what a pickle holds; `without_prefixes` then makes their names the network's.

    Where the file holds a network and a running average of it (`model` and `model_ema`), the network is taken and a
    note says what was not; so it does of other dictionaries that look like networks.

    Args:
        top: the pickle's value.
        is_tensor: tells a tensor from anything else.

    Raises:
        Flaw: there is none, or there are several and none is the obvious one.
    """
    notes: list[str] = []
    beside: dict[Any, Any] = {}
    found = top
    for _ in range(_DEPTH):
        if not isinstance(found, dict):
            raise Flaw(f"holds a {_kind(found)}; expected a dictionary name -> tensor")
        inner = _networks(found, _WRAPPERS, is_tensor) + _networks(found, _AVERAGES, is_tensor)
        if not inner or _count(found, is_tensor) > _count(found[inner[0]], is_tensor):
            break
        notes.append(f"tensors found under {inner[0]!r}")
        rest = {key: value for key, value in found.items() if key != inner[0]}
        others = [key for key in inner[1:] if found[key] is not found[inner[0]]]
        others += _rivals(rest, found[inner[0]], inner, is_tensor)
        if others:
            notes.append(
                f"another network left out, found under {', '.join(map(repr, others))}: save it alone to have it read"
            )
        _set_aside(rest, others, notes, beside)
        found = found[inner[0]]
    tensors = {key: value for key, value in found.items() if is_tensor(value)}
    if not tensors:
        listed = list(found.items())[:20]  # a file may hold a million dictionaries
        others = [shown(key) for key, value in listed if isinstance(value, dict) and _holds(value, is_tensor)]
        where = f"; there are some under {', '.join(others)}: save the one you want alone" if others else ""
        raise Flaw(f"holds no tensors at its top, nor under {', '.join(_WRAPPERS)}{where}")
    for key in tensors:
        if not isinstance(key, str):
            raise Flaw(f"a tensor is called {shown(key)}, a {type(key).__name__}; expected text")
    _set_aside({key: value for key, value in found.items() if key not in tensors}, (), notes, beside)
    return Found(tensors, notes, beside)


class _Renamed(Mapping[str, Array]):
    """Lazy tensors under other names."""

    def __init__(self, tensors: Mapping[str, Array], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Array:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:  # the inherited one would read the tensor
        return name in self._names


def without_prefixes(checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """Give the tensors of a state dict the names that the network itself has: no prefixes, which wrappers leave.

    A prefix is stripped only where every tensor has it, but for those that are not the network's (`around`). Running
    averages among the tensors are left out. Notes say all that.

    Args:
        checkpoint: tensors by the names that a module gives them.

    Returns:
        The checkpoint, and the prefixes, the outermost first.

    Raises:
        Flaw: there are several networks and none is the obvious one.
    """
    notes: list[str] = []
    prefixes: list[str] = []
    names = _strip_prefixes({name: name for name in checkpoint.tensors}, notes, prefixes)
    if not notes:
        return checkpoint, ()
    tensors = _Renamed(checkpoint.tensors, names)
    return dataclasses.replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *notes)), tuple(prefixes)


def around(name: str) -> str | None:
    """What a tensor is that the module around a network keeps beside it, or none where it may be the network's own.

    No network of PyTorch has tensors of its own without a module before them, so that `mean` and `std` of a
    LightningModule are not the network's.
    """
    head, dot, _ = name.partition(".")
    if not dot:
        return "a buffer of the module around the network"
    return "of the loss" if head in _LOSSES else None


def _networks(entries: dict[Any, Any], names: Iterable[str], is_tensor: Callable[[Any], bool]) -> list[str]:
    return [name for name in names if isinstance(entries.get(name), dict) and _holds(entries[name], is_tensor)]


def _rivals(
    entries: dict[Any, Any], chosen: dict[Any, Any], known: Iterable[str], is_tensor: Callable[[Any], bool]
) -> list[str]:
    """Return the keys of dictionaries that hold about as many tensors as the chosen one, and little else."""
    count = _size(chosen, is_tensor)
    return [
        key
        for key, value in entries.items()
        if isinstance(key, str) and key not in known and not _is_training(key) and isinstance(value, dict)
        if (size := _size(value, is_tensor)) and count <= 2 * size <= 4 * count and len(value) <= 2 * size
    ]


def _strip_prefixes(tensors: dict[str, str], notes: list[str], prefixes: list[str]) -> dict[str, str]:
    for _ in range(_DEPTH):
        tensors = _one_network(tensors, notes)
        for prefix in _PREFIXES:
            inside = {name for name in tensors if name.startswith(prefix) and name != prefix}
            stripped = {name.removeprefix(prefix) if name in inside else name: tensors[name] for name in tensors}
            outside = tensors.keys() - inside
            few = len(outside) * _FEW <= len(inside) and len(stripped) == len(tensors)
            if inside and few and all(map(around, outside)):
                tensors = stripped
                prefixes.append(prefix)
                notes.append(f"{prefix!r} prefix removed")
    return tensors


def _one_network(tensors: dict[str, str], notes: list[str]) -> dict[str, str]:
    """Leave out a running average whose tensors lie among the network's, and how often it was averaged."""
    heads = {name.partition(".")[0] for name in tensors}
    if heads >= _RIVALS:
        raise Flaw(f"holds several networks, {' and '.join(sorted(_RIVALS))}; save the one you want alone")
    averages = heads & set(_AVERAGES)
    if averages and heads - averages:
        notes.append(f"another network left out: the tensors called {', '.join(f'{a}.*' for a in sorted(averages))}")
        tensors = {name: value for name, value in tensors.items() if name.partition(".")[0] not in averages}
    if {name.partition(".")[0] for name in tensors} == {"module", "n_averaged"} and "n_averaged" in tensors:
        notes.append("ignored 'n_averaged', torch's count of averaged models")
        tensors = {name: value for name, value in tensors.items() if name != "n_averaged"}
    return tensors


def _set_aside(entries: dict[Any, Any], networks: Iterable[str], notes: list[str], beside: dict[Any, Any]) -> None:
    """Note what is ignored, and keep it where it may say something of the network."""
    ignored = {key: value for key, value in entries.items() if key not in networks}
    if ignored:
        listed = [f"{shown(key)} ({_kind(value)})" for key, value in list(ignored.items())[:8]]
        more = f" and {len(ignored) - 8} more" if len(ignored) > 8 else ""
        notes.append(f"ignored entries that are no tensors of the model: {', '.join(listed)}{more}")
    for key, value in ignored.items():
        if key == "meta" and isinstance(value, dict):
            beside.update(value)
        elif not isinstance(key, str) or not _is_training(key):
            beside[key] = value


def _is_training(key: str) -> bool:
    return any(word in key.lower() for word in _TRAINING)


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return shown(value.name)
    if isinstance(value, View):
        return "str" if value.text else "bytes"
    return "tensor" if isinstance(value, Buildable) else type(value).__name__


def _count(value: dict[Any, Any], is_tensor: Callable[[Any], bool]) -> int:
    return sum(map(is_tensor, value.values()))


def _size(value: dict[Any, Any], is_tensor: Callable[[Any], bool]) -> int:
    """Return the number of tensors in a dictionary, or in a wrapper right inside it."""
    inner = [_count(value[key], is_tensor) for key in _WRAPPERS if isinstance(value.get(key), dict)]
    return max([_count(value, is_tensor), *inner])


def _holds(value: dict[Any, Any], is_tensor: Callable[[Any], bool]) -> bool:
    """Tell whether a dictionary holds tensors, itself or in a wrapper right inside it."""
    return _size(value, is_tensor) > 0
