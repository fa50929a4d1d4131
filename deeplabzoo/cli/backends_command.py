"""`deeplabzoo backends`."""

from __future__ import annotations

from typing import Any

import click

from deeplabzoo.cli.common import bar, json_option, print_json, print_table


@click.command("backends")
@json_option
def command(as_json: bool) -> None:
    """What is installed here: versions, devices, abilities. Each backend is started once to see that it works."""
    from deeplabzoo.backends import resolve
    from deeplabzoo.backends.worker import Worker
    from deeplabzoo.errors import DeepLabZooError

    names = ("torch", "paddle", "keras/tensorflow", "keras/jax", "keras/torch", "onnx")
    found: list[dict[str, Any]] = []
    with bar(len(names), "backends") as step:
        for name in names:
            step(name)
            backend = resolve(name)
            entry: dict[str, Any] = {"backend": name, "versions": backend.versions(), "devices": [], "state": "works"}
            if missing := backend.missing():
                entry["state"] = f'needs {" and ".join(missing)}: pip install "deeplabzoo[{backend.extra}]"'
            else:
                for device in ("cpu", "gpu"):
                    try:
                        with Worker(name, device=device, time_limit=120) as worker:
                            entry["devices"].append(worker.device_name)
                    except DeepLabZooError as error:
                        if device == "cpu":
                            entry["state"] = str(error)
            flags = backend.flags
            entry["abilities"] = [
                *flags.DTYPES,
                *(
                    ability
                    for ability, there in (
                        ("gradients", flags.GRADIENTS),
                        ("free size", flags.DYNAMIC_SIZE),
                        ("compile", flags.COMPILE),
                    )
                    if there
                ),
            ]
            found.append(entry)
    if as_json:
        print_json(found)
        return
    print_table(
        (
            (
                e["backend"],
                ", ".join(f"{k} {v}" for k, v in e["versions"].items()) or "-",
                ", ".join(e["devices"]) or "-",
                ", ".join(e["abilities"]),
                e["state"],
            )
            for e in found
        ),
        ("backend", "versions", "devices", "abilities", "state"),
    )
    click.echo("\nThe referee of `deeplabzoo parity` is numpy and always there.")
