"""What a preset is, and the pieces that several projects share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.inference.preprocessing import Preprocessing

Table = dict[str, Any]

PLAIN_DECODER: Table = {"conv": "plain"}
"""Two plain 3x3 of 256 channels after the concatenation."""


@dataclass(frozen=True)
class Preset:
    """A named architecture.

    Attributes:
        name: `v3_resnet50`, `v3_resnet50.torchvision`, ...
        source: where its choices come from.
        make: its spec, with the classes of the published weights.
        preprocessing: what the project does to a photo; none where the backbone's usual way is taken.
    """

    name: str
    source: str
    make: Callable[[], ArchSpec]
    preprocessing: Preprocessing | None = None
