"""Canonical weights with everything needed to rebuild and run the network: one safetensors file says it all."""

from __future__ import annotations

import dataclasses
import json
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
    """The TOML file that lies beside a weights file which can't hold its spec: `model.pth` -> `model.pth.toml`."""
    return path.with_name(path.name + ".toml")


def sidecar_text(model: Canonical) -> str:
    """Content of that file: the spec, and the card in the table `deeplabzoo`."""
    import tomli_w  # only needed to write

    card = {name: value for name, value in model.card.to_dict().items() if name != "foreign"}
    return tomli_w.dumps({**model.spec.to_dict(), _KEY: card} if card else model.spec.to_dict())


def read_sidecar(path: Path) -> tuple[ArchSpec, Card] | None:
    """Spec and card from the file beside `path`; none where there is no such file."""
    beside = sidecar_path(path)
    return read_card(beside) if beside.is_file() else None


def read_card(path: Path) -> tuple[ArchSpec, Card]:
    """Spec and card from a spec file; a bare spec has an empty card.

    Raises:
        SpecError: the file can't be read or is wrong.
    """
    spec, extra = read_spec(path)
    try:
        return spec, Card.from_dict(extra)
    except SpecError as error:
        raise SpecError(f"spec {path}: {error}") from None
