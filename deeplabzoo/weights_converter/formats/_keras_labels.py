"""Names of layers from the configuration of a Keras model, for files that keep none beside the weights.

Keras 3 numbers the groups of layers within their class, in the order of `model.layers`
(`keras.src.saving.saving_lib._save_container_state`), and the configuration lists the layers in that order
(`keras.src.models.functional.Functional.get_config`), functions of `keras.ops` among them, which are no layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any


def labels_of(config: dict[str, Any], variables: Iterable[str]) -> dict[str, str]:
    """Return path of a layer's group -> name of the layer, as `Checkpoint.labels` holds them.

    Args:
        config: parsed `config.json` of a `.keras` file.
        variables: HDF5 paths of the variables, such as `layers/conv2d_1/vars/0`.

    Returns:
        Empty unless every group that the configuration can explain is explained: where a class has groups, it has as
        many as the configuration has layers of that class.
    """
    held = _held(variables)
    labels: dict[str, str] = {}
    for prefix, names in _containers(config, held):
        found = held[prefix]
        classes = {_snake(name) for name in found}
        if found != {name for name in names if _snake(name) in classes}:
            return {}
        labels |= {f"{prefix}{name}": label for name, label in names.items() if name in found}
    return labels


def _held(variables: Iterable[str]) -> dict[str, set[str]]:
    """Return path of a group of layers (`layers/`, `layers/functional/layers/`) -> names of the groups in it."""
    held: dict[str, set[str]] = {}
    for variable in variables:
        parts = variable.rpartition("/vars/")[0].split("/")
        for at in range(1, len(parts), 2):
            if parts[at - 1] != "layers":
                break
            held.setdefault("/".join(parts[:at]) + "/", set()).add(parts[at])
    return held


def _containers(config: dict[str, Any], held: dict[str, set[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the names of the layers of a model, and of each model in it, with the path of their groups.

    Models without groups are passed over: a configuration can spell a hundred thousand of them, with long names.
    """
    models = [("", config)]
    while models:
        path, model = models.pop()
        inner = model.get("config")
        listed = inner.get("layers") if isinstance(inner, dict) else None
        if not isinstance(listed, list):
            continue
        layers = [layer for layer in listed if _is_layer(layer)]
        prefix = f"{path}layers/"
        if prefix not in held:
            continue
        names = list(_numbered(layers))
        yield prefix, dict(names)
        models += [
            (f"{prefix}{name}/", layer) for (name, _), layer in zip(names, layers, strict=True) if name in held[prefix]
        ]


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, dict) or not isinstance(layer.get("class_name"), str):
        return False
    return ".ops." not in str(layer.get("module"))


def _numbered(layers: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield name of the group and name of the layer."""
    used: dict[str, int] = {}
    for layer in layers:
        kind = snake_case(layer["class_name"])
        used[kind] = used.get(kind, -1) + 1
        config = layer.get("config")
        name = config.get("name") if isinstance(config, dict) else None
        yield f"{kind}_{used[kind]}" if used[kind] else kind, str(name)


def _snake(group: str) -> str:
    """Return the class part of the name of a group."""
    return re.sub(r"_[0-9]+$", "", group)


def snake_case(name: str) -> str:
    """Return a class name as Keras spells it in a path (`keras.src.utils.naming.to_snake_case`)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
