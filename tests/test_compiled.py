"""What goes through torch.compile computes what the plain path does; what cannot be compiled is told.

On torch's backend `aot_eager`, which traces functions and their gradients as every backend does, and generates nothing;
once on the one that does.  Tracing takes seconds, so most of it is marked slow.
"""

import shutil

import numpy as np
import pytest
import torch
from tiny import DIGITS, options
from toys import toy_prior

from hebmtool import compute, recipe, rows
from hebmtool.errors import HebmError
from hebmtool.generator import Tower
from hebmtool.generator.layers import SpectralPenalty
from hebmtool.prior import FlowPrior
from hebmtool.train import vae
from hebmtool.train.prior import encoded

CPU = torch.device("cpu")
TRACED = "aot_eager"


def near(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def noise(u: torch.Tensor):
    draws = torch.Generator().manual_seed(1)
    return lambda: torch.randn(u.shape, generator=draws).to(u)


@pytest.fixture(autouse=True)
def whole():
    """What is compiled is so from end to end: nothing in it has to be left to Python."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield
    assert not counters["graph_break"]


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of what was compiled."""
    met, made = [], compute._made

    def making(function, backend):
        met.append(function.__name__)
        return made(function, backend)

    monkeypatch.setattr(compute, "_made", making)
    return met


def drawn(prior, chain: str, u: torch.Tensor) -> torch.Tensor:
    twin = prior if chain == prior.chain.word else prior.using(chain=chain)
    return twin.negatives(u, torch.arange(len(u), device=u.device) % prior.T, noise(u))


def check_chains(generator, backend: str, chains) -> None:
    prior = toy_prior(generator, steps=6, weight=0.1).to(generator.device)
    u = torch.randn(3, generator.D).to(generator.device)
    for chain in chains:
        plain = drawn(prior, chain, u)
        with compute.compiling(backend):
            near(drawn(prior, chain, u), plain)
        assert not torch.allclose(plain, u, atol=0.1)


def test_chains_draw_the_same(generator, counted):
    check_chains(generator, TRACED, ["langevin", "preconditioned", "hmc"])
    assert set(counted) == {"F"}


@pytest.mark.slow
def test_generated_code_draws_and_learns_the_same(generator):
    check_chains(generator, "inductor", ["underdamped"])
    check_stage_one("inductor")


@pytest.mark.gpu
def test_graphs_are_replayed_to_the_same(make_generator):
    """Steps and updates after the first few, which are recorded; hmc keeps gradients of earlier ones."""
    generator = make_generator().to("cuda")
    for _ in range(3):
        check_chains(generator, "inductor", ["underdamped", "hmc"])
        check_stage_one("inductor", "cuda", updates=4)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["recovery", "cnce", "score-matching"])
def test_an_update_of_stage_two_is_the_same(generator, objective):
    x, found = torch.rand(4, 1, 8, 8).round(), []
    for backend in (None, TRACED):
        torch.manual_seed(3)
        prior = toy_prior(generator, objective=objective, weight=0.1)
        torch.manual_seed(4)
        with compute.compiling(backend) if backend else compute.plainly():
            prior.loss(encoded(generator, x), x)[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in prior.parameters() if p.grad is not None]))
    near(found[1], found[0])
    assert found[0].norm() > 1e-3


def check_stage_one(backend: str, device: str = "cpu", updates: int = 1) -> None:
    settings = recipe.load("digits", DIGITS)
    x, found = torch.rand(8, 1, 8, 8).to(device), []
    for how in (None, backend):
        torch.manual_seed(0)
        generator = Tower(settings.generator, (1, 8, 8)).train().to(device)
        penalty, sizes = SpectralPenalty(generator).to(device), vae.pixels(generator)
        torch.manual_seed(1)
        for _ in range(updates):
            generator.zero_grad(set_to_none=True)
            with compute.compiling(how) if how else compute.plainly():
                loss, _, kl = vae.objective(generator, penalty, settings.train_vae, 0.5, sizes, x)
                loss.backward()
        statistics = [b.flatten() for name, b in generator.named_buffers() if "running" in name]
        gradients = [p.grad.flatten() for p in generator.parameters() if p.grad is not None]
        found.append((torch.cat(gradients), torch.cat(statistics), kl, loss))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_update_of_stage_one_is_the_same_and_moves_the_statistics():
    check_stage_one(TRACED)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_noise_drawn_beforehand_is_what_an_encoder_draws(make_generator, monkeypatch, precision):
    drawn, draw = [], rows.randn_like
    monkeypatch.setattr(rows, "randn_like", lambda x: drawn.append(draw(x)) or drawn[-1])
    for generator in (make_generator(), make_generator((3, 16, 16), latent_channels=1, scales=1)):
        torch.manual_seed(5)
        with compute.autocast(CPU, precision):
            generator.encode(torch.full((3, *generator.image_shape), 0.5))
        met = list(drawn)
        torch.manual_seed(5)
        noise = generator.noise(3)
        assert len(met) == generator.L and torch.equal(noise, generator.join(met))
        drawn.clear()


