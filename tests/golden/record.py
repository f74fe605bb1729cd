"""What the tool computed before, to the bit: trainings of five updates, draws of every chain, commands' JSON.

    python tests/golden/record.py NEW.json          record this version
    python tests/golden/record.py --check           compare with golden.json: some 100 s, on one thread
    python tests/golden/record.py --check --quick   compare a part of it, as the test suite does

Everything goes through the command, in this process and on one thread; nothing else of the package is touched, so that
the same file records any version of it.  Bits are only comparable on like machines (`machine`): elsewhere rounding
differs, and `compare` then holds numbers to a tolerance and passes over digests.
"""

import argparse
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
from unittest import mock

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
RECOVERY, JOINT, NCE = {"prior.objective": "recovery"}, {"prior.kind": "ebm"}, {"prior.objective": "nce"}
PUBLISHED = {"prior.energy.reads": "z", "prior.energy.readout": "sum", "prior.energy.spectral_norm": "true"}
PRIORS = {
    **{f"recovery-{chain}": RECOVERY | {"prior.chain": chain} for chain in CHAINS},
    **{f"ebm-recovery-{chain}": JOINT | RECOVERY | {"prior.chain": chain} for chain in CHAINS},
    "recovery-margin": RECOVERY | {"prior.margin": 0.5, "prior.penalty": 0.01, "prior.chain": "preconditioned"},
    "nce": NCE | {"prior.penalty": 0.01},
    "nce-langevin": NCE | {"prior.chain": "langevin"},
    "cnce": {"prior.objective": "cnce"},
    "score-matching": {"prior.objective": "score-matching", "prior.chain": "preconditioned"},
    "ebm-nce": JOINT | NCE,
    "ebm-cnce": JOINT | {"prior.objective": "cnce"},
    "whitened": NCE | {"prior.whiten": "true"},
    "ebm-whitened": JOINT | NCE | {"prior.whiten": "true"},
    "published-energy": RECOVERY | {"prior.chain": "langevin"} | PUBLISHED,
    "bf16": RECOVERY | {"prior.chain": "preconditioned", "train_prior.precision": "bf16"},
    "readjusted": NCE | {"train_prior.readjust_bn": 2},
}
FLOWS = {
    "flow-affine": {},
    "flow-spline": {"flow.coupling": "spline", "flow.start": "normal"},
    "flow-persistent": {"flow.persistent": "true"},
    "flow-missing": {"data.missing": 0.5},
    "flow-normal": {"flow.transforms": 0},
}
# Every kind, objective and chain, if not every pair of them.
QUICK_PRIORS = (
    *("recovery-langevin", "recovery-preconditioned", "ebm-recovery-underdamped"),
    *("nce", "cnce", "score-matching", "ebm-cnce", "whitened"),
)
QUICK_FLOWS = ("flow-affine", "flow-persistent")
SECTIONS = ("training", "samples", "closures", "json")
# Timings, addresses and versions, which another day has others of.
PASSING = ("seconds per 1000 images", "command", "device", "torch", "hebmtool", "checkpoints", "package_version")


def machine() -> str:
    """What bits depend on."""
    return f"torch {torch.__version__.partition('+')[0]}, {torch.backends.cpu.get_cpu_capability()}"


