"""What is known of published weights before they are downloaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.inference.label_sets import LABEL_SETS
from deeplabzoo.inference.preprocessing import Preprocessing
from deeplabzoo.zoo.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that a project publishes.

    Attributes:
        name: preset name and what they were trained on.
        preset: the preset they fit.
        num_classes: of the classifier, where the preset has another number.
        url: official address.
        layout: layout of their tensors.
        dataset: what they were trained on: `voc`, `cityscapes`, `ade20k`, `coco_stuff10k`, `coco_stuff164k`.
        digest: leading hexadecimal digits of the file's SHA-256 where the project publishes them, else empty.
        published_megabytes: size of the download, where the project says it.
        licence: SPDX name, or `other` where the project names none of those.
        miou: published mIoU in per cent, or none.
        judged: what that figure is measured on and how.
        preprocessing: what is done to a photo, where it differs from what the preset says.
        source: page that publishes them.
    """

    name: str
    preset: str
    num_classes: int
    url: str
    layout: str
    dataset: str
    licence: str
    source: str
    digest: str = ""
    published_megabytes: float | None = None
    miou: float | None = None
    judged: str = ""
    preprocessing: Preprocessing | None = None

    @property
    def file_name(self) -> str:
        """Name of the file as it is published."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def publisher(self) -> str:
        """Owner and name of the repository that publishes them."""
        return "/".join(urlsplit(self.source).path.split("/")[1:3])

    @property
    def megabytes(self) -> float:
        """Size of the download; where the project does not say it, four bytes a value."""
        if self.published_megabytes is not None:
            return self.published_megabytes
        shapes = build_graph(self.spec()).parameters().values()
        return round(4e-6 * sum(math.prod(shape) for shape in shapes), 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; empty where the data set's are not known here."""
        found = (one.classes for one in LABEL_SETS if (one.name, len(one.classes)) == (self.dataset, self.num_classes))
        return next(found, ())

    def spec(self) -> ArchSpec:
        """The network: that of the preset with these weights' classes."""
        return PRESETS[self.preset].make().replace(num_classes=self.num_classes)

    def prepares(self) -> Preprocessing | None:
        """What the project does to a photo; none where that is the backbone's usual way."""
        return self.preprocessing or PRESETS[self.preset].preprocessing

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        fields = ("name", "preset", "num_classes", "dataset", "url", "layout", "digest", "megabytes", "licence", "miou")
        return {name: getattr(self, name) for name in (*fields, "judged", "source")}
