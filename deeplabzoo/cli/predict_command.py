"""`deeplabzoo predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplabzoo.cli.common import (
    PATH,
    backend_option,
    bar,
    device_option,
    force_option,
    json_option,
    print_json,
    print_table,
    say,
    tell_assumed,
)


@click.command("predict")
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--weights", required=True, help="Published weights by name, or a weights file.")
@backend_option
@device_option
@click.option(
    "--output", type=PATH, required=True, help="Folder for NAME_labels.png and NAME_overlay.png; made if need be."
)
@click.option("--output-stride", type=int, help="Run at another output stride: 8, 16 or 32.")
@force_option
@json_option
def command(
    images: tuple[Path, ...],
    weights: str,
    backend: str | None,
    device: str,
    output: Path,
    output_stride: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Label every pixel of photos: an indexed PNG with the labels, and the photo with the labels over it."""
    import numpy as np

    from deeplabzoo.backends import default_backend
    from deeplabzoo.errors import OutputError
    from deeplabzoo.files import check_output, make_folder
    from deeplabzoo.inference.colours import VOC_CLASSES, overlay
    from deeplabzoo.inference.images import read_image
    from deeplabzoo.inference.pictures import write_labels, write_png
    from deeplabzoo.models import canonical_model
    from deeplabzoo.prediction import Predictor

    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    model, _ = canonical_model(weights=weights, **options)
    tell_assumed(model)
    names = [image.stem for image in images]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise OutputError(f"two images are named {doubled[0]!r}, and so would their outputs: run them one by one")
    targets = [(output / f"{name}_labels.png", output / f"{name}_overlay.png") for name in names]
    if output.is_dir():
        for target in (path for pair in targets for path in pair):
            check_output(target, force=force)
    for path in images:  # a broken photo is told of before the long work, and none is kept in memory
        read_image(path)
    make_folder(output)
    rows, data = [], []
    chosen = backend or default_backend().name
    with bar(len(images), "predict") as step, Predictor(model, backend=chosen, device=device) as predictor:
        for path, (labels_path, overlay_path) in zip(images, targets, strict=True):
            picture = read_image(path)
            labels = predictor.labels(picture)
            write_labels(labels_path, labels, force=force)
            write_png(overlay_path, overlay(picture, labels), force=force)
            classes = model.card.classes or (VOC_CLASSES if model.spec.num_classes == 21 else ())
            counts = np.bincount(labels.reshape(-1), minlength=model.spec.num_classes) / labels.size
            found = {
                classes[n] if classes else f"class {n}": float(counts[n]) for n in np.argsort(-counts) if counts[n]
            }
            data.append(
                {"image": str(path), "labels": str(labels_path), "overlay": str(overlay_path), "classes": found}
            )
            top = ", ".join(f"{name} {share:.1%}" for name, share in list(found.items())[:4])
            rows.append((path.name, f"{labels.shape[0]}x{labels.shape[1]}", top))
            step(path.name)
    if as_json:
        print_json(data)
    else:
        print_table(rows, ("image", "height x width", "largest classes"))
    say(f"wrote {2 * len(images)} pictures to {output} with {predictor.backend}")
