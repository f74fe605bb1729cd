"""What every built-in recipe will take: the table of docs/scale.md, of `hebm plan`.

    python benchmarks/plans.py                              # a row as soon as it is counted; some take minutes
    python benchmarks/plans.py cifar10 mnist --json plans.json

Recipes whose images may have any size are planned at the one they name.
"""

import argparse
import json
import time
from pathlib import Path

from hebmtool import api, recipe
from hebmtool.console import note

GPUS = 8
HEAD = f"""| recipe | stage | parameters | FLOP per update | memory at the batch | hours, 1 H100 | {GPUS} H100 |
|---|---|---|---|---|---|---|"""


def row(name: str, stage) -> str:
    """A line of the table; what the batch is split over divides the hours, by what `plan` assumes."""
    hours = (f"{stage.hours / gpus:.3g}" for gpus in (1, GPUS))
    memory = f"{stage.memory / 1e9:.3g} GB"
    cells = (name, stage.stage, f"{stage.parameters:,}", f"{stage.flops_per_update:.3g}", memory, *hours)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("recipes", nargs="*", default=list(recipe.names()))
    asked.add_argument("--json", type=Path, help="all figures, of one GPU")
    asked = asked.parse_args()
    found = {}
    print(HEAD, flush=True)
    for name in asked.recipes:
        start, planned = time.monotonic(), api.plan(recipe.load(name, []))
        note(f"{name}: {time.monotonic() - start:.0f} s")
        for stage in planned.stages:
            print(row(name, stage), flush=True)
        found[name] = planned.figures()
        if asked.json is not None:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
