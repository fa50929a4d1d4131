"""`deeplabzoo evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplabzoo.cli.common import (
    backend_option,
    bar,
    device_option,
    inference_options,
    json_option,
    predictor_options,
    print_json,
    print_table,
    say,
    tell_assumed,
)
from deeplabzoo.cli.types import PATH


@click.command("evaluate")
@click.option("--data", type=PATH, required=True, help="VOC folder, or flat folder of NAME.png|jpg with NAME_mask.png.")
@click.option("--weights", required=True, help="Published weights by name, or a weights file.")
@backend_option
@device_option
@click.option("--split", default="val", show_default=True, help="List of a VOC folder to take.")
@inference_options
@json_option
def command(
    data: Path,
    weights: str,
    backend: str | None,
    device: str,
    split: str,
    output_stride: int | None,
    as_json: bool,
    **words: Any,
) -> None:
    """Score a model on photos with true labels: mIoU over the classes present, IoU of each class, pixel accuracy."""
    import numpy as np

    from deeplabzoo.backends import default_backend
    from deeplabzoo.inference.datasets import find_pairs
    from deeplabzoo.inference.images import read_image, read_mask
    from deeplabzoo.inference.metrics import Scores
    from deeplabzoo.models import canonical_model
    from deeplabzoo.prediction import Predictor, scores_dict

    pairs = find_pairs(data, split=split)
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    model, _ = canonical_model(weights=weights, **options)
    tell_assumed(model)
    chosen = backend or default_backend().name
    with (
        Predictor(model, backend=chosen, device=device, **predictor_options(**words)) as predictor,
        bar(len(pairs), "evaluate") as step,
    ):
        total = np.zeros((predictor.num_classes,) * 2, np.int64)
        photos = ((read_image(pair.image_path), read_mask(pair.mask_path)) for pair in pairs)
        for pair, counts in zip(pairs, predictor.evaluate(photos), strict=True):
            total += counts
            step(pair.name)
    scores = scores_dict(Scores.of(total), predictor.classes)
    if as_json:
        print_json({"photos": len(pairs), "backend": predictor.backend, **scores})
    else:
        present = set(scores["classes_in_truth"])
        print_table(
            (
                (name, f"{value:.4f}", "" if name in present else "not in the truth")
                for name, value in scores["iou"].items()
            ),
            ("class", "IoU", "note"),
        )
        click.echo()
        click.echo(f"photos           {len(pairs)}")
        click.echo(f"pixel accuracy   {scores['pixel_accuracy']:.4f}")
        click.echo(f"mIoU             {scores['miou']:.4f} over {len(present)} classes present")
    if pairs.note:
        say(pairs.note)
    shown = predictor.options
    ways = [f"scales {', '.join(f'{scale:g}' for scale in shown.scales)}"] if shown.scales != (1.0,) else []
    ways += ["flip"] if shown.flip else []
    ways += [f"fusion {shown.fusion}"] if len(shown.scales) > 1 or shown.flip else []
    ways += [f"windows of {shown.window}"] if shown.window else []
    ways += [f"CRF {words['crf']}"] if words["crf"] else []
    say(", ".join((f"{model.spec.title}, stride {model.spec.output_stride}, {predictor.backend}", *ways)))
