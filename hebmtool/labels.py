"""Symbol-vector coupling: energies that know labels.

    F(z, y, t) = F(z, t) + sum_a w_a log p(y_a | z, t),        p(y_a | z, t) = softmax(sum_i g_i^a(z_i, t))

One label with w = 1 is the coupling <y, f(z, t)> of "Learning Latent Space Hierarchical EBM Diffusion Models"
(https://arxiv.org/abs/2405.13910; Pang & Wu 2021, https://arxiv.org/abs/2108.11556) with f_k = F + log p(k | z, t):
softmax(f) is p(y | z, t) and logsumexp(f) the marginal F.  Written so, the coupled objective, that of F plus
log p(y | u_t, t) on posterior u_t, is one of F alone and one of g alone.  A prior trained without labels is therefore
coupled later without being changed, labels learned apart add up, and each may be weighted or negated.

A label is `class`, or the name of a binary attribute with the values 0 and 1.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool import checkpoint, data
from hebmtool import recipe as recipes
from hebmtool.console import note, progress
from hebmtool.energy import CALIBRATION_DRAWS, Energy
from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.generator import Generator, TopDown
from hebmtool.recipe import Recipe
from hebmtool.run import Run, StopSignals
from hebmtool.schedule import Schedule
from hebmtool.train_vae import load_generator
from hebmtool.training import Ema, derive_seed, load_training, save_training

CLASS = "class"
TEST_BATCH = 250


class LabelEnergy(nn.Module):
    """p(y | z, t) for one label: the networks g_i of the coupled layers, summed.

    Arguments:
        name: of the label.
        values: its values' names, K of them.
        chosen: list indices of the coupled layers; all when None.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[str],
        generator: Generator,
        config: recipes.Energy,
        chosen: Sequence[int] | None = None,
    ):
        super().__init__()
        self.name, self.values = name, list(values)
        self.energy = Energy(generator, config, outputs=len(self.values), chosen=chosen)

    def log_prob(self, walk: TopDown, t: Tensor) -> Tensor:
        """log p(y | z, t) of every value, [N, K], for levels t [N]."""
        return self.energy(walk, t).sum(1).log_softmax(1)

    def index(self, value: str) -> int:
        """The place of a value given by its name.  Raises UsageError naming those that exist."""
        if value not in self.values:
            raise UsageError(
                f"the label {self.name} has no value '{value}'; it has {', '.join(self.values)}"
                f"{did_you_mean(value, self.values)}"
            )
        return self.values.index(value)


@dataclass
class Condition:
    """One term of the sum: w log p(y | z, t), with y [N] (indices of the label's values)."""

    label: LabelEnergy
    y: Tensor
    weight: float = 1.0

    def __call__(self, walk: TopDown, t: Tensor) -> Tensor:
        """[N]."""
        return self.weight * self.label.log_prob(walk, t).gather(1, self.y[:, None])[:, 0]


def chosen_layers(generator: Generator, layers: Sequence[int] | None) -> list[int] | None:
    """List indices of layers given by number (1 = bottom).  Raises UsageError for a layer that does not exist."""
    if layers is None:
        return None
    for number in layers:
        if not 1 <= number <= generator.L:
            raise UsageError(f"prior.label_layers names layer {number}, but the generator has 1 to {generator.L}")
    return sorted(generator.layer_number(number) for number in set(layers))


def values_of(name: str, images: data.Images, config: recipes.Data) -> tuple[Tensor, list[str]]:
    """What a label says of every image: (indices of its values, long [N]; the values' names).

    Raises:
        HebmError: the images have no such label; those they have are named.
    """
    known = [CLASS] * (images.labels is not None) + sorted(images.attributes)
    if name not in known:
        raise HebmError(
            f"the images have no label '{name}'; "
            + (f"they have {', '.join(known)}{did_you_mean(name, known)}" if known else "they have none at all")
            + "; data.attributes makes attributes of classes"
        )
    if name == CLASS:
        classes = images.classes or [str(k) for k in range(int(images.labels.max()) + 1)]
        return images.labels, classes
    return images.attributes[name].long(), ["0", "1"]


def load_labels(run: Run, generator: Generator) -> dict[str, LabelEnergy]:
    """The run's trained labels by name, ready for use on its frozen generator.

    Raises:
        HebmError: a file is unusable, or belongs to another generator.
    """
    found = {}
    for path in run.label_paths():
        tensors, header = checkpoint.load(path, kind="label")
        if header.extra.get("generator") != checkpoint.digest(run.generator_path):
            raise HebmError(
                f"{path} was trained on another generator than {run.generator_path} is now; move it away and train it "
                "again with `hebm train-prior --finetune`"
            )
        prior = checkpoint.recipe(path, header).prior
        chosen = chosen_layers(generator, prior.label_layers)
        label = LabelEnergy(header.extra["label"], header.extra["values"], generator, prior.energy, chosen)
        checkpoint.load_into(label, tensors, path)
        label.to(generator.constant.device).eval()
        label.energy.settle()
        label.energy.fix()
        found[label.name] = label
    return found


def check(recipe: Recipe, generator: Generator, images: data.Images) -> None:
    """Raise, before anything is trained, for labels and layers that do not exist."""
    chosen_layers(generator, recipe.prior.label_layers)
    for name in recipe.prior.labels:
        values_of(name, images, recipe.data)


