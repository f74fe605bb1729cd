"""What several commands share: each option defined once, and what is looked at before anything slow is imported.

A name in capitals is the type of a parameter.  A function is for an option of one name whose meaning differs a little
from command to command, and takes what help says of it.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from hebmtool.console import note
from hebmtool.errors import UsageError, did_you_mean

# Panels of the help, in the order in which a command's options come to them.
CHAIN, OUTPUT, WHERE = "Prior and chain", "Output", "Run and device"

READJUST_BATCHES = 500
RUNS = Path("runs")


# Checks ---------------------------------------------------------------------------------------------------------------


def one_of(option: str, *words: str) -> dict:
    """What makes an option take these words alone, and complete them."""

    def check(given: str | list[str] | None) -> str | list[str] | None:
        for word in [given] if isinstance(given, str) else given or ():
            if word not in words:
                raise UsageError(f"{option} is '{word}'; choose of {', '.join(words)}{did_you_mean(word, words)}")
        return given

    return {"callback": check, "autocompletion": lambda incomplete: starting(words, incomplete)}


def starting(words: Sequence[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _check_temperature(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise UsageError(f"--temperature is {temperature}; it must be above 0 and finite, 1 being the prior itself")
    return temperature


def _check_device(name: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name) is None:
        raise UsageError(f"--device is '{name}'; choose of auto, cpu, cuda and cuda:N")
    return name


def _choose_noise(context: typer.Context, word: str) -> str:
    """Makes every stream of this command's of the kind called by this word."""
    if word != "torch" and not context.resilient_parsing:
        from hebmtool import noise

        if word not in noise.STREAMS:
            raise UsageError(f"--noise is '{word}'; choose of torch, philox{did_you_mean(word, noise.STREAMS)}")
        context.with_resource(noise.streams(word))
    return word


def compile_by(context: typer.Context, wanted: bool, graphs: bool = False) -> bool:
    """Makes what this command spends its time in go through torch.compile, or with `graphs` be replayed as it is."""
    if wanted and not context.resilient_parsing:
        from hebmtool import compute

        if compute.is_compiling():
            raise UsageError("--graphs and --compile are two ways to be fast; leave out either")
        context.with_resource(compute.compiling(compute.GRAPHS if graphs else None))
    return wanted


def check_fast(fast: bool, steps: int | None) -> None:
    if fast and steps is not None:
        raise UsageError("--fast chooses the Langevin steps itself; leave out either it or --steps")


def check_stdout(as_json: bool, other: str, taken: bool) -> None:
    """One thing at a time is written to standard output."""
    if as_json and taken:
        raise UsageError(f"--json and {other} both write to standard output; choose one")


def sampler(chain: str | None, **settings: float | None) -> dict[str, object]:
    """The chain and those of its settings that are given, in bounds."""
    given = {key: value for key, value in {"chain": chain, **settings}.items() if value is not None}
    if given:
        from hebmtool import recipe

        recipe.from_dict({"prior": given})
    return given


def drawing(temperature: float, steps: int | None, fast: bool, batch_size: int) -> dict[str, object]:
    """How to draw: arguments that the model's methods share."""
    check_fast(fast, steps)
    return {"temperature": temperature, "steps": steps, "fast": fast, "batch_size": batch_size}


# Opening a run --------------------------------------------------------------------------------------------------------


def opened(name: str | None, runs: Path, prior: str | None = None, data_path: str | None = None):
    """The run of this name, which has a prior of this kind: known before torch is imported."""
    from hebmtool.run.folder import Run

    run = Run.open(name, runs)
    run.data_path = data_path
    if prior is not None:
        run.require_prior(prior)
    return run


def load(
    name: str | None,
    runs: Path,
    prior: str | None,
    device: str,
    fast: bool = False,
    data_path: str | None = None,
    **readjust: float,
):
    """Its model."""
    run = opened(name, runs, prior, data_path)
    from hebmtool import api
    from hebmtool.compute import fast_precision, pick_device

    precision = fast_precision(pick_device(device)) if fast else "float32"
    model = api.load(run, prior, device=device, precision=precision, **readjust)
    if name is None:
        note(f"the newest run: {run.path}, its {model.prior.kind} prior")
    return model


# Completion -----------------------------------------------------------------------------------------------------------


def recipe_names(incomplete: str) -> list[str]:
    from hebmtool import recipe

    return starting(list(recipe.names()), incomplete)


