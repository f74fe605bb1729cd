"""Latents of whole and masked images, reconstruction and inpainting: on tiny generators, and through the command."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hebmtool import data, recipe
from hebmtool.data import masks
from hebmtool.errors import HebmError, UsageError
from hebmtool.prior.kinds import make_prior
from hebmtool.recipe import Recipe
from hebmtool.train.flow import train_flow
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae
from hebmtool.use import infer, inpaint
from hebmtool.use import reconstruct as reconstruction
from hebmtool.use.infer import Inference

SHAPE = (1, 8, 8)


def digits(n=4):
    return data.load(recipe.Data(), "test").batch(range(n))


# Masks


def share(words, shape=SHAPE):
    return masks.parse(words, shape)([0])[0, 0]


def test_masks_in_words():
    for word, rows, columns in (
        ("left", slice(None), slice(0, 4)),
        ("right", slice(None), slice(4, 8)),
        ("top", slice(0, 4), slice(None)),
        ("bottom", slice(4, 8), slice(None)),
        ("center:0.5", slice(2, 6), slice(2, 6)),
        ("center", slice(2, 6), slice(2, 6)),
    ):
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[rows, columns] = True
        assert torch.equal(share(word), expected), word
    assert torch.equal(share("right", (3, 4, 5)), share("left", (3, 4, 5)).flip(1))
    drawn = masks.parse("random:0.3", (1, 64, 64), seed=1)(range(5))
    assert drawn.shape == (5, 1, 64, 64) and drawn.float().mean().item() == pytest.approx(0.3, abs=0.02)
    # The mask of an image is its own, whatever it is drawn with.
    assert torch.equal(masks.parse("random:0.3", (1, 64, 64), seed=1)([3]), drawn[3:4])
    assert not torch.equal(drawn[0], drawn[1])


def test_masks_from_files(tmp_path):
    one = np.zeros((8, 8), dtype=np.uint8)
    one[2:5, 1:3] = 255
    Image.fromarray(one).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", one)
    np.savez(tmp_path / "m.npz", np.stack([one, one.T]))
    (tmp_path / "folder").mkdir()
    for i, each in enumerate((one, one.T)):
        Image.fromarray(each).convert("RGB").save(tmp_path / f"folder/{i}.png")
    for name in ("m.png", "m.npy"):
        assert np.array_equal(share(str(tmp_path / name)).numpy(), one > 0)
    for name in ("m.npz", "folder"):
        found = masks.parse(str(tmp_path / name), SHAPE)([1, 0])
        assert np.array_equal(found[0, 0].numpy(), one.T > 0) and np.array_equal(found[1, 0].numpy(), one > 0)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((8, 8)), "hides every pixel"),
        (np.zeros((8, 8)), "hides no pixel"),
        (np.stack([np.eye(8), np.ones((8, 8))]), "mask 1 of"),
        (np.eye(9), "is 9x9 pixels, but the images are 8x8"),
        (np.ones(8), "shape (8,)"),
        (np.array([["a"]]), "type <U1"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path, array, words):
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(HebmError) as caught:
        masks.parse(str(tmp_path / "m.npy"), SHAPE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("centre:0.5", "did you mean 'center'"),
        ("left:0.3", "there is no mask 'left:0.3'"),
        ("center:1.5", "above 0 and below 1"),
        ("random:all", "above 0 and below 1"),
        ("center:0.01", "hides no pixel"),
        ("center:0.99", "hides every pixel"),
    ],
)
def test_words_that_are_no_masks(text, words):
    with pytest.raises(UsageError) as caught:
        masks.parse(text, SHAPE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_needs_as_many_masks_as_images(tmp_path):
    np.save(tmp_path / "m.npy", np.stack([np.eye(8)] * 3))
    config = recipe.Data(missing=str(tmp_path / "m.npy"))

    def images(n):
        return data.Images(n, SHAPE, lambda indices: torch.zeros(len(indices), *SHAPE, dtype=torch.uint8))

    assert masks.missing(config, images(3), 0)([2]).sum() == 8
    with pytest.raises(HebmError, match="holds 3 masks for 4 images"):
        masks.missing(config, images(4), 0)
    assert masks.missing(recipe.Data(), images(4), 0) is None


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("source", ["folder", "array"])
def test_every_image_meets_its_own_mask(tmp_path, source, split):
    """Image i is of grey 10 i and its mask hides i + 1 pixels, whatever a split takes and shuffles."""
    pixels = np.stack([np.full((8, 8), 10 * i, dtype=np.uint8) for i in range(12)])
    masks = np.stack([np.arange(64).reshape(8, 8) <= i for i in range(12)])
    if source == "array":
        np.savez(tmp_path / "x.npz", **({"x_train": pixels, "x_test": pixels} if split else {"x": pixels}))
        np.save(tmp_path / "m.npy", masks)
        where, path = "x.npz", "m.npy"
    else:
        for folder in ("m", "x/train", "x/test") if split else ("m", "x"):
            (tmp_path / folder).mkdir(parents=True)
            for i in range(12):
                array = 255 * masks[i].astype(np.uint8) if folder == "m" else pixels[i]
                Image.fromarray(array).save(tmp_path / folder / f"{i:02d}.png")
        where, path = "x", "m"
    config = recipe.Data(source=source, path=str(tmp_path / where), missing=str(tmp_path / path), limit=7)
    images = data.load(config, "train")
    hidden = masks.missing(config, images, 0)
    assert len(images) == 7
    order = [6, 0, 3]
    assert torch.equal(hidden(order).sum((1, 2, 3)), images.batch(order)[:, 0, 0, 0].long() // 10 + 1)


def test_a_mask_under_another_name_is_refused(tmp_path):
    for folder, names in (("x", "abcd"), ("m", "efgh")):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(255 * np.eye(8, dtype=np.uint8)).save(tmp_path / folder / f"{name}.png")
    config = recipe.Data(source="folder", path=str(tmp_path / "x"), missing=str(tmp_path / "m"))
    with pytest.raises(HebmError, match=r"[efgh]\.png would be that of .*[abcd]\.png; give each mask the name"):
        masks.missing(config, data.load(config, "train"), 0)


@pytest.mark.parametrize("share", [1e-6, 1 - 1e-6])
def test_a_random_mask_hides_something_and_shows_something(share):
    found = masks.parse(f"random:{share}", SHAPE)(range(20)).flatten(1).sum(1)
    assert found.min() >= 1 and found.max() <= 63


# Inference on a hierarchy


def inference(generator, kind="ebm", likelihood="bernoulli", **keys):
    config = recipe.Prior(kind=kind, chain="preconditioned", energy=recipe.Energy(width=4, blocks=1))
    prior = make_prior(generator, config)
    for p in prior.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    prior.eval().requires_grad_(False)
    settings = Recipe(generator=generator.config.model_copy(update={"likelihood": likelihood}))
    return Inference(prior, settings, **keys)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "mixture"])
@pytest.mark.parametrize("kind", ["gaussian", "ebm", "diffusion-ebm"])
def test_the_joint_is_the_prior_and_the_visible_pixels(make_generator, kind, likelihood):
    generator = make_generator(likelihood=likelihood)
    found = inference(generator, kind, likelihood)
    u, x, visible = torch.randn(3, generator.D), torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8) < 0.5
    whole = generator.likelihood.log_prob(generator.decode(generator.top_down(u)), x)
    prior = found.prior.log_density(u)
    assert torch.allclose(found._log_joint(u, x, None), prior + whole, atol=1e-3)
    seen, unseen = (found._log_joint(u, x, part) - prior for part in (visible, ~visible))
    assert torch.allclose(seen + unseen, whole, atol=1e-3)
    other = torch.where(visible, x, torch.rand_like(x))
    assert torch.equal(found._log_joint(u, x, visible), found._log_joint(u, other, visible))
    # Langevin needs the slope of every term.
    u.requires_grad_(True)
    slope = torch.autograd.grad(found._log_joint(u, x, visible).sum(), u)[0]
    v, h = torch.randn_like(u), 1e-2
    ahead, behind = (found._log_joint(u.detach() + sign * h * v, x, visible) for sign in (1, -1))
    assert torch.allclose((ahead - behind) / (2 * h), (slope * v).sum(1), atol=0.05, rtol=0.02)


def test_whole_images_are_encoded_and_langevin_climbs_to_the_posterior(generator):
    found = inference(generator)
    images = digits()
    u = found(images)
    assert u.shape == (4, 1, generator.D)
    x = infer.as_grey(images, found.recipe.data)
    assert torch.allclose(u[:, 0], generator.encode(x, torch.zeros(4, generator.D)), atol=1e-5)
    far = torch.full_like(u[:, 0], 2.0)
    refined = Inference(found.prior, found.recipe, steps=60)(images)[:, 0]
    assert (found._log_joint(refined, x, None) > found._log_joint(far, x, None)).all()
    assert not torch.equal(refined, u[:, 0])


def test_an_image_has_latents_of_its_own_whatever_batch_and_hidden_pixels(generator, monkeypatch):
    found = inference(generator, steps=3)
    images, hidden = digits(), masks.parse("left", SHAPE)(range(4))
    whole = found(images, hidden, 3)
    assert whole.shape == (4, 3, generator.D)
    monkeypatch.setattr(infer, "BATCH", 5)
    assert torch.allclose(found(images[2:], hidden[2:], 2), whole[2:, :2], atol=1e-4)
    damaged = torch.where(hidden, torch.randint(0, 256, images.shape, dtype=torch.uint8), images)
    assert torch.allclose(found(damaged, hidden, 3), whole, atol=1e-4)
    # Draws differ, and so do seeds.
    assert (whole[:, 0] - whole[:, 1]).abs().max() > 0.1
    assert not torch.allclose(Inference(found.prior, found.recipe, 3, seed=1)(images, hidden, 3), whole, atol=0.1)


def test_the_prior_trained_decides_what_is_drawn(generator):
    # With a sharp energy around u = 1 in place of the network, unobserved latents go there.
    found = inference(generator, steps=150)
    found.prior.log_density = lambda u, walk=None: -50 * (u - 1).square().sum(1)
    hidden = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    hidden[:, :, 0, 0] = False
    u = found(digits(2), hidden, 4)
    assert u.mean().item() == pytest.approx(1, abs=0.1) and u.std().item() == pytest.approx(0.1, abs=0.05)


# Errors and pictures


def test_errors_over_all_and_over_hidden_pixels():
    a = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[0, :, 0] = 51  # 0.2 in a quarter of the pixels
    found = reconstruction.errors(b, a)
    assert found.mse.tolist() == pytest.approx([0.01, 0]) and found.psnr[0].item() == pytest.approx(20)
    assert math.isinf(found.psnr[1])
    hidden = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    hidden[:, :, 0] = True
    assert reconstruction.errors(b, a, hidden).mse[0].item() == pytest.approx(0.04)
    assert reconstruction.errors(b, a, ~hidden).mse[0].item() == 0


def test_completions_keep_visible_pixels_and_their_mean_is_nearer(generator):
    images, hidden = digits(), masks.parse("random:0.5", SHAPE)(range(4))
    found = inpaint.inpaint(inference(generator, steps=2), images, hidden, 5)
    assert found.completions.shape == (4, 5, 1, 8, 8)
    visible = ~hidden
    for k in range(5):
        assert torch.equal(found.completions[:, k][visible], images[visible])
    assert torch.equal(found.mean[visible], images[visible])
    each, mean = inpaint.hidden_errors(found, images, hidden)
    assert (mean.mse <= each.mse + 1e-3).all()
    shaded = inpaint.shade(images, hidden)
    assert torch.equal(shaded[:, 2:][visible], images[visible]) and (shaded[:, 0:1][hidden] == 205).all()
    whole, damaged = (inpaint.figure(images, hidden, found, d).size for d in (False, True))
    assert whole[0] == damaged[0] and whole[1] > damaged[1]


# The command, on both kinds of run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny runs on the digits: `digits`, hierarchical with an EBM, and `digits-flow`."""
    root, cpu = tmp_path_factory.mktemp("runs"), torch.device("cpu")
    from hebmtool.run.folder import Run

    tiny = ["generator.layers_per_scale=1", "generator.encoder_channels=4", "generator.decoder_channels=4"]
    tiny += ["generator.latent_channels=2", "train_vae.iterations=6", "train_vae.batch_size=8", "prior.energy.width=4"]
    tiny += ["train_prior.iterations=3", "train_prior.batch_size=8", "evaluate.samples=8", "prior.steps=2"]
    settings = recipe.load("digits", tiny)
    with Run.create(root, settings) as run:
        train_vae(settings, run, cpu)
        train_prior(settings, run, cpu)
    tiny = ["flow.latent=3", "flow.width=4", "flow.hidden=4", "flow.transforms=2", "flow.steps=2", "flow.test_steps=3"]
    tiny += ["train_prior.iterations=3", "train_prior.batch_size=8", "evaluate.samples=8"]
    settings = recipe.load("digits-flow", tiny)
    with Run.create(root, settings) as run:
        train_flow(settings, run, cpu)
    return root