def train_labels(recipe: Recipe, run: Run, device: torch.device, resume: bool = False) -> dict[str, dict]:
    """Learn p(y | z, t) for every label of `recipe.prior.labels`, on posterior u_t of all levels.

    Returns, for each, its accuracy on the test images at every level.  SIGINT and SIGTERM save and stop.

    Raises:
        HebmError: no generator, no such label, a failed save, or stopped by a signal.
    """
    kept = run.check_stage_one(recipe)
    generator = load_generator(run, device).frozen()
    images, test = data.load(recipe.data, "train"), data.load(recipe.data, "test")
    check(recipe, generator, images)
    run.write_recipe(kept)  # the attributes' definitions, which judging them needs
    results = {}
    for name in recipe.prior.labels:
        results[name] = _train_label(name, recipe, run, generator, images, test, resume)
        run.set_figure(f"label_accuracy.{name}", results[name]["accuracy"])
        shown = ", ".join(f"{100 * a:.1f}%" for a in results[name]["accuracy"])
        note(f"label {name}: p(y | z, t) is right on {shown} of the test images at levels 0, 1, ...")
    return results


def _train_label(
    name: str,
    recipe: Recipe,
    run: Run,
    generator: Generator,
    images: data.Images,
    test: data.Images,
    resume: bool,
) -> dict:
    config, schedule, stage = recipe.train_prior, Schedule(recipe.prior.levels), f"train-prior label {name}"
    y, values = values_of(name, images, recipe.data)
    y_test, _ = values_of(name, test, recipe.data)
    path, train_path = run.label_path(name), run.label_train_path(name)
    if not resume and (path.is_file() or train_path.is_file()):
        raise HebmError(f"{run.path} has the label '{name}' already; move {path.name} away to learn it again")
    device = generator.constant.device
    torch.manual_seed(derive_seed(recipe.seed, "label", name))
    chosen = chosen_layers(generator, recipe.prior.label_layers)
    label = LabelEnergy(name, values, generator, recipe.prior.energy, chosen).to(device)
    label.energy.calibrate(generator.top_down(torch.randn(CALIBRATION_DRAWS, generator.D).to(device)))
    optimizer = torch.optim.Adam(label.parameters(), lr=config.label_lr, weight_decay=config.weight_decay)
    ema, step = Ema(label, config.ema), 0
    extra = {"generator": checkpoint.digest(run.generator_path), "label": name, "values": values}
    if resume and train_path.is_file():
        old = checkpoint.recipe(train_path, checkpoint.header(train_path))
        same = ["label_lr", "batch_size", "weight_decay", "ema", "clip"]
        what = ["prior.energy", "prior.levels", "prior.label_layers", "seed", *(f"train_prior.{key}" for key in same)]
        Run.check_same(old, recipe, what)
        step = load_training(train_path, "label training", label, ema, optimizer)
    run.truncate_metrics(stage, step)

    def save() -> None:
        save_training(train_path, recipe, step, "label training", label, ema, optimizer, origin=extra)
        checkpoint.save(path, ema.tensors, kind="label", recipe=recipe, step=step, extra=extra)

    started, seconds_before = time.monotonic(), run.seconds(stage)
    with StopSignals() as stop, progress(f"label {name}", config.label_iterations, step) as bar:
        while step < config.label_iterations:
            torch.manual_seed(derive_seed(recipe.seed, stage, step))
            indices = data.batch_indices(len(images), config.batch_size, recipe.seed, step)
            x = data.prepare(images.batch(indices), recipe.data, recipe.generator.likelihood, train=True).to(device)
            label.energy.advance()
            with torch.no_grad():
                t = torch.randint(schedule.T, (len(x),), device=device)
                walk = generator.top_down(schedule.diffuse(generator.encode(x), t)[0])
            log_p = label.log_prob(walk, t)
            target = y[indices].to(device)
            loss = F.nll_loss(log_p, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(label.parameters(), config.clip)
            optimizer.step()
            ema.update(label, step)
            step += 1
            if step % config.log_every == 0 or step == config.label_iterations:
                right = (log_p.argmax(1) == target).float().mean().item()
                seconds = seconds_before + time.monotonic() - started
                run.log(stage, step, loss=loss.item(), accuracy=right, seconds=seconds)
            bar.advance()
            if stop.requested:
                save()
                raise HebmError(f"stopped by {stop.signal} after update {step}; saved, continue with --resume")
    save()
    label.load_state_dict(ema.tensors)
    label.eval()
    label.energy.settle()
    return {"accuracy": accuracy(label, generator, test, y_test, recipe), "values": values}


@torch.no_grad()
def accuracy(label: LabelEnergy, generator: Generator, images: data.Images, y: Tensor, recipe: Recipe) -> list[float]:
    """Share of images whose label p(y | z, t) finds, from one posterior draw each, at every level t = 0 .. T-1."""
    schedule, device = Schedule(recipe.prior.levels), generator.constant.device
    right = torch.zeros(schedule.T)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(recipe.seed, "label accuracy"))
        for indices in torch.arange(len(images)).split(TEST_BATCH):
            x = data.prepare(images.batch(indices), recipe.data, recipe.generator.likelihood, train=False).to(device)
            u_0 = generator.encode(x)
            for level in range(schedule.T):
                t = torch.full((len(x),), level, device=device)
                u = u_0 if level == 0 else schedule.diffuse(u_0, t)[0]
                right[level] += (label.log_prob(generator.top_down(u), t).argmax(1).cpu() == y[indices]).sum()
    return (right / len(images)).tolist()
