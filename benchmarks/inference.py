"""Ways to show a photo to a network: scores, equal labels across backends, and time, in one run.

Needs the folder that `DEEPLABZOO_DATA` names (TensorFlow's public MobileNetV2 checkpoint and eight photos with masks).
Time is that of all photos in the first backend, as a ratio to showing each photo once.
"""

import os
import time
from pathlib import Path

import numpy as np
from tabulate import tabulate

from deeplabzoo.inference.datasets import find_pairs
from deeplabzoo.inference.images import read_image, read_mask
from deeplabzoo.inference.metrics import Scores, agreement, confusion
from deeplabzoo.models import canonical_model
from deeplabzoo.prediction import Predictor

BACKENDS = ("torch", "paddle", "keras")
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
WAYS = {
    "once": {},
    "scales 0.5 ... 1.75, flip": {"scales": SCALES, "flip": True},
    "scales 0.5, 0.75, 1, maximum": {"scales": (0.5, 0.75, 1.0), "fusion": "max"},
    "CRF of v2_resnet101": {"crf": "v2_resnet101"},
    "windows of 385": {"window": 385},
}


def main() -> None:
    """Label all photos in every way and backend and print the table."""
    folder = os.environ.get("DEEPLABZOO_DATA")
    if not folder:
        print("DEEPLABZOO_DATA is not set: ways to show a photo are left out")
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    model, _ = canonical_model(weights=str(Path(folder) / "weights/deeplabv3_mnv2_pascal_trainval/model.ckpt-30000"))
    photos = [(read_image(p.image_path), read_mask(p.mask_path)) for p in find_pairs(Path(folder) / "photos")]
    rows, once = [], 0.0
    for way, options in WAYS.items():
        labels, scores, seconds = {}, {}, 0.0
        for backend in BACKENDS:
            with Predictor(model, backend=backend, **options) as predictor:
                predictor.labels(photos[0][0])  # the first call compiles
                start = time.perf_counter()
                labels[backend] = [predictor.labels(image) for image, _ in photos]
                seconds = seconds or time.perf_counter() - start
            counts = sum(
                confusion(truth, made, predictor.num_classes)
                for (_, truth), made in zip(photos, labels[backend], strict=True)
            )
            scores[backend] = Scores.of(np.asarray(counts))
        once = once or seconds
        equal = [
            min(agreement(a, b) for a, b in zip(labels[BACKENDS[0]], labels[other], strict=True))
            for other in BACKENDS[1:]
        ]
        rows.append(
            (
                way,
                f"{scores[BACKENDS[0]].pixel_accuracy:.4f}",
                *(f"{scores[backend].miou:.4f}" for backend in BACKENDS),
                *(f"{share:.4%}" for share in equal),
                f"{seconds / once:.1f}",
            )
        )
    headers = ("shown", "pixel accuracy", *(f"mIoU {name}" for name in BACKENDS))
    equal_headers = tuple(f"labels equal, {name}, worst photo" for name in BACKENDS[1:])
    print(tabulate(rows, headers=(*headers, *equal_headers, "x time"), tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
