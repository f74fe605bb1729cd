"""What a recipe's training will take, before anything is spent: `plan(recipe)`.

hours = updates * FLOPs of an update / (GPUs * peak FLOP/s * utilisation)

Everything but the utilisation is counted (`hebmtool.train.cost`) or a published figure; the utilisation is an
assumption, which is told with what follows from it.
"""

import ctypes
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from hebmtool import recipe as recipes
from hebmtool import table
from hebmtool.compute import device_name, pick_device
from hebmtool.errors import UsageError, did_you_mean
from hebmtool.train import cost as costs

UTILISATION = 0.2
"""Share of a GPU's peak that is assumed: what bf16 steps reached of a CPU's (docs/performance.md).  None was measured
on a GPU."""


@dataclass(frozen=True)
class Gpu:
    """A model of GPU: dense peaks in TFLOP/s by precision (float32: without TF32), memory in GB, bandwidth in GB/s.

    From the makers' data sheets: NVIDIA H100 SXM and H200 (2023), A100 80GB SXM (2021), L4 (2023), GeForce RTX 4090
    (2022; bf16 with sums in float32)."""

    bf16: float
    float32: float
    memory: float
    bandwidth: float


GPUS = {
    "h100": Gpu(989, 67, 80, 3350),
    "h200": Gpu(989, 67, 141, 4800),
    "a100": Gpu(312, 19.5, 80, 2039),
    "l4": Gpu(121, 30.3, 24, 300),
    "rtx4090": Gpu(165, 82.6, 24, 1008),
}


@dataclass
class StagePlan:
    """Of one stage: flops are of an update and of one of its images, memory and disk in bytes, hours on the GPUs asked
    for; measured: seconds of an update and bytes at most, on this machine, where that was asked for."""

    stage: str
    parameters: int
    updates: int
    batch: int
    precision: str
    flops_per_update: float
    flops_per_image: float
    memory: int
    largest_batch: int
    disk: int
    hours: float
    measured: dict | None = None


@dataclass
class Plan:
    """What `plan` found.  latent_dimensions: D.  flops_per_sample: of an image drawn."""

    recipe: str
    latent_dimensions: int
    layers: int
    gpu: str
    gpus: int
    utilisation: float
    flops_per_sample: float
    samples_per_second: float
    stages: list[StagePlan] = field(default_factory=list)

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)

    def figures(self) -> dict:
        """As JSON."""
        return asdict(self) | {"hours": self.hours}

    def __str__(self) -> str:
        head = ["", *(stage.stage for stage in self.stages)]
        rows = [[name, *map(value, self.stages)] for name, value in ROWS.items()]
        if any(stage.measured for stage in self.stages):
            rows += [[name, *map(value, self.stages)] for name, value in MEASURED.items()]
        share = f"{100 * self.utilisation:.0f}% of its peak"
        about = f"{self.recipe}: {self.layers} layer(s), {self.latent_dimensions:,} latent dimensions"
        whole = f"{self.hours:,.1f} hours on {self.gpus} {self.gpu} at {share}, an assumption"
        drawn = f"an image drawn: {_short(self.flops_per_sample)}FLOP, {self.samples_per_second:,.1f} a second"
        return f"{about}\n\n{table.plain(table.Table(head, rows, '<' + '>' * len(self.stages)))}\n\n{whole}\n{drawn}"


def _short(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000 or unit == "P":
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


ROWS = {
    "parameters": lambda s: f"{s.parameters:,}",
    "updates": lambda s: f"{s.updates:,}",
    "batch": lambda s: str(s.batch),
    "precision": lambda s: s.precision,
    "FLOP per update": lambda s: _short(s.flops_per_update),
    "FLOP per image": lambda s: _short(s.flops_per_image),
    "memory per GPU": lambda s: f"{s.memory / 1e9:.3g} GB",
    "largest batch per GPU": lambda s: f"{s.largest_batch:,}",
    "checkpoints": lambda s: f"{s.disk / 1e9:.3g} GB",
    "hours": lambda s: f"{s.hours:.3g}",
}
MEASURED = {
    "measured: s per update": lambda s: f"{s.measured['seconds']:.3g}",
    "measured: memory": lambda s: f"{s.measured['memory'] / 1e9:.3g} GB",
    "measured: hours": lambda s: f"{s.measured['seconds'] * s.updates / 3600:.3g}",
}


def plan(
    recipe: recipes.Recipe,
    gpu: str = "h100",
    gpus: int = 1,
    utilisation: float = UTILISATION,
    measure: bool = False,
    device: str = "cpu",
) -> Plan:
    """What the training of `recipe` takes.

    Arguments:
        gpu: one of `GPUS`.
        gpus: how many; the recipe's batch is split over them.
        utilisation: share of the peak that is reached, above 0 and at most 1.
        measure: whether to make two updates of each stage on `device` as well, on random images.

    Raises:
        UsageError: an unknown GPU, a number out of range, or images whose size the recipe does not tell.
    """
    if gpu not in GPUS:
        raise UsageError(f"there is no GPU '{gpu}' here; choose of {', '.join(GPUS)}{did_you_mean(gpu, GPUS)}")
    if gpus < 1 or not 0 < utilisation <= 1:
        raise UsageError(f"{gpus} GPU(s) at {utilisation} of their peak are none; take at least 1, at above 0, up to 1")
    made = costs.stages(recipe)
    speeds = {precision: 1e12 * utilisation * getattr(GPUS[gpu], precision) for precision in ("bf16", "float32")}
    found = []
    for stage in made:
        cost = costs.cost(stage)
        share = -(-stage.batch // gpus)
        room = 1e9 * GPUS[gpu].memory - cost.fixed
        seconds = cost.flops / (gpus * speeds[stage.precision])
        found.append(
            StagePlan(
                *(stage.name, stage.parameters, stage.updates, stage.batch, stage.precision),
                *(cost.flops, cost.flops / stage.batch, round(cost.fixed + share * cost.per_image)),
                *(max(0, int(room / cost.per_image)), cost.disk, stage.updates * seconds / 3600),
            )
        )
    if measure:
        for each, stage in zip(found, costs.stages(recipe, pick_device(device)), strict=True):
            each.measured = measured(stage)
    sample = costs.sampling_flops(recipe)
    D, L = (recipe.flow.latent, 1) if recipe.one_stage else (made[0].learned.D, made[0].learned.L)
    drawn = gpus * speeds[made[-1].precision] / sample
    return Plan(recipe.name, D, L, gpu, gpus, utilisation, sample, drawn, found)


def measured(stage: costs.Stage, updates: int = 2) -> dict:
    """Seconds of an update of the stage, the fastest, and the most bytes held, with an optimizer's state."""
    on_gpu = stage.device.type == "cuda"
    state = [torch.zeros_like(p) for p in stage.learned.parameters() for _ in range(costs.STATE_COPIES)]
    before = _peak(stage.device, start=True)
    times = []
    for _ in range(updates):
        start = time.perf_counter()
        stage.update(stage.batch)
        if on_gpu:
            torch.cuda.synchronize(stage.device)
        times.append(time.perf_counter() - start)
    peak = _peak(stage.device) - before
    stage.learned.zero_grad(set_to_none=True)
    del state
    return {"seconds": min(times), "memory": stage.held + peak, "device": device_name(stage.device)}


def _peak(device: torch.device, start: bool = False) -> int:
    """Bytes held now with `start`, and else at most since: of the GPU, or of the process (Linux)."""
    if device.type == "cuda":
        if start:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if start:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
