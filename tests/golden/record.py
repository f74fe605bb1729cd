"""What the tool computed before, to the bit: trainings of five updates, draws of every chain, the JSON of every command.

    python tests/golden/record.py NEW.json          record this version
    python tests/golden/record.py --check           compare with golden.json

Everything goes through the command, in this process and on one thread; nothing else of the package is touched, so that
the same file records any version of it.  Bits are only comparable on like machines (`machine`): elsewhere rounding
differs, and `compare` then holds numbers to a tolerance and passes over digests.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
DIGITS = {"name": "g", "evaluate.samples": 24}
GENERATOR = {
    "generator.layers_per_scale": 1,
    "generator.latent_channels": 2,
    "generator.encoder_channels": 16,
    "generator.decoder_channels": 8,
    "generator.preprocess_cells": 1,
    "generator.postprocess_cells": 1,
    "data.test_fraction": 0.03,
}
VAE = {f"train_vae.{key}": value for key, value in {"iterations": 5, "batch_size": 8, "log_every": 2}.items()}
PRIOR = {
    "prior.energy.width": 4,
    "prior.steps": 3,
    "train_prior.iterations": 5,
    "train_prior.batch_size": 8,
    "train_prior.log_every": 2,
    "train_prior.label_iterations": 5,
}
FLOW = {
    "flow.latent": 6,
    "flow.transforms": 3,
    "flow.hidden": 8,
    "flow.width": 4,
    "flow.steps": 3,
    "flow.test_steps": 4,
    "data.test_fraction": 0.03,
    "train_prior.iterations": 5,
    "train_prior.batch_size": 8,
    "train_prior.log_every": 2,
}
LIKELIHOODS = ("bernoulli", "gaussian", "mixture")
CHAINS = ("langevin", "preconditioned", "underdamped")
PRIORS = {
    **{f"recovery-{chain}": {"prior.objective": "recovery", "prior.chain": chain} for chain in CHAINS},
    **{
        f"ebm-recovery-{chain}": {"prior.kind": "ebm", "prior.objective": "recovery", "prior.chain": chain}
        for chain in CHAINS
    },
    "recovery-margin": {
        "prior.objective": "recovery",
        "prior.margin": 0.5,
        "prior.penalty": 0.01,
        "prior.chain": "preconditioned",
    },
    "nce": {"prior.objective": "nce", "prior.penalty": 0.01},
    "nce-langevin": {"prior.objective": "nce", "prior.chain": "langevin"},
    "cnce": {"prior.objective": "cnce"},
    "score-matching": {"prior.objective": "score-matching", "prior.chain": "preconditioned"},
    "ebm-nce": {"prior.kind": "ebm", "prior.objective": "nce"},
    "ebm-cnce": {"prior.kind": "ebm", "prior.objective": "cnce"},
    "whitened": {"prior.whiten": "true", "prior.objective": "nce"},
    "ebm-whitened": {"prior.kind": "ebm", "prior.whiten": "true", "prior.objective": "nce"},
    "published-energy": {
        "prior.objective": "recovery",
        "prior.chain": "langevin",
        "prior.energy.reads": "z",
        "prior.energy.readout": "sum",
        "prior.energy.spectral_norm": "true",
    },
    "bf16": {"prior.objective": "recovery", "prior.chain": "preconditioned", "train_prior.precision": "bf16"},
    "readjusted": {"prior.objective": "nce", "train_prior.readjust_bn": 2},
}
FLOWS = {
    "flow-affine": {},
    "flow-spline": {"flow.coupling": "spline", "flow.start": "normal"},
    "flow-persistent": {"flow.persistent": "true"},
    "flow-missing": {"data.missing": 0.5},
    "flow-normal": {"flow.transforms": 0},
}
# Timings, addresses and versions, which another day has others of.
PASSING = ("seconds per 1000 images", "command", "device", "torch", "hebmtool", "checkpoints", "package_version")


def machine() -> str:
    """What bits depend on."""
    return f"torch {torch.__version__.partition('+')[0]}, {torch.backends.cpu.get_cpu_capability()}"


def hebm(*arguments: object, stdin: bytes | None = None) -> str:
    """stdout of the command, which must succeed."""
    try:
        from hebmtool.cli.main import main
    except ImportError:
        from hebmtool.cli import main
    out, err, before = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO(), (sys.argv, sys.stdin)
    sys.argv = ["hebm", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            try:
                main()
            except SystemExit as stopped:
                if stopped.code:
                    raise AssertionError(f"{' '.join(sys.argv)} exited with {stopped.code}: {err.getvalue()}") from None
    finally:
        sys.argv, sys.stdin = before
    out.flush()
    return out.buffer.getvalue().decode()


def settings(*parts: dict) -> list[str]:
    merged = {key: value for part in parts for key, value in part.items()}
    return [word for key, value in merged.items() for word in ("--set", f"{key}={value}")]


def tensors(path: Path) -> str:
    """Digest of a checkpoint's names, types, shapes and values."""
    found = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys()):
            tensor = file.get_tensor(key)
            found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pixels(path: Path) -> dict:
    """Digest of an .npz of images, and their mean, which machines agree on."""
    images = np.load(path)["images"]
    return {
        "digest": hashlib.sha256(images.tobytes()).hexdigest(),
        "shape": list(images.shape),
        "mean": float(images.mean()),
    }


