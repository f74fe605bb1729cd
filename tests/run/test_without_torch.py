"""What is read of runs without importing torch, whose import takes seconds."""

import sys

import pytest

FOLDER = """
import sys
from hebmtool.run import folder, header
run = folder.Run.open(sys.argv[2], sys.argv[1])
print(run.one_stage, ",".join(run.priors()), run.recipe().name)
print(header.header(run.prior_path(run.priors()[-1])).step)
run.require_prior(run.priors()[-1])
heavy = [name for name in ("torch", "torchvision", "scipy", "sklearn", "matplotlib", "typer") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("name", "line"), [("digits", "False gaussian,ebm,diffusion-ebm digits"), ("flow", "True flow flow")]
)
def test_a_run_is_opened_and_its_headers_read_without_torch(tiny, child, name, line):
    status, out, err = child(sys.executable, "-c", FOLDER, tiny, name).finish()
    assert status == 0, err
    assert out.splitlines() == [line, "3"]


@pytest.mark.parametrize("module", ["recipe", "errors", "console", "files", "run", "run.folder", "run.header"])
def test_no_torch_in(child, module):
    program = f"import hebmtool.{module}, sys; assert 'torch' not in sys.modules"
    status, _, err = child(sys.executable, "-c", program).finish()
    assert status == 0, err
