"""Everything that waits for a GPU, in one call of a few minutes: tests, speed, a CIFAR-10 training, pictures, closure.

    python benchmarks/gpu.py --out gpu/                          # on a lent GPU; at most --minutes 8
    python benchmarks/gpu.py --out tiny/ --device cpu --tiny     # the same on small things: known to work

In this order, each within what is left of the minutes, so that whatever is cut off was the least of it:

    tests      those marked gpu
    noise      `benchmarks/noise.py`: torch's streams against philox's
    plan       `hebm plan --measure`: what an update was said to take, and what it took
    speed      `benchmarks/langevin.py`: against the plain comparator, batch 64 and 512, steps/s, share of peak; on CUDA
               also without replaying the gradient from a CUDA graph
    train      both stages of cifar10-small (digits when tiny), on CUDA with --graphs, stopped by SIGTERM, which saves,
               when their time is up
    look       samples of every prior, and `hebm evaluate`, whose table has the closure

What each said is in OUT/NAME.log, and what became of it, with the seconds it took, in OUT/summary.json.  Tests and
trainings have been run on a GPU (docs/scale.md), this script as a whole has not.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *("generator.layers_per_scale=1", "generator.encoder_channels=16", "generator.decoder_channels=8"),
    *("prior.energy.width=8", "train_vae.iterations=30", "train_prior.iterations=20", "evaluate.samples=24"),
]


class Session:
    """Steps one after another until the minutes are over; `summary` is what became of each."""

    def __init__(self, out: Path, minutes: float):
        self.out, self.end, self.summary = out, time.monotonic() + 60 * minutes, {}
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def step(self, name: str, *command: object, share: float = 1.0) -> None:
        """Run a command for at most this share of the time that is left, then ask it to stop; then make it."""
        limit, start = max(0.0, share * self.left), time.monotonic()
        if limit < 1:
            self.note(name, "no time left", 0.0)
            return
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with (self.out / f"{name}.log").open("w") as log:
            process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, cwd=ROOT, env=environment)
            try:
                status = f"exit {process.wait(limit)}"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                try:
                    status = f"stopped after {limit:.0f} s, exit {process.wait(20)}"
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    status = f"killed after {limit:.0f} s"
        self.note(name, status, time.monotonic() - start)

    def note(self, name: str, status: str, seconds: float) -> None:
        self.summary[name] = {"status": status, "seconds": round(seconds, 1)}
        print(f"{name}: {status}, {seconds:.0f} s; {max(0, self.left):.0f} s are left", flush=True)
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1) + "\n")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--device", default="cuda")
    asked.add_argument("--minutes", type=float, default=8.0, help="for all of it, at most 10")
    asked.add_argument("--data", default="data", help="CIFAR-10's folder (data.path)")
    asked.add_argument("--tiny", action="store_true", help="digits in place of CIFAR-10, few updates")
    asked = asked.parse_args()
    out, session = asked.out.resolve(), Session(asked.out.resolve(), min(asked.minutes, 10.0))
    python, at = sys.executable, ("--device", asked.device)
    hebm, graphs = (python, "-m", "hebmtool"), ("--graphs",) if asked.device.startswith("cuda") else ()
    launched = ("--launched",) if graphs else ()
    recipe = "digits" if asked.tiny else "cifar10-small"
    keys = SMALL if asked.tiny else [f"data.path={asked.data}"]
    keys = [word for key in [*keys, "name=gpu"] for word in ("--set", key)]
    runs, batches = ("--runs", out / "runs"), ("8",) if asked.tiny else ("64", "512")

    session.step(
        "tests", python, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "tests/test_compiled.py", share=0.2
    )
    rounds = 1 if asked.tiny else 5
    session.step(
        "noise", python, "benchmarks/noise.py", *at, "--rounds", rounds, "--json", out / "noise.json", share=0.1
    )
    session.step("plan", *hebm, "plan", recipe, *at, "--measure", "--json", *keys, share=0.15)
    for batch in batches:
        geometry = ("--geometry", "digits" if asked.tiny else "cifar10-small", "--batch", batch, "--rounds", rounds)
        files = ("--json", out / f"speed-{batch}.json", "--markdown", out / f"speed-{batch}.md")
        speed = (python, "benchmarks/langevin.py", *geometry, *at, *launched, *files)
        session.step(f"speed-{batch}", *speed, share=0.2)
    session.step("train-vae", *hebm, "train-vae", recipe, *runs, *at, *graphs, *keys, share=0.5)
    session.step("train-prior", *hebm, "train-prior", recipe, *runs, *at, *graphs, *keys, share=0.6)
    for prior in ("gaussian", "diffusion-ebm"):
        picture = ("--prior", prior, "-n", 64, "--out", out / f"{prior}.png", "--force")
        session.step(f"sample-{prior}", *hebm, "sample", "--run", out / "runs" / "gpu", *at, *picture, share=0.3)
    run = out / "runs" / "gpu"
    session.step("evaluate", *hebm, "evaluate", run, *at, "--samples", 24 if asked.tiny else 2000, "--markdown")


if __name__ == "__main__":
    main()
