"""What a training says when it cannot go on can be done, and then it goes on."""

import json

import pytest
import safetensors.torch
import torch
from tiny import CPU, DIGITS, FLOW, options

from hebmtool import recipe
from hebmtool.errors import HebmError
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.train.labels import train_labels
from hebmtool.train.loop import Updates, good_path
from hebmtool.train.one_stage import train_one_stage
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae

VAE = ["train_vae.iterations=6", "train_vae.save_every=2", "train_vae.lr_warmup=0"]
PRIOR = ["train_prior.iterations=6", "train_prior.save_every=2"]
CASES = {
    "vae": ("digits", [*DIGITS, *VAE], train_vae, "generator", "train_vae.lr"),
    "prior": ("digits", [*DIGITS, *PRIOR], train_prior, "prior-diffusion-ebm", "train_prior.lr"),
    "label": (
        "digits",
        [*DIGITS, *PRIOR, "prior.labels=[class]", "train_prior.label_iterations=6"],
        train_labels,
        "label-class",
        "train_prior.label_lr",
    ),
    "flow": ("digits-flow", [*FLOW, *PRIOR], train_one_stage, "prior-flow", "train_prior.lr"),
    "persistent flow": (
        "digits-flow",
        [*FLOW, *PRIOR, "flow.persistent=true", "data.limit=16"],
        train_one_stage,
        "prior-flow",
        "train_prior.lr",
    ),
}


@pytest.fixture
def ruined(monkeypatch):
    """Make the gradients of these updates (from 1) not finite."""
    where, add = set(), Updates.add

    def spoiled(self, loss, **figures):
        add(self, loss * float("nan") if self.step + 1 in where else loss, **figures)

    monkeypatch.setattr(Updates, "add", spoiled)
    return where


class Training:
    """One of the cases, in a run of its own."""

    def __init__(self, tiny, root, case):
        word, self.overrides, self.train, self.stem, self.knob = CASES[case]
        self.word, self.one_stage = word, word == "digits-flow"
        self.run = Run(root / ("flow" if self.one_stage else "digits"))
        self.run.path.mkdir()
        if case in ("prior", "label"):
            needed = ["recipe.yaml", "generator.safetensors"] + ["prior-diffusion-ebm.safetensors"] * (case == "label")
            for name in needed:
                (self.run.path / name).write_bytes((tiny / "digits" / name).read_bytes())

    def __call__(self, *more, resume=False, rewind=False):
        settings = recipe.load(self.word, [*self.overrides, *more])
        if self.train is train_vae and not resume:
            self.run.write_recipe(settings)
        with self.run.lock() as run:
            self.train(settings, run, CPU, resume=resume, rewind=rewind)
        return self

    @property
    def state(self):
        return self.run.path / f"{self.stem}.train.safetensors"

    @property
    def step(self):
        return checkpoint.header(self.run.path / f"{self.stem}.safetensors").step


@pytest.fixture(params=CASES)
def training(request, tiny, tmp_path):
    return Training(tiny, tmp_path, request.param)


def of(*cases):
    """These trainings: one loop saves, rewinds and skips for all, and these differ most in what they keep.  That they
    all resume to the bit is in `test_resuming.py`."""
    return pytest.mark.parametrize("training", cases, indirect=True)


def test_a_lower_rate_starts_again_or_resumes(training, ruined):
    ruined.add(1)
    with pytest.raises(HebmError, match=f"nothing was saved before; lower .*{training.knob}, .* and start again"):
        training()
    ruined.clear()
    ruined.add(5)
    with pytest.raises(HebmError, match=f"after 4 updates; lower .*{training.knob}, .* resume it") as raised:
        training()
    assert "\n" not in str(raised.value) and training.step == 4
    ruined.clear()
    training(f"{training.knob}=1e-6", resume=True)
    assert training.step == 6
    [record] = [each for each in training.run.metrics() if each["stage"].endswith("resumed")]
    assert record["step"] == 4 and record["changed"][training.knob][1] == 1e-6
    assert checkpoint.header(training.state).recipe["train_vae" if "vae" in training.knob else "train_prior"]


@of("vae", "persistent flow")
def test_rewinding_goes_on_from_what_was_saved_before_the_last(training, ruined):
    """As if the updates since had never been made, and to the bit."""
    training()
    whole = safetensors.torch.load_file(training.state)
    assert checkpoint.header(good_path(training.state)).step == 4
    with torch.no_grad():  # the last one is ruined, though every value is finite
        tensors, head = checkpoint.load(training.state)
        spoiled = {key: value * 3 if value.is_floating_point() else value for key, value in tensors.items()}
        settings = checkpoint.recipe(training.state, head)
        checkpoint.save(training.state, spoiled, kind=head.kind, recipe=settings, step=head.step, extra=head.extra)
    training(resume=True, rewind=True)
    again = safetensors.torch.load_file(training.state)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert checkpoint.header(good_path(training.state)).step == 4


