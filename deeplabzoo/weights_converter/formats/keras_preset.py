"""A preset folder of KerasHub: the backbone in `model.weights.h5`, the rest of the model in `task.weights.h5`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deeplabzoo.weights_converter.formats._checkpoint import Checkpoint, LazyTensors, MappedFile
from deeplabzoo.weights_converter.formats._facts import JSON_LIMIT, parse_config
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown
from deeplabzoo.weights_converter.formats._keras_labels import snake_case
from deeplabzoo.weights_converter.formats.keras_h5 import variables

NAME = "keras-preset"
_BACKBONE, _BACKBONE_CONFIG = "model.weights.h5", "config.json"
_TASK, _TASK_CONFIG = "task.weights.h5", "task.json"
_SHARDED = "model.weights.json"
_NAME_LIMIT = 100  # the name of the class stands before every tensor's
_NAME_LIMIT = 128  # characters: every tensor has the name in its own


def sniff(path: Path) -> bool:
    """Tell whether `path` is a folder with a configuration and weights under the names that KerasHub gives them."""
    if not path.is_dir() or not (path / _BACKBONE_CONFIG).is_file():
        return False
    return (path / _BACKBONE).is_file() or (path / _SHARDED).is_file()


def read(path: Path) -> Checkpoint:
    """Read a preset as the model would be in one `.weights.h5`.

    There the backbone is a layer of the model, under the name of its class (`layers/deep_lab_v3_backbone/...`); where
    both files hold a path, it is the backbone's. `facts["config"]` is the configuration of the whole model, or, where
    the folder holds a backbone alone, one that says no more than that.

    Raises:
        FormatError: damaged, or the weights lie in several files; also on access of a tensor.
    """
    with reading(path, NAME):
        if not (path / _BACKBONE).is_file():
            raise Flaw(f"keeps its weights in several files ({_SHARDED}); load it with KerasHub and save_weights it")
        config = _config(path, _BACKBONE_CONFIG)
        kind = config.get("class_name")
        if not isinstance(kind, str) or not kind.isidentifier() or len(kind) > _NAME_LIMIT:
            raise Flaw(f"{_BACKBONE_CONFIG} names the class {shown(kind)}; expected that of a backbone of KerasHub")
        prefix = f"layers/{snake_case(kind)}/"
        loaders, labels, notes = variables(MappedFile(path / _BACKBONE))
        loaders = {f"{prefix}{name}": load for name, load in loaders.items()}
        labels = {f"{prefix}{layer}".rstrip("/"): label for layer, label in labels.items()}
        if (path / _TASK).is_file():
            others, other_labels, other_notes = variables(MappedFile(path / _TASK))
            loaders, labels, notes = {**others, **loaders}, {**other_labels, **labels}, (*notes, *other_notes)
        whole = _config(path, _TASK_CONFIG) if (path / _TASK_CONFIG).is_file() else {"config": {"backbone": config}}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=notes, labels=labels, facts={"config": whole})


def _config(folder: Path, name: str) -> dict[str, Any]:
    return parse_config(head(folder / name, JSON_LIMIT + 1), name)
