"""Layouts: what the tensor names of a public project mean. One declarative table a project.

`LAYOUTS` holds them in the order in which they are tried.
"""

from __future__ import annotations

from deeplabzoo.errors import LayoutError, unknown
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.base import Entry, Layout, Reading
from deeplabzoo.weights_converter.layouts.own import OwnLayout
from deeplabzoo.weights_converter.layouts.tensorflow import TensorFlowLayout
from deeplabzoo.weights_converter.layouts.torchvision import TorchvisionLayout

__all__ = ["LAYOUTS", "Entry", "Layout", "Reading", "detect_layout", "get_layout"]

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (OwnLayout(), TorchvisionLayout(), TensorFlowLayout())}


def get_layout(name: str) -> Layout:
    """The layout of a name; `LayoutError` with the legal names otherwise."""
    if name not in LAYOUTS:
        raise LayoutError(unknown("layout", name, LAYOUTS))
    return LAYOUTS[name]


def detect_layout(checkpoint: Checkpoint) -> tuple[Layout, str]:
    """The layout that the tensor names show, and the evidence.

    Raises:
        LayoutError: none fits; says why each one failed.
    """
    reasons = []
    for layout in LAYOUTS.values():
        try:
            return layout, layout.recognise(checkpoint)
        except LayoutError as error:
            reasons.append(f"{layout.name}: {error}")
    raise LayoutError(
        f"the layout of {len(checkpoint.tensors)} tensors can't be told; tried {'; '.join(reasons)}; "
        "name it with --from-layout if one of these should fit"
    )
