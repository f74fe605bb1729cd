"""What is read of runs without importing torch, whose import takes seconds."""

import sys

LIGHT = """
import importlib, sys
from pathlib import Path
for name in ("recipe", "errors", "console", "files", "run", "run.folder", "run.header"):
    importlib.import_module(f"hebmtool.{name}")
    assert "torch" not in sys.modules, name
from hebmtool.run import folder, header
for name in ("digits", "flow"):
    run = folder.Run.open(name, Path(sys.argv[1]))
    run.require_prior(run.priors()[-1])
    print(run.one_stage, *run.priors(), run.recipe().name, header.header(run.prior_path(run.priors()[-1])).step)
heavy = [name for name in ("torch", "torchvision", "scipy", "sklearn", "matplotlib", "typer") if name in sys.modules]
assert not heavy, heavy
"""


def test_runs_are_opened_and_their_headers_read_without_torch(tiny, child):
    status, out, err = child(sys.executable, "-c", LIGHT, tiny).finish()
    assert status == 0, err
    assert out.splitlines() == ["False gaussian ebm diffusion-ebm digits 3", "True flow flow 3"]