def steady(value: object, places: list[str]) -> object:
    """JSON without what passes, and with places named alike."""
    if isinstance(value, dict):
        if value.get("name") in PASSING:
            return None
        return {k: steady(v, places) for k, v in value.items() if k not in PASSING}
    if isinstance(value, list):
        return [steady(each, places) for each in value]
    if isinstance(value, str):
        for place in places:
            value = value.replace(place, "PLACE")
        # Digests of checkpoint files, whose headers come in any order.
        return re.sub(r"\b[0-9a-f]{12,64}\b", "HEX", value)
    return value


def parsed(out: str, *places: Path) -> object:
    rows = [json.loads(line) for line in out.splitlines() if line.startswith(("{", "["))]
    return steady(rows[0] if len(rows) == 1 else rows, [str(place) for place in places])


def record(root: Path) -> dict:
    """Everything, in the order of the method."""
    torch.set_num_threads(1)
    os.environ["HEBM_CACHE"] = str(root / "cache")
    found: dict = {"machine": machine()}
    trained = found["training"] = {}
    drawn = found["samples"] = {}

    def both(name: str, run: Path, stem: str) -> None:
        trained[name] = {end: tensors(run / f"{stem}{end}.safetensors") for end in ("", ".train")}

    def samples(name: str, run: Path, *options: object) -> None:
        out = root / "out" / f"{name}-{len(drawn)}.npz"
        hebm("sample", "--run", run, "-n", 4, "--seed", 3, "--out", out, *options)
        drawn[" ".join([name, *map(str, options)])] = pixels(out)

    for likelihood in LIKELIHOODS:
        keys = settings(DIGITS, GENERATOR, VAE, {"generator.likelihood": likelihood, "name": likelihood})
        hebm("train-vae", "digits", "--runs", root, *keys)
        both(f"generator {likelihood}", root / likelihood, "generator")
        samples(likelihood, root / likelihood)
    closures = found["closures"] = {}
    for name, keys in PRIORS.items():
        run = root / name
        shutil.copytree(root / "mixture", run)
        keys = settings(DIGITS, GENERATOR, VAE, PRIOR, {"name": name}, keys)
        closures[name] = parsed(hebm("train-prior", "digits", "--runs", root, *keys), root)
        kind = "ebm" if name.startswith("ebm-") else "diffusion-ebm"
        both(f"prior {name}", run, f"prior-{kind}")
        samples(name, run)
        samples(name, run, "--temperature", 0.8, "--steps", 2)
        if "langevin" not in name and name != "published-energy":
            samples(name, run, "--fast")
    samples("recovery-preconditioned", root / "recovery-preconditioned", "--progressive")
    samples("whitened", root / "whitened", "--prior", "gaussian")
    samples("nce", root / "nce", "--readjust-bn", "--readjust-temperature", 0.9)
    labels = settings(
        DIGITS,
        GENERATOR,
        VAE,
        PRIOR,
        {"name": "nce", "prior.labels": "[class,odd]", "prior.objective": "nce", "prior.penalty": 0.01},
        {"data.attributes": "{odd: ['1', '3', '5', '7', '9']}"},
    )
    closures["labels"] = parsed(hebm("train-prior", "digits", "--runs", root, "--finetune", *labels), root)
    for label in ("class", "odd"):
        both(f"label {label}", root / "nce", f"label-{label}")
    for name, keys in FLOWS.items():
        keys = settings(DIGITS, FLOW, {"name": name}, keys)
        closures[name] = parsed(hebm("train-prior", "digits-flow", "--runs", root, *keys), root)
        both(f"prior {name}", root / name, "prior-flow")
        samples(name, root / name)

    resumed = root / "resumed"
    shutil.copytree(root / "nce", resumed)
    keys = settings(
        DIGITS,
        GENERATOR,
        VAE,
        PRIOR,
        {"prior.objective": "nce", "prior.penalty": 0.01, "name": "resumed", "train_prior.iterations": 8},
    )
    closures["resumed"] = parsed(hebm("train-prior", "digits", "--runs", root, "--resume", *keys), root)
    both("prior resumed", resumed, "prior-diffusion-ebm")

    images = root / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8))
    out = root / "out"
    commands = found["json"] = {}

    def command(name: str, *arguments: object) -> None:
        commands[name] = parsed(hebm(*arguments), root)

    for run in ("nce", "ebm-recovery-langevin", "whitened", "flow-affine"):
        command(f"info {run}", "info", root / run, "--json")
        for score in ([], ["--layer", 0]) if run != "flow-affine" else ([],):
            command(f"ood-score {run} {score}", "ood-score", images, "--run", root / run, "--json", *score)
        command(
            f"ood-score --auroc {run}",
            "ood-score",
            "--auroc",
            "-n",
            12,
            "--run",
            root / run,
            "--json",
            "--out",
            out / f"ood-{run}.png",
        )
        command(
            f"reconstruct {run}",
            "reconstruct",
            images,
            "--run",
            root / run,
            "--json",
            "--steps",
            3,
            "--out",
            out / f"r-{run}.npz",
        )
        command(
            f"inpaint {run}",
            "inpaint",
            images,
            "--run",
            root / run,
            "--json",
            "--steps",
            3,
            "--draws",
            2,
            "--out",
            out / f"i-{run}.npz",
        )
        for kind in "ri":
            commands[f"{kind} {run}"] = pixels(out / f"{kind}-{run}.npz")
    command(
        "ood-score diffusion",
        "ood-score",
        images,
        "--run",
        root / "nce",
        "--scheme",
        "diffusion",
        "--layer",
        1,
        "--level",
        2,
        "--json",
    )
    command("ood-score llr", "ood-score", images, "--run", root / "nce", "--score", "llr", "--layer", 1, "--json")
    command("ood-score langevin", "ood-score", images, "--run", root / "recovery-langevin", "--layer", 0, "--json")
    for run in ("nce", "ebm-recovery-langevin", "recovery-preconditioned"):
        command(
            f"hier-sample {run}",
            "hier-sample",
            "--all",
            "-n",
            2,
            "--columns",
            2,
            "--run",
            root / run,
            "--json",
            "--out",
            out / f"h-{run}.png",
        )
        commands[f"hier-sample picture {run}"] = {"digest": file(out / f"h-{run}.png")}
    command(
        "hier-sample gaussian",
        "hier-sample",
        "--layer",
        1,
        "-n",
        2,
        "--columns",
        2,
        "--prior",
        "gaussian",
        "--run",
        root / "nce",
        "--json",
        "--out",
        out / "h-gaussian.png",
    )
    command(
        "controllable",
        "controllable",
        "--class",
        3,
        "--attribute",
        "odd=1:0.5",
        "-n",
        4,
        "--run",
        root / "nce",
        "--no-report",
        "--json",
        "--out",
        out / "c.png",
    )
    commands["controllable picture"] = {"digest": file(out / "c.png")}
    hebm(
        "controllable",
        "--class",
        3,
        "--across-layers",
        "-n",
        2,
        "--run",
        root / "nce",
        "--no-report",
        "--out",
        out / "a.png",
    )
    commands["across-layers picture"] = {"digest": file(out / "a.png")}
    command("flow-match", "flow-match", root / "flow-affine", "-n", 16, "--json", "--out", out / "match.png")
    for run, options in (
        ("nce", ["--fast"]),
        ("ebm-recovery-langevin", []),
        ("whitened", ["--repeats", 2]),
        ("readjusted", []),
    ):
        command(
            f"evaluate {run} {' '.join(map(str, options))}", "evaluate", root / run, "--samples", 24, "--json", *options
        )
    command("compare", "compare", root / "nce", root / "whitened", "--json")
    for run, options in (
        ("nce", ["--prior", "diffusion-ebm"]),
        ("ebm-recovery-langevin", ["--only", "chains"]),
        ("whitened", ["--only", "likelihood"]),
        ("nce", ["--prior", "gaussian", "--only", "two-sample"]),
    ):
        command(
            f"diagnose {run} {' '.join(map(str, options))}",
            "diagnose",
            root / run,
            "--samples",
            24,
            "--steps",
            2,
            "--json",
            *options,
        )
    return found