def _words(name: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from hebmtool.recipe import words

        return starting(list(getattr(words, name)), incomplete)

    return complete


def run_names(context: typer.Context, incomplete: str) -> list[str]:
    folder = Path(context.params.get("runs") or RUNS)
    names = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return starting(names, incomplete)


# Recipes and runs -----------------------------------------------------------------------------------------------------

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, the name of a built-in recipe (see `hebm recipes`), or a run: what it was trained with.",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, as --set prior.levels=6; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")]
Rewind = Annotated[
    bool,
    typer.Option(
        "--rewind",
        help="Continue from the checkpoint before the last, from which training went on without trouble.",
    ),
]
RunNamed = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run's name or folder, or hf://USER/NAME on the hub.",
        show_default="the newest run",
        autocompletion=run_names,
    ),
]
Run = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="A run's name or folder, or hf://USER/NAME on the hub.",
        show_default="the newest run",
        autocompletion=run_names,
        rich_help_panel=WHERE,
    ),
]
Runs = Annotated[
    Path,
    typer.Option("--runs", envvar="HEBM_RUNS", help="Folder that holds the runs.", rich_help_panel=WHERE),
]
DataPath = Annotated[
    str | None,
    typer.Option(
        "--data-path",
        help="Where the images are now: a folder or file in place of the recipe's data.path.",
        show_default="the recipe's",
        rich_help_panel=WHERE,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda or cuda:N.", callback=_check_device, rich_help_panel=WHERE),
]
Noise = Annotated[
    str,
    typer.Option(
        "--noise",
        help="Streams that noise is drawn from: torch, on the CPU; or philox, other numbers, drawn on the device.",
        callback=_choose_noise,
        rich_help_panel=WHERE,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Through torch.compile, on CUDA with CUDA graphs: the same up to rounding, after a minute or more of "
        "compiling. Takes a C++ compiler.",
        callback=lambda context, wanted: compile_by(context, wanted),
        rich_help_panel=WHERE,
    ),
]
TrustFeatures = Annotated[
    bool,
    typer.Option(
        "--trust-features",
        help="Open a feature network named on this command even if it runs code, as TorchScript (.pt) and .pt2 do.",
    ),
]
Readjust = Annotated[
    bool,
    typer.Option(
        "--readjust-bn",
        help=f"First re-estimate the generator's BatchNorm statistics on {READJUST_BATCHES} generated batches.",
        rich_help_panel=WHERE,
    ),
]
ReadjustTemperature = Annotated[
    float,
    typer.Option("--readjust-temperature", help="Standard deviation of u in those batches.", rich_help_panel=WHERE),
]


# What is drawn, and how -----------------------------------------------------------------------------------------------


SAME_IMAGE = "Image i of a seed is the same at any -n and --batch-size; with --fast up to the rounding of bf16."

# No one draws as many, or goes as far; a number mistyped would take for ever, or more than a machine can count to.
MOST, LARGEST_SEED = 10**9, 2**63 - 1


def number(help: str, least: int = 1, default: str | bool = True) -> object:
    return typer.Option("-n", "--number", min=least, max=MOST, help=help, show_default=default)


def seed(help: str, default: str | bool = True) -> object:
    return typer.Option("--seed", min=0, max=LARGEST_SEED, help=help, show_default=default)


def prior(help: str, default: str) -> object:
    return typer.Option(
        "--prior", help=help, show_default=default, autocompletion=_words("KINDS"), rich_help_panel=CHAIN
    )


Prior = Annotated[str | None, prior("gaussian, ebm, diffusion-ebm, flow or latent-ebm.", "the best that is trained")]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=0,
        max=MOST,
        help="Langevin steps per level.",
        show_default="the prior's own",
        rich_help_panel=CHAIN,
    ),
]
InferenceSteps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=0, max=MOST, help="Langevin steps of inference.", show_default="what the kind of run needs"
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        help="Above 0; 1 is the prior itself.",
        callback=_check_temperature,
        rich_help_panel=CHAIN,
    ),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Only the Langevin steps of prior.fast, by default K where the noise is least, and in bf16 where that is "
        "faster. A joint EBM takes all of its K.",
        rich_help_panel=CHAIN,
    ),
]
Pixels = Annotated[
    str | None,
    typer.Option(
        "--pixels",
        metavar="WHAT",
        help="The mean of p(x|z), or a sample of it as in published FIDs.",
        show_default="the recipe's",
        rich_help_panel=CHAIN,
        **one_of("--pixels", "mean", "sample"),
    ),
]
Chain = Annotated[
    str | None,
    typer.Option(
        "--chain",
        help="Draw the same density by another chain: langevin, unscaled, preconditioned, underdamped or hmc (exact).",
        show_default="the prior's own",
        autocompletion=_words("CHAINS"),
        rich_help_panel=CHAIN,
    ),
]


def _setting(name: str, help: str) -> object:
    return typer.Option(f"--{name}", help=help, rich_help_panel=CHAIN)


Eta = Annotated[float | None, _setting("eta", "Step size of the langevin and the unscaled chain.")]
H = Annotated[float | None, _setting("h", "Step size of the preconditioned chain.")]
Theta = Annotated[float | None, _setting("theta", "Step size of the underdamped or hmc chain, an angle in radians.")]
Persistence = Annotated[
    float | None, _setting("persistence", "Momentum of the underdamped chain that survives a step, from 0 to below 1.")
]
Renew = Annotated[
    float | None,
    _setting("renew", "Share of u that hmc draws anew, and tests, before every move; from 0 to 1."),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, max=MOST, help="Images drawn at a time.", rich_help_panel=WHERE)
]


# Images that are given ------------------------------------------------------------------------------------------------

Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH",
        help="Images, folders (at any depth), .npz or .npy files, or - for one path per line on stdin.",
        show_default=False,
    ),
]
Null = Annotated[
    bool, typer.Option("-0", "--null", help="Paths on stdin each end in NUL, as `find -print0` ends them.")
]
Fit = Annotated[
    bool, typer.Option("--fit", help="Bring images of another size or colour to the run's instead of refusing them.")
]


# Output ---------------------------------------------------------------------------------------------------------------


def out(help: str, default: str) -> object:
    return typer.Option("--out", help=help, show_default=default, rich_help_panel=OUTPUT)


def json(help: str) -> object:
    return typer.Option("--json", help=help, rich_help_panel=OUTPUT)


Force = Annotated[bool, typer.Option("--force", help="Replace what --out names.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, json("One JSON object on stdout.")]
JsonLines = Annotated[bool, json("A JSON object per line.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="A Markdown block, ready to paste.", rich_help_panel=OUTPUT)]
