"""What only a GPU can show (marked gpu): there, the same numbers as on a CPU, up to rounding; float32 in full.

`tests/test_compiled.py` has what goes through torch.compile there."""

import numpy as np
import pytest
import torch
from pictures import picture, write
from tiny import DIGITS, options
from toys import ENERGY_KINDS, toy_prior

from hebmtool import compute, rows
from hebmtool import data as d
from hebmtool.chains import value_and_gradient
from hebmtool.data import files
from hebmtool.noise import STREAMS, Noise, streams
from hebmtool.prior import OBJECTIVES
from hebmtool.prior.energy import spectral as spectral_convolutions
from hebmtool.recipe import Data, TrainPrior

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact():
    compute.pick_device("cuda")


@pytest.mark.parametrize("kind", ENERGY_KINDS)
@pytest.mark.parametrize("stream", sorted(STREAMS))
def test_draws_are_those_of_a_cpu(make_generator, kind, stream):
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        prior = toy_prior(make_generator(), kind, "underdamped").to(device)
        prior.generator.to(device)
        with streams(stream):
            found.append(prior.sample(Noise(0, range(5), prior.generator.D, device)).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"recovery"}))
def test_gradients_are_those_of_a_cpu(make_generator, monkeypatch, objective):
    """Of the same random numbers, drawn on the CPU."""
    for name in ("rand", "randn", "randint"):
        here = getattr(rows, name)
        monkeypatch.setattr(rows, name, lambda *a, device=None, here=here: here(*a, device="cpu").to(device or "cpu"))
    monkeypatch.setattr(rows, "randn_like", lambda x: torch.randn(x.shape).to(x))
    x, found = torch.rand(6, 1, 8, 8).round(), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        prior = toy_prior(make_generator(), objective=objective, weight=0.1).to(device)
        generator = prior.generator.to(device)
        torch.manual_seed(2)
        prior.loss(generator.encode(x.to(device), torch.zeros(6, generator.D, device=device)), x.to(device))[
            0
        ].backward()
        found.append(torch.cat([p.grad.flatten().cpu() for p in prior.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("spectral", [False, True])
def test_a_replayed_gradient_follows_the_weights(make_generator, spectral):
    """What was captured reads weights, levels and images as they are by then."""
    prior = toy_prior(make_generator(), chain="hmc", weight=0.1).to(CUDA)
    for conv in spectral_convolutions(prior):
        conv.norm = spectral
    prior.generator.to(CUDA)
    for t in (0, 2, 1):
        u, t = torch.randn(6, prior.generator.D, device=CUDA), torch.full((6,), t, device=CUDA)
        with prior.fixed():
            value, slope = prior.slope(t)(u)
            kept = value.clone(), slope.clone()
            expected = value_and_gradient(lambda u, t=t: prior.F(u, t), u)
            prior.slope(t)(torch.randn_like(u))
        for found, before, right in zip((value, slope), kept, expected, strict=True):
            assert torch.equal(found, before), "the next replay writes over nobody's"
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for p in prior.parameters():
                p.mul_(1.1)
        prior.settle()


def test_float32_keeps_all_its_bits():
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    error = (a.to(CUDA) @ b.to(CUDA)).cpu().double() - a.double() @ b.double()
    assert error.abs().max() < 1e-3 * 0.5  # TensorFloat-32 is off by 0.02
    x, w = torch.randn(4, 64, 16, 16), torch.randn(64, 64, 3, 3)
    found, expected = torch.conv2d(x.to(CUDA), w.to(CUDA)).cpu().double(), torch.conv2d(x.double(), w.double())
    assert (found - expected).abs().max() < 5e-4


def test_images_read_ahead_are_pinned_and_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE_BYTES", 0)
    for i in range(12):
        write(tmp_path / f"{i:02}.png", picture(8, 8, 1, seed=i))
    images = d.load(Data(source="folder", path=str(tmp_path)), "train")
    with d.Feed(images, TrainPrior(batch_size=4, workers=1), "stage", 0, 4, CUDA) as feed:
        for step in range(4):
            indices = feed.update(step)
            found = feed.take(rows.whole(4))
            assert found.device.type == "cuda" and torch.equal(found.cpu(), images.batch(indices))


def test_the_commands_run_and_draw_what_a_cpu_draws(hebm, tmp_path):
    runs = ("--runs", tmp_path)
    for command in ("train-vae", "train-prior"):
        status, _, err = hebm(command, "digits", *options(DIGITS), *runs, "--device", "cuda")
        assert status == 0, err
    sets = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.npz"
        status, _, err = hebm("sample", "--run", "digits", *runs, "-n", 6, "--out", out, "--device", device)
        assert status == 0, err
        sets.append(np.load(out)["images"].astype(int))
    assert abs(sets[0] - sets[1]).max() <= 2
