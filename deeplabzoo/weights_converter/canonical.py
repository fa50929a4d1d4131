"""Canonical weights with everything needed to rebuild and run the network: one safetensors file says it all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.fields import check_table
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec, read_spec
from deeplabzoo.errors import FormatError, SpecError

_KEY = "deeplabzoo"
"""Key of the JSON in a safetensors file's metadata, and of the table in a TOML file beside other formats."""


@dataclass(frozen=True)
class Card:
    """What goes with the weights but does not change the function.

    Attributes:
        preprocessing: fields of `inference.preprocessing.Preprocessing`, or none where nobody said.
        classes: names of the classes in the order of the logits, or none.
        provenance: where the weights come from (source file, format, layout, seed ...).
        foreign: layout, names and order of the file they came from, so that the way back is bit-exact.
    """

    preprocessing: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is absent is left out."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Card:
        """Inverse of `to_dict`; fields of later versions are ignored.

        Raises:
            SpecError: a field of another type than it should have.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        fields = {name: value for name, value in data.items() if name in known}
        for name, value in fields.items():
            if name == "classes":
                if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                    raise SpecError(f"classes = {value!r}: expected a list of names")
            else:
                check_table(name, value)
        return cls(**{**fields, "classes": tuple(fields.get("classes", ()))})

    def check(self, spec: ArchSpec) -> None:
        """`SpecError` where there are names for another number of classes than the spec has."""
        if self.classes and len(self.classes) != spec.num_classes:
            raise SpecError(
                f"{len(self.classes)} class names for num_classes = {spec.num_classes}: expected one a class"
            )


_FINGERPRINT = "fingerprint"
"""In the card of a TOML file: which weights it was written for."""
_FIRST = 64
_PART = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
SPARE = "spare:"
"""Before the foreign name of a tensor that no network uses, in our own safetensors files."""


@dataclass(frozen=True)
class Canonical:
    """Canonical weights, the spec they belong to, and their card.

    Attributes:
        spec: the network.
        weights: its tensors by canonical name; may be lazy.
        card: what goes with them.
        spares: tensors of the source's layout that no network uses, by their foreign names: kept so that the way back
            gives the same file.
    """

    spec: ArchSpec
    weights: Mapping[str, np.ndarray] = field(repr=False)
    card: Card = Card()
    spares: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def graph(self) -> Graph:
        """The graph of the spec."""
        return build_graph(self.spec)

    def metadata(self) -> dict[str, str]:
        """Metadata of the safetensors file."""
        return {_KEY: json.dumps({"spec": self.spec.to_dict(), "card": self.card.to_dict()})}


def read_metadata(metadata: Mapping[str, str], path: Path) -> tuple[ArchSpec, Card] | None:
    """Spec and card from a safetensors file's metadata; none where the file is not ours.

    Raises:
        FormatError: the metadata are ours but broken.
    """
    if _KEY not in metadata:
        return None
    try:
        data = json.loads(metadata[_KEY])
        check_table("the metadata", data)
        return ArchSpec.from_dict(data["spec"]), Card.from_dict(data.get("card", {}))
    except (ValueError, KeyError, TypeError, RecursionError, SpecError) as error:
        raise FormatError(f"{path}: the metadata are broken: {error}; convert the source again") from None


def sidecar_path(path: Path) -> Path:
    """The TOML file that lies beside a weights file which can't hold its spec: `model.pth` -> `model.pth.toml`.

    Where `path` is a link, beside the file it points to: the two belong together.
    """
    real = path.resolve() if path.is_symlink() else path
    return real.with_name(real.name + ".toml")


def sidecar_text(model: Canonical, fingerprint: str = "") -> str:
    """Content of that file: the spec, and the card in the table `deeplabzoo`.

    Args:
        model: spec and card.
        fingerprint: of the tensors that it is written for, where they are known.
    """
    import tomli_w  # only needed to write

    card: dict[str, Any] = {name: value for name, value in model.card.to_dict().items() if name != "foreign"}
    if fingerprint:
        card[_FINGERPRINT] = fingerprint
    return tomli_w.dumps({**model.spec.to_dict(), _KEY: card} if card else model.spec.to_dict())


def find_sidecar(path: Path) -> Path | None:
    """The TOML file that belongs to a checkpoint, whichever of the checkpoint's names is given; none where none is.

    A TensorFlow checkpoint has its prefix, its two files and perhaps its folder for names, a folder of the hub that of
    the file in it; a link has its own name and that of its target.
    """
    for name in dict.fromkeys((path, path.resolve())):
        places = [name.with_name(name.name + ".toml")]
        if parts := _PART.search(name.name):
            places.append(name.with_name(name.name[: parts.start()] + ".toml"))
        elif name.is_dir():
            indices = list(name.glob("*.index"))
            places += [indices[0].with_suffix(".toml")] if len(indices) == 1 else []
        elif (name.parent / "config.json").is_file() and name.name in _IN_FOLDERS:
            places.append(name.parent.with_name(name.parent.name + ".toml"))
        for place in places:
            if place.is_file():
                return place
    return None


def fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """A digest of names, shapes, types and the first values of all tensors: training changes it, looking does not."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"{name} {array.dtype} {array.shape}".encode(errors="backslashreplace"))
        total.update(np.asarray(array.flat[:_FIRST]).tobytes())
    return total.hexdigest()[:32]


def read_card(path: Path) -> tuple[ArchSpec, Card]:
    """Spec and card from a spec file; a bare spec has an empty card.

    Raises:
        SpecError: the file can't be read or is wrong.
    """
    spec, extra = read_spec(path)
    try:
        return spec, Card.from_dict({name: value for name, value in extra.items() if name != _FINGERPRINT})
    except SpecError as error:
        raise SpecError(f"spec {path}: {error}") from None


def recorded_fingerprint(path: Path) -> str | None:
    """The fingerprint in a spec file; none where it holds none, as files written by hand do."""
    value = read_spec(path)[1].get(_FINGERPRINT)
    return value if isinstance(value, str) else None
