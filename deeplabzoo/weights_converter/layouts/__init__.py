"""Layouts: what the tensor names of a public project mean. One declarative table a project."""

from __future__ import annotations

import contextlib

from deeplabzoo.errors import LayoutError, unknown
from deeplabzoo.weights_converter.formats import Checkpoint, shown
from deeplabzoo.weights_converter.layouts.base import Entry, Layout, Reading
from deeplabzoo.weights_converter.layouts.bubbliiiing import BubbliiiingLayout
from deeplabzoo.weights_converter.layouts.caffe import CaffeLayout
from deeplabzoo.weights_converter.layouts.hugging_face import HuggingFaceLayout
from deeplabzoo.weights_converter.layouts.jfzhang95 import Jfzhang95Layout
from deeplabzoo.weights_converter.layouts.kazuto import KazutoLayout
from deeplabzoo.weights_converter.layouts.keras_ports import BonlimeLayout, RyanCCCLayout
from deeplabzoo.weights_converter.layouts.kerashub import KerasHubLayout
from deeplabzoo.weights_converter.layouts.mmseg import MMSegLayout
from deeplabzoo.weights_converter.layouts.own import OwnLayout
from deeplabzoo.weights_converter.layouts.paddleseg import PaddleSegLayout
from deeplabzoo.weights_converter.layouts.smp import SMPLayout
from deeplabzoo.weights_converter.layouts.smp_timm import SMPTimmLayout
from deeplabzoo.weights_converter.layouts.tensorflow import TensorFlowLayout
from deeplabzoo.weights_converter.layouts.tflite import TFLiteLayout
from deeplabzoo.weights_converter.layouts.torchvision import TorchvisionLayout
from deeplabzoo.weights_converter.layouts.vainf import VainFLayout

__all__ = ["LAYOUTS", "Entry", "Layout", "Reading", "detect_layout", "get_layout"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        OwnLayout(), TorchvisionLayout(), SMPLayout(), SMPTimmLayout(), PaddleSegLayout(), TensorFlowLayout(),
        KerasHubLayout(), BonlimeLayout(), RyanCCCLayout(), VainFLayout(), Jfzhang95Layout(), BubbliiiingLayout(),
        MMSegLayout(), KazutoLayout(), HuggingFaceLayout(), CaffeLayout(), TFLiteLayout(),
    )
}  # fmt: skip


def get_layout(name: str) -> Layout:
    """The layout of a name; `LayoutError` with the legal names otherwise."""
    if name not in LAYOUTS:
        raise LayoutError(unknown("layout", name, LAYOUTS))
    return LAYOUTS[name]


def detect_layout(checkpoint: Checkpoint) -> tuple[Layout, str]:
    """The layout that the tensor names show, and the evidence.

    Raises:
        LayoutError: none fits, or several do.
    """
    found: list[tuple[Layout, str]] = []
    for layout in LAYOUTS.values():
        with contextlib.suppress(LayoutError):
            found.append((layout, layout.recognise(checkpoint)))
    if len(found) == 1:
        return found[0]
    if found:
        raise LayoutError(
            f"the names fit {' and '.join(layout.name for layout, _ in found)} alike: say which with --from-layout"
        )
    names = list(checkpoint.tensors)
    some = ", ".join(shown(names[place]) for place in sorted({0, len(names) // 2, len(names) - 1}) if names)
    raise LayoutError(
        f"the layout of {len(names)} tensors can't be told ({some} ...): expected the names of {', '.join(LAYOUTS)}; "
        "name it with --from-layout if one of these should fit, and it tells what it misses"
    )
