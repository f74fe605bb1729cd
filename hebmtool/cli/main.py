"""The `hebm` command: each subcommand parses, calls one function of the library, and prints.

Data goes to stdout, everything else to stderr.  Exit status: 0 success, 1 failure, 2 usage.
"""

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hebmtool.console import note, stderr
from hebmtool.errors import HebmError, UsageError

app = typer.Typer(
    name="hebm",
    help="Hierarchical latent energy-based priors: train a multi-layer generator, close its prior hole, sample.",
    epilog="Add --debug to any command to see the whole traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


recipes_app = typer.Typer(help="The built-in recipes.", invoke_without_command=True)


app.add_typer(recipes_app, name="recipes")


RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a built-in recipe (see `hebm recipes`).")
]


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, as --set prior.levels=6; repeatable."),
]


RunsOption = Annotated[
    Path, typer.Option("--runs", envvar="HEBM_RUNS", help="Folder that holds the runs.", show_default=True)
]


RunOption = Annotated[str | None, typer.Option("--run", help="A run's name or folder.", show_default="the newest run")]


DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


ReadjustOption = Annotated[
    bool,
    typer.Option(
        "--readjust-bn", help="First re-estimate the generator's BatchNorm statistics on 500 generated batches."
    ),
]


READJUST_BATCHES = 500


ReadjustTemperatureOption = Annotated[
    float, typer.Option("--readjust-temperature", help="Standard deviation of u in those batches.")
]


PathsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH",
        help="Images, folders (at any depth), .npz or .npy files, or - for one path per line on stdin.",
        show_default=False,
    ),
]


PriorOption = Annotated[
    str | None,
    typer.Option("--prior", help="gaussian, ebm, diffusion-ebm or flow.", show_default="the best that is trained"),
]


InferenceStepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=0, help="Langevin steps of inference.", show_default="what the kind of run needs"),
]


FitOption = Annotated[
    bool, typer.Option("--fit", help="Bring images of another size or colour to the run's instead of refusing them.")
]


ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")]


JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


MarkdownOption = Annotated[bool, typer.Option("--markdown", help="A Markdown block, ready to paste.")]


FastOption = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="In bf16, and only the Langevin steps of prior.fast: by default K where the noise is least. "
        "A joint EBM takes all of its K.",
    ),
]


RUNS = Path("runs")


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("hebmtool"))
        raise typer.Exit()


@app.command("train-vae", rich_help_panel="Train")
def train_vae(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    resume: ResumeOption = False,
) -> None:
    """Stage one: train the multi-layer generator and its encoder.

    Prints the run's folder.  Examples:

        hebm train-vae digits

        hebm train-vae recipes/mnist.yaml --set data.source=array --set data.path=mnist.npz
    """
    from hebmtool import recipe as recipes
    from hebmtool.compute import pick_device
    from hebmtool.run.folder import Run
    from hebmtool.train.vae import train_vae as train

    settings = recipes.load(recipe, overrides or [])
    if settings.one_stage:
        raise UsageError("prior.kind flow learns its generator together with the prior; use `hebm train-prior`")
    where = pick_device(device)
    with Run.create(runs, settings, resume) as run:
        train(settings, run, where, resume)
    print(run.path)


@app.command("train-prior", rich_help_panel="Train")
def train_prior(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    resume: ResumeOption = False,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Only couple the labels of prior.labels to the prior that is there.")
    ] = False,
    readjust_bn: ReadjustOption = False,
    readjust_temperature: ReadjustTemperatureOption = 1.0,
) -> None:
    """Stage two: train an energy-based prior on the recipe's generator, and measure its prior-hole closure.

    Needs the generator of `hebm train-vae RECIPE`.  A run holds one prior of each kind.  With prior.labels it then
    learns the labels that `hebm controllable` conditions on.  Prints the closure, and how often each label is
    recognised in test images, as JSON.

    With prior.kind=flow (mnist-flow and its like) there is no stage one: a flow prior and a generator of one layer are
    learned together, in a run of their own.  Examples:

        hebm train-prior digits

        hebm train-prior mnist-flow

        hebm train-prior recipes/mnist.yaml --set prior.kind=ebm

        hebm train-prior mnist --finetune --set prior.labels=class
    """
    from hebmtool import recipe as recipes

    settings = recipes.load(recipe, overrides or [])
    if finetune and not settings.prior.labels:
        raise UsageError("--finetune couples labels, but prior.labels is empty; add --set prior.labels=class")
    if readjust_bn and not settings.train_prior.readjust_bn:
        settings.train_prior.readjust_bn = READJUST_BATCHES
        settings.train_prior.readjust_temperature = readjust_temperature
    from hebmtool import api

    print(json.dumps(api.train_prior(settings, runs=runs, device=device, resume=resume, finetune=finetune)))


