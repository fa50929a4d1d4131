"""`deeplabzoo predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplabzoo.cli.common import (
    backend_option,
    bar,
    device_option,
    force_option,
    inference_options,
    json_option,
    predictor_options,
    print_json,
    print_table,
    say,
    tell_assumed,
)
from deeplabzoo.cli.types import PALETTE_NAMES, PATH


@click.command("predict")
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--weights", required=True, help="Published weights by name, or a weights file.")
@backend_option
@device_option
@click.option(
    "--output",
    type=PATH,
    required=True,
    help="Folder for NAME_labels.png, NAME_overlay.png and NAME_legend.png; made if need be.",
)
@click.option(
    "--palette", type=click.Choice(PALETTE_NAMES), help="Colours to draw in.  [default: by the model's classes]"
)
@inference_options
@force_option
@json_option
def command(
    images: tuple[Path, ...],
    weights: str,
    backend: str | None,
    device: str,
    output: Path,
    palette: str | None,
    output_stride: int | None,
    force: bool,
    as_json: bool,
    **words: Any,
) -> None:
    """Label every pixel of photos: an indexed PNG with the labels, the photo with the labels over it, and a legend.

    \b
    deeplabzoo predict photo.jpg --weights v3_mobilenet_v2.tf_voc_trainval --output labels
    deeplabzoo predict large.jpg --weights model.pth --output labels --window 769
    deeplabzoo predict photo.jpg --weights model.pth --output labels --scales 0.5,0.75,1 --flip --crf v2_resnet101
    """
    import numpy as np

    from deeplabzoo.backends import default_backend
    from deeplabzoo.errors import OutputError
    from deeplabzoo.files import check_output, make_folder
    from deeplabzoo.inference.colours import overlay
    from deeplabzoo.inference.images import read_image
    from deeplabzoo.inference.label_sets import label_set
    from deeplabzoo.inference.pictures import legend, write_labels, write_png
    from deeplabzoo.models import canonical_model
    from deeplabzoo.prediction import Predictor

    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    model, _ = canonical_model(weights=weights, **options)
    tell_assumed(model)
    if model.spec.num_classes > 256:
        raise OutputError(
            f"the model has {model.spec.num_classes} classes, and a label picture holds 256: use deeplabzoo.predict in "
            "Python, which returns the labels"
        )
    names = [image.stem for image in images]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise OutputError(f"two images are named {doubled[0]!r}, and so would their outputs: run them one by one")
    targets = [tuple(output / f"{name}_{what}.png" for what in ("labels", "overlay", "legend")) for name in names]
    if output.is_dir():
        for target in (path for group in targets for path in group):
            check_output(target, force=force)
    for path in images:  # a broken photo is told of before the long work, and none is kept in memory
        read_image(path)
    make_folder(output)
    rows, data = [], []
    chosen = backend or default_backend().name
    with (
        Predictor(model, backend=chosen, device=device, **predictor_options(**words)) as predictor,
        bar(len(images), "predict") as step,
    ):
        known = label_set(palette, predictor.classes, predictor.num_classes)
        for path, (labels_path, overlay_path, legend_path) in zip(images, targets, strict=True):
            picture = read_image(path)
            labels = predictor.labels(picture)
            write_labels(labels_path, labels, force=force, palette=known.palette)
            write_png(overlay_path, overlay(picture, labels, palette=known.palette), force=force)
            write_png(legend_path, legend(labels, known.classes, known.palette), force=force)
            counts = np.bincount(labels.reshape(-1), minlength=predictor.num_classes) / labels.size
            found = {
                known.classes[n] if known.classes else f"class {n}": float(counts[n])
                for n in np.argsort(-counts)
                if counts[n]
            }
            data.append(
                {
                    "image": str(path),
                    "labels": str(labels_path),
                    "overlay": str(overlay_path),
                    "legend": str(legend_path),
                    "classes": found,
                }
            )
            top = ", ".join(f"{name} {share:.1%}" for name, share in list(found.items())[:4])
            rows.append((path.name, f"{labels.shape[0]}x{labels.shape[1]}", top))
            step(path.name)
    if as_json:
        print_json(data)
    else:
        print_table(rows, ("image", "height x width", "largest classes"))
    say(f"wrote {3 * len(images)} pictures to {output} with {predictor.backend}")
