"""What each stage learns, what it writes, and what it refuses before anything is written."""

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import CPU, DIGITS, FLOW

from hebmtool import data, recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.recipe import TrainPrior, TrainVae
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.labels import accuracy, train_labels
from hebmtool.train.one_stage import train_one_stage
from hebmtool.train.prior import averaging, finishing, learning_rate, train_prior
from hebmtool.train.vae import balance, bound, kl_weight, spectral_weight, train_vae


def digits(*more):
    return recipe.load("digits", [*DIGITS, *more])


def flow(*more):
    return recipe.load("digits-flow", [*FLOW, *more])


def weights(path):
    return safetensors.torch.load_file(path)


def equal(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def stage_one(tiny, tmp_path) -> Run:
    """A run with the tiny generator alone."""
    run = Run(tmp_path / "digits")
    run.path.mkdir()
    for name in ("recipe.yaml", "generator.safetensors"):
        (run.path / name).write_bytes((tiny / "digits" / name).read_bytes())
    return run


# Stage one


def test_the_weight_of_the_kl_rises_over_the_warm_up():
    config = TrainVae(iterations=100, kl_warmup=0.3, kl_start=0.1)
    assert [kl_weight(config, step) for step in (0, 3, 15, 30, 99)] == pytest.approx([0.1, 0.1, 0.5, 1.0, 1.0])


def test_layers_with_more_kl_are_pushed_harder_and_the_mean_weight_is_one():
    gamma = balance(torch.tensor([1.0, 4.0, 1.0]), torch.tensor([4.0, 16.0, 4.0]))
    assert gamma.mean().item() == pytest.approx(1) and gamma[1].item() == pytest.approx(16 * gamma[0].item())
    assert balance(torch.zeros(3), torch.ones(3)).tolist() == pytest.approx([1, 1, 1])
    kl = torch.rand(3, requires_grad=True)
    assert not balance(kl, torch.ones(3)).requires_grad


def test_the_bound_is_the_same_at_every_call_and_leaves_torchs_numbers_alone(tiny):
    run = Run(tiny / "digits")
    generator, settings = load_prior(run, "gaussian", CPU).generator, run.recipe()
    test = data.load(settings.data, "test")
    torch.manual_seed(5)
    first, state = bound(generator, test, settings, 20, CPU), torch.get_rng_state()
    torch.manual_seed(6)
    assert bound(generator, test, settings, 20, CPU) == first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first.kl) == generator.L and all(kl >= 0 for kl in first.kl)
    # Bits per dimension are those of the bound: binary pixels have no bins.
    assert first.bits_per_dim == pytest.approx(-first.elbo / 64 / np.log(2), rel=1e-5)
    assert first.figures()["kl"] == first.kl[::-1]


def test_a_bound_on_some_images_takes_them_from_everywhere(tiny):
    run = Run(tiny / "digits")
    generator, settings = load_prior(run, "gaussian", CPU).generator, run.recipe()
    test = data.load(settings.data, "test")
    seen = []

    class Watched:
        def __len__(self):
            return len(test)

        def batch(self, indices):
            seen.extend(indices.tolist())
            return test.batch(indices)

    bound(generator, Watched(), settings, 10, CPU)
    assert len(seen) == len(set(seen)) == 10 and seen[0] == 0 and seen[-1] > 0.8 * len(test)


def test_the_bound_at_the_end_is_of_as_many_images_as_asked(tmp_path):
    settings = digits("train_vae.iterations=1", "train_vae.test_images=9")
    with Run.create(tmp_path, settings) as run:
        train_vae(settings, run, CPU)
    assert run.figures()["generator"]["test_images"] == 9


def test_stage_one_leaves_a_generator_pictures_and_figures(tmp_path):
    settings = digits("train_vae.iterations=3", "train_vae.sample_every=2", "train_vae.log_every=1")
    with Run.create(tmp_path, settings) as run:
        found = train_vae(settings, run, CPU)
    assert checkpoint.header(run.generator_path).step == 3 and run.recipe() == settings
    assert sorted(path.name for path in run.samples_dir.iterdir()) == [
        "generator-0000002.png",
        "generator-0000003.png",
    ]
    records = run.metrics("train-vae")
    assert [record["step"] for record in records] == [1, 2, 3]
    wanted = {"loss", "elbo", "bits_per_dim", "kl", "beta", "grad_norm", "lr", "seconds"}
    assert wanted <= records[0].keys() and len(records[0]["kl"]) == 2
    assert run.metrics("train-vae-test")[-1]["elbo"] == pytest.approx(found.elbo, rel=1e-5)
    assert run.figures()["generator"]["elbo"] == pytest.approx(found.elbo, rel=1e-5)
    assert run.figures()["generator"]["step"] == 3


