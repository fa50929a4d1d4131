"""The real photos, where they are at hand."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def photos() -> Path:
    data = Path(os.environ.get("DEEPLABZOO_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (data / "photos").is_dir():
        pytest.skip(f"no photos in {data}: set DEEPLABZOO_DATA to the data folder")
    return data / "photos"
