"""What an update costs, without making it: arithmetic, memory and parameters of every stage, counted on the device
`meta`, whose tensors have shapes and no values.

    FLOPs of an update(N, K) = fixed + N (per image + K per step)           N: images, K: Langevin steps

Arithmetic is what torch counts of convolutions and matrix products (`torch.utils.flop_counter`), two for a
multiplication and an addition.  Memory is the most that tensors take at a time while an update is computed, with the
optimizer's state: kernels' own workspace and what an allocator keeps besides are not in it.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hebmtool.errors import UsageError
from hebmtool.generator import Tower
from hebmtool.generator.layers import SpectralPenalty
from hebmtool.prior import KINDS, Prior, make_prior
from hebmtool.prior.itself import own_draws
from hebmtool.prior.labels import CLASS, LabelEnergy
from hebmtool.prior.objectives import RUN_CHAINS
from hebmtool.prior.schedule import Schedule
from hebmtool.recipe import Recipe
from hebmtool.train import labels, vae
from hebmtool.train.joint import joint_loss
from hebmtool.train.prior import check_finish, finishing

META = torch.device("meta")
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28)}
SHAPES |= {"cifar10": (3, 32, 32), "svhn": (3, 32, 32)}
CLASSES = 10
"""Of every source whose classes are known without looking; of the others an assumption, which moves little."""
STATE_COPIES = 2
"""What Adam and Adamax keep for each parameter."""


def image_shape(recipe: Recipe) -> tuple[int, int, int]:
    """(C, H, W) of the recipe's images, without looking at them.

    Raises:
        UsageError: the recipe does not tell.
    """
    data = recipe.data
    known = SHAPES.get(data.source)
    if data.size is None and known is None:
        raise UsageError(
            f"the images of data.source {data.source} may have any size, and nothing is read to plan; set data.size"
        )
    channels, *sides = known or (data.channels or 3, 0, 0)
    return (data.channels or channels, *([data.size] * 2 if data.size is not None else sides))


class Live(TorchDispatchMode):
    """Follows the bytes that tensors on a device hold, made within it, `now` and at most (`peak`); and `flops`."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.now, self.peak, self.flops = device, 0, 0, 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        counts = flop_registry.get(function._overloadpacket)
        if counts is not None:
            self.flops += counts(*args, **kwargs, out_val=found)
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.device == self.device:
                self._follow(tensor.untyped_storage())
        return found

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass
class Stage:
    """One of a training's stages, on some device.

    modules: all that is held meanwhile; learned: those that are learned; loss: of a batch of images [N, C, H, W].
    steps: K of a chain in it, 0 where none is run; with_steps(K) makes it run another number.
    keeps: whether it has checkpoints, or goes on with those of the one before.
    """

    name: str
    updates: int
    batch: int
    precision: str
    modules: list[nn.Module]
    learned: nn.Module
    loss: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    device: torch.device
    steps: int = 0
    with_steps: Callable[[int], None] = lambda K: None
    keeps: bool = True

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.learned.parameters())

    def update(self, n: int) -> None:
        """Gradients of the loss of n images."""
        self.learned.zero_grad(set_to_none=True)
        self.loss(torch.rand(n, *self.shape, device=self.device)).backward()

    @property
    def held(self) -> int:
        """Bytes of weights, buffers, the optimizer's state and averaged weights."""
        tensors = {id(t): t for module in self.modules for t in (*module.parameters(), *module.buffers())}
        learned = sum(t.nbytes for t in (*self.learned.parameters(), *self.learned.buffers()))
        state = STATE_COPIES * sum(p.nbytes for p in self.learned.parameters())
        averages = 2 * learned  # the average itself, and the module it is shown by
        return sum(t.nbytes for t in tensors.values()) + state + averages

    @property
    def disk(self) -> int:
        """Bytes of its two checkpoints: what sampling needs, and what resuming needs."""
        if not self.keeps:
            return 0
        learned = sum(t.nbytes for t in (*self.learned.parameters(), *self.learned.buffers()))
        return 3 * learned + STATE_COPIES * sum(p.nbytes for p in self.learned.parameters())


def stages(recipe: Recipe, device: torch.device = META) -> list[Stage]:
    """The stages of the recipe's training, in order."""
    if recipe.one_stage:
        return [_one_stage(recipe, device)]
    shape = image_shape(recipe)
    with device:
        generator = Tower(recipe.generator, shape, recipe.data.bits)
    found = [_vae(recipe, generator, shape)]
    if KINDS[recipe.prior.kind].learned:
        with device:
            found += _prior(recipe, Tower(recipe.generator, shape, recipe.data.bits).eval(), shape)
    return found + [_label(recipe, name, shape, device) for name in recipe.prior.labels]


def _vae(recipe: Recipe, generator: Tower, shape: tuple[int, int, int]) -> Stage:
    config, penalty = recipe.train_vae, SpectralPenalty(generator).to(generator.device)
    sizes, generator = vae.pixels(generator), generator.train()

    def loss(x: Tensor) -> Tensor:
        return vae.objective(generator, penalty, config, 0.5, sizes, x)[0]

    device = generator.device
    modules = [generator, penalty]
    return Stage(
        "train-vae", config.iterations, config.batch_size, config.precision, modules, generator, loss, shape, device
    )


