"""How fast stage two and sampling are, against a plain implementation of the same arithmetic (`benchmarks/plain.py`).

    python benchmarks/langevin.py                            # small geometries: digits, mnist, cifar10-small
    python benchmarks/langevin.py --geometry cifar10 --geometry lsun64 --json speed.json --markdown speed.md
    python benchmarks/langevin.py --scaling --profile --geometry cifar10-small
    python benchmarks/langevin.py --device cuda --geometry cifar10-small --geometry cifar10

Weights are random (BatchNorm statistics and the energies' readouts too), so nothing is downloaded or trained.  Every
variant has a process of its own, and the variants take turns, so that whatever else the machine does falls on all
alike: `plain`, ours in float32, ours in bf16, with --compile ours in bf16 as `hebm sample --compile` draws (it takes
minutes), and with --launched (CUDA only) ours in bf16 whose gradient of F is not replayed from a CUDA graph.
Numbers are medians over the rounds, and the quartiles.  The CUDA side has not been run on a GPU yet.

    step      one gradient of F(T(u), t) and one update of the recipe's chain
    sampling  T levels of K steps and the decoder, the recipe's K; from the measured step and decoder
    update    an iteration of stage two: encoder, loss, backward pass, Adam, averaging; recovery with K steps, and nce
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from plain import Plain

from hebmtool import recipe
from hebmtool.chains import value_and_gradient
from hebmtool.compute import compiling, pick_device
from hebmtool.console import note
from hebmtool.generator import Tower
from hebmtool.prior import EnergyPrior, make_prior
from hebmtool.train.loop import Ema

SMALL = ["generator.encoder_channels=32", "generator.decoder_channels=32", "prior.energy.width=32"]
# name: recipe, overrides, image shape, batch on a CPU, batch on a GPU, K of a measured recovery update
GEOMETRIES = {
    "digits": ("digits", [], (1, 8, 8), 64, 64, 10),
    "mnist": ("mnist", [], (1, 28, 28), 64, 64, 10),
    "cifar10-small": ("cifar10", SMALL, (3, 32, 32), 8, 50, 4),
    "cifar10": ("cifar10", [], (3, 32, 32), 2, 50, 2),
    "lsun64": ("lsun64", [], (3, 64, 64), 1, 50, 1),
}
VARIANTS = ("plain", "float32", "bf16", "compiled", "launched")
UPDATES = ("recovery", "nce")


# One variant ----------------------------------------------------------------------------------------------------------


def settings(geometry: str, changes: list[str]) -> recipe.Recipe:
    name, overrides, *_ = GEOMETRIES[geometry]
    return recipe.load(name, [*overrides, *changes, "prior.penalty=0"])


def build(
    r: recipe.Recipe, shape: tuple[int, int, int], precision: str, device: torch.device
) -> tuple[Tower, EnergyPrior]:
    """An unfrozen generator with random weights, and a prior on its frozen copy; the same for every precision."""
    torch.manual_seed(0)
    generator = Tower(r.generator, shape).eval()
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
    generator.to(device)
    prior = make_prior(generator.frozen(precision), r.prior)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, p in prior.named_parameters():
            if "head" in name:
                p.data.copy_(torch.randn(p.shape) * 0.02)
    return generator, prior


class Variant:
    """What one process measures: `run(what)` does it once and returns the seconds it took."""

    def __init__(self, geometry: str, variant: str, device: str, threads: int, batch: int | None, changes: list[str]):
        torch.set_num_threads(threads)
        self.device = pick_device(device) if variant != "plain" else torch.device(device)
        r = settings(geometry, changes)
        _, _, shape, on_cpu, on_gpu, steps = GEOMETRIES[geometry]
        self.batch = batch or (on_gpu if self.device.type == "cuda" else on_cpu)
        self.recipe, self.variant, self.steps = r, variant, min(steps, r.prior.steps)
        self.updates = () if variant in ("compiled", "launched") else UPDATES
        precision = "float32" if variant in ("plain", "float32") else "bf16"
        self.generator, self.prior = build(r, shape, precision, self.device)
        self.model = Plain(self.generator, self.prior) if variant == "plain" else self.prior
        torch.manual_seed(2)
        D = self.generator.D
        self.u = torch.randn(self.batch, D).to(self.device)
        self.x = torch.rand(self.batch, *shape).to(self.device)
        self.t = torch.zeros(self.batch, dtype=torch.long, device=self.device)
        energy = self.prior.energy if variant != "plain" else self.model.energy
        self.optimizer, self.ema = torch.optim.Adam(energy.parameters(), lr=1e-6), Ema(energy, 0.999)
        if variant == "compiled":
            self.held = contextlib.ExitStack()  # for as long as the process
            self.held.enter_context(compiling())
        if variant == "launched":
            self.prior.replays = lambda function, key, *tensors: function(*tensors)

    def F(self, u: torch.Tensor) -> torch.Tensor:
        return self.model.F(u, self.t)

    def noise(self) -> torch.Tensor:
        return torch.randn(self.batch, self.generator.D).to(self.device)

    def chain(self, steps: int) -> torch.Tensor:
        return self.model.negatives(self.u, self.t, self.noise, steps).detach()

    def loss(self, objective: str, u_0: torch.Tensor) -> torch.Tensor:
        self.prior.config = self.recipe.prior.model_copy(update={"objective": objective, "steps": self.steps})
        return self.model.loss(u_0) if self.variant == "plain" else self.prior.loss(u_0, self.x)[0]

    def update(self, objective: str) -> None:
        with torch.no_grad():
            u_0 = (self.model if self.variant == "plain" else self.prior.generator).encode(self.x)
        loss = self.loss(objective, u_0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        energy = self.prior.energy if self.variant != "plain" else self.model.energy
        nn.utils.clip_grad_norm_(energy.parameters(), 100.0)
        self.optimizer.step()
        self.ema.update(energy, 0)

    def sample(self) -> None:
        """Algorithm 2 with one step per level, decoded: what scaling in T is measured on."""
        u = self.u
        for t in reversed(range(self.recipe.prior.levels)):
            u = self.model.negatives(u, torch.full_like(self.t, t), self.noise, 1).detach()
        self.images(u)

    @torch.no_grad()
    def images(self, u: torch.Tensor) -> torch.Tensor:
        generator = self.model if self.variant == "plain" else self.prior.generator
        return generator.images(u)

    def run(self, what: str) -> float:
        """Seconds per step ("step"), decoded batch ("decode"), one-step-a-level draw ("draw") or update."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        if what == "step":
            self.chain(self.steps)
        elif what.startswith("chain"):
            self.chain(int(what.removeprefix("chain")))
        elif what == "decode":
            self.images(self.u)
        elif what == "draw":
            self.sample()
        else:
            self.update(what)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / (self.steps if what == "step" else 1)

    def result(self) -> tuple[np.ndarray, dict[str, float]]:
        """grad F, and the losses of an update, for comparing variants."""
        if self.variant == "plain":
            slope = self.model.slope(self.F, self.u)
        else:
            with self.prior.energy.fixed():
                _, slope = self.prior.slope(self.t)(self.u)
        losses = {}
        self.prior.energy.advance = lambda: None  # as in the plain loss
        for objective in self.updates:
            torch.manual_seed(4)
            losses[objective] = self.loss(objective, self.u).item()
        del self.prior.energy.advance
        return slope.cpu().numpy(), losses

    def memory(self, start: bool = False) -> float:
        """MB held at most since the last call with `start`: of the GPU, or of the process (Linux)."""
        if self.device.type == "cuda":
            if start:
                torch.cuda.reset_peak_memory_stats()
            return torch.cuda.max_memory_allocated() / 2**20
        if start:
            ctypes.CDLL(None).malloc_trim(0)  # what building the models left behind
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def peak(self) -> float:
        """MB that one step needs beyond the models; to be asked before anything else has run."""
        before = self.memory(start=True)
        self.chain(1)
        return self.memory() - before

    def flop(self) -> float:
        """Arithmetic of one gradient of F, from the shapes of convolutions and matrix products (bf16 only)."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, self.prior.energy.fixed():
            value_and_gradient(self.F, self.u)
        return float(counter.get_total_flops())

    def profile(self) -> dict[str, float]:
        """Milliseconds per gradient by kind of operation, torch's own overhead apart."""
        from torch.profiler import ProfilerActivity, profile

        kinds = {"convolution": "convolution", "_slow_conv2d": "convolution", "silu": "activation", "elu": "activation"}
        for _ in range(3):
            self.chain(1)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(3):
                self.chain(1)
        times: dict[str, float] = {}
        for event in found.key_averages():
            name = event.key.removeprefix("aten::")
            kind = next((kinds[word] for word in kinds if word in name), None)
            if kind is None:
                kind = "other arithmetic" if event.key.startswith("aten::") else "Python and autograd"
            times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total / 3e3
        return times