def compare(kept: object, found: object, exact: bool, where: str = "") -> list[str]:
    """Where two records differ, a line each."""
    if isinstance(kept, dict) and isinstance(found, dict):
        lines = [f"{where}/{key}: only in one" for key in kept.keys() ^ found.keys()]
        for key in kept.keys() & found.keys():
            lines += compare(kept[key], found[key], exact, f"{where}/{key}")
        return lines
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        return [
            line
            for i, pair in enumerate(zip(kept, found, strict=True))
            for line in compare(*pair, exact, f"{where}/{i}")
        ]
    if isinstance(kept, float | int) and isinstance(found, float | int) and not isinstance(kept, bool):
        same = kept == found or math.isclose(
            kept, found, rel_tol=1e-6 if exact else 0.05, abs_tol=1e-9 if exact else 0.02
        )
        return [] if same else [f"{where}: {kept} then, {found} now"]
    if not exact and isinstance(kept, str):
        return []
    return [] if kept == found else [f"{where}: {str(kept)[:200]} then, {str(found)[:200]} now"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder).resolve())
    if sys.argv[1:] == ["--check"]:
        kept = json.loads(GOLDEN.read_text())
        lines = compare(kept, found, kept["machine"] == found["machine"])
        print("\n".join(lines) or "as it was")
        sys.exit(bool(lines))
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
