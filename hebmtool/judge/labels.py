"""Whether samples drawn under conditions on labels are as asked, by judges that know only real images.

controllability   share of samples to which a classifier of real images (`hebmtool.judge.classifier`) assigns the
                  values asked for
fd                FD of the samples to the real test images that are as asked
diversity         E ||phi(x) - phi(x')|| over pairs of samples, phi a feature network, as a ratio to that over as
                  many pairs of those real images
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hebmtool.judge import classifier
from hebmtool.metrics import distances
from hebmtool.metrics.features import load_own
from hebmtool.prior.labels import values_of
from hebmtool.recipe import Recipe
from hebmtool.run import split
from hebmtool.run.folder import Run
from hebmtool.use.controllable import Wish, title

PAIRS = 2000  # of images, whose mean feature distance is a set's diversity


def judge(images: Tensor, row: Sequence[Wish], judges: dict[str, tuple[classifier.Classifier, list[str]]]) -> dict:
    """The share of images [n, C, H, W] in which each label, and all together, are as asked; a negative weight asks for
    any other value."""
    right = {}
    for wish in row:
        model, values = judges[wish.label]
        found = model.predict(images) == values.index(wish.value)
        right[wish.label] = found if wish.weight > 0 else ~found
    together = torch.stack(list(right.values())).all(0)
    return {
        "asked": title(row),
        "controllability": together.float().mean().item(),
        "by_label": {name: found.float().mean().item() for name, found in right.items()},
    }


def diversity(features: np.ndarray, seed: int = 0) -> float:
    """Mean distance between the features [N, D] of two different images."""
    rng = np.random.default_rng(seed)
    i, j = rng.integers(len(features), size=(2, PAIRS))
    apart = i != j
    return float(np.linalg.norm(features[i[apart]] - features[j[apart]], axis=1).mean())


def report(
    sets: Sequence[Tensor], wanted: Sequence[Sequence[Wish]], run: Run, recipe: Recipe, device: torch.device
) -> dict:
    """Figures of what `sample` drew, by judges and features that know only real images.

    Returns {"classifiers": {label: its accuracy on real test images}, "rows": one entry per row: controllability (share
    as asked), and where a feature network fits, fd (Frechet distance to the real test images that are as asked) and
    diversity (mean pairwise feature distance, as a ratio to that of as many real ones)}.
    """
    images, test = (split.load(run, recipe.data, each) for each in ("train", "test"))
    judges, accuracies = {}, {}
    for name in dict.fromkeys(wish.label for row in wanted for wish in row):
        model, accuracies[name] = classifier.trained(name, run, recipe, images, test, device)
        judges[name] = (model, values_of(name, images, recipe.data)[1])
    features = load_own(recipe.evaluate.features, images.shape, device)
    real = None if features is None else features(test.batch(range(len(test))))
    entries = []
    for drawn, row in zip(sets, wanted, strict=True):
        entry = judge(drawn, row, judges) | {"samples": len(drawn)}
        if features is not None and len(drawn) > 1:
            kept = torch.ones(len(test), dtype=torch.bool)
            for wish in row:
                y, values = values_of(wish.label, test, recipe.data)
                kept &= (y == values.index(wish.value)) == (wish.weight > 0)
            as_asked, found = real[kept.numpy()], features(drawn)
            if len(as_asked) > 1:
                entry["fd"] = distances.frechet_distance(found, as_asked)
                entry["diversity"] = diversity(found) / diversity(as_asked)
                entry["reference"] = len(as_asked)
        entries.append(entry)
    return {"classifiers": accuracies, "features": None if features is None else features.name, "rows": entries}


def lines(figures: dict) -> list[str]:
    """`report`'s figures, a line each."""
    out = [
        f"the classifier of {k} is right on {100 * v:.1f}% of real test images"
        for k, v in figures.get("classifiers", {}).items()
    ]
    for entry in figures["rows"]:
        where = f", layers {entry['resampled']} resampled" if entry.get("resampled") else ""
        line = f"{entry['asked']}{where}: {100 * entry['controllability']:.1f}% of {entry['samples']} as asked"
        if "fd" in entry:
            line += f", FD {entry['fd']:.3f}, diversity {entry['diversity']:.2f} of real images'"
        out.append(line)
    return out