@of("label")
def test_there_must_be_something_to_rewind_to(training):
    training("train_vae.save_every=9", "train_prior.save_every=9")
    before = training.state.read_bytes()
    with pytest.raises(HebmError, match="nothing was saved before .*cannot be rewound; resume it, or start anew"):
        training(resume=True, rewind=True)
    assert training.state.read_bytes() == before


@of("vae", "label", "persistent flow")
def test_updates_that_are_not_finite_are_passed_over_where_they_may_be(training, ruined):
    """Counted, over a resumed training too, and bounded in all."""
    part = training.knob.partition(".")[0]
    ruined |= {1, 4}
    training(f"{part}.skip=2")
    assert training.step == 6
    skips = [each for each in training.run.metrics() if each["stage"].endswith("skipped")]
    assert [(each["step"], each["skipped"], each["loss"]) for each in skips] == [(1, 1, None), (4, 2, None)]
    assert all(t.isfinite().all() for t in safetensors.torch.load_file(training.state).values())
    training(f"{part}.skip=2", resume=True, rewind=True)  # from update 4, which is among them
    longer = [f"{part}.skip=2", f"{part}.iterations=8", "train_prior.label_iterations=8"]
    ruined.add(7)
    with pytest.raises(HebmError, match="diverged at update 7: .*after 2 skipped update"):
        training(*longer, resume=True)
    training(*longer, f"{part}.skip=3", resume=True)
    assert training.step == 8


def test_skips_are_bounded_in_a_row_and_off_by_default(tiny, tmp_path, ruined):
    training = Training(tiny, tmp_path, "label")
    ruined.update({2, 3, 4, 5})
    with pytest.raises(HebmError, match="diverged at update 2"):
        training()
    with pytest.raises(HebmError, match="diverged at update 5"):
        training("train_prior.skip=100")


def test_a_skipped_update_leaves_no_trace_in_statistics(tiny, tmp_path, monkeypatch):
    """A batch that is not finite spoils BatchNorm's running statistics on its way to the loss."""
    training = Training(tiny, tmp_path, "vae")
    descend = Updates.descend

    def spoiled(self, optimizer, module, *arguments):
        if self.step == 2:
            for name, buffer in module.named_buffers():
                if "running_" in name:
                    buffer.data.fill_(float("nan"))  # what autograd does not see
            self.loss = self.loss * float("inf")
        return descend(self, optimizer, module, *arguments)

    monkeypatch.setattr(Updates, "descend", spoiled)
    training("train_vae.skip=1")
    for name in ("generator.safetensors", "generator.train.safetensors"):
        tensors, _ = checkpoint.load(training.run.path / name)  # which refuses what is not finite
        assert tensors


def test_stage_one_goes_on_by_another_seed_schedule_and_length(tiny, tmp_path):
    training = Training(tiny, tmp_path, "vae")()
    changed = ["train_vae.seed=7", "train_vae.kl_warmup=0.9", "train_vae.lr_min=1e-5", "train_vae.iterations=8"]
    training(*changed, resume=True)
    assert training.step == 8 and training.run.recipe().train_vae.seed == 7
    [record] = training.run.metrics("train-vae resumed")
    assert record["step"] == 6 and {key: value[1] for key, value in record["changed"].items()} == {
        "train_vae.seed": 7,
        "train_vae.kl_warmup": 0.9,
        "train_vae.lr_min": 1e-5,
        "train_vae.iterations": 8,
    }
    (tmp_path / "other").mkdir()
    other = Training(tiny, tmp_path / "other", "vae")()
    other(*changed[1:], resume=True)
    a, b = (safetensors.torch.load_file(each.state) for each in (training, other))
    assert any(not torch.equal(a[key], b[key]) for key in a)  # the seed made a difference


def test_the_command_rewinds(hebm, tmp_path):
    words = ("train-vae", "digits", "--runs", tmp_path, *options([*DIGITS, *VAE]))
    assert hebm(*words)[0] == 0
    status, _, err = hebm(*words, "--rewind", "--set", "train_vae.lr=1e-5")
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "digits/metrics.jsonl").read_text().splitlines()]
    assert any(line["stage"] == "train-vae resumed" and line["step"] == 4 for line in lines)
