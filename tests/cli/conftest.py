"""Short estimates, and runs in which stage two is still to come."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def short_estimates(short) -> None:
    """The command is what is tested."""


@pytest.fixture
def stage_one(tiny, tmp_path) -> Callable[..., Path]:
    """Make the run `root`/NAME with the tiny generator and no prior; its folder."""

    def make(name: str = "digits", root: Path = tmp_path) -> Path:
        folder = root / name
        folder.mkdir(parents=True)
        for file in ("recipe.yaml", "generator.safetensors"):
            shutil.copy(tiny / "digits" / file, folder)
        return folder

    return make
