"""The fully connected CRF that DeepLab v1 and v2 sharpen their labels with, by the optional library pydensecrf2."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplabzoo.core.fields import Section, check_int, check_number
from deeplabzoo.errors import BackendError, DataError, SpecError, unknown
from deeplabzoo.inference.colours import check_photo

_LEAST = 1e-5
"""Probabilities are cut here before the logarithm, as pydensecrf's own `unary_from_softmax` does."""


@dataclass(frozen=True, kw_only=True)
class CRF(Section):
    """Mean-field inference with two Gaussian kernels over all pairs of pixels (Kraehenbuehl and Koltun 2011).

    Pixels that take different labels pay `position_weight * exp(-d^2 / 2 position_xy_std^2)` and
    `bilateral_weight * exp(-d^2 / 2 bilateral_xy_std^2 - c^2 / 2 bilateral_rgb_std^2)`, with d their distance in
    pixels and c that of their colours (0 to 255 a channel); kernels are normalised symmetrically, as pydensecrf does
    by default. Every number is that of the photo's own size.

    Attributes:
        bilateral_weight: weight of the kernel of place and colour.
        bilateral_xy_std: its deviation in pixels.
        bilateral_rgb_std: its deviation in colour levels.
        position_weight: weight of the kernel of place alone.
        position_xy_std: its deviation in pixels.
        iterations: mean-field steps.
    """

    bilateral_weight: float
    bilateral_xy_std: float
    bilateral_rgb_std: float
    position_weight: float = 3.0
    position_xy_std: float = 3.0
    iterations: int = 10

    def validate(self) -> None:
        """Check every field."""
        for name in ("bilateral_weight", "position_weight"):
            check_number(f"crf.{name}", getattr(self, name), 0, math.inf)
        for name in ("bilateral_xy_std", "bilateral_rgb_std", "position_xy_std"):
            check_number(f"crf.{name}", getattr(self, name), 0, math.inf, open_low=True)
        check_int("crf.iterations", self.iterations)

    def refine(self, image: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities that follow the photo's edges.

        Args:
            image: the photo, uint8 [H, W, 3], RGB.
            probabilities: floating [K, H, W], 0 to 1; the unary energy is minus their logarithm.

        Returns:
            float32 [K, H, W], 0 to 1, summing to 1 over the classes.

        Raises:
            ImageError: `image` is no photo.
            DataError: probabilities of another size.
            BackendError: pydensecrf2 is not installed.
        """
        check_photo(image)
        if probabilities.ndim != 3 or probabilities.shape[1:] != image.shape[:2]:
            raise DataError(
                f"probabilities of shape {probabilities.shape} for a photo of shape {image.shape}: expected (K, H, W) of "
                f"the photo's own size"
            )
        classes, height, width = probabilities.shape
        field = library().DenseCRF2D(width, height, classes)
        energy = -np.log(np.clip(probabilities, _LEAST, 1))
        field.setUnaryEnergy(np.ascontiguousarray(energy.reshape(classes, -1), np.float32))
        field.addPairwiseGaussian(sxy=self.position_xy_std, compat=self.position_weight)
        field.addPairwiseBilateral(
            sxy=self.bilateral_xy_std,
            srgb=self.bilateral_rgb_std,
            rgbim=np.array(image, order="C"),  # the library wants memory it may write to
            compat=self.bilateral_weight,
        )
        return np.array(field.inference(self.iterations), np.float32).reshape(probabilities.shape)


CRF_PRESETS = {
    "v1": CRF(bilateral_weight=5, bilateral_xy_std=50, bilateral_rgb_std=10),
    "v1_largefov": CRF(bilateral_weight=4, bilateral_xy_std=121, bilateral_rgb_std=5),
    "v1_msc_largefov": CRF(bilateral_weight=4, bilateral_xy_std=83, bilateral_rgb_std=5),
    "v1_coco_largefov": CRF(bilateral_weight=5, bilateral_xy_std=69, bilateral_rgb_std=5),
    "v2_vgg16": CRF(bilateral_weight=4, bilateral_xy_std=65, bilateral_rgb_std=3, position_weight=2, position_xy_std=2),
    "v2_resnet101": CRF(
        bilateral_weight=4, bilateral_xy_std=67, bilateral_rgb_std=3, position_weight=3, position_xy_std=1
    ),
}
"""The settings that each published model was validated with, by model.

`v2_resnet101`: kazuto1011/deeplab-pytorch, `configs/voc12.yaml` and `libs/utils/crf.py`, read. The others are secondary:
quoted by ports of the Caffe models (v1: plain, LargeFOV, MSc-LargeFOV, COCO-LargeFOV; v2: VGG16), not read in the
authors' own scripts.
"""


def named_crf(crf: CRF | str) -> CRF:
    """A preset by its name, or the settings as they are, once it is sure that the library is there.

    Raises:
        SpecError: an unknown name.
        BackendError: pydensecrf2 is not installed.
    """
    if not isinstance(crf, CRF):
        if not isinstance(crf, str) or crf not in CRF_PRESETS:
            raise SpecError(unknown("crf", crf, CRF_PRESETS))
        crf = CRF_PRESETS[crf]
    library()
    return crf


def library() -> Any:
    """The module of pydensecrf2.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError:
        raise BackendError(
            'a CRF needs pydensecrf2, not installed here: run pip install "deeplabzoo[crf]" (it compiles with a C++ '
            "compiler), or leave the CRF out"
        ) from None