# Stage two


def test_learning_rates_warm_up_and_decay_by_the_epoch():
    config = TrainPrior(lr=1e-3, lr_warmup=4, lr_decay=0.5)
    assert [learning_rate(config, step, 10) for step in (0, 3)] == pytest.approx([1e-3 * 0.25, 1e-3 * 0.5**0.3])
    assert learning_rate(config, 20, 10) == pytest.approx(1e-3 * 0.25)
    stairs = config.model_copy(update={"lr_staircase": True, "lr_warmup": 0})
    assert [learning_rate(stairs, step, 10) for step in (0, 9, 10, 25)] == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4])


def test_the_average_of_the_last_updates_forgets_those_before():
    """Averages are of weights seen, so that what they keep of those before the finish is the product of its decays."""
    config = recipe.TrainPrior(iterations=1000, finish=0.03, ema=0.998)
    assert finishing(config) == 970 and averaging(config, 969) == 0.998 and averaging(config, 970) == 0.9
    assert np.prod([averaging(config, step) for step in range(970, 1000)]) < np.exp(-3)
    assert averaging(config.model_copy(update={"iterations": 100_000}), 99_999) == 0.998, "never further than asked"
    assert averaging(config.model_copy(update={"finish": 0.0}), 999) == 0.998
    assert averaging(config.model_copy(update={"finish": 0.001}), 999) == 0.0, "a single update is its own average"


def test_the_spectral_weight_falls_geometrically_while_that_of_the_kl_rises():
    config = TrainVae(spectral_weight=1e-2, spectral_start=1.0)
    assert [spectral_weight(config, beta) for beta in (0, 0.5, 1)] == pytest.approx([1, 0.1, 0.01])
    constant = TrainVae(spectral_weight=3e-2)
    assert spectral_weight(constant, 0.3) == pytest.approx(3e-2)


def test_stage_two_flips_as_it_is_told():
    for flips, said, found in ((True, None, True), (True, False, False), (False, True, True)):
        settings = recipe.from_dict({"data": {"flip": flips}, "train_prior": {"flip": said}})
        assert (settings.prior_data.flip, settings.data.flip) == (found, flips)


def test_stage_two_returns_the_prior_that_is_saved(stage_one):
    settings = digits("prior.kind=ebm", "train_prior.sample_every=2")
    prior = train_prior(settings, stage_one, CPU)
    assert checkpoint.header(stage_one.prior_path("ebm")).step == 3
    loaded = load_prior(stage_one, "ebm", CPU)
    u = torch.randn(4, prior.generator.D)
    assert torch.equal(prior.log_density(u), loaded.log_density(u))
    assert not prior.training and not any(p.requires_grad for p in prior.parameters())
    assert {path.name for path in stage_one.samples_dir.iterdir()} == {"ebm-0000002.png", "ebm-0000003.png"}
    assert {"loss", "accuracy", "grad_norm", "seconds"} <= stage_one.metrics("train-prior ebm")[-1].keys()
    # Judging is another room's: nothing of it is here.
    assert stage_one.figures() == {}


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["prior.kind=gaussian"], UsageError, "'gaussian' needs no training"),
        (["prior.kind=flow"], UsageError, "'flow' is not trained on a generator but with one"),
        (["generator.latent_channels=3"], HebmError, "was trained with generator.latent_channels = 2 and .* says 3"),
        (["data.limit=30"], HebmError, "was trained with data.limit"),
        (["train_prior.batch_size=100000"], HebmError, "train_prior.batch_size|batch"),
        (["prior.labels=[hats]"], HebmError, "the images have no label 'hats'"),
        (["prior.labels=[class, class]"], UsageError, "names class twice"),
        (["prior.labels=[class]", "prior.label_layers=[9]"], UsageError, "prior.label_layers names layer 9"),
        (["prior.energy.layers=[0]"], UsageError, "prior.energy.layers names layer 0, but the generator has 1 to 2"),
    ],
)
def test_what_stage_two_refuses_it_refuses_before_anything_is_written(stage_one, settings, error, words):
    before = {path.name: path.read_bytes() for path in stage_one.path.iterdir() if path.is_file()}
    with pytest.raises(error, match=words) as raised:
        train_prior(digits(*settings), stage_one, CPU)
    assert "\n" not in str(raised.value)
    assert before == {path.name: path.read_bytes() for path in stage_one.path.iterdir() if path.is_file()}


