"""The flow model: densities against autograd, inference against closed forms, training through real tiny runs."""

import json
import math
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from hebmtool import data, recipe
from hebmtool.chains.short_run import adjusted, short_run
from hebmtool.metrics import flow_match
from hebmtool.noise import Noise
from hebmtool.prior.flow import FlowModel, TopDownNetwork
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_flow
from hebmtool.use import score as scoring

TINY = [
    *("--set", "flow.latent=4", "--set", "flow.width=4", "--set", "flow.hidden=8", "--set", "flow.transforms=2"),
    *("--set", "flow.steps=2", "--set", "flow.test_steps=3", "--set", "data.limit=64"),
    *("--set", "train_prior.batch_size=16", "--set", "train_prior.log_every=2", "--set", "evaluate.samples=32"),
]


def make(shape=(1, 8, 8), *, spread=0.3, dtype=torch.float64, **keys) -> FlowModel:
    """A flow model whose couplings are no longer the identity."""
    model = FlowModel(recipe.Flow(**{"latent": 5, "transforms": 4, "hidden": 8, "width": 4} | keys), shape).to(dtype)
    for coupling in model.couplings:
        torch.nn.init.normal_(coupling.hyper[-1].weight, std=spread)
        torch.nn.init.normal_(coupling.hyper[-1].bias, std=spread)
    return model


# The flow


@pytest.mark.parametrize("coupling", ["affine", "spline"])
def test_density_and_inverse_against_autograds_jacobian(coupling):
    model = make(coupling=coupling)
    z_0 = torch.randn(6, 5, dtype=torch.float64)
    z = model.from_base(z_0).detach()
    assert not torch.allclose(z, z_0, atol=0.1)
    back, ladj = model.to_base(z)
    assert torch.allclose(back, z_0, atol=1e-9)
    for i in range(6):
        inverse = torch.autograd.functional.jacobian(lambda z: model.to_base(z[None])[0][0], z[i])
        forward = torch.autograd.functional.jacobian(lambda z: model.from_base(z[None])[0], z_0[i])
        assert torch.linalg.slogdet(inverse).logabsdet.item() == pytest.approx(ladj[i].item(), abs=1e-9)
        # Change of variables with f itself: log p(z) = log N(z_0) - log |det df/dz_0|.
        normal = -0.5 * z_0[i].square().sum() - 2.5 * math.log(2 * math.pi)
        expected = (normal - torch.linalg.slogdet(forward).logabsdet).item()
        assert model.log_density(z)[i].item() == pytest.approx(expected, abs=1e-9)


def test_density_of_two_dimensions_integrates_to_one():
    model = make(latent=2, spread=0.2)
    side = torch.linspace(-9, 9, 401, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    total = model.log_density(points).exp().sum() * (side[1] - side[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_an_untrained_flow_is_the_identity_and_no_couplings_are_a_gaussian_prior():
    z = torch.randn(7, 5)
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    for transforms in (0, 4):
        model = FlowModel(recipe.Flow(latent=5, transforms=transforms, hidden=8, width=4), (1, 8, 8))
        assert torch.allclose(model.log_density(z), normal, atol=1e-5)
        noise = Noise(3, range(4), 5)
        assert torch.allclose(model.sample(Noise(3, range(4), 5)), noise(), atol=1e-6)


def test_draws_have_the_density():
    # E[log p] under draws of p is minus its entropy: that of N(0, I) plus the mean log-determinant of f.
    model = make(spread=0.2)
    z_0 = torch.randn(20000, 5, dtype=torch.float64)
    z = model.from_base(z_0).detach()
    ladj = -model.to_base(z)[1]
    expected = -(2.5 * (1 + math.log(2 * math.pi)) + ladj.mean())
    assert model.log_density(z).mean().item() == pytest.approx(expected.item(), abs=0.05)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 50, 34), (1, 4, 4)])
