"""Commands that make runs: the two stages of training, the import of a published generator, the demonstration."""

from pathlib import Path
from typing import Annotated

import typer

from hebmtool.cli import options
from hebmtool.cli.streams import print_json
from hebmtool.console import note
from hebmtool.errors import UsageError


def plan(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    gpu: Annotated[str, typer.Option("--gpu", help="h100, h200, a100, l4 or rtx4090.")] = "h100",
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=100_000, help="How many; they share the batch.")] = 1,
    utilisation: Annotated[
        float, typer.Option("--utilisation", min=0.001, max=1, help="Share of their peak arithmetic, an assumption.")
    ] = 0.2,
    measure: Annotated[
        bool, typer.Option("--measure", help="Make two updates of each stage on this machine as well, on noise.")
    ] = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
) -> None:
    """Say what a recipe's training will take, before anything is spent: arithmetic, memory, disk, hours.

    Nothing is read or downloaded, and without `--measure` nothing is computed but shapes.  The memory of kernels' own
    workspaces is not counted.

    Examples:

        hebm plan digits --gpus 8
        hebm plan digits --measure --json
    """
    from hebmtool import recipe as recipes

    settings = recipes.load(recipe, overrides or [])
    from hebmtool import api

    found = api.plan(settings, gpu, gpus, utilisation, measure, device)
    if as_json:
        print_json(found.figures())
    else:
        print(found)


Graphs = Annotated[
    bool,
    typer.Option(
        "--graphs",
        help="On CUDA, updates replayed from CUDA graphs: the same kernels, after half a minute. Chains always are.",
        callback=lambda context, wanted: options.compile_by(context, wanted, graphs=True),
        rich_help_panel=options.WHERE,
    ),
]


def train_vae(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, the name of a built-in recipe (see `hebm recipes`), or a run: what it was trained with.",
            show_default=False,
            autocompletion=options.recipe_names,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="Begin with the generator of this run, as an imported one's, in place of RECIPE and new weights.",
            show_default="new weights",
            autocompletion=options.run_names,
        ),
    ] = None,
    overrides: options.Overrides = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    resume: options.Resume = False,
    rewind: options.Rewind = False,
    compile: options.Compile = False,
    graphs: Graphs = False,
    data_path: options.DataPath = None,
) -> None:
    """Stage one: train the multi-layer generator and its encoder.

    Prints the run's folder.  `--run` goes on from the weights of another run, with the KL's weight at 1 from the first
    update on: in its folder, where nothing was trained on them (an import), or with `--set name=NEW` in another.  What
    was begun so is resumed as any other.

    Examples:

        hebm train-vae digits
        hebm train-vae mnist --set data.source=array --set data.path=mnist.npz
        hebm train-vae --run church --set name=mine --set train_vae.lr=1e-4
    """
    if (recipe is None) == (run is None):
        found = "neither is given" if run is None else "both are given"
        raise UsageError(f"say what to train, by a RECIPE, or by --run for a run to go on from; {found}")
    if run is not None:
        run = str(options.opened(run, runs).path)
    from hebmtool import api

    how = {"runs": runs, "device": device, "resume": resume, "rewind": rewind, "data_path": data_path}
    print(api.train_vae(run or recipe, overrides or [], finetune=run is not None, **how).path)


def train_prior(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    resume: options.Resume = False,
    rewind: options.Rewind = False,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Only couple the labels of prior.labels to the prior that is there.")
    ] = False,
    trust_features: options.TrustFeatures = False,
    readjust_bn: options.Readjust = False,
    readjust_temperature: options.ReadjustTemperature = 1.0,
    compile: options.Compile = False,
    graphs: Graphs = False,
    data_path: options.DataPath = None,
) -> None:
    """Stage two: train an energy-based prior on the recipe's generator, and measure its prior-hole closure.

    Needs the generator of `hebm train-vae RECIPE`.  A run holds one prior of each kind.  With prior.labels it then
    learns the labels that `hebm controllable` conditions on.  Prints the closure, and how often each label is
    recognised in test images, as JSON.

    With prior.kind=flow (mnist-flow and its like) or latent-ebm (mnist-anomaly-latent) there is no stage one: the prior
    and a generator of one layer are learned together, in a run of their own.

    Examples:

        hebm train-prior digits
        hebm train-prior mnist-flow
        hebm train-prior recipes/mnist.yaml --set prior.kind=ebm
        hebm train-prior mnist --finetune --set prior.labels=class
        hebm train-prior runs/mnist --resume
    """
    from hebmtool import api

    found = api.train_prior(
        recipe,
        overrides or [],
        runs=runs,
        device=device,
        resume=resume,
        rewind=rewind,
        finetune=finetune,
        trust_features=trust_features,
        data_path=data_path,
        readjust_bn=options.READJUST_BATCHES if readjust_bn else 0,
        readjust_temperature=readjust_temperature,
    )
    print_json(found)


def import_nvae(
    path: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint in the published NVAE format.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder to make.", show_default="nvae-DATASET in the runs folder")
    ] = None,
    data_path: Annotated[
        str | None, typer.Option(help="The images' folder or file, written into the run's recipe.")
    ] = None,
    readjust_bn: options.Readjust = False,
    readjust_temperature: options.ReadjustTemperature = 1.0,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
) -> None:
    """Turn a published NVAE checkpoint into a run, ready for train-prior and sample.

    The file is never unpickled freely.  Prints the run's folder.

    Examples:

        hebm import-nvae checkpoint.pt --out runs/church
        hebm sample --run church --prior gaussian
    """
    from hebmtool import api

    made = api.import_nvae(
        path,
        out,
        data_path=data_path,
        readjust_bn=options.READJUST_BATCHES if readjust_bn else 0,
        readjust_temperature=readjust_temperature,
        runs=runs,
        device=device,
    )
    print(made.path)


def demo(runs: options.Runs = options.RUNS, device: options.Device = "auto") -> None:
    """The whole method on the embedded digits, in at most three minutes on two cores.

    Trains the generator and the diffusion prior, and draws Gaussian samples, prior samples and reconstructions side
    by side.  Prints the picture's path.

    Examples:

        hebm demo
    """
    from hebmtool.demo import demo as demonstrate

    shown = demonstrate(runs, device)
    note(f"picture: {shown.picture}; more with `hebm sample --run {shown.run}` and `hebm info {shown.run}`")
    print(shown.picture)
