"""Named models: presets of the spec, and published weights.

A preset's name is `arch_backbone`, with a tag where it follows one public implementation exactly. Published weights
add the data they were trained on.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from deeplabzoo.core.spec import ARCHITECTURES, ArchSpec, make_spec
from deeplabzoo.errors import SpecError, unknown
from deeplabzoo.zoo.presets import PRESETS, Preset
from deeplabzoo.zoo.published import PUBLISHED, Published

__all__ = ["PRESETS", "PUBLISHED", "Preset", "Published", "changed", "list_models", "named_spec"]


def list_models(pattern: str = "*") -> list[str]:
    """Names of presets and published weights that match a shell pattern, or contain it where it has no wildcard."""
    names = [*PRESETS, *PUBLISHED]
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern.lower()))


def named_spec(name: str | ArchSpec, **options: Any) -> ArchSpec:
    """The spec of an architecture (`v3plus`) or a preset (`v3_resnet50.torchvision`), with other options.

    Args:
        name: architecture, preset, or a spec.
        **options: as for `core.spec.make_spec`; a spec or a preset with a tag takes `num_classes` and `output_stride`.

    Raises:
        SpecError: an unknown name or a wrong option.
    """
    if isinstance(name, ArchSpec):
        return changed(name, options)
    if name in ARCHITECTURES:
        return make_spec(name, **options)
    if name not in PRESETS:
        raise SpecError(unknown("model", name, [*ARCHITECTURES, *PRESETS]))
    if "." not in name:
        arch, backbone = name.split("_", 1)
        return make_spec(arch, **{"backbone": backbone, **options})
    return changed(PRESETS[name].make(), options)


def changed(spec: ArchSpec, options: Mapping[str, Any]) -> ArchSpec:
    """A finished spec with another number of classes or output stride; anything else must be said in the spec itself.

    Raises:
        SpecError: another option, or a value that is wrong.
    """
    left = dict(options)
    if (classes := left.pop("num_classes", None)) is not None:
        spec = spec.replace(num_classes=classes)
    if (stride := left.pop("output_stride", None)) is not None and stride != spec.output_stride:
        spec = spec.at_output_stride(stride)
    for name in ("arch", "backbone"):
        if (value := left.pop(name, None)) is not None:
            own = spec.arch if name == "arch" else spec.backbone.name
            if value != own:
                raise SpecError(f"{name} = {value!r} was asked for, but this model has {name} = {own!r}; leave it out")
    if left:
        raise SpecError(f"{', '.join(left)} can't be changed in a finished spec: write it into a spec file (--spec)")
    return spec