def test_network_shapes(shape):
    net = TopDownNetwork(recipe.Flow(latent=3, width=2), shape)
    images = net.images(torch.randn(2, 3))
    assert images.shape == (2, *shape) and images.min() >= 0 and images.max() <= 1
    first = net.constant.shape
    assert first[0] == 2 * 2 ** (len(net.ups) - 1) and min(first[1:]) >= min(4, min(shape[1:]) // 2)


def test_the_loss_reaches_every_parameter_and_is_the_joint():
    model = make(dtype=torch.float32)
    z, x = torch.randn(6, 5), torch.rand(6, 1, 8, 8)
    loss, figures = model.loss(z, x)
    assert loss.item() == pytest.approx(-model.log_joint(z, x).mean().item() / 64, rel=1e-5)
    assert loss.item() == pytest.approx(-(figures["log_z"] + figures["log_x"]) / 64, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_pixels_not_observed_do_not_count():
    model = make(dtype=torch.float32)
    z, x, other = torch.randn(3, 5), torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    observed = torch.rand(3, 1, 8, 8) < 0.5
    damaged = torch.where(observed, x, other)
    assert torch.equal(model.log_joint(z, x, observed), model.log_joint(z, damaged, observed))
    both = model.log_pixels(z, x, observed) + model.log_pixels(z, x, ~observed)
    assert torch.allclose(both, model.log_pixels(z, x), atol=1e-3)


def test_trajectory_passes_every_coupling_and_samples_do_not_depend_on_the_batch():
    model = make(dtype=torch.float32)
    stages = list(model.trajectory(Noise(1, range(6), 5)))
    assert len(stages) == 5 and torch.equal(stages[-1], model.sample(Noise(1, range(6), 5)))
    parts = [model.sample(Noise(1, part, 5)) for part in (range(2), range(2, 6))]
    assert torch.allclose(torch.cat(parts), stages[-1], atol=1e-6)


# Inference, where the posterior is known


class Linear(torch.nn.Module):
    """g(z) = A z, as an image of one row."""

    def __init__(self, A):
        super().__init__()
        self.A = A

    def forward(self, z):
        return (z @ self.A.T)[:, None, None]


def linear_gaussian():
    """(model, x, observed, posterior mean and covariance): z ~ N(m, S) by an affine flow, 2x - 1 = A z + sigma eps, of
    whose pixels one is not observed."""
    model = make(latent=2, transforms=2, spread=0.0, sigma=0.5, step_size=0.1, dtype=torch.float32)
    for coupling in model.couplings:
        torch.nn.init.normal_(coupling.hyper[-1].bias, std=0.5)
    ends = model.from_base(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).detach()
    m, S = ends[0].double(), torch.diag((ends[1] - ends[0]).double().square())
    A = torch.tensor([[1.0, 0.4], [-0.3, 0.8], [0.5, -0.5], [2.0, 2.0]])
    model.g = Linear(A)
    x = torch.tensor([0.9, 0.3, 0.6, 0.0]).view(1, 1, 1, 4)
    observed = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    seen, y = A[:3].double(), (2 * x.flatten()[:3] - 1).double()
    precision = S.inverse() + seen.T @ seen / 0.25
    covariance = precision.inverse()
    mean = covariance @ (S.inverse() @ m + seen.T @ y / 0.25)
    return model, x, observed, mean, covariance


CHAINS = 20000


def test_short_run_finds_the_posterior_of_a_linear_gaussian_model():
    model, x, observed, mean, covariance = linear_gaussian()
    torch.manual_seed(1)
    z = torch.randn(CHAINS, 2)
    many = (part.expand(CHAINS, -1, -1, -1) for part in (x, observed))
    x_many, observed_many = many
    z = model.infer(x_many, model.start(z), 300, lambda: torch.randn(CHAINS, 2), observed_many).double()
    # Unadjusted steps of size s leave exactly the covariance (P - s^2 P^2 / 4)^-1, P being the posterior's precision;
    # 20,000 chains know a mean to 0.7% and a variance to 1% of a standard deviation and of itself.
    precision, s = covariance.inverse(), model.config.step_size
    stationary = (precision - s**2 * precision @ precision / 4).inverse()
    scale = covariance.diagonal().sqrt()
    assert ((z.mean(0) - mean) / scale).abs().max() < 0.03
    found = torch.cov(z.T)
    assert ((found - stationary) / scale.outer(scale)).abs().max() < 0.04
    # So the error of inference itself is stated: within 4% of the closed form at this step size.
    assert ((stationary - covariance) / scale.outer(scale)).abs().max() < 0.04
    # And it is the observed pixels' posterior: the prior's, and that given all pixels, are elsewhere.
    assert ((mean - model.from_base(torch.zeros(1, 2)).detach()[0]) / scale).abs().max() > 0.5


def test_adjusted_chain_has_no_bias_at_any_step_and_finds_its_own():
    model, x, observed, mean, covariance = linear_gaussian()
    torch.manual_seed(2)
    args = x.expand(CHAINS, -1, -1, -1), observed.expand(CHAINS, -1, -1, -1)
    for s in (0.01, 3.0):
        z, taken = adjusted(
            lambda z: model.log_joint(z, *args), torch.randn(CHAINS, 2), 120, s, lambda: torch.randn(CHAINS, 3)
        )
        scale = covariance.diagonal().sqrt()
        assert ((z.double().mean(0) - mean) / scale).abs().max() < 0.04
        assert ((torch.cov(z.double().T) - covariance) / scale.outer(scale)).abs().max() < 0.05
        assert 0.4 < taken.mean() < 0.8


def test_short_run_is_the_published_update():
    calls = iter([torch.full((2, 3), 1.0), torch.full((2, 3), -2.0)])
    z = short_run(lambda z: -2 * z.square().sum(1), torch.ones(2, 3), 2, 0.1, lambda: next(calls))
    first = 1 + 0.005 * -4 + 0.1
    assert torch.allclose(z, torch.full((2, 3), first - 0.005 * 4 * first - 0.2))


def test_short_run_stays_in_the_numbers_where_the_slope_is_too_steep():
    z = short_run(lambda z: -1e6 * z.square().sum(1), torch.ones(4, 3), 500, 0.1, lambda: torch.randn(4, 3))
    assert z.norm(dim=1).max() < 2 * 3**0.5


# Inference seen as a flow


def test_sliced_wasserstein_of_a_shift():
    torch.manual_seed(0)
    a, shift = torch.randn(4000, 6), torch.tensor([1.0, 0, 0, 2.0, 0, 0])
    assert flow_match.sliced_wasserstein(a, a) == 0
    expected = shift.norm().item() / math.sqrt(6)
    assert flow_match.sliced_wasserstein(a, a + shift) == pytest.approx(expected, rel=0.1)


def test_match_tells_the_priors_draws_from_others():
    model = make(dtype=torch.float32, spread=0.5)
    own = model.sample(Noise(9, range(500), 5))
    found = flow_match.match(model, own)
    assert found.prior < 1.5 * found.floor < 0.5 * found.normal and found.samples == 500
    away = flow_match.match(model, own + 1)
    assert away.prior > 5 * away.floor
    assert flow_match.figure(model, own, found).startswith(b"\x89PNG")


# Training


def weights(path):
    return safetensors.torch.load_file(path)


def equal(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs holding `digits-flow`, trained for 8 updates."""
    root = tmp_path_factory.mktemp("runs")
    train(root, 8)
    return root


def train(root, iterations, *more, resume=False):
    from hebmtool.train.flow import train_flow

    settings = recipe.load("digits-flow", [*TINY[1::2], f"train_prior.iterations={iterations}", *more])
    with Run.create(root, settings, resume) as run:
        return train_flow(settings, run, torch.device("cpu"), resume)


@pytest.mark.parametrize("more", [[], ["flow.persistent=true", "data.missing=0.5"]])
def test_resumed_training_is_bit_identical(tmp_path, more):
    train(tmp_path / "whole", 10, *more)
    train(tmp_path / "cut", 6, *more)
    train(tmp_path / "cut", 10, *more, resume=True)
    for name in ("prior-flow.safetensors", "prior-flow.train.safetensors"):
        assert equal(tmp_path / "whole/digits-flow" / name, tmp_path / "cut/digits-flow" / name)
    before = weights(tmp_path / "cut/digits-flow/prior-flow.train.safetensors")
    assert ("extra.z" in before) == bool(more)


def test_training_leaves_a_whole_run_and_figures(runs):
    run = Run.open("digits-flow", runs)
    assert run.priors() == ["flow"] and checkpoint.header(run.prior_path("flow")).step == 8
    assert {path.name for path in run.samples_dir.iterdir()} == {"flow-0000008.png", "flow-match.png"}
    figures = run.figures()["flow"]
    assert figures["fd"] > 0 and figures["psnr"] == pytest.approx(-10 * math.log10(figures["mse"]), abs=2)
    last = run.metrics("train-prior flow")[-1]
    assert last["step"] == 8 and {"log_z", "log_x", "z_std", "grad_norm", "seconds"} <= last.keys()
    model = load_flow(run, torch.device("cpu"))
    assert not any(p.requires_grad for p in model.parameters()) and model.g.image_shape == (1, 8, 8)


def test_persistent_chains_go_on_where_they_ended(tmp_path):
    # 64 images and batches of 16: after 4 updates every chain has moved, and the fifth moves a quarter of them.
    train(tmp_path, 4, "flow.persistent=true")
    path = tmp_path / "digits-flow/prior-flow.train.safetensors"
    before = weights(path)["extra.z"]
    train(tmp_path, 5, "flow.persistent=true", resume=True)
    moved = (weights(path)["extra.z"] - before).abs().amax(1)
    assert (moved > 0).sum() == 16
    # Two steps of size 0.1 do not lead far.
    assert moved.max() < 2


def test_hidden_pixels_are_never_looked_at(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    masks = rng.random((32, 8, 8)) < 0.5
    other = images.copy()
    other[:32][masks] = rng.integers(0, 256, int(masks.sum()), dtype=np.uint8)
    np.save(tmp_path / "masks.npy", masks)
    for name, x in (("a", images), ("b", other)):
        np.savez(tmp_path / f"{name}.npz", x_train=x[:32], x_test=images[32:])
        more = ["data.source=array", f"data.path={tmp_path / name}.npz", f"data.missing={tmp_path / 'masks.npy'}"]
        found = train(tmp_path / name, 4, *more)
        assert found["recovery"]["hidden"] == pytest.approx(masks.mean())
        assert Image.open(tmp_path / name / "digits-flow/samples/recovered.png").size[0] > 100
    path = "digits-flow/prior-flow.safetensors"
    assert equal(tmp_path / "a" / path, tmp_path / "b" / path)
    train(tmp_path / "c", 4, *more[:2])
    assert not equal(tmp_path / "a" / path, tmp_path / "c" / path)


def test_learning_raises_the_joint_and_lowers_the_error(tmp_path):
    more = ["flow.steps=10", "flow.width=16", "train_prior.lr=3e-3", "flow.latent=8"]
    train(tmp_path, 150, *more)
    logged = Run.open("digits-flow", tmp_path).metrics("train-prior flow")
    first, last = logged[0], logged[-1]
    assert last["log_x"] > first["log_x"] + 50 and last["loss"] < 0.6 * first["loss"]


# The command


def test_sample_info_and_score(hebm, runs, tmp_path):
    at = ["--run", "digits-flow", "--runs", runs]
    status, out, err = hebm("sample", *at, "-n", 9, "--out", tmp_path / "a.npz")
    assert status == 0, err
    status, _, _ = hebm("sample", *at, "-n", 5, "--batch-size", 2, "--out", tmp_path / "b.npz")
    a, b = (np.load(tmp_path / name)["images"].astype(int) for name in ("a.npz", "b.npz"))
    assert a.shape == (9, 8, 8) and np.abs(a[:5] - b).max() <= 1
    assert hebm("sample", *at, "--progressive", "-n", 2, "--out", tmp_path / "p.png")[0] == 0
    status, out, _ = hebm("info", "digits-flow", "--runs", runs, "--json")
    found = json.loads(out)
    assert found["latent_dimensions"] == 4 and found["priors"][0]["step"] == 8 and found["flow"]["transforms"] == 2
    status, out, _ = hebm("info", "digits-flow", "--runs", runs)
    assert status == 0 and "4 latent dimensions" in out and "8 updates" in out
    images = data.load(recipe.Data(), "test").batch(range(3))[:, 0].numpy()
    np.save(tmp_path / "x.npy", images)
    status, out, err = hebm("ood-score", *at, tmp_path / "x.npy")
    assert status == 0, err
    scores = [float(line.split("\t")[0]) for line in out.splitlines()]
    assert len(scores) == 3 and len(set(scores)) == 3
    arguments = ["--auroc", "-n", 20, "--ood", tmp_path / "x.npy", "--json", "--out", tmp_path / "ood.png"]
    status, out, err = hebm("ood-score", *at, *arguments)
    assert status == 0, err
    (method,) = json.loads(out)["methods"]
    assert (method["score"], method["cuts"], method["cut"], method["draws"]) == ("posterior", [0], 0, 1)
    assert 0 <= method["rows"][0]["auroc"] <= 1 and Image.open(tmp_path / "ood.png").size[1] > 300


def test_the_score_is_the_log_joint_at_the_inferred_latent(runs):
    run = Run.open("digits-flow", runs)
    model, settings = load_flow(run, torch.device("cpu")), run.recipe()
    images = data.load(settings.data, "test").batch(range(4))
    scorer = scoring.PosteriorScorer(model, settings)
    scores = scorer(images)
    assert scores.shape == (4, 1) and torch.allclose(scores[2:], scorer(images[2:]), atol=1e-3)
    z = scorer.inference(images)[:, 0]
    y = 2 * images.double() / 255 - 1
    error = (y - model.g(z).double()).square().flatten(1).sum(1)
    expected = model.log_density(z).double() - error / (2 * 0.3**2)
    assert torch.allclose(scores[:, 0], expected, rtol=1e-3)


def test_flow_match_command(hebm, runs, tmp_path):
    status, out, err = hebm("flow-match", "digits-flow", "--runs", runs, "--out", tmp_path / "m.png", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["floor"] > 0 and found["prior"] > 0 and Image.open(tmp_path / "m.png").size[0] > 800


def one_sentence(err):
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("hebm: ") and "Traceback" not in err, err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["hier-sample", "--layer", "1"], 1, "layers of a hierarchical generator"),
        (["controllable", "--class", "3"], 1, "layers of a hierarchical generator"),
        (["evaluate"], 1, "layers of a hierarchical generator"),
        (["report"], 1, "layers of a hierarchical generator"),
        (["sample", "--prior", "ebm"], 1, "has no 'ebm' prior"),
        (["sample", "--steps", "5"], 2, "takes none"),
        (["sample", "--readjust-bn"], 2, "has none"),
        (["ood-score", "x.png", "--score", "llr"], 2, "posterior"),
        (["ood-score", "x.png", "--scheme", "diffusion"], 2, "inference"),
        (["train-vae", "digits-flow"], 2, "hebm train-prior"),
        (["train-prior", "digits-flow", *TINY], 1, "--resume"),
        (["train-prior", "digits-flow", *TINY, "--set", "flow.sigma=0.5", "--resume"], 1, "flow.sigma"),
        (["train-prior", "digits-flow", *TINY, "--set", "prior.labels=class"], 2, "prior.labels"),
        (["train-prior", "digits", "--set", "data.missing=0.5"], 2, "prior.kind flow"),
        (["train-prior", "digits-flow", "--set", "data.missing=1.5"], 2, "above 0 and below 1"),
        (["train-prior", "digits-flow", "--set", "data.missing=0.5", "--set", "data.flip=true"], 2, "data.flip"),
        (["train-prior", "digits-flow", "--set", "flow.persistent=true", "--set", "data.flip=true"], 2, "data.flip"),
        (["train-prior", "digits-flow", "--set", "train_prior.precision=bf16"], 2, "train_prior.precision"),
        (["train-prior", "digits-flow", "--set", "name=n", "--set", "data.missing=no.npy"], 1, "no.npy does not exist"),
        (["train-prior", "digits-flow", "--set", "name=n", "--set", "data.test_fraction=0.0003"], 1, "test images"),
        (["train-prior", "digits-flow", "--set", "flow.coupling=splines"], 2, "did you mean 'spline'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(hebm, runs, arguments, status, words):
    target = [] if arguments[0].startswith("train") else ["--run", "digits-flow"]
    target = ["digits-flow"] if arguments[0] in ("evaluate", "report") else target
    found, out, err = hebm(*arguments, *target, "--runs", runs)
    assert found == status and words in one_sentence(err) and out == ""


def test_a_resume_that_fails_leaves_the_recipe(hebm, runs, tmp_path):
    shutil.copytree(runs / "digits-flow", tmp_path / "digits-flow")
    before = (tmp_path / "digits-flow/recipe.yaml").read_text()
    train_path = tmp_path / "digits-flow/prior-flow.train.safetensors"
    train_path.write_bytes(train_path.read_bytes()[:-100])
    more = ("--resume", "--set", "train_prior.log_every=7", "--runs", tmp_path)
    status, _, err = hebm("train-prior", "digits-flow", *TINY, *more)
    assert status == 1 and "prior-flow.train" in one_sentence(err)
    assert (tmp_path / "digits-flow/recipe.yaml").read_text() == before


def test_features_that_do_not_fit_are_known_before_training(tmp_path):
    from hebmtool.errors import HebmError

    torch.jit.trace(torch.nn.Linear(5, 3), torch.zeros(1, 5)).save(tmp_path / "features.pt")
    with pytest.raises(HebmError, match=r"features\.pt"):
        train(tmp_path, 4, f"evaluate.features={tmp_path / 'features.pt'}")
    assert not list((tmp_path / "digits-flow").glob("*.safetensors"))


def test_divergence_is_said_and_keeps_what_was_there(tmp_path):
    from hebmtool.errors import HebmError

    with pytest.raises(HebmError, match="flow.step_size"):
        train(tmp_path, 8, "flow.step_size=1e12")
    assert not list((tmp_path / "digits-flow").glob("*.safetensors"))