@pytest.mark.parametrize("name", ["digits", "digits-flow"])
def test_reconstruct_command(hebm, runs, name, tmp_path):
    at = ["--run", name, "--runs", runs]
    np.save(tmp_path / "x.npy", digits(5)[:, 0].numpy())
    status, out, err = hebm("reconstruct", *at, tmp_path / "x.npy", "--out", tmp_path / "r.png")
    assert status == 0, err
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[2] for line in lines] == [f"{tmp_path / 'x.npy'}#{i}" for i in range(5)]
    assert all(float(b) == pytest.approx(-10 * math.log10(float(a)), abs=0.02) for a, b, _ in lines)
    assert Image.open(tmp_path / "r.png").size[0] > 5 * 48 and "over 5 images" in err
    status, out, err = hebm("reconstruct", *at, "-n", 3, "--json", "--steps", 2, "--out", tmp_path / "folder")
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["path"] for each in found] == ["test#0", "test#1", "test#2"]
    assert len(list((tmp_path / "folder").iterdir())) == 3
    made = np.array(Image.open(tmp_path / "folder/000001.png")).astype(float)
    expected = np.mean((made - digits(2)[1, 0].numpy()) ** 2) / 255**2
    assert found[1]["mse"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["digits", "digits-flow"])
def test_inpaint_command(hebm, runs, name, tmp_path):
    at = ["--run", name, "--runs", runs, "--steps", 2, "--draws", 2]
    Image.fromarray(digits()[1, 0].numpy()).save(tmp_path / "x.png")
    status, out, err = hebm("inpaint", *at, tmp_path / "x.png", "--mask", "left", "--out", tmp_path / "c.npz")
    assert status == 0, err
    each, mean, path = out.strip().split("\t")
    assert path == str(tmp_path / "x.png") and float(mean) >= float(each) - 0.01
    made = np.load(tmp_path / "c.npz")["images"]
    assert made.shape == (2, 8, 8) and np.array_equal(made[:, :, 4:], digits()[[1, 1], 0, :, 4:].numpy())
    status, out, err = hebm("inpaint", *at, "-n", 3, "--mask", "random:0.3", "--damaged", "--out", tmp_path / "c.png")
    assert status == 0 and out == "", err
    status, out, err = hebm("inpaint", *at, "-n", 3, "--json")
    assert status == 0 and {"path", "psnr", "psnr_of_mean"} == json.loads(out.splitlines()[0]).keys()
    assert list((runs / name / "samples").glob("inpaint-*.png"))


