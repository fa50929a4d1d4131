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
    groups = [path.rpartition("/vars/")[0] for path in variables]
    labels: dict[str, str] = {}
    for prefix, layers in _containers(config):
        names = dict(_numbered(layers))
        held = {"/".join(group.split("/")[: prefix.count("/") + 1]) for group in groups if group.startswith(prefix)}
        found = {group.removeprefix(prefix) for group in held}
        classes = {_snake(name) for name in found}
        if found != {name for name in names if _snake(name) in classes}:
            return {}
        labels |= {f"{prefix}{name}": label for name, label in names.items() if name in found}
    return labels


def _containers(config: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the layers of a model, and of each model in it, with the path of their groups."""
    models = [("", config)]
    while models:
        path, model = models.pop()
        inner = model.get("config")
        listed = inner.get("layers") if isinstance(inner, dict) else None
        if not isinstance(listed, list):
            continue
        layers = [layer for layer in listed if _is_layer(layer)]
        prefix = f"{path}layers/"
        yield prefix, layers
        for (name, _), layer in zip(_numbered(layers), layers, strict=True):
            models.append((f"{prefix}{name}/", layer))


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, dict) or not isinstance(layer.get("class_name"), str):
        return False
    return ".ops." not in str(layer.get("module"))


def _numbered(layers: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield name of the group and name of the layer."""
    used: dict[str, int] = {}
    for layer in layers:
        kind = _snake_case(layer["class_name"])
        used[kind] = used.get(kind, -1) + 1
        config = layer.get("config")
        name = config.get("name") if isinstance(config, dict) else None
        yield f"{kind}_{used[kind]}" if used[kind] else kind, str(name)


def _snake(group: str) -> str:
    """Return the class part of the name of a group."""
    return re.sub(r"_[0-9]+$", "", group)


def _snake_case(name: str) -> str:
    """Return a class name as Keras spells it in a path (`keras.src.utils.naming.to_snake_case`)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
