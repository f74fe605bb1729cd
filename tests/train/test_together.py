"""Training and use on several processes: the number of them changes nothing but rounding."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DIGITS, options

from hebmtool.run import checkpoint

HERE = Path(__file__).parent
RUNS = ("digits", "flow", "latent")
NEAR = 1e-6
"""Of what is computed of the same weights, relative."""
FIGURES = 1e-4
"""Of figures, among which a closure divides differences of distances a thousand times as large."""

sys.path.insert(0, str(HERE))
import together as program  # noqa: E402 (the tests' folders are no packages)


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


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Everything learned in it, by file and key."""
    return {
        f"{path.name} {key}": tensor
        for path in sorted(run.glob("*.train.safetensors"))
        for key, tensor in checkpoint.load(path)[0].items()
        if key.startswith(("model.", "ema."))
    }


def apart(one: Path, other: Path) -> dict[str, float]:
    """How far the tensors of each file of two runs are apart, by norms, relative to them all."""
    one, other, found = weights(one), weights(other), {}
    assert one.keys() == other.keys()
    for name in {key.partition(" ")[0] for key in one}:
        keys = [key for key in one if key.startswith(f"{name} ")]
        difference = sum((one[key].double() - other[key].double()).square().sum() for key in keys)
        found[name] = float((difference / sum(one[key].double().square().sum() for key in keys)).sqrt())
    return found


def check_near(one: Path, other: Path) -> dict[str, float]:
    found = apart(one, other)
    assert found and max(found.values()) < 1e-5, found
    return found


def seen(root: Path) -> list[str]:
    return sorted(digest for path in root.glob("seen-*.json") for digest in json.loads(path.read_text()))


def compare(alone: Path, several: Path) -> dict[str, float]:
    """Asserts that both saw and learned the same, and used the same runs with the same result; how far the weights are
    apart."""
    assert seen(alone) == seen(several)
    found = {name: far for run in RUNS for name, far in check_near(alone / run, several / run).items()}
    with np.load(alone / "used.npz") as one, np.load(several / "used.npz") as other:
        assert set(one.files) == set(other.files)
        for key in one.files:
            # Pixels are whole numbers, of which rounding can move one.
            near = {"atol": 1e-6, "rtol": FIGURES if key.endswith("figures") else NEAR}
            near = {"atol": 1} if one[key].dtype == np.uint8 else near
            np.testing.assert_allclose(one[key].astype(float), other[key].astype(float), **near, err_msg=key)
    return found


def gone_on(of: Path, root: Path, updates: int) -> Path:
    """A copy of the run `digits` below `of`, trained on in this process."""
    shutil.copytree(of / "digits", root / "digits")
    program.resume(root, updates)
    return root / "digits"


def test_two_processes_train_and_use_what_one_does_and_go_on_from_each_others(together, tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    together(1, HERE / "together.py", one, 3)
    together(2, HERE / "together.py", two, 3, one)
    print(compare(one, two))
    alone = gone_on(one, tmp_path / "alone", 6)
    check_near(alone, two / "resumed" / "digits")
    check_near(alone, gone_on(two, tmp_path / "back", 6))
    assert max(apart(alone, one / "digits").values()) > 1e-4


@pytest.mark.slow
def test_two_and_three_processes_over_many_updates(together, tmp_path):
    together(1, HERE / "together.py", tmp_path / "1", 20)
    for world in (2, 3):
        together(world, HERE / "together.py", tmp_path / str(world), 20, tmp_path / "1")
        print(world, compare(tmp_path / "1", tmp_path / str(world)))


def process_of(rank: int, parent: int) -> int:
    """The number of the process of this rank that torchrun has started."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"PPid:\t{parent}\n" in (entry / "status").read_text()
            if ours and f"RANK={rank}" in (entry / "environ").read_text().split("\0"):
                return int(entry.name)
    raise AssertionError(f"torchrun has no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_outright_is_started_again_and_training_goes_on(child, tmp_path, rank):
    keys = options([*DIGITS, "train_vae.iterations=40", "train_vae.save_every=5", "train_vae.batch_size=48"])
    command = ("-m", "hebmtool", "train-vae", "digits", "--device", "cpu", *keys, "--runs")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 1, "--master-port", free_port())
    path = {"PYTHONPATH": HERE.parents[1]}
    training = child(sys.executable, *launch, *command, tmp_path / "killed", env=path)
    training.until((tmp_path / "killed" / "digits" / "generator.train.safetensors").is_file)
    os.kill(process_of(rank, training.pid), signal.SIGKILL)
    for process in (training, child(sys.executable, *command, tmp_path / "whole", env=path)):
        status, out, err = process.finish()
        assert status == 0, err
    assert len(out.splitlines()) == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed/digits/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    print(check_near(tmp_path / "killed" / "digits", tmp_path / "whole" / "digits"))
