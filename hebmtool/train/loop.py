"""What all trainings share: the random state of an update, averaged weights, the log, stopping, and saving it all.

Every update seeds torch's generators from (recipe seed, stage, step), and the images it sees are a function of
the step as well (`hebmtool.data.batch_indices`).  So the step number is the whole random state and the
position in the data, and resuming continues exactly.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from hebmtool import ranks, rows
from hebmtool.compute import plainly
from hebmtool.console import note, progress
from hebmtool.data import seed_of
from hebmtool.errors import HebmError
from hebmtool.files import link_over
from hebmtool.recipe import Recipe, TrainPrior, TrainVae
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.launch import begin
from hebmtool.train.averages import Ema
from hebmtool.train.stopping import StopSignals

# Recipe keys that say when something is written and in how many turns an update is computed, not what it is: they may
# change on resuming.
HOUSEKEEPING = ("log_every", "sample_every", "save_every", "accumulate", "workers")
LOSS_BOUND = 1e15  # a loss beyond this has run away (HEBM's own bound)
WEIGHT_BOUND = 1e8  # a weight beyond this has, though the loss may not show it yet
# Updates that may be skipped one after another, where any may: more is no accident.
SKIPPED_IN_A_ROW = 3
# Updates that an accelerator may run ahead before it is asked whether they ran away: asking means waiting for it.
AHEAD = 32


def warm_cosine(step: int, total: int, start: float, end: float, warmup: int) -> float:
    """Learning rate of update `step`: linear warm-up to `start`, then a cosine down to `end`."""
    if step < warmup:
        return start * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


class Updates:
    """The updates that a training has still to make, and what stands between them: random numbers, the log, the bar,
    checkpoints, pictures, and stopping on a signal.

        with Updates(run, "train-vae", recipe.seed, config, config.iterations, step, save, show) as updates:
            for step in updates:
                for part in updates.parts(config.batch_size):
                    updates.add(loss of these rows)
                updates.descend(optimizer, generator, ema, "train_vae.lr")
                if updates.to_log:
                    updates.log(loss=updates.loss)

    A batch is computed in parts (`hebmtool.rows`), by every process some, whose gradients are added up: what follows is
    the same in all of them.  The first writes, while the others wait.

    Arguments:
        stage: names the records in metrics.jsonl.
        seed: torch's generators are seeded from (seed, stage, step) before every update.
        config: says how often to log, show and save, and where gradients are clipped.
        total, step: updates in all, and made before.
        save: save(step) writes the checkpoints after `step` updates.
        show: show(step) draws pictures; not called after the last update, when there is more to say.
        kept: the checkpoint that sampling reads, left as it is where no update is left and it has all; not if `anew`.

    skipped: whether the update being made was passed over (`descend`).

    No figure leaves the device before it is logged.  Whether an update ran away is kept on the device too, and read
    there before anything is logged, shown or saved, and at least every `AHEAD` updates; at every update on a CPU, and
    where the recipe lets some be skipped.

    Raises, on iterating: `HebmError` when a signal has stopped it, after saving, or when an update ran away.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        seed: int,
        config: TrainVae | TrainPrior,
        total: int,
        step: int,
        save: Callable[[int], None],
        show: Callable[[int], None] | None = None,
        kept: Path | None = None,
        anew: bool = False,
    ):
        self.run, self.stage, self.seed, self.config, self.total, self.step = run, stage, seed, config, total, step
        self.kept, self.anew = kept, anew
        self.save = lambda step: ranks.first_alone(plainly()(lambda: save(step)))
        self.show = None if show is None else lambda step: ranks.first_alone(plainly()(lambda: show(step)))
        self.loss: Any = 0.0
        self.figures: dict[str, Any] = {}
        self._trouble: Tensor | None = None  # [number, loss, gradient norm] of the first update that ran away, else 0s
        self._knobs = ""

    def __enter__(self) -> Self:
        self._started, self._before = time.monotonic(), self.run.seconds(self.stage)
        self.skipped, self._in_a_row = False, 0
        self._skipped_before = ranks.first_alone(self._begin)
        with ExitStack() as stack:
            self._stop = stack.enter_context(StopSignals())
            self._bar = stack.enter_context(progress(self.stage, self.total, self.step))
            self._exit = stack.pop_all()
        return self

    def _begin(self) -> int:
        """How many updates were skipped before."""
        begin(self.run)
        if self.run.metrics(self._skips):
            self.run.truncate_metrics(self._skips, self.step)
        return len(self.run.metrics(self._skips))

    def __exit__(self, *exception) -> None:
        self._exit.close()

    def __iter__(self) -> Iterator[int]:
        every = self.config
        if self.step >= self.total and self._has_them_all():
            return
        while self.step < self.total:
            self._seed()
            self.loss, self.figures = 0.0, {}
            yield self.step
            self.step += 1
            self._bar.advance()
            if self._stop.agreed() or self.step == self.total:
                break
            if self.show is not None and self.step % every.sample_every == 0:
                self.check()
                self.show(self.step)
            if self.step % every.save_every == 0:
                self.check()
                self.save(self.step)
        self.check()
        self.save(self.step)
        if self._stop.agreed():
            said = f"stopped by {self._stop.signal} after update {self.step}; saved, resume it to continue"
            raise ranks.everywhere(HebmError(said))

    def _seed(self) -> None:
        torch.manual_seed(seed_of(self.seed, self.stage, self.step))

    def _has_them_all(self) -> bool:
        """Whether what sampling reads is of the last update already."""
        if self.anew or self.kept is None or not self.kept.is_file():
            return False
        return checkpoint.header(self.kept).step == self.step

    def parts(self, total: int) -> Iterator[rows.Part]:
        """The parts of a batch of `total` images that this process computes for the update being made, one after
        another; each draws from the update's own random state."""
        for part in rows.parts(total, self.config.accumulate):
            self._seed()
            with rows.computing(part):
                yield part

    def add(self, loss: Tensor, **figures: Any) -> None:
        """Add the gradient of a part: of `loss`, a mean over its rows.  `figures`, means too, are for the log."""
        part = rows.current()
        share = 1.0 if part is None else part.share
        (share * loss).backward()
        self.loss = self.loss + share * loss.detach()
        for key, value in figures.items():
            self.figures[key] = self.figures.get(key, 0.0) + share * value

    def descend(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        ema: Ema,
        knobs: str,
        parts: Sequence[nn.Module] = (),
    ) -> Tensor:
        """One step down the gradient that was added up; returns its norm, before clipping, in the module, [1], or in
        each of its `parts` when they are clipped apart.

        Where it is not finite, and the recipe's `skip` has some left, the update is passed over: `skipped` is true.

        Raises:
            HebmError: loss or gradient has run away; it says to lower the `knobs`, recipe keys.  On a CPU the step that
                would have followed is not made; elsewhere up to `AHEAD` more may have been, and nothing is saved.
        """
        self._add_up(module)
        clip = self.config.clip
        norms = torch.stack([nn.utils.clip_grad_norm_(list(p.parameters()), clip) for p in parts or [module]])
        self._watch(self.loss, norms, knobs)
        at_once = self.loss.device.type == "cpu" or self.config.skip > 0
        self.skipped = at_once and self._skip(module, ema)
        if self.skipped:
            optimizer.zero_grad(set_to_none=True)
            return norms
        if at_once or (self.step + 1) % AHEAD == 0:
            self.check()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(module, self.step)
        return norms

    @torch.no_grad()
    def _add_up(self, module: nn.Module) -> None:
        """Gradients, loss, and what the log will tell, of all processes together, in one reduction."""
        if ranks.world() == 1:
            return
        learned = [p for p in module.parameters() if p.grad is not None]
        told = list(self.figures) if self.to_log else []
        each = [*(p.grad for p in learned), self.loss, *(torch.as_tensor(self.figures[name]) for name in told)]
        *gradients, self.loss = (found := ranks.totals(each))[: len(learned) + 1]
        for p, gradient in zip(learned, gradients, strict=True):
            p.grad.copy_(gradient)
        self.figures |= dict(zip(told, found[len(learned) + 1 :], strict=True))

    def _watch(self, loss: Tensor, norms: Tensor, knobs: str) -> None:
        """Note, on the device, an update that ran away, if none has before."""
        ran_away = ~((loss.abs() < LOSS_BOUND) & norms.isfinite().all())  # NaN is below nothing
        found = torch.stack([torch.full_like(loss, self.step + 1, dtype=torch.float64), loss, norms.max()])
        before = torch.zeros_like(found) if self._trouble is None else self._trouble
        self._trouble = torch.where((before[0] == 0) & ran_away, found, before)
        self._knobs = knobs

    def _found(self) -> tuple[int, float, float, bool]:
        """(number, loss, gradient norm, whether both are finite) of the first update that ran away; the number is 0
        where none has.  Waits for the device."""
        update, loss, norm = (0, 0.0, 0.0) if self._trouble is None else self._trouble.tolist()
        return int(update), loss, norm, math.isfinite(loss) and math.isfinite(norm)

    def check(self) -> None:
        """Raise HebmError if an update has run away.  Waits for the device."""
        update, loss, norm, finite = self._found()
        if update:
            found = f"loss {loss:.4g}, gradient norm {norm:.4g}"
            if self._skipped_before:
                found += f", after {self._skipped_before} skipped update(s)"
            way_out = self._way_out(self._knobs, finite)
            raise ranks.everywhere(HebmError(f"training diverged at update {update}: {found}; {way_out}"))

    @property
    def _skips(self) -> str:
        """Names the records of skipped updates."""
        return f"{self.stage} skipped"

    @torch.no_grad()
    def _skip(self, module: nn.Module, ema: Ema) -> bool:
        """Whether the update being made is passed over: parameters stay, and statistics that it spoiled are the
        average's again."""
        update, loss, norm, finite = self._found()
        if finite or self._skipped_before >= self.config.skip or self._in_a_row >= SKIPPED_IN_A_ROW:
            self._in_a_row = 0 if finite else self._in_a_row
            return False
        self._trouble = None
        for name, buffer in module.named_buffers():
            if name in ema.tensors and not buffer.isfinite().all():
                buffer.copy_(ema.tensors[name])
        self._skipped_before += 1
        self._in_a_row += 1
        self.run.log(self._skips, update, loss=loss, grad_norm=norm, skipped=self._skipped_before)
        note(
            f"update {update} is skipped, its gradient is not finite: loss {loss:.4g}, gradient norm {norm:.4g} "
            f"({self._skipped_before} of at most {self.config.skip})"
        )
        return True

    def _way_out(self, knobs: str, finite: bool) -> str:
        lower, part = f"lower {knobs}", knobs.split()[-1].partition(".")[0]
        if not finite:
            lower += f", or raise {part}.skip to pass over a few such updates,"
        if self.kept is None or not self.kept.is_file():
            return f"nothing was saved before; {lower} and start again"
        made = checkpoint.header(self.kept).step
        return (
            f"{self.run.path} holds what there was after {made} updates; {lower} and resume it, or should that not "
            "help, rewind it to what was saved before the last"
        )

    @property
    def to_log(self) -> bool:
        """Whether the update being made is one that the log tells of."""
        made = self.step + 1
        return made % self.config.log_every == 0 or made == self.total

    def log(self, text: str | None = None, **figures: Any) -> None:
        """Tell the log of the update being made, and write `text` beside the bar.  Figures may be tensors."""
        self.check()
        seconds = self._before + time.monotonic() - self._started
        self.run.log(self.stage, self.step + 1, **figures, seconds=seconds)
        self._bar.advance(0, text or f"loss {float(self.loss):.3g}")


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def check_sane(tensors: dict[str, Tensor], path: Path, step: int) -> None:
    """Raise HebmError where weights or statistics are not finite, or so large that nothing can follow from them."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        largest = tensor.abs().max().item()
        if not largest < WEIGHT_BOUND:  # NaN fails too
            before = f"; {path} is kept as it was saved before" if path.is_file() else ""
            raise HebmError(
                f"training ran away by update {step}: '{name}' reaches {largest:.3g}, where at most {WEIGHT_BOUND:.0e} "
                f"can be gone on from{before}; lower the learning rate, and "
                + ("resume, or rewind to what was saved before that" if before else "start again")
            )


def save_training(
    path: Path,
    recipe: Recipe,
    step: int,
    kind: str,
    module: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    extra: nn.Module | None = None,
    origin: dict | None = None,
    others: dict[str, Tensor] | None = None,
) -> None:
    """Everything needed to continue after `step` updates, in one file: `origin` in its header, `others` as "rest.".

    What was saved before is kept beside it (`good_path`), since training went on from it without trouble.

    Raises:
        HebmError: the weights have run away, though no loss has told of it yet; what was saved before stays.
    """
    tensors = prefixed("model", module.state_dict()) | prefixed("ema", ema.tensors)
    check_sane(tensors, path, step)
    tensors |= prefixed("optimizer", checkpoint.flatten_optimizer(optimizer))
    if extra is not None:
        tensors |= prefixed("extra", extra.state_dict())
    tensors |= prefixed("rest", others or {})
    _keep_good(path, step)
    checkpoint.save(path, tensors, kind=kind, recipe=recipe, step=step, extra=origin)


def good_path(path: Path) -> Path:
    """Of a training's state: what was saved before the last."""
    return path.with_name(f"{path.name}.good")