def test_what_ready_raises_ends_the_training_before_it_began(stage_one, tmp_path):
    seen = []

    def ready(images, test):
        seen.append((len(images), len(test)))
        raise HebmError("not like this")

    before = stage_one.recipe_path.read_bytes()
    with pytest.raises(HebmError, match="not like this"):
        train_prior(digits("prior.steps=3"), stage_one, CPU, ready=ready)
    assert stage_one.checkpoints() == [stage_one.generator_path] and stage_one.recipe_path.read_bytes() == before
    settings = flow()
    with Run.create(tmp_path / "other", settings) as run, pytest.raises(HebmError, match="not like this"):
        train_one_stage(settings, run, CPU, ready=ready)
    assert run.checkpoints() == [] and len(seen) == 2 and seen[0] == seen[1]


def test_a_prior_of_that_kind_is_not_written_over(copied):
    run = Run(copied / "digits")
    before = run.prior_path("ebm").read_bytes()
    with pytest.raises(HebmError, match="has a 'ebm' prior already; resume it, move .* away, or copy"):
        train_prior(digits("prior.kind=ebm"), run, CPU)
    assert run.prior_path("ebm").read_bytes() == before


def test_divergence_is_said_and_leaves_nothing_that_could_be_mistaken(stage_one):
    with pytest.raises(HebmError, match="diverged at update .*lower train_prior.lr"):
        train_prior(
            digits("prior.kind=ebm", "train_prior.lr=1e30", "train_prior.clip=1e30", "train_prior.iterations=30"),
            stage_one,
            CPU,
        )
    assert stage_one.checkpoints() == [stage_one.generator_path]


# Labels


def test_labels_are_learned_beside_a_prior_that_stays_as_it_was(copied):
    run = Run(copied / "digits")
    before = run.prior_path("diffusion-ebm").read_bytes()
    odd = ["data.attributes={odd: [1, 3, 5, 7, 9]}", "prior.labels=[odd]", "prior.label_layers=[2]"]
    settings = digits(*odd, "train_prior.label_iterations=4")
    found = train_labels(settings, run, CPU)
    assert list(found) == ["odd"] and found["odd"]["values"] == ["0", "1"] and len(found["odd"]["accuracy"]) == 3
    assert run.prior_path("diffusion-ebm").read_bytes() == before
    assert run.figures()["label_accuracy"]["odd"] == pytest.approx(found["odd"]["accuracy"], rel=1e-4)
    header = checkpoint.header(run.label_path("odd"))
    assert (header.kind, header.step, header.extra["values"]) == ("label", 4, ["0", "1"])
    assert header.extra["made_of"] == ["1", "3", "5", "7", "9"]
    assert run.recipe().data.attributes == {"odd": ["1", "3", "5", "7", "9"]}
    assert {"loss", "accuracy"} <= run.metrics("train-prior label odd")[-1].keys()


def test_a_label_that_is_there_is_a_mistake_or_passed_over(copied):
    run = Run(copied / "digits")
    before = run.label_path("class").read_bytes()
    with pytest.raises(HebmError, match="has the label 'class' already; resume it, or move"):
        train_labels(digits("prior.labels=[class]"), run, CPU)
    assert train_labels(digits("prior.labels=[class]"), run, CPU, again=False) == {}
    assert train_labels(digits(), run, CPU) == {}
    assert run.label_path("class").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["prior.labels=[hats]"], "no label 'hats'; they have class"),
        (["prior.labels=[odd]", "prior.levels=6", "data.attributes={odd: [1]}"], "prior.levels is 6, .* has 3"),
        (["prior.labels=[odd]", "data.attributes={odd: [11]}"], "names the class '11'"),
    ],
)
def test_labels_that_cannot_be_learned(copied, settings, words):
    with pytest.raises(HebmError, match=words) as raised:
        train_labels(digits(*settings), Run(copied / "digits"), CPU)
    assert "\n" not in str(raised.value)


def test_an_attribute_means_what_it_meant(copied):
    run = Run(copied / "digits")
    train_labels(digits("data.attributes={odd: [1, 3]}", "prior.labels=[odd]"), run, CPU)
    with pytest.raises(HebmError, match="data.attributes.odd is now 1, and .* was learned when it was 1, 3"):
        train_labels(digits("data.attributes={odd: [1]}", "prior.labels=[class]"), run, CPU)