@app.command(rich_help_panel="Use")
def sample(
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Image i of a seed is the same at any -n and --batch-size.")] = 0,
    prior: Annotated[
        str | None,
        typer.Option(help="gaussian, ebm or diffusion-ebm.", show_default="diffusion-ebm if trained, else ebm"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Above 0; 1 is the prior itself.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Langevin steps per level.", show_default="the prior's own")
    ] = None,
    fast: FastOption = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at a time.")] = 64,
    progressive: Annotated[
        bool, typer.Option("--progressive", help="A strip per image: decoded u_T ... u_0, noise to the left.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            help="A .png grid, an .npz file, a folder of PNGs, or - for a PNG on stdout.",
            show_default="a grid in the run's samples",
        ),
    ] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of the grid.", show_default="square")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    readjust_bn: ReadjustOption = False,
    readjust_temperature: ReadjustTemperatureOption = 1.0,
    run: RunOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Draw images from a run's prior (HEBM's Algorithm 2).

    Prints the path written.  Examples:

        hebm sample -n 100 --seed 7 --out grid.png

        hebm sample --prior gaussian -n 50000 --out samples/

        hebm sample --fast -n 10000 --out samples.npz

        hebm sample --progressive -n 8 --out - | display
    """
    from hebmtool.use import outputs
    from hebmtool.use import sample as sampling

    _check_temperature(temperature)
    precision = _check_fast(fast, steps)
    sink = None if out is None else outputs.Sink(out, columns, force)
    batches = READJUST_BATCHES if readjust_bn else 0
    opened, trained = _open_prior(
        run, runs, prior, device, batches, readjust_temperature, flow=True, precision=precision
    )
    if steps is not None and not trained.gradients():
        raise UsageError(f"--steps is for Langevin steps, and a draw of the {trained.kind} prior takes none; drop it")
    steps = trained.fast_steps() if fast else steps
    if sink is None:
        name = f"{'progressive' if progressive else 'sample'}-{trained.kind}-seed{seed}.png"
        sink = outputs.Sink(str(opened.samples_dir / name), columns, force=True)
    if progressive:
        images, stages = sampling.progressive(trained, n, seed, batch_size, temperature, steps)
        sink.columns = columns or stages
        sink.write(iter([images]))
    else:
        sink.write(sampling.sample(trained, n, seed, batch_size, temperature, steps))
    if sink.path is not None:
        print(sink.path)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UsageError(f"--temperature is {temperature}; it must be above 0 and finite, 1 being the prior itself")


def _open_prior(
    run: str | None,
    runs: Path,
    kind: str | None,
    device: str,
    readjust_bn: int = 0,
    readjust_temperature: float = 1.0,
    flow: bool = False,
    precision: str = "float32",
):
    """(run, prior on its frozen generator) for `--run`, `--prior` and `--device`; the best prior there when unnamed.

    flow: whether a flow run will do, which has a latent of one layer."""
    from hebmtool.compute import pick_device
    from hebmtool.run.folder import Run
    from hebmtool.run.open import load_prior

    where = pick_device(device)
    opened = Run.open(run, runs)
    if not (flow and opened.one_stage):
        opened.require_generator()
    kind = kind or opened.priors()[-1]
    return opened, load_prior(opened, kind, where, readjust_bn, readjust_temperature, precision)


def _check_fast(fast: bool, steps: int | None) -> str:
    """The precision of `--fast`."""
    if fast and steps is not None:
        raise UsageError("--fast chooses the Langevin steps itself; leave out either it or --steps")
    return "bf16" if fast else "float32"


@app.command(rich_help_panel="Use")
def controllable(
    value: Annotated[str | None, typer.Option("--class", help="A class, or `all` for a row of each.")] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE[:WEIGHT]", help="As Smiling=1, Male=0:0.5 or Odd=all; repeatable."),
    ] = None,
    weight: Annotated[float, typer.Option(help="Of --class; below 0 any other class is asked for.")] = 1.0,
    across_layers: Annotated[
        bool, typer.Option("--across-layers", help="Resample one layer at a time: which of them carry the label?")
    ] = False,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Images for each condition.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Image i of a seed is the same at any -n and --batch-size.")] = 0,
    prior: Annotated[
        str | None, typer.Option(help="ebm or diffusion-ebm.", show_default="diffusion-ebm if trained, else ebm")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Above 0; 1 is the prior itself.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Langevin steps per level.", show_default="the prior's own")
    ] = None,
    fast: FastOption = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at a time.")] = 64,
    out: Annotated[
        str | None,
        typer.Option(help="A .png, or - for a PNG on stdout.", show_default="in the run's samples"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    judged: Annotated[
        bool, typer.Option("--report/--no-report", help="Judge the samples by a classifier of real images.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as one JSON object on stdout.")] = False,
    run: RunOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Draw images under conditions on labels, and say how many came out as asked.

    Needs labels coupled to the prior: `hebm train-prior RECIPE --finetune --set prior.labels=class`.  The first report
    trains a classifier on real images and keeps it in the run.  Prints the path written.  Examples:

        hebm controllable --class 3 -n 64

        hebm controllable --class all

        hebm controllable --attribute Smiling=1 --attribute Male=0:0.5
    """
    from hebmtool import picture
    from hebmtool.judge import labels as label_judge
    from hebmtool.prior.labels import CLASS
    from hebmtool.run.open import load_labels
    from hebmtool.use import controllable as control
    from hebmtool.use.outputs import Sink

    _check_temperature(temperature)
    precision = _check_fast(fast, steps)
    wishes = [control.parse(text) for text in attribute or []]
    if value is not None:
        wishes.insert(0, control.Wish(CLASS, value, weight))
    sink = None if out is None else Sink(out, force=force)
    if sink is not None and sink.kind not in ("png", "stdout"):
        raise UsageError(f"--out is '{out}'; controllable writes a picture: give a .png, or -")
    if as_json and out == "-":
        raise UsageError("--json and --out - both write to standard output; choose one")
    opened, trained = _open_prior(run, runs, prior, device, precision=precision)
    steps = trained.fast_steps() if fast else steps
    labels = load_labels(opened, trained.generator)
    wanted = control.rows(wishes, labels)
    settings, where = opened.recipe(), trained.generator.device
    if across_layers:
        if len(wanted) != 1:
            raise UsageError(f"--across-layers takes one condition, and {len(wanted)} are asked for; name one value")
        found = control.across_layers(trained, labels, wanted[0], n, seed, batch_size, temperature, steps)
        sets, wanted = [found.base, *found.images], wanted * (len(found.images) + 1)
    else:
        sets = control.sample(trained, labels, wanted, n, seed, batch_size, temperature, steps)
    figures = label_judge.report(sets, wanted, opened, settings, where) if judged else {"rows": []}
    shares = [entry["controllability"] for entry in figures["rows"]] if judged else None
    if across_layers:
        drawn = control.layers_figure(found, shares)
        for entry, part in zip(figures["rows"], [[], *found.parts], strict=judged):
            entry["resampled"] = part
    else:
        drawn = control.figure(sets, wanted, shares)
    if out == "-":
        sys.stdout.buffer.write(picture.to_png(drawn))
        sys.stdout.buffer.flush()
        path = None
    else:
        path = opened.samples_dir / f"controllable-{trained.kind}-seed{seed}.png" if sink is None else sink.path
        picture.save(drawn, path)
    for line in label_judge.lines(figures):
        note(line)
    if as_json:
        print(json.dumps({"picture": str(path)} | figures))
    elif path is not None:
        print(path)


@app.command("hier-sample", rich_help_panel="Use")
def hier_sample(
    layer: Annotated[
        str | None, typer.Option(metavar="K or A:B", help="A layer's number (1 = bottom), or a range of them.")
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(
            help="Resample the layers above those named, below them, or only them.",
            show_default="above; only for a range",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every part of the hierarchy in turn, top to bottom, a block of rows each.")
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="IMAGE", help="Start from a real image's posterior; repeatable, a row each."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", "--number", min=1, help="Base samples, a row each.", show_default="8; 4 with --all"),
    ] = None,
    columns: Annotated[int, typer.Option(min=1, max=1000, help="Resamples of each.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Base i is image i of `hebm sample` with this seed.")] = 0,
    prior: Annotated[
        str | None,
        typer.Option(help="gaussian, ebm or diffusion-ebm.", show_default="diffusion-ebm if trained, else ebm"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Above 0; 1 is the prior itself.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Langevin steps per level.", show_default="the prior's own")
    ] = None,
    fast: FastOption = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at a time.")] = 64,
    out: Annotated[
        str | None, typer.Option(help="A .png, or - for a PNG on stdout.", show_default="in the run's samples")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="How much of the image changed, as one JSON object on stdout.")
    ] = False,
    run: RunOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Resample some layers and hold the others: what of the image does each layer carry?

    Rows are base samples, framed; columns their resamples, drawn from the prior of the varied layers given those held.
    --layer K resamples the layers above K.  --all shows the whole hierarchy (the first 4 rows of each part, many layers
    in six parts), and with --json measures every row and every single layer.  Prints the path written.  Examples:

        hebm hier-sample --layer 3

        hebm hier-sample --layer 5:6 --from mine.png --from another.png

        hebm hier-sample --all -n 64 --json
    """
    from hebmtool import picture
    from hebmtool.use import hierarchy
    from hebmtool.use.outputs import Sink

    _check_temperature(temperature)
    precision = _check_fast(fast, steps)
    if (layer is None) != every:
        found = "both are given" if every else "neither is given"
        raise UsageError(f"say what to resample by --layer or by --all; {found}")
    if every and vary is not None:
        raise UsageError("--vary chooses layers around --layer, and --all resamples each part in turn; drop one")
    if images and n is not None:
        raise UsageError("-n counts base samples, and with --from there is one row per image; drop one")
    if as_json and out == "-":
        raise UsageError("--json and --out - both write to standard output; choose one")
    named = None if layer is None else hierarchy.parse(layer)
    sink = None if out is None else Sink(out, force=force)
    if sink is not None and sink.kind not in ("png", "stdout"):
        raise UsageError(f"--out is '{out}'; hier-sample writes a picture: give a .png, or -")

    opened, trained = _open_prior(run, runs, prior, device, precision=precision)
    steps = trained.fast_steps() if fast else steps
    settings, generator = opened.recipe(), trained.generator
    if named is None:
        parts, words = hierarchy.blocks(generator.L), "all"
    else:
        parts = [hierarchy.varied(named, vary or ("only" if ":" in layer else "above"), generator.L)]
        words = hierarchy.title(parts[0]).replace(" ", "-")
    if sink is None:
        sink = Sink(str(opened.samples_dir / f"hier-sample-{trained.kind}-{words}-seed{seed}.png"), force=True)
    features = None
    if as_json:
        from hebmtool.metrics.features import load_features

        features = load_features(settings.evaluate.features, generator.image_shape, generator.device)
    x = hierarchy.read_images(images, settings, generator, seed) if images else None
    rows = len(images) if images else n or (4 if every else 8)
    how = (rows, columns, seed, batch_size, temperature, steps, x)
    drawn = hierarchy.draw(trained, parts, *how)
    if sink.path is None:
        sys.stdout.buffer.write(picture.to_png(hierarchy.figure(drawn)))
        sys.stdout.buffer.flush()
        return
    picture.save(hierarchy.figure(drawn), sink.path)
    if not as_json:
        print(sink.path)
        return
    if every and len(parts) < generator.L:
        drawn = hierarchy.draw(trained, [[k] for k in range(generator.L, 0, -1)], *how)
    found = hierarchy.changes(drawn, features)
    risen = hierarchy.rises(found)
    for sentence in risen:
        note(sentence)
    report = {"run": str(opened.path), "prior": trained.kind, "rows": rows, "columns": columns, "seed": seed}
    report |= {"features": None if features is None else features.name, "parts": found}
    print(json.dumps(report | {"falls": not risen if every else None, "picture": str(sink.path)}))


@app.command("ood-score", rich_help_panel="Use")
def ood_score(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Images, folders (at any depth), .npz or .npy files, or - for one path per line on stdin.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Use the layers above this one (1 = bottom; 0 uses all).",
            show_default="chosen on the run's test images and the generator's own draws",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="energy; likelihood (the ELBO in nats, layers up to --layer drawn from the prior); or llr (Havtorn's "
            "likelihood ratio, its sign turned so that high is in-distribution here too).  A flow run has one: "
            "posterior, log p(z, x) at the inferred z.",
            show_default="energy; with --auroc all three",
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="inference scores the image's own latents; diffusion noises them and lets the prior bring them back.",
            show_default="inference; with --auroc both",
        ),
    ] = None,
    level: Annotated[int, typer.Option(min=1, help="Noise level of the diffusion scheme.")] = 1,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Posterior draws averaged per image.", show_default="4; 1 for a flow run")
    ] = None,
    auroc: Annotated[
        bool, typer.Option("--auroc", help="Hold the scores against out-of-distribution sets, at every cut.")
    ] = False,
    ood: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Such a set: a folder, .npz or .npy; repeatable.", show_default="a built-in battery"
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=2, help="Images per set, with --auroc.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws and of the battery.")] = 0,
    prior: Annotated[
        str | None,
        typer.Option(help="gaussian, ebm or diffusion-ebm.", show_default="diffusion-ebm if trained, else ebm"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images scored, and printed, at a time.")] = 64,
    out: Annotated[
        str | None, typer.Option(help="A .png for the figure of --auroc.", show_default="in the run's samples")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per line; with --auroc a single one.")] = False,
    run: RunOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Score how in-distribution images are to a run: high = in-distribution.

    Prints a line per image, SCORE, tab, PATH, as they come.  Any image is cropped as the run's own were, turned grey
    or RGB and resized to the run's shape.  What cannot be read is named on stderr, and the exit status is then 1.

    --auroc holds the run's test images against out-of-distribution sets, these being the positives: AUROC, AUPRC and
    the share of test images flagged when 95% of the others are, with 95% bootstrap intervals, at every cut.  Without
    --ood the sets are made of the run's own images and of what scikit-learn carries.  Also draws the figure.  Examples:

        find imgs -name '*.png' | hebm ood-score - | sort -n | head

        hebm ood-score --auroc --ood cats/ --ood dogs.npz
    """
    from hebmtool import data, files
    from hebmtool.data import anywhere
    from hebmtool.judge import ood as scores
    from hebmtool.use import score as scoring
    from hebmtool.use.outputs import Sink

    if auroc and paths:
        raise UsageError(f"--auroc scores the run's own test images, and '{paths[0]}' is named too; give it by --ood")
    if not auroc and not paths:
        raise UsageError("say what to score: give images, folders, .npz files or -, or --auroc")
    for option, given in (("--ood", ood), ("--out", out)):
        if given and not auroc:
            raise UsageError(f"{option} belongs to --auroc; add that, or drop {option}")
    sink = None if out is None else Sink(out, force=force)
    if sink is not None and sink.kind != "png":
        raise UsageError(f"--out is '{out}'; ood-score draws a figure: give a .png")
    opened, trained = _open_prior(run, runs, prior, device, flow=True)
    settings, shape = opened.recipe(), trained.generator.image_shape
    unread = 0

    def failed(error: HebmError) -> None:
        nonlocal unread
        unread += 1
        note(f"hebm: {error}")

    def scorer(score: str, scheme: str) -> scoring.Scorer:
        if not trained.generator.has_encoder:
            return scoring.PosteriorScorer(trained, settings, score, scheme, draws=draws or 1, seed=seed)
        return scoring.Scorer(trained, settings, score, scheme, level, draws or 4, seed)

    own = "posterior" if not trained.generator.has_encoder else "energy"
    if auroc:
        wanted = [(score or own, scheme or "inference")]
        if scheme is None and score in (None, "energy") and trained.T > 1:
            wanted.append(("energy", "diffusion"))
        if score is None and scheme is None and trained.generator.has_encoder:
            # The ratio has no cut 0.
            ratio = layer != 0 and trained.generator.L > 1
            wanted += [("likelihood", "inference")] + [("llr", "inference")] * ratio
        scorers = [scorer(*each) for each in wanted]
        if layer is not None:
            for each in scorers:
                each.check(layer)
        sets = anywhere.given_sets(ood, settings, shape, n, failed) if ood else None
        found = scores.compare(scorers, data.load(settings.data, "test"), n, layer, sets)
        path = opened.samples_dir / f"ood-{trained.kind}.png" if sink is None else sink.path
        files.write_bytes(path, scores.figure(found))
        if as_json:
            report = {"run": str(opened.path), "prior": trained.kind, "positives": "out-of-distribution"}
            report |= {"images": len(found[0].inside), "methods": [each.figures() for each in found]}
            print(json.dumps(report | {"picture": str(path)}))
        else:
            print(scores.table(found))
            for each in found:
                print(each.sentence())
            note(f"figure: {path}")
    else:
        one = scorer(score or own, scheme or "inference")
        if layer is not None:
            cut = one.check(layer)
        elif not trained.generator.has_encoder:  # which has one
            cut = one.cuts[0]
        else:
            cut, _ = scoring.default_cut(one, _test_images(settings))
        # Names of files need not be text.
        sys.stdout.reconfigure(errors="surrogateescape")
        count = 0
        named = anywhere.read(_expanded(paths), settings, shape, failed)
        try:
            for name, value in scoring.stream(one, named, cut, batch_size):
                line = {"path": name, "score": value, "method": one.name, "layer": cut}
                print(json.dumps(line) if as_json else f"{value:.6g}\t{name}", flush=True)
                count += 1
        except BrokenPipeError as error:
            # Left to itself, typer would make a failure of it.
            raise typer.Exit(max(_explain(error, False), int(unread > 0))) from None
        if not count and not unread:
            raise HebmError("no image was named on standard input; give one path per line")
    if unread:
        raise typer.Exit(1)


def _test_images(settings):
    from hebmtool import data

    try:
        return data.load(settings.data, "test")
    except HebmError as error:
        raise HebmError(f"the cut is chosen on the run's test images, but {error}; or give --layer") from error


def _expanded(paths: list[str]) -> Iterator[str]:
    """The paths, with those on standard input, one a line, in place of -."""
    for path in paths:
        if path == "-":
            yield from (os.fsdecode(line.rstrip(b"\n")) for line in sys.stdin.buffer if line.strip())
        else:
            yield path


@app.command(rich_help_panel="Use")
def reconstruct(
    paths: PathsArgument = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="A .png with originals above reconstructions; an .npz or a folder of reconstructions; or - for a PNG "
            "on stdout.",
            show_default="a picture in the run's samples",
        ),
    ] = None,
    steps: InferenceStepsOption = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Test images taken when no PATH is given.")] = 16,
    fit: FitOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the chains.")] = 0,
    prior: PriorOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per line.")] = False,
    run: RunOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Infer the latents of images and decode them: how much of an image does the model keep?

    A flow run infers by Langevin dynamics; a hierarchical one by its encoder, then, with --steps, by Langevin dynamics
    on p(u) p(x | T(u)), p(u) being its prior.  Prints a line per image: MSE (of pixels in [0, 1]), PSNR in dB, path.
    Without PATH the run's first test images are taken.  Examples:

        hebm reconstruct imgs/ --out picture.png

        hebm reconstruct --run mnist -n 100 --steps 100 --json
    """
    from hebmtool.use import reconstruct as reconstruction
    from hebmtool.use.infer import Inference
    from hebmtool.use.outputs import Sink

    _check_out(out, as_json)
    sink = None if out is None else Sink(out, force=force)
    opened, trained = _open_prior(run, runs, prior, device, flow=True)
    names, images, unread = _images(paths, opened, trained, n, fit)
    inference = Inference(trained, opened.recipe(), steps, seed)
    made, errors = reconstruction.reconstruct(inference, images)
    if sink is None:
        sink = Sink(str(opened.samples_dir / f"reconstruct-{trained.kind}-seed{seed}.png"), force=True)
    _write(sink, made, lambda: reconstruction.figure(images, made))
    if sink.path is not None:
        for name, mse, psnr in zip(names, errors.mse.tolist(), errors.psnr.tolist(), strict=True):
            line = {"path": name, "mse": mse, "psnr": psnr if math.isfinite(psnr) else None}
            print(json.dumps(line) if as_json else f"{mse:.6f}\t{psnr:.2f}\t{name}")
    note(f"MSE {errors.mse.mean():.6f} (PSNR {errors.pooled():.2f} dB) over {len(images)} images")
    if sink.path is not None:
        note(f"{'picture' if sink.kind == 'png' else 'reconstructions'}: {sink.path}")
    if unread:
        raise typer.Exit(1)


@app.command(rich_help_panel="Use")
def inpaint(
    paths: PathsArgument = None,
    mask: Annotated[
        str,
        typer.Option(
            help="What is hidden: left, right, top or bottom; center:F, a box with the share F of either side; "
            "random:P, each pixel with probability P; a picture of the images' size, white where pixels are hidden; or "
            "an .npy or .npz of one mask, or of one per image."
        ),
    ] = "center:0.5",
    draws: Annotated[int, typer.Option(min=1, help="Completions of each image.")] = 4,
    damaged: Annotated[
        bool,
        typer.Option("--damaged", help="What stands at hidden pixels is not the original: no errors, no last row."),
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            help="A .png with masked images, completions and originals, an .npz or a folder of completions, or - for a "
            "PNG on stdout.",
            show_default="a picture in the run's samples",
        ),
    ] = None,
    steps: InferenceStepsOption = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Test images taken when no PATH is given.")] = 8,
    fit: FitOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the chains, and of random masks.")] = 0,
    prior: PriorOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per line.")] = False,
    run: RunOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Complete images whose pixels are partly hidden, several times each; visible pixels stay exactly as they are.

    Latents are inferred from the visible pixels alone: by Langevin dynamics from a flow run's prior; in a hierarchical
    run by encoder and generator in turns, then Langevin dynamics on p(u) p(x_visible | T(u)), p(u) being its prior.
    Prints a line per image: PSNR in dB on hidden pixels, averaged over completions, that of their mean, path; with
    --damaged, where there is nothing to compare with, none.  Without PATH the run's first test images are taken.
    Examples:

        hebm inpaint face.png --mask scratch.png --damaged --out filled/

        hebm inpaint --run mnist --mask random:0.7 --draws 8
    """
    from hebmtool.data import masks
    from hebmtool.use import inpaint as inpainting
    from hebmtool.use.infer import Inference
    from hebmtool.use.outputs import Sink

    _check_out(out, as_json)
    sink = None if out is None else Sink(out, force=force)
    opened, trained = _open_prior(run, runs, prior, device, flow=True)
    masks.parse(mask, trained.generator.image_shape)  # a wrong word is better known before reading images
    names, images, unread = _images(paths, opened, trained, n, fit)
    hidden = masks.parse(mask, trained.generator.image_shape, seed, len(images))(range(len(images)))
    found = inpainting.inpaint(Inference(trained, opened.recipe(), steps, seed), images, hidden, draws)
    if sink is None:
        word = re.sub(r"[^\w.]", "-", Path(mask).stem if Path(mask).exists() else mask)
        sink = Sink(str(opened.samples_dir / f"inpaint-{trained.kind}-{word}-seed{seed}.png"), force=True)
    _write(sink, found.completions.flatten(0, 1), lambda: inpainting.figure(images, hidden, found, damaged))
    if not damaged:
        each, mean = inpainting.hidden_errors(found, images, hidden)
        if sink.path is not None:
            for name, *values in zip(names, each.psnr.tolist(), mean.psnr.tolist(), strict=True):
                line = dict(
                    zip(("psnr", "psnr_of_mean"), (v if math.isfinite(v) else None for v in values), strict=True)
                )
                text = "\t".join(f"{value:.2f}" for value in values)
                print(json.dumps({"path": name} | line) if as_json else f"{text}\t{name}")
        note(
            f"hidden pixels: PSNR {each.pooled():.2f} dB, {mean.pooled():.2f} dB for the mean of {draws} "
            f"completion{'s' * (draws > 1)}, over {len(images)} images"
        )
    if sink.path is not None:
        note(f"{'picture' if sink.kind == 'png' else 'completions'}: {sink.path}")
    if unread:
        raise typer.Exit(1)


def _check_out(out: str | None, as_json: bool) -> None:
    if as_json and out == "-":
        raise UsageError("--json and --out - both write to standard output; choose one")


def _write(sink, images, draw) -> None:
    """`images` into a folder or .npz; otherwise the picture that `draw` draws."""
    from hebmtool import picture

    if sink.kind in ("folder", "npz"):
        sink.write(iter([images]))
    elif sink.path is not None:
        picture.save(draw(), sink.path)
    else:
        sys.stdout.buffer.write(picture.to_png(draw()))
        sys.stdout.buffer.flush()


def _images(paths: list[str] | None, opened, trained, n: int, fit: bool):
    """(names, uint8 [N, C, H, W], number of files passed over): those named, or the run's first n test images."""
    from hebmtool import data
    from hebmtool.use import reconstruct as reconstruction

    if not paths:
        test = data.load(opened.recipe().data, "test")
        which = range(min(n, len(test)))
        return [f"test#{i}" for i in which], test.batch(which), 0
    unread = 0

    def failed(error: HebmError) -> None:
        nonlocal unread
        unread += 1
        note(f"hebm: {error}")

    sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be text
    shape = trained.generator.image_shape
    return *reconstruction.read(_expanded(paths), opened.recipe(), shape, failed, fit), unread


@app.command("flow-match", rich_help_panel="Look")
def flow_match(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A flow run's name or folder.", show_default="the newest run")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=16, help="Test images to infer.")] = 256,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Langevin steps of inference.", show_default="as many as in learning")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="A .png for the picture.", show_default="in the run's samples")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Short-run inference seen as a flow: do latents inferred from images have the law of the flow prior?

    Prints the sliced Wasserstein distance between the two, its floor (between two draws of the prior), and the distance
    to N(0, I); draws both over inferred latents.
    """
    from hebmtool import data, files
    from hebmtool.metrics import flow_match as matching
    from hebmtool.use.infer import Inference
    from hebmtool.use.outputs import Sink

    sink = None if out is None else Sink(out, force=force)
    if sink is not None and sink.kind != "png":
        raise UsageError(f"--out is '{out}'; flow-match draws a figure: give a .png")
    opened, trained = _open_prior(run, runs, "flow", device, flow=True)
    settings = opened.recipe()
    test = data.load(settings.data, "test")
    steps = trained.config.steps if steps is None else steps
    # The recipe's seed: with as many steps and images, this is what learning ended with.
    z = Inference(trained, settings, steps, settings.seed)(test.batch(range(min(n, len(test)))))[:, 0]
    found = matching.match(trained, z, settings.seed)
    path = opened.samples_dir / f"flow-match-steps{steps}.png" if sink is None else sink.path
    files.write_bytes(path, matching.figure(trained, z, found, settings.seed))
    if as_json:
        print(json.dumps({"run": str(opened.path)} | found.figures() | {"picture": str(path)}))
    else:
        print(
            f"inferred latents to the flow prior {found.prior:.3f} (floor {found.floor:.3f}), to N(0, I) "
            f"{found.normal:.3f}; sliced Wasserstein-2, {found.samples} latents a set"
        )
        note(f"figure: {path}")


@app.command("import-nvae", rich_help_panel="Train")
def import_nvae(
    path: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint in the published NVAE format.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder to make.", show_default="nvae-DATASET in the runs folder")
    ] = None,
    data_path: Annotated[
        str | None, typer.Option(help="The images' folder or file, written into the run's recipe.")
    ] = None,
    readjust_bn: ReadjustOption = False,
    readjust_temperature: ReadjustTemperatureOption = 1.0,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Turn a published NVAE checkpoint into a run, ready for train-prior and sample.

    The file is never unpickled freely.  Prints the run's folder.  Examples:

        hebm import-nvae checkpoint.pt --out runs/church

        hebm sample --run church --prior gaussian
    """
    from hebmtool.compute import pick_device
    from hebmtool.run.imported import import_checkpoint

    root, name = (runs, None) if out is None else (out.parent, out.name)
    where = pick_device(device)
    made = import_checkpoint(
        path,
        root,
        name,
        data_path=data_path,
        readjust_bn=READJUST_BATCHES if readjust_bn else 0,
        readjust_temperature=readjust_temperature,
        device=where,
    )
    print(made.path)


@app.command(rich_help_panel="Look")
def info(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's name or folder.", show_default="the newest run")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    runs: RunsOption = RUNS,
) -> None:
    """Show what a run is: its generator's layers with their KL, its priors and their figures."""
    from hebmtool.run import info as information
    from hebmtool.run.folder import Run

    found = information.describe(Run.open(run, runs))
    print(json.dumps(found) if as_json else information.render(found))


@app.command(rich_help_panel="Look")
def evaluate(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's name or folder.", show_default="the newest run")
    ] = None,
    prior: Annotated[str | None, typer.Option(help="Only this kind.", show_default="every trained prior")] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Langevin steps per level.", show_default="the prior's own")
    ] = None,
    fast: FastOption = False,
    samples: Annotated[int | None, typer.Option(min=2, help="Images per set.", show_default="the recipe's")] = None,
    features: Annotated[
        str | None, typer.Option(help="TorchScript feature network.", show_default="the recipe's")
    ] = None,
    fid: Annotated[
        list[str] | None,
        typer.Option(metavar="MODE", help="FID as clean-fid has it: clean (with IS) or legacy_pytorch; repeatable."),
    ] = None,
    reference: Annotated[
        str, typer.Option(metavar="SPLIT", help="Hold against test images, or train as in published FIDs.")
    ] = "test",
    repeats: Annotated[int, typer.Option(min=1, help="Independent draws; figures are their mean.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws.", show_default="the recipe's")] = None,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Also bits per dimension under each prior, and nats per layer.")
    ] = False,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Also two-sample tests, moments and what the chains do.")
    ] = False,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Judge a run's priors side by side: distances to held-out images, precision and recall, closure, speed.

    Reconstructions are the floor that no prior of the generator gets below.  Prints a row per figure, each with one
    standard error, and what it takes to measure them again; keeps them in the run for `hebm compare`.  Features of
    reference images are cached in $HEBM_CACHE, by default ~/.cache/hebmtool.  Examples:

        hebm evaluate mnist --features mnist_features.pt

        hebm evaluate --prior diffusion-ebm --steps 30 --repeats 5 --json

        hebm evaluate --fid clean --samples 50000 --reference train --markdown
    """
    from hebmtool.compute import pick_device
    from hebmtool.judge import table
    from hebmtool.judge.evaluate import evaluate as judge
    from hebmtool.run.folder import Run

    _check_one_format(as_json, as_markdown)
    _check_fast(fast, steps)
    found = judge(
        Run.open(run, runs),
        pick_device(device),
        prior,
        steps,
        samples,
        features,
        fid=fid or (),
        reference=reference,
        repeats=repeats,
        seed=seed,
        fast=fast,
        parts=("likelihood",) * likelihood + ("two-sample", "chains") * diagnose,
        command=shlex.join(["hebm", *sys.argv[1:]]),
    )
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    drawn = table.table(table.by_judged(found.figures))
    if as_markdown:
        print(table.markdown(drawn, found.lines()))
    else:
        table.show(drawn, found.lines())


def _check_one_format(as_json: bool, as_markdown: bool) -> None:
    if as_json and as_markdown:
        raise UsageError("--json and --markdown both write to standard output; choose one")


@app.command(rich_help_panel="Look")
def compare(
    runs_named: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.")],
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
    runs: RunsOption = RUNS,
) -> None:
    """Put runs side by side, from the figures `hebm evaluate` kept in them.

    Prints a row per figure and a column per run and prior, the best prior starred.  Says on stderr where runs were not
    judged alike.  Examples:

        hebm compare mnist published

        hebm compare runs/* --markdown
    """
    from hebmtool.judge import table
    from hebmtool.judge.compare import compare as side_by_side
    from hebmtool.run.folder import Run

    _check_one_format(as_json, as_markdown)
    found = side_by_side([Run.open(name, runs) for name in runs_named])
    for warning in found.warnings:
        note(warning)
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    drawn = table.table(found.columns, found.priors)
    lines = [f"{name}: {line}" for name, each in found.runs.items() for line in each.lines()]
    if as_markdown:
        print(table.markdown(drawn, lines))
    else:
        table.show(drawn, lines)


@app.command(rich_help_panel="Look")
def report(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's name or folder.", show_default="the newest run")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn; images are those of `hebm sample`.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at a time.")] = 64,
    out: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="The page.", show_default="report.html in the run's folder")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Show a run on one self-contained HTML page, to read or to send.

    Samples of every prior, reconstructions, what each layer carries, training curves, an out-of-distribution figure,
    what `hebm evaluate` measured, checkpoints and recipe.  The page loads nothing.  Prints its path.  Examples:

        hebm report

        hebm report mnist --out mnist.html
    """
    from hebmtool import files
    from hebmtool.compute import pick_device
    from hebmtool.report.sections import report as describe
    from hebmtool.run.folder import Run
    from hebmtool.use.outputs import make_folder

    where = pick_device(device)
    if out is not None:
        if Path(out).suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out is '{out}'; report writes a page: give a .html")
        if Path(out).is_dir():
            raise HebmError(f"--out {out} is a folder; give a .html file")
        if Path(out).exists() and not force:
            raise HebmError(f"the file {out} exists; choose another for --out, or add --force")
        make_folder(Path(out).parent)
    opened = Run.open(run, runs)
    path = opened.path / "report.html" if out is None else Path(out)
    page = describe(opened, where, seed, batch_size)
    # Names of files need not be text.
    files.write_bytes(path, page.encode("utf-8", "replace"))
    print(path)


@app.command(rich_help_panel="Look")
def diagnose(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's name or folder.", show_default="the newest run")
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="gaussian, ebm or diffusion-ebm.", show_default="diffusion-ebm if trained, else ebm"),
    ] = None,
    samples: Annotated[int, typer.Option(min=20, help="Draws of each law in the two-sample tests.")] = 500,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Langevin steps per level.", show_default="the prior's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(help="likelihood, two-sample or chains; repeatable.", show_default="all three"),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Also draw the chains, as a .png.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """Find where a prior falls short: likelihood bounds, two-sample tests by layer and level, what its chains do.

    None of it needs image features.  Layers are numbered from the bottom, 1.  Examples:

        hebm diagnose mnist --out diag.png

        hebm diagnose --only two-sample --samples 2000 --steps 30 --json
    """
    from hebmtool import files
    from hebmtool.compute import pick_device
    from hebmtool.errors import did_you_mean
    from hebmtool.judge import diagnose as diagnostics
    from hebmtool.run.folder import Run
    from hebmtool.use.outputs import Sink

    parts = only or list(diagnostics.PARTS)
    for part in parts:
        if part not in diagnostics.PARTS:
            words = ", ".join(diagnostics.PARTS)
            raise UsageError(f"--only is '{part}'; choose of {words}{did_you_mean(part, diagnostics.PARTS)}")
    sink = None if out is None else Sink(out, force=force)
    if sink is not None and sink.kind != "png":
        raise UsageError(f"--out is '{out}'; diagnose draws one picture: give a .png")
    if sink is not None and "chains" not in parts:
        raise UsageError("--out draws the chains, and --only leaves them away; add --only chains")
    opened = Run.open(run, runs)
    opened.require_generator()
    kind = prior or opened.priors()[-1]
    if sink is not None and kind == "gaussian":
        raise UsageError("--out draws the chains, and the gaussian prior has none; name another --prior")
    found = diagnostics.diagnose(opened, pick_device(device), kind, samples, steps, seed, parts)
    if sink is not None:
        files.write_bytes(sink.path, diagnostics.figure(found))
        note(f"picture: {sink.path}")
    if as_json:
        report = {"run": str(opened.path), "prior": found.kind, "seed": seed, "samples": samples, "steps": steps}
        report |= {"command": "hebm " + shlex.join(sys.argv[1:]), "picture": sink and str(sink.path)}
        print(json.dumps(report | {"figures": [each.as_dict() for each in found.figures]}))
    else:
        print(diagnostics.table(found.figures))


@app.command(rich_help_panel="Train")
def demo(
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
) -> None:
    """The whole method on the embedded digits, in at most three minutes on two cores.

    Trains the generator and the diffusion prior, and draws Gaussian samples, prior samples and reconstructions side
    by side.  Prints the picture's path.
    """
    from hebmtool import demo as demonstration
    from hebmtool.compute import pick_device

    shown = demonstration.demo(runs, pick_device(device))
    note(f"picture: {shown.picture}; more with `hebm sample --run {shown.run}` and `hebm info {shown.run}`")
    print(shown.picture)


@recipes_app.callback()
def recipes_list(context: typer.Context) -> None:
    """List the built-in recipes, one a line: name, tab, what it is."""
    if context.invoked_subcommand is None:
        from hebmtool import recipe

        for name, description in recipe.names().items():
            print(f"{name}\t{description}")


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="A built-in recipe.")]) -> None:
    """Print a built-in recipe as written, ready to be saved and changed."""
    from hebmtool import recipe

    print(recipe.text(name), end="")


# Newer typer carries its own copy of click, older ones import it: reach its base exception through typer itself.
ClickException = typer.BadParameter.__mro__[2]


def main() -> None:
    """Entry point: run the command, turn every failure into one sentence and an exit status."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = app(arguments, prog_name="hebm", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as stopped:
        # Click makes a failure of a reader that went away, as `head` does.
        if not isinstance(stopped.__context__, BrokenPipeError):
            raise
        status = _explain(stopped.__context__, debug)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            stderr.print_exception(show_locals=False)
        status = _explain(error, debug)
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: BaseException, debug: bool) -> int:
    """Say what went wrong in one line on stderr; the exit status it means."""
    if isinstance(error, HebmError):
        note(f"hebm: {error}")
        return error.exit_code
    if isinstance(error, ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "hebm"
        if not error.format_message():  # a bare `hebm`: its help has been printed
            return 2
        note(f"hebm: {' '.join(error.format_message().split())} (see `{command} --help`)")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader went away, as `head` does; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        note("hebm: interrupted")
        return 130
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)  # how torch says it on a CPU
    ):
        note("hebm: out of memory; lower the batch size (--batch-size, train_vae.batch_size, train_prior.batch_size)")
        return 1
    if isinstance(error, OSError):
        note(f"hebm: {error.filename or 'standard output'}: {error.strerror or error}")
        return 1
    hint = "" if debug else "; run again with --debug for the traceback, and please report it"
    note(f"hebm: unexpected {type(error).__name__}: {' '.join(str(error).split())}{hint}")
    return 1


if __name__ == "__main__":
    main()