def _keep_good(path: Path, step: int) -> None:
    """Keep what `path` holds, if it is of fewer updates than `step`, under another name too."""
    good = good_path(path)
    if not path.is_file():
        good.unlink(missing_ok=True)  # of another training, which was moved away
    elif checkpoint.header(path).step < step:
        link_over(path, good)


def load_training(
    path: Path,
    kind: str,
    module: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    extra: nn.Module | None = None,
    rewind: bool = False,
) -> int:
    """Restore what `save_training` wrote; returns the number of updates done.

    Arguments:
        rewind: take what was saved before the last, which then takes the last one's place.

    Raises:
        HebmError: there is nothing to rewind to, or the file is unusable.
    """
    source = good_path(path) if rewind else path
    if rewind and not source.is_file():
        raise HebmError(f"nothing was saved before {path}, so it cannot be rewound; resume it, or start anew")
    tensors, header = checkpoint.load(source, kind=kind)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}

    checkpoint.load_into(module, part("ema"), path)
    ema.tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}
    checkpoint.load_into(module, part("model"), path)
    checkpoint.restore_optimizer(optimizer, part("optimizer"))
    if extra is not None:
        checkpoint.load_into(extra, part("extra"), path)
    if rewind:
        source.replace(path)
    return header.step


def log_changes(run: Run, stage: str, step: int, before: Recipe, now: Recipe) -> None:
    """Record what a training goes on with otherwise than it began."""
    found = Run.changes(before, now, ["train_vae" if stage == "train-vae" else "train_prior", "flow"])
    changed = {key: values for key, values in found.items() if key.rpartition(".")[2] not in HOUSEKEEPING}
    if changed:
        run.log(f"{stage} resumed", step, changed=changed)