def _prior(recipe: Recipe, whole: Tower, shape: tuple[int, int, int]) -> list[Stage]:
    """Of the prior, and of its last updates, against its own draws, where there are such."""
    config, kind = recipe.train_prior, recipe.prior.kind
    generator = whole if config.joint else whole.frozen(config.precision)
    prior = make_prior(generator, recipe.prior.model_copy())
    learned = nn.ModuleList([generator, prior]) if config.joint else prior

    def jointly(x: Tensor) -> Tensor:
        return joint_loss(generator, prior, x)[0]

    def encoded(objective: Callable[[Tensor, Tensor], tuple[Tensor, dict]]) -> Callable[[Tensor], Tensor]:
        def loss(x: Tensor) -> Tensor:
            with torch.no_grad():
                u_0 = generator.encode(x)
            return objective(u_0, x)[0]

        return loss

    def with_steps(K: int) -> None:
        prior.K = K

    prior.stepping(recipe.prior.theta)  # no chain is run to find its steps
    if prior.T:
        prior.schedule.on(generator.device)
    held = [generator, prior] if config.joint else [generator, prior, whole]
    check_finish(recipe)
    first, K = finishing(config), recipe.prior.steps
    steps = K if config.joint or recipe.prior.objective in RUN_CHAINS else 0
    name, batch, device = f"train-prior {kind}", (config.batch_size, config.precision, held, learned), generator.device
    loss = jointly if config.joint else encoded(prior.loss)
    found = [Stage(name, first, *batch, loss, shape, device, steps, with_steps)]
    if first < config.iterations:
        last, loss = config.iterations - first, encoded(prior.finish)
        K = max(1, round(own_draws(config).gradients(K)))
        found.append(Stage(f"{name}, finish", last, *batch, loss, shape, device, K, with_steps, keeps=False))
    return found


def _label(recipe: Recipe, name: str, shape: tuple[int, int, int], device: torch.device) -> Stage:
    config, schedule = recipe.train_prior, Schedule(recipe.prior.levels).on(device)
    with device:
        generator = Tower(recipe.generator, shape, recipe.data.bits).eval().frozen()
        values = range(CLASSES if name == CLASS else 2)
        label = LabelEnergy(name, values, generator, recipe.prior)

    def loss(x: Tensor) -> Tensor:
        return labels.objective(label, generator, schedule, x, torch.zeros(len(x), dtype=torch.long, device=device))[0]

    about = (f"train-prior label {name}", config.label_iterations, config.batch_size, generator.precision)
    return Stage(*about, [generator, label], label, loss, shape, device)


def _one_stage(recipe: Recipe, device: torch.device) -> Stage:
    config, shape, K = recipe.train_prior, image_shape(recipe), [recipe.flow.steps]
    model = KINDS[recipe.prior.kind].from_recipe(recipe, shape).to(device)

    def loss(x: Tensor) -> Tensor:
        z_0 = torch.randn(len(x), model.g.D, device=device)
        z = model.infer(x, model.start(z_0), K[0], lambda: torch.randn_like(z_0))
        return model.loss(z, x)[0]

    def with_steps(steps: int) -> None:
        K[0] = steps

    name = f"train-prior {model.kind}"
    about = (name, config.iterations, config.batch_size, config.precision, [model], model, loss, shape)
    return Stage(*about, device, K[0], with_steps)


@dataclass
class Cost:
    """flops: of an update, of one of its images' Langevin steps, and of an image in it with its steps.
    memory: bytes at the recipe's batch; per_image, fixed: what it comes to at another.  disk: bytes of checkpoints."""

    flops: float
    flops_per_step: float
    memory: int
    per_image: float
    fixed: float
    disk: int


def counted(stage: Stage, n: int, K: int | None = None) -> tuple[int, int]:
    """(FLOPs, the most bytes besides what is held) of an update of n images and K steps, on `meta`."""
    if K is not None:
        stage.with_steps(K)
    with Live(META) as live:
        stage.update(n)
        stage.learned.zero_grad(set_to_none=True)
    return live.flops, live.peak


def cost(stage: Stage) -> Cost:
    """Of an update of the stage, which is on `meta`.  A chain is counted at one step and at two."""
    n, K = stage.batch, stage.steps
    flops, peak = counted(stage, n, 1 if K else None)
    step = counted(stage, n, 2)[0] - flops if K else 0
    _, double = counted(stage, 2 * n, 1 if K else None)
    per_image = (double - peak) / n
    total = flops + max(K - 1, 0) * step
    return Cost(total, step / n, stage.held + peak, per_image, stage.held + peak - n * per_image, stage.disk)


def sampling_flops(recipe: Recipe) -> int:
    """Of an image: the whole trajectory, and its decoding."""
    if recipe.one_stage:
        prior: Prior = KINDS[recipe.prior.kind].from_recipe(recipe, image_shape(recipe)).to(META)
    else:
        with META:
            tower = Tower(recipe.generator, image_shape(recipe), recipe.data.bits).eval().frozen()
        prior = make_prior(tower, recipe.prior)
    prior.stepping(recipe.prior.theta)  # no chain is run to find its steps

    def drawn(K: int | None) -> int:
        with torch.no_grad(), Live(META) as live:
            u = prior.sample(lambda: torch.randn(1, prior.generator.D, device=META), K)
            prior.generator.images(u)
        return live.flops

    if not prior.T:
        return drawn(None)
    once = drawn(1)
    return once + (prior.gradients() - prior.T) * (drawn(2) - once) // prior.T