def hebm(*arguments: object) -> str:
    """stdout of the command, which must succeed."""
    try:
        from hebmtool.cli.main import main
    except ImportError:
        from hebmtool.cli import main
    out, err, before = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO(), sys.argv
    sys.argv = ["hebm", *map(str, arguments)]
    try:
        # --fast was in bf16 on every processor; now it is only where that has instructions for it.
        bf16 = mock.patch.object(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bf16:
            main()
    except SystemExit as stopped:
        if stopped.code:
            raise AssertionError(f"{' '.join(sys.argv)} exited with {stopped.code}: {err.getvalue()}") from None
    finally:
        sys.argv = before
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


class Record:
    """What is found, section by section, of runs made in the folder `root`."""

    def __init__(self, root: Path):
        torch.set_num_threads(1)
        os.environ["HEBM_CACHE"] = str(root / "cache")
        self.root, self.out = root, root / "out"
        self.images = root / "images.npy"
        np.save(self.images, np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8))
        self.training, self.samples, self.closures, self.json = {}, {}, {}, {}

    def found(self) -> dict:
        return {"machine": machine()} | {name: getattr(self, name) for name in SECTIONS}

    # One of each

    def trained(self, name: str, run: str, stem: str) -> None:
        paths = {end: self.root / run / f"{stem}{end}.safetensors" for end in ("", ".train")}
        self.training[name] = {end: tensors(path) for end, path in paths.items()}

    def sample(self, run: str, *options: object) -> None:
        out = self.out / f"{run}-{len(self.samples)}.npz"
        hebm("sample", "--run", self.root / run, "-n", 4, "--seed", 3, "--out", out, *options)
        self.samples[" ".join([run, *map(str, options)])] = pixels(out)

    def train(self, name: str, recipe: str, *parts: dict, options: tuple = ()) -> None:
        """Stage two of the run that the last of `parts` names."""
        told = hebm("train-prior", recipe, "--runs", self.root, *options, *settings(DIGITS, *parts))
        self.closures[name] = parsed(told, self.root)

    def command(self, name: str, *arguments: object) -> None:
        self.json[name] = parsed(hebm(*arguments), self.root)

    # The method, in its order

    def generator(self, likelihood: str) -> None:
        keys = settings(DIGITS, GENERATOR, VAE, {"generator.likelihood": likelihood, "name": likelihood})
        hebm("train-vae", "digits", "--runs", self.root, *keys)
        self.trained(f"generator {likelihood}", likelihood, "generator")
        self.sample(likelihood)

    def prior(self, name: str) -> None:
        shutil.copytree(self.root / "mixture", self.root / name)
        self.train(name, "digits", GENERATOR, VAE, PRIOR, PRIORS[name] | {"name": name})
        self.trained(f"prior {name}", name, f"prior-{'ebm' if name.startswith('ebm-') else 'diffusion-ebm'}")
        self.sample(name)
        self.sample(name, "--temperature", 0.8, "--steps", 2)
        if "langevin" not in name and name != "published-energy":
            self.sample(name, "--fast")

    def labels(self) -> None:
        asked = {"prior.labels": "[class,odd]", "data.attributes": "{odd: ['1', '3', '5', '7', '9']}"}
        self.train(
            "labels", "digits", GENERATOR, VAE, PRIOR, PRIORS["nce"] | asked | {"name": "nce"}, options=("--finetune",)
        )
        for label in ("class", "odd"):
            self.trained(f"label {label}", "nce", f"label-{label}")

    def flow(self, name: str) -> None:
        self.train(name, "digits-flow", FLOW, FLOWS[name] | {"name": name})
        self.trained(f"prior {name}", name, "prior-flow")
        self.sample(name)

    def resumed(self) -> None:
        shutil.copytree(self.root / "nce", self.root / "resumed")
        longer = {"train_prior.iterations": 8, "name": "resumed"}
        self.train("resumed", "digits", GENERATOR, VAE, PRIOR, PRIORS["nce"] | longer, options=("--resume",))
        self.trained("prior resumed", "resumed", "prior-diffusion-ebm")

    # Commands

    def look(self, run: str, *layers: int, auroc: bool) -> None:
        """What is said of a run, and of images by it."""
        at, out = ("--run", self.root / run, "--json"), self.out
        self.command(f"info {run}", "info", self.root / run, "--json")
        for score in ([], *(["--layer", layer] for layer in layers)):
            self.command(f"ood-score {run} {score}", "ood-score", self.images, *at, *score)
        if auroc:
            picture = ("--out", out / f"ood-{run}.png")
            self.command(f"ood-score --auroc {run}", "ood-score", "--auroc", "-n", 12, *at, *picture)
        for name, options in (("reconstruct", []), ("inpaint", ["--draws", 2])):
            images = out / f"{name[0]}-{run}.npz"
            self.command(f"{name} {run}", name, self.images, *at, "--steps", 3, *options, "--out", images)
            self.json[f"{name[0]} {run}"] = pixels(images)

    def score(self, name: str, run: str, *options: object) -> None:
        self.command(f"ood-score {name}", "ood-score", self.images, "--run", self.root / run, *options, "--json")

    def resample(self, run: str) -> None:
        picture = self.out / f"h-{run}.png"
        at = ("-n", 2, "--columns", 2, "--run", self.root / run, "--json", "--out", picture)
        self.command(f"hier-sample {run}", "hier-sample", "--all", *at)
        self.json[f"hier-sample picture {run}"] = {"digest": file(picture)}

    def control(self) -> None:
        at = ("--run", self.root / "nce", "--no-report")
        asked = ("--class", 3, "--attribute", "odd=1:0.5", "-n", 4)
        self.command("controllable", "controllable", *asked, *at, "--json", "--out", self.out / "c.png")
        self.json["controllable picture"] = {"digest": file(self.out / "c.png")}
        hebm("controllable", "--class", 3, "--across-layers", "-n", 2, *at, "--out", self.out / "a.png")
        self.json["across-layers picture"] = {"digest": file(self.out / "a.png")}

    def evaluate(self, run: str, *options: object) -> None:
        name = f"evaluate {run} {' '.join(map(str, options))}"
        self.command(name, "evaluate", self.root / run, "--samples", 24, "--json", *options)

    def diagnose(self, run: str, *options: object) -> None:
        name = f"diagnose {run} {' '.join(map(str, options))}"
        self.command(name, "diagnose", self.root / run, "--samples", 24, "--steps", 2, "--json", *options)


