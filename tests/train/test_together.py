"""Training and use on several processes: the number of them changes nothing but rounding."""

import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hebmtool.run import checkpoint

HERE = Path(__file__).parent
LEARNED = {
    "digits": ("generator", "prior-ebm", "prior-diffusion-ebm", "label-class"),
    "flow": ("prior-flow",),
    "latent": ("prior-latent-ebm",),
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def together(child):
    """`together(world, program, *arguments)`: run it in so many processes, which must end well."""

    def run(world: int, *command: object) -> None:
        port, path = free_port(), f"{HERE.parent}:{HERE.parents[1]}"
        several = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = [
            child(sys.executable, *command, env={"PYTHONPATH": path} | (several | {"RANK": i} if world > 1 else {}))
            for i in range(world)
        ]
        for process in started:
            status, _, err = process.finish()
            assert status == 0, err

    return run


def weights(root: Path) -> dict[str, torch.Tensor]:
    """Everything learned, by file and key."""
    return {
        f"{name} {key}": tensor
        for run, names in LEARNED.items()
        for name in names
        for key, tensor in checkpoint.load(root / run / f"{name}.train.safetensors")[0].items()
        if key.startswith(("model.", "ema."))
    }


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """How far the tensors of each file are apart, by norms, relative to them all."""
    assert one.keys() == other.keys()
    found = {}
    for name in {key.partition(" ")[0] for key in one}:
        keys = [key for key in one if key.startswith(f"{name} ")]
        difference = sum((one[key].double() - other[key].double()).square().sum() for key in keys)
        found[name] = float((difference / sum(one[key].double().square().sum() for key in keys)).sqrt())
    return found


def seen(root: Path) -> list[str]:
    return sorted(digest for path in root.glob("seen-*.json") for digest in json.loads(path.read_text()))


def compare(alone: Path, several: Path) -> dict[str, float]:
    """Asserts that both came to the same; how far the weights are apart."""
    assert seen(alone) == seen(several)
    distances = apart(weights(alone), weights(several))
    assert max(distances.values()) < 1e-5, distances
    with np.load(alone / "used.npz") as one, np.load(several / "used.npz") as other:
        assert set(one.files) == set(other.files)
        for key in one.files:
            # Pixels are whole numbers, of which rounding can move one; the rest is of weights that differ by theirs.
            near = {"atol": 1} if one[key].dtype == np.uint8 else {"atol": 1e-6, "rtol": 1e-4}
            np.testing.assert_allclose(one[key].astype(float), other[key].astype(float), **near, err_msg=key)
    return distances


def test_two_processes_train_what_one_does(together, tmp_path):
    for world in (1, 2):
        together(world, HERE / "together.py", tmp_path / str(world), 4)
    print(compare(tmp_path / "1", tmp_path / "2"))


@pytest.mark.slow
def test_two_and_three_processes_over_many_updates(together, tmp_path):
    for world in (1, 2, 3):
        together(world, HERE / "together.py", tmp_path / str(world), 20)
    for world in (2, 3):
        print(world, compare(tmp_path / "1", tmp_path / str(world)))