def test_accuracy_is_the_share_that_the_label_finds(tiny):
    run = Run(tiny / "digits")
    prior, settings = load_prior(run, "diffusion-ebm", CPU), run.recipe()
    images = data.load(settings.data, "test")

    class Always(torch.nn.Module):
        def log_prob(self, walk, t):
            return torch.nn.functional.one_hot(torch.full((len(t),), 3), 10).float().log()

    found = accuracy(Always(), prior.generator, images, images.labels, settings)
    assert found == pytest.approx([(images.labels == 3).float().mean().item()] * 3)


# Flow and generator together


def test_a_flow_is_trained_with_its_generator(tmp_path):
    settings = flow("train_prior.iterations=4")
    with Run.create(tmp_path, settings) as run:
        prior = train_one_stage(settings, run, CPU)
    assert run.priors() == ["flow"] and run.one_stage and checkpoint.header(run.prior_path("flow")).step == 4
    assert {path.name for path in run.samples_dir.iterdir()} == {"flow-0000004.png"}
    last = run.metrics("train-prior flow")[-1]
    assert last["step"] == 4 and {"log_z", "log_x", "z_std", "grad_norm", "seconds"} <= last.keys()
    assert len(last["grad_norm"]) == 2  # of the network and of the flow, clipped apart
    loaded = load_prior(run, "flow", CPU)
    z = torch.randn(3, 6)
    assert torch.equal(prior.log_density(z), loaded.log_density(z)) and loaded.g.image_shape == (1, 8, 8)
    assert run.figures() == {}


def test_persistent_chains_go_on_where_they_ended(tmp_path):
    # 32 images and batches of 8: after 4 updates every chain has moved, and the fifth moves a quarter of them.
    settings = [flow("flow.persistent=true", "data.limit=32", f"train_prior.iterations={n}") for n in (4, 5)]
    with Run.create(tmp_path, settings[0]) as run:
        train_one_stage(settings[0], run, CPU)
    before = weights(run.prior_train_path("flow"))["extra.z"]
    with Run.create(tmp_path, settings[1], resume=True) as run:
        train_one_stage(settings[1], run, CPU, resume=True)
    moved = (weights(run.prior_train_path("flow"))["extra.z"] - before).abs().amax(1)
    assert (moved > 0).sum() == 8
    # Three steps of size 0.1 do not lead far.
    assert moved.max() < 2


def test_hidden_pixels_are_never_looked_at(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    masks = rng.random((32, 8, 8)) < 0.5
    other = images.copy()
    other[:32][masks] = rng.integers(0, 256, int(masks.sum()), dtype=np.uint8)
    np.save(tmp_path / "masks.npy", masks)
    files = {}
    for name, x, missing in (("a", images, True), ("b", other, True), ("c", images, False)):
        np.savez(tmp_path / f"{name}.npz", x_train=x[:32], x_test=images[32:])
        more = [f"data.missing={tmp_path / 'masks.npy'}"] if missing else []
        settings = flow("data.source=array", f"data.path={tmp_path / name}.npz", *more)
        with Run.create(tmp_path / name, settings) as run:
            train_one_stage(settings, run, CPU)
        files[name] = run.prior_path("flow")
    assert equal(files["a"], files["b"]) and not equal(files["a"], files["c"])


def test_learning_raises_the_joint(tmp_path):
    keys = ["flow.width=8", "train_prior.lr=2e-2", "train_prior.iterations=30", "train_prior.batch_size=16"]
    settings = flow(*keys)
    with Run.create(tmp_path, settings) as run:
        train_one_stage(settings, run, CPU)
    logged = run.metrics("train-prior flow")
    assert logged[-1]["log_x"] > logged[0]["log_x"] + 50 and logged[-1]["loss"] < 0.7 * logged[0]["loss"]


def test_a_flow_that_diverges_says_what_to_lower_and_leaves_nothing(tmp_path):
    settings = flow("flow.step_size=1e12", "train_prior.iterations=8")
    with Run.create(tmp_path, settings) as run, pytest.raises(HebmError, match="flow.step_size"):
        train_one_stage(settings, run, CPU)
    assert run.checkpoints() == []


def test_a_resume_that_fails_leaves_the_recipe(copied):
    run = Run(copied / "flow")
    before = run.recipe_path.read_text()
    path = run.prior_train_path("flow")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HebmError, match="prior-flow.train.* is cut short"):
        train_one_stage(flow("train_prior.log_every=7"), run, CPU, resume=True)
    assert run.recipe_path.read_text() == before
