"""Training on in a run: which run is meant, and what it was trained with.

Every checkpoint's header holds the whole recipe it was trained with, and is its record.  recipe.yaml is the recipe of
the run: what was trained last, with remarks on what the other checkpoints were trained with where that differs.
"""

import json
import os
from pathlib import Path

from hebmtool.errors import HebmError
from hebmtool.recipe import Recipe, names
from hebmtool.run.folder import Run
from hebmtool.run.header import header, recipe

OF_A_PRIOR = ("prior", "flow", "train_prior")
"""Parts of a recipe that are a prior's own."""


def named(word: object, root: str | Path) -> Run | None:
    """The run that is named where a recipe could be: itself, its folder, its recipe.yaml under `root`, or its name
    under `root` where no recipe is called so.  None where it is a recipe's name, or a recipe."""
    if isinstance(word, Run):
        return word
    if not isinstance(word, str | Path) or str(word) in names():
        return None
    path = Path(word)
    if path.name == "recipe.yaml" and os.path.dirname(os.path.realpath(path.parent)) == os.path.realpath(root):
        path = path.parent
    if path.is_file():
        return None
    for folder in (path, Path(root) / path):
        run = Run(folder)
        if folder.is_dir() and run.recipe_path.is_file() and run.checkpoints():
            return run
    return None


def trained_with(run: Run, path: Path) -> Recipe:
    """The run's recipe, what is a prior's own as the prior with the checkpoint `path`, if it is there, was trained.

    Raises:
        HebmError: recipe.yaml is missing or wrong, or the checkpoint is unusable.
    """
    settings = run.recipe()
    if not path.is_file():
        return settings
    own = recipe(path, header(path))
    return settings.model_copy(update={part: getattr(own, part) for part in OF_A_PRIOR})


def remarks(run: Run, settings: Recipe) -> str:
    """Comments, to stand at the end of recipe.yaml: where a prior or a label was trained otherwise than it says."""
    found = []
    for path in run.checkpoints():
        if not path.name.startswith(("prior-", "label-")) or path.name.endswith(".train.safetensors"):
            continue
        try:
            own = recipe(path, header(path))
        except HebmError:  # it says so where it is opened
            continue
        changes = Run.changes(settings, own, OF_A_PRIOR)
        if changes:
            listed = ", ".join(f"{key} {json.dumps(value)}" for key, (_, value) in changes.items())
            found.append(f"#   {path.name.removesuffix('.safetensors')}: {listed}")
    opening = ["# Trained otherwise than this says, as the header of each checkpoint tells in full:"]
    return "\n".join([*opening, *found, ""]) if found else ""


def remark(run: Run) -> None:
    """Bring the remarks in recipe.yaml up to date."""
    settings = run.recipe()
    run.write_recipe(settings, remarks(run, settings))