def work(pipe, *arguments) -> None:
    """A process that answers (method, arguments) from the pipe until it is closed."""
    variant = Variant(*arguments)
    pipe.send(variant.batch)
    while (request := pipe.recv()) is not None:
        method, *rest = request
        pipe.send(getattr(variant, method)(*rest))


class Worker:
    """A variant in a process of its own."""

    def __init__(self, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, *arguments), daemon=True)
        self.process.start()
        self.batch = self.pipe.recv()

    def ask(self, method: str, *arguments):
        self.pipe.send((method, *arguments))
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


# Comparing ------------------------------------------------------------------------------------------------------------


def spread(times: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def compare(geometry: str, args: argparse.Namespace) -> dict:
    """Every variant on one geometry: equality, memory, and times, alternating."""
    optional = {"compiled": args.compile, "launched": args.launched}
    variants = [v for v in VARIANTS if optional.get(v, True)]
    workers = {v: Worker(geometry, v, args.device, args.threads, args.batch, []) for v in variants}
    r = settings(geometry, [])
    found = {"geometry": geometry, "batch": workers["plain"].batch, "K": r.prior.steps, "T": r.prior.levels}
    found |= {"K_update": min(GEOMETRIES[geometry][-1], r.prior.steps), "chain": r.prior.chain}
    found["memory_mb"] = {v: w.ask("peak") for v, w in workers.items()}
    results = {v: w.ask("result") for v, w in workers.items()}
    slope, losses = results["plain"]
    found["error"], found["loss_error"] = {}, {}
    for v, (slope_v, losses_v) in results.items():
        found["error"][v] = float(np.linalg.norm(slope_v - slope) / np.linalg.norm(slope))
        found["loss_error"][v] = {k: abs(losses_v[k] - losses[k]) / max(1.0, abs(losses[k])) for k in losses_v}
    times: dict[str, dict[str, list[float]]] = {v: {} for v in variants}
    for kind in ("step", "decode", *UPDATES):
        able = {v: w for v, w in workers.items() if kind not in UPDATES or v not in optional}
        for w in able.values():
            w.ask("run", kind)
        for _ in range(args.rounds):
            for v, w in able.items():
                times[v].setdefault(kind, []).append(w.ask("run", kind))
    found["seconds"] = {v: {kind: spread(seconds) for kind, seconds in times[v].items()} for v in variants}
    found["speedup"] = {
        v: {
            kind: spread([a / b for a, b in zip(times["plain"][kind], seconds, strict=True)])
            for kind, seconds in times[v].items()
        }
        for v in variants
        if v != "plain"
    }
    draws = r.prior.levels * r.prior.steps
    found["images_per_second"] = {}
    for v in variants:
        seconds = draws * found["seconds"][v]["step"]["median"] + found["seconds"][v]["decode"]["median"]
        found["images_per_second"][v] = found["batch"] / seconds
    found["flop"] = workers["bf16"].ask("flop")
    if args.profile:
        found["profile"] = {v: w.ask("profile") for v, w in workers.items()}
    for w in workers.values():
        w.close()
    return found


# Scaling --------------------------------------------------------------------------------------------------------------

SCALES = {
    "batch": [1, 2, 4, 8, 16],
    "L": [5, 10, 20, 30],
    "K": [1, 2, 4, 8],
    "T": [2, 3, 4, 6],
}


def scaling(args: argparse.Namespace) -> dict:
    """Seconds against batch size, L, K and T on cifar10-small, bf16, and the exponent of the fitted power."""
    found = {}
    for what, values in SCALES.items():
        seconds = []
        for value in values:
            changes = {"L": [f"generator.layers_per_scale={value}"], "T": [f"prior.levels={value}"]}.get(what, [])
            batch = value if what == "batch" else args.batch
            worker = Worker("cifar10-small", "bf16", args.device, args.threads, batch, changes)
            kind = {"K": f"chain{value}", "T": "draw"}.get(what, "chain1")
            worker.ask("run", kind)
            seconds.append(spread([worker.ask("run", kind) for _ in range(max(3, args.rounds))])["median"])
            worker.close()
        exponent = float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
        found[what] = {"values": values, "seconds": seconds, "exponent": exponent}
        note(f"{what}: exponent {exponent:.2f}")
    return found


# The machine ----------------------------------------------------------------------------------------------------------


def peaks(device: str, threads: int) -> dict[str, float]:
    """What this machine reaches: GFLOP/s of a 3x3 convolution (128 to 128 channels, 16 maps of 16x16, on a GPU 256)
    and of a matrix product (1024, on a GPU 8192), and GB/s of copying 256 MB."""
    torch.set_num_threads(threads)
    where = torch.device(device)
    n, side = (256, 8192) if where.type == "cuda" else (16, 1024)

    def clock(f: Callable) -> float:
        times = []
        for _ in range(8):
            if where.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            f()
            if where.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    found = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(n, 128, 16, 16, device=where, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(128, 128, 3, 3, device=where, dtype=dtype).to(memory_format=torch.channels_last)
        a = torch.randn(side, side, device=where, dtype=dtype)
        seconds = clock(lambda x=x, w=w: nn.functional.conv2d(x, w, padding=1))
        found[f"convolution {name}"] = 2 * n * 256 * 128**2 * 9 / seconds / 1e9
        found[f"matrix {name}"] = 2 * side**3 / clock(lambda a=a: a @ a) / 1e9
    source = torch.randn(2**26, device=where)
    target = torch.zeros_like(source)
    found["copy GB/s"] = 2 * source.nbytes / clock(lambda: target.copy_(source)) / 1e9
    return found


# Showing --------------------------------------------------------------------------------------------------------------


def per_second(seconds: dict[str, float]) -> str:
    return f"{1 / seconds['median']:.3g} ({1 / seconds['high']:.3g}-{1 / seconds['low']:.3g})"


def markdown(report: dict) -> str:
    """The whole report as Markdown tables."""
    m = report["machine"]
    lines = [
        f"{m['device']}, {m['threads']} threads, torch {m['torch']}; medians (quartiles) of {report['rounds']} rounds.",
        "Measured peaks: " + ", ".join(f"{k} {v:.0f}" for k, v in report["peaks"].items()) + " (GFLOP/s).",
    ]
    columns = ["geometry", "batch", "variant", "steps/s", "x plain", "images/s", "recovery updates/s", "x plain"]
    columns += ["nce updates/s", "x plain", "error of the gradient", "peak MB", "share of peak"]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for g in report["geometries"]:
        for v, seconds in g["seconds"].items():
            gain = {kind: f"{s['median']:.2f}" for kind, s in g["speedup"].get(v, {}).items()}
            cells = [g["geometry"], g["batch"], v, per_second(seconds["step"]), gain.get("step", "1")]
            cells.append(f"{g['images_per_second'][v]:.3g}")
            for objective in UPDATES:
                measured = objective in seconds
                cells += [per_second(seconds[objective]), gain.get(objective, "1")] if measured else ["", ""]
            cells += [f"{g['error'][v]:.1e}", f"{g['memory_mb'][v]:.0f}", ""]
            if v != "plain":
                peak = report["peaks"]["convolution float32" if v == "float32" else "convolution bf16"] * 1e9
                cells[-1] = f"{100 * g['flop'] / seconds['step']['median'] / peak:.0f}%"
            lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    chains = ", ".join(f"{g['geometry']} {g['K_update']}" for g in report["geometries"])
    lines += ["", f"Langevin steps of a measured recovery update: {chains}."]
    for g in report["geometries"]:
        if "profile" in g:
            kinds = sorted({k for times in g["profile"].values() for k in times})
            lines += ["", f"Milliseconds of a gradient, {g['geometry']}:", ""]
            lines += ["| variant | " + " | ".join(kinds) + " |", "|" + "---|" * (len(kinds) + 1)]
            for v, times in g["profile"].items():
                lines.append(f"| {v} | " + " | ".join(f"{times.get(k, 0):.1f}" for k in kinds) + " |")
    if "scaling" in report:
        lines += ["", "| cost against | values | seconds | exponent |", "|---|---|---|---|"]
        for what, s in report["scaling"].items():
            values, seconds = ", ".join(map(str, s["values"])), ", ".join(f"{t:.3f}" for t in s["seconds"])
            lines.append(f"| {what} | {values} | {seconds} | {s['exponent']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", action="append", choices=GEOMETRIES, help="repeatable; the small ones by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, help="images at a time, instead of each geometry's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also go through torch.compile")
    parser.add_argument("--launched", action="store_true", help="also launch the gradient's kernels one by one")
    parser.add_argument("--scaling", action="store_true", help="also fit the cost against batch size, L, K and T")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there")
    args = parser.parse_args()
    if args.launched and not args.device.startswith("cuda"):
        parser.error("--launched needs --device cuda: elsewhere nothing is replayed")
    if not args.device.startswith("cuda"):
        note("no GPU is measured: run the same command with --device cuda where there is one")
    report = {
        "machine": {
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "CPU",
            "threads": args.threads,
            "torch": torch.__version__,
        },
        "rounds": args.rounds,
        "peaks": peaks(args.device, args.threads),
        "geometries": [],
    }
    for geometry in args.geometry or ["digits", "mnist", "cifar10-small"]:
        found = compare(geometry, args)
        report["geometries"].append(found)
        gains = {v: f"{g['step']['median']:.2f}x steps" for v, g in found["speedup"].items()}
        note(f"{geometry}: {gains}, error of the gradient {found['error']}")
    if args.scaling:
        report["scaling"] = scaling(args)
    text = markdown(report)
    print(text, end="")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1))
    if args.markdown:
        Path(args.markdown).write_text(text)


if __name__ == "__main__":
    main()
