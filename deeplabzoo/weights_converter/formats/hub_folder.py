"""A folder of the Hugging Face hub: `config.json` beside the weights, in one file or in several with an index."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deeplabzoo.errors import OutputError
from deeplabzoo.files import reason
from deeplabzoo.weights_converter.formats import safetensors, torch_pickle
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors
from deeplabzoo.weights_converter.formats._exchange import exchange
from deeplabzoo.weights_converter.formats._facts import JSON_LIMIT, parse_config
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown

NAME = "hub-folder"
_CONFIG = "config.json"
# In the order of asking: the first is what the hub prefers.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_SHARDS_LIMIT = 1000


def sniff(path: Path) -> bool:
    """Tell whether `path` is a folder with `config.json` and weights under a name that the hub uses."""
    return path.is_dir() and (path / _CONFIG).is_file() and bool(_held(path))


def read(path: Path) -> Checkpoint:
    """Read the weights in a folder: `model.safetensors` or `pytorch_model.bin`, or an index and its shards.

    Order is that of the file, of an index that of its map. `facts["config"]` is the configuration.

    Raises:
        FormatError: damaged, a shard is missing, or an index leads out of the folder; also on access of a tensor.
    """
    with reading(path, NAME):
        config = parse_config(_text(path / _CONFIG), _CONFIG)
        held = _held(path)
        inner = _read_index(path, held[0]) if held[0].endswith(_INDEX) else _read_file(path / held[0])
        notes = (*inner.notes, f"read {held[0]}; left out {', '.join(held[1:])}") if held[1:] else inner.notes
        facts = {**inner.facts, "config": config}
        return dataclasses.replace(inner, format=NAME, notes=notes, facts=facts)


def with_config(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Add the configuration that lies beside a file, where both have the names that they have on the hub."""
    beside = path.with_name(_CONFIG)
    if path.name not in _WEIGHTS or not beside.is_file():
        return checkpoint
    try:
        config = parse_config(_text(beside), _CONFIG)
    except (Flaw, OSError) as error:
        note = f"{_CONFIG} beside the file was not read: {shown(error)}"
        return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, note))
    return dataclasses.replace(checkpoint, facts={**checkpoint.facts, "config": config})


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write `config.json` and `model.safetensors` into a folder, one tensor in memory at a time.

    Args:
        path: the folder, which exists.
        tensors: as for safetensors.
        metadata: `config`, the JSON text of the configuration, stored as it is; nothing else.

    Raises:
        OutputError: there is no configuration, or as safetensors.
    """
    given = dict(metadata or {})
    text = given.pop("config", None)
    if text is None or given:
        raise OutputError(
            f"format {NAME} takes metadata config, a JSON text, and nothing else; got {list(metadata or ())}"
        )
    try:
        parse_config(text, _CONFIG)
    except Flaw as flaw:
        raise OutputError(f"format {NAME}: {flaw}") from flaw
    (path / _CONFIG).write_text(text, encoding="utf-8")
    # Without it, transformers refuses the file.
    safetensors.write(path / _WEIGHTS[0], tensors, {"format": "pt"})


def check_output(path: Path, *, force: bool = False) -> None:
    """Raise `OutputError` where `path` can't become a hub folder.

    It exists and is no hub folder, or is one without `force`, or holds other files too; or the folder above is missing
    or can't be written.
    """
    try:
        there = path.exists() or path.is_symlink()
    except OSError as error:  # a name that is too long
        raise OutputError(f"output {shown(str(path))}: {reason(error)}; give another") from None
    if there:
        if path.is_symlink() or not path.is_dir() or not (sniff(path) or not any(path.iterdir())):
            raise OutputError(f"output {path} exists and is no hub folder; give another name")
        if not force:
            raise OutputError(f"output {path} exists; give another name, or --force to replace it")
        others = sorted(item.name for item in path.iterdir() if item.is_dir() or item.name not in {_CONFIG, *_WEIGHTS})
        if others:
            raise OutputError(f"output {path} holds {shown(others[:4])} too, which would be lost; give another name")
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"output {path}: folder {path.parent} can't be written; choose another")


@contextlib.contextmanager
def beside_then_in_place(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` to write to; on success it takes the name, on any failure it is removed.

    A folder that it replaces is exchanged with it in one step. Where the system can't do that, it is moved out of the
    way first, and back where the new one does not get the name: a kill between these two leaves both under hidden names.

    Raises:
        OutputError: the folder can't be written (full disk, no permission).
    """
    beside, replaced = (path.with_name(f".{secrets.token_hex(6)}") for _ in range(2))
    try:
        beside.mkdir()
        yield beside
        for item in beside.iterdir():
            with item.open("rb") as file:
                os.fsync(file.fileno())
        if path.exists() and exchange(beside, path):
            return
        if path.exists():
            path.rename(replaced)
        beside.rename(path)
    except OSError as error:
        raise OutputError(f"output {path} can't be written: {reason(error)}") from error
    finally:
        # Whatever ended it, an interrupt too: what was replaced is removed only where something has the name.
        if not path.exists() and replaced.exists():
            with contextlib.suppress(OSError):
                replaced.rename(path)
        for left in (beside, replaced) if path.exists() else (beside,):
            shutil.rmtree(left, ignore_errors=True)


def _held(path: Path) -> list[str]:
    """Return the names of the weights in a folder, the one to read first."""
    names = [name for weights in _WEIGHTS for name in (weights, weights + _INDEX)]
    return [name for name in names if (path / name).is_file()]


def _text(path: Path) -> bytes:
    return head(path, JSON_LIMIT + 1)


def _read_file(path: Path) -> Checkpoint:
    return safetensors.read(path) if path.suffix == ".safetensors" else torch_pickle.read(path)


def _read_index(folder: Path, index: str) -> Checkpoint:
    placed = parse_config(_text(folder / index), index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise Flaw(f"{index} holds no weight_map of tensor -> file")
    files = list(dict.fromkeys(placed.values()))
    if len(files) > _SHARDS_LIMIT:
        raise Flaw(f"{index} names {len(files)} files; the limit is {_SHARDS_LIMIT}")
    shards: dict[str, Checkpoint] = {}
    for name in files:
        if name in {"", ".", ".."} or any(character in name for character in "/\\\0"):
            raise Flaw(f"{index} refers to {shown(name)!r}; expected the name of a file in the same folder")
        if not (folder / name).is_file():
            raise Flaw(f"{index} refers to {shown(name)!r}, which is not there; get the whole folder")
        shards[name] = _read_file(folder / name)
    missing = [name for name, file in placed.items() if name not in shards[file].tensors]
    if missing:
        raise Flaw(f"{index} places {shown(missing[:3])} in files that do not hold them; get the whole folder")
    unlisted = sum(len(shard.tensors) for shard in shards.values()) - len(placed)
    notes = [note for shard in shards.values() for note in shard.notes]
    if unlisted:
        notes.append(f"ignored {unlisted} tensors that {index} does not name")
    loaders = {name: _loader(shards[file], name) for name, file in placed.items()}
    metadata = next(iter(shards.values())).metadata
    return Checkpoint(LazyTensors(folder, NAME, loaders), NAME, metadata, tuple(dict.fromkeys(notes)))


def _loader(shard: Checkpoint, name: str) -> Callable[[], Array]:
    return lambda: shard.tensors[name]