def record(root: Path) -> dict:
    """Everything, in the order of the method."""
    r = Record(root)
    for likelihood in LIKELIHOODS:
        r.generator(likelihood)
    for name in PRIORS:
        r.prior(name)
    r.sample("recovery-preconditioned", "--progressive")
    r.sample("whitened", "--prior", "gaussian")
    r.sample("nce", "--readjust-bn", "--readjust-temperature", 0.9)
    r.labels()
    for name in FLOWS:
        r.flow(name)
    r.resumed()
    for run in ("nce", "ebm-recovery-langevin", "whitened"):
        r.look(run, 0, auroc=True)
    r.look("flow-affine", auroc=True)
    r.score("diffusion", "nce", "--scheme", "diffusion", "--layer", 1, "--level", 2)
    r.score("llr", "nce", "--score", "llr", "--layer", 1)
    r.score("langevin", "recovery-langevin", "--layer", 0)
    for run in ("nce", "ebm-recovery-langevin", "recovery-preconditioned"):
        r.resample(run)
    one = ("--layer", 1, "-n", 2, "--columns", 2, "--prior", "gaussian", "--run", root / "nce")
    r.command("hier-sample gaussian", "hier-sample", *one, "--json", "--out", r.out / "h-gaussian.png")
    r.control()
    r.command("flow-match", "flow-match", root / "flow-affine", "-n", 16, "--json", "--out", r.out / "match.png")
    r.evaluate("nce", "--fast")
    r.evaluate("ebm-recovery-langevin")
    r.evaluate("whitened", "--repeats", 2)
    r.evaluate("readjusted")
    r.command("compare", "compare", root / "nce", root / "whitened", "--json")
    r.diagnose("nce", "--prior", "diffusion-ebm")
    r.diagnose("ebm-recovery-langevin", "--only", "chains")
    r.diagnose("whitened", "--only", "likelihood")
    r.diagnose("nce", "--prior", "gaussian", "--only", "two-sample")
    return r.found()


def quick(root: Path) -> dict:
    """A part of everything, in the same order: a kind, objective or chain that has changed shows in it."""
    r = Record(root)
    r.generator("mixture")
    for name in QUICK_PRIORS:
        r.prior(name)
    r.labels()
    for name in QUICK_FLOWS:
        r.flow(name)
    r.resumed()
    r.look("nce", 0, auroc=False)
    r.look("flow-affine", auroc=False)
    r.score("langevin", "recovery-langevin", "--layer", 0)
    r.resample("nce")
    r.control()
    r.evaluate("nce", "--fast")
    return r.found()


def figures(found: object) -> bool:
    """Whether it is a list of measured figures, of which some may have passed."""
    found = [each for each in found if each is not None] if isinstance(found, list) else []
    return bool(found) and all(isinstance(each, dict) and {"name", "of", "layer"} <= each.keys() for each in found)


def compare(kept: object, found: object, exact: bool, where: str = "") -> list[str]:
    """Where two records differ, a line each; unless `exact`, numbers may differ a little and digests at will.  What a
    command says in JSON may have keys that it had not."""
    if isinstance(kept, dict) and isinstance(found, dict):
        new = set() if re.match("/json/.", where) else found.keys() - kept.keys()
        lines = [f"{where}/{key}: only in one" for key in (kept.keys() - found.keys()) | new]
        for key in kept.keys() & found.keys():
            lines += compare(kept[key], found[key], exact, f"{where}/{key}")
        return lines
    if figures(kept) and figures(found):
        then, now = ({(f["name"], f["of"], f["layer"]): f for f in some if f is not None} for some in (kept, found))
        return compare(then, {key: now[key] for key in then if key in now}, exact, where)  # there may be new ones
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


def differences(found: dict, part: bool = False) -> list[str]:
    """Where what was found is not what golden.json has, a line each; of a `part` only what it has."""
    golden = json.loads(GOLDEN.read_text())
    exact = golden["machine"] == found["machine"]
    lines = []
    for section in SECTIONS:
        names = found[section] if part else golden[section] | found[section]
        for name in names:
            then, now = golden[section].get(name, "nothing"), found[section].get(name, "nothing")
            lines += compare(then, now, exact, f"/{section}/{name}")
    return lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("new", nargs="?", type=Path, help="record into this file")
    asked.add_argument("--check", action="store_true", help="compare with golden.json")
    asked.add_argument("--quick", action="store_true", help="only a part")
    asked = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = (quick if asked.quick else record)(Path(folder).resolve())
    if asked.new:
        asked.new.write_text(json.dumps(found, indent=1) + "\n")
    if asked.check:
        lines = differences(found, asked.quick)
        print("\n".join(lines) or "as it was")
        sys.exit(bool(lines))


if __name__ == "__main__":
    main()