def test_bad_input_is_said_in_a_sentence(hebm, runs, tmp_path):
    rng = np.random.default_rng(0)
    for file, size, mode in (("ok.png", (8, 8), "L"), ("big.png", (9, 8), "L"), ("rgb.png", (8, 8), "RGB")):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode).save(tmp_path / file)
    np.save(tmp_path / "all.npy", np.ones((8, 8)))
    np.save(tmp_path / "wide.npy", np.eye(10))
    np.save(tmp_path / "two.npy", np.stack([np.eye(8)] * 2))
    at = ["--run", "digits-flow", "--runs", runs]
    ok = tmp_path / "ok.png"
    for arguments, expected, words in (
        (["inpaint", ok, "--mask", tmp_path / "wide.npy"], 1, "is 10x10 pixels, but the images are 8x8"),
        (["inpaint", ok, "--mask", tmp_path / "all.npy"], 1, "hides every pixel"),
        (["inpaint", ok, "--mask", "centr"], 2, "did you mean 'center'"),
        (["inpaint", ok, ok, ok, "--mask", tmp_path / "two.npy"], 1, "holds 2 masks for 3 images"),
        (["inpaint", ok, "--mask", tmp_path / "no.png"], 1, "does not exist"),
        (["reconstruct", ok, "--out", tmp_path / "x.jpg"], 2, "--out"),
        (["reconstruct", ok, "--out", "-", "--json"], 2, "standard output"),
    ):
        status, out, err = hebm(*arguments, *at)
        assert status == expected and words in err and out == "" and len(err.strip().splitlines()) == 1, err
    # A file that is passed over must not move the masks of those after it.
    (tmp_path / "broken.png").write_text("no image")
    status, out, err = hebm("inpaint", ok, tmp_path / "broken.png", "--mask", tmp_path / "two.npy", *at)
    assert status == 1 and "holds 2 masks for 1 images" in err and out == ""
    for file, words in (("big.png", "9x8 grey, and the run's images are 8x8 grey"), ("rgb.png", "8x8 RGB")):
        # What does not fit is named and passed over, like what cannot be read.
        status, out, err = hebm("reconstruct", ok, tmp_path / file, *at)
        assert status == 1 and words in err and file in err and len(out.splitlines()) == 1
        status, out, err = hebm("reconstruct", tmp_path / file, *at)
        assert status == 1 and out == "" and "no image is left" in err
        assert hebm("reconstruct", tmp_path / file, "--fit", *at)[0] == 0
