"""Runs given away and taken from others: a folder without what only training needs, and a hub."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from hebmtool import files
from hebmtool.api.judging import opened
from hebmtool.errors import HebmError
from hebmtool.recipe import Recipe, dump
from hebmtool.run import hub
from hebmtool.run.folder import Run
from hebmtool.run.header import contents, is_of
from hebmtool.run.records import is_digest


def export(
    run: Run | str | Path | None = None,
    out: str | Path = "exported",
    *,
    name: str | None = None,
    half: bool = False,
    runs: str | Path = "runs",
    device: str = "auto",
) -> Path:
    """Copy a run without optimizer states, logs and paths of this machine, and write its card.

    The copy draws, scores and evaluates as the run does, bit for bit, and cannot be resumed.  It holds recipe.yaml, the
    generator, priors and labels, figures.json, README.md, and samples.png, images of the best prior.

    Arguments:
        run, runs, device: as `load`'s.
        out: a folder that does not exist yet.
        name: what the card calls the run by; the folder's name when None.
        half: whether weights are kept in bf16.  The copy then is another model, by their rounding: figures, which were
            measured of the run, are left out.

    Raises:
        HebmError: there is no such run, nothing in it can be loaded, or the folder is there or cannot be written.
    """
    from hebmtool.compute import pick_device
    from hebmtool.report import card
    from hebmtool.report.subject import Subject

    out, found = Path(out), opened(run, runs)
    if out.exists():
        raise HebmError(f"{out} exists; choose another folder for the copy, so that nothing is mixed")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside its name, and moved there whole.
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise HebmError(f"cannot make the folder {out}: {error.strerror or error}") from error
    try:
        _copy(found, made, half)
        # Of the copy, whose recipe names no path of this machine and whose weights may be rounded.
        subject = Subject(Run(made), pick_device(device), seed=0, batch_size=64)
        files.write_bytes(made / card.PICTURE, card.picture_of(subject))
        files.write_text(made / "README.md", card.card(subject, name or out.name))
        made.chmod(0o755)
        os.rename(made, out)
    except OSError as error:
        raise HebmError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out


def _copy(run: Run, folder: Path, half: bool) -> None:
    from hebmtool.run import checkpoint

    files.write_text(folder / "recipe.yaml", dump(_elsewhere(run.recipe())))
    # The generator first: others say of which they are.
    for path in sorted(run.checkpoints(), key=lambda path: path != run.generator_path):
        if not path.name.endswith(".train.safetensors"):
            tensors, header = checkpoint.load(path)
            recipe, extra = _elsewhere(checkpoint.recipe(path, header)), dict(header.extra)
            if half:
                tensors = {key: x.bfloat16() if x.is_floating_point() else x for key, x in tensors.items()}
            if "generator" in extra and is_of(extra["generator"], run.generator_path):
                # Of the copy: its weights may be rounded, and 0.1.0 recorded a digest of the file, now another.
                extra["generator"] = contents(folder / run.generator_path.name)
            checkpoint.save(folder / path.name, tensors, kind=header.kind, recipe=recipe, step=header.step, extra=extra)
    if run.figures() and not half:
        figures = _of_the_copy(json.loads(run.figures_path.read_text()), run, folder)
        files.write_text(folder / run.figures_path.name, json.dumps(figures, indent=2) + "\n")


def _of_the_copy(figures: object, run: Run, folder: Path) -> object:
    """Figures as they are kept, without the commands that made them, which name folders of this machine.

    Digests are those of the copy's checkpoints, whose recipes have all keys of this version.
    """
    if isinstance(figures, list):
        return [_of_the_copy(value, run, folder) for value in figures]
    if not isinstance(figures, dict):
        return figures
    found = {}
    for key, value in figures.items():
        if key.endswith(".safetensors") and is_digest(run.path / key, value):
            found[key] = contents(folder / key)[: len(value)]
        else:
            found[key] = None if key == "command" else _of_the_copy(value, run, folder)
    return found


def _elsewhere(recipe: Recipe) -> Recipe:
    """The recipe without paths of this machine."""
    recipe = recipe.model_copy(deep=True)
    recipe.data.path = recipe.evaluate.features = None
    return recipe


def push(
    run: Run | str | Path | None,
    address: str,
    *,
    private: bool = False,
    runs: str | Path = "runs",
    device: str = "auto",
) -> str:
    """Upload what `export` makes of a run to "user/name" on the hub; returns where it can be looked at.

    Needs huggingface_hub, and a token (HF_TOKEN, or `hf auth login`).  Raises as `export` does, and HebmError where the
    hub refuses or does not answer.
    """
    name, _ = hub.parse(address)
    hub.client()
    with tempfile.TemporaryDirectory() as folder:
        made = export(run, Path(folder) / name.partition("/")[2], name=hub.SCHEME + name, runs=runs, device=device)
        return hub.push(made, address, private)


def pull(address: str) -> Path:
    """Fetch the run "user/name" or "user/name@revision" from the hub, or take what was fetched before; its folder,
    which is for reading alone.

    Raises UsageError where it is no such address, HebmError where there is no such run or the hub does not answer.
    """
    return hub.pull(address)