@pytest.mark.slow
def test_a_flow_infers_the_same():
    model = FlowPrior.from_recipe(recipe.Recipe(flow=recipe.Flow(latent=5, transforms=2, hidden=8, width=4)), (1, 8, 8))
    x, z = torch.rand(3, 1, 8, 8), torch.randn(3, 5)
    plain = model.infer(x, z, 2, noise(z))
    with compute.compiling(TRACED):
        near(model.infer(x, z, 2, noise(z)), plain)


# The command


def test_a_command_compiles_and_gives_the_same_images(hebm, tiny, tmp_path, monkeypatch, counted):
    monkeypatch.setattr(compute, "BACKEND", "eager")
    sets = []
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        out = tmp_path / f"{name}.npz"
        status, _, err = hebm("sample", "--run", tiny / "digits", "-n", 5, "--batch-size", 3, "--out", out, *more)
        assert status == 0, err
        sets.append(np.load(out)["images"].astype(int))
        assert counted == ["F"] * len(counted) and bool(counted) is bool(more)
    assert abs(sets[0] - sets[1]).max() <= 1
    assert not compute.is_compiling()


def test_what_cannot_be_compiled_is_told(hebm, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    if not torch.cuda.is_available():
        status, out, err = hebm("sample", "--run", tiny / "digits", "--compile")
        assert status == 1 and not out and "takes a C++ compiler, and there is none of g++, clang++; install one" in err
    monkeypatch.setattr(compute, "BACKEND", "eager")
    small = options([*DIGITS, "name=another"])
    status, out, err = hebm("train-vae", "digits", *small, "--set", "train_vae.recompute=true", "--compile")
    assert status == 2 and "train_vae.recompute cannot be compiled" in err


def test_a_backend_that_fails_is_told(generator):
    def failing(graph, inputs):
        raise RuntimeError("no room")

    prior = toy_prior(generator)
    torch._dynamo.config.suppress_errors = False
    with compute.compiling(failing), pytest.raises(HebmError, match="torch.compile failed .*; do without compiling"):
        drawn(prior, prior.chain.word, torch.randn(3, generator.D))


def test_graphs_take_a_gpu(hebm, tmp_path):
    status, out, err = hebm("train-vae", "digits", "--graphs", "--device", "cpu", "--runs", tmp_path)
    assert (status, out) == (1, "") and "CUDA graphs take a CUDA GPU, and the device is the CPU" in err
    status, out, err = hebm("train-vae", "digits", "--graphs", "--compile")
    assert (status, out) == (2, "") and "--graphs and --compile are two ways to be fast; leave out either" in err


@pytest.mark.parametrize("backend", [None, compute.GRAPHS])
def test_graphs_fuse_nothing(monkeypatch, backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with compute.compiling(backend):
        assert compute.is_compiling() and compute.is_fusing() == (backend is None)
    assert not compute.is_fusing()


class OnCuda(torch.Tensor):
    is_cuda = True


def test_constants_stay_where_a_graph_reads_them():
    old, new = ((x.as_subclass(OnCuda), None) for x in (torch.zeros(2), torch.ones(2)))
    on_cpu = torch.ones(2), None
    assert compute.in_place((torch.zeros(2), None), on_cpu) is on_cpu, "nothing is captured there"
    assert compute.in_place(old, new) is old and old[0].sum() == 2
    assert compute.in_place(None, new) is new
    other = (torch.ones(3).as_subclass(OnCuda), None)
    assert compute.in_place(old, other) is other


def test_float32_is_not_rounded_to_less():
    compute.exact()
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
