"""Commands that say what runs are and what they reached."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hebmtool.cli import options, outputs, streams
from hebmtool.console import note
from hebmtool.errors import HebmError, UsageError


def runs(
    as_json: options.JsonLines = False,
    runs: options.Runs = options.RUNS,
) -> None:
    """List the runs in a folder: data, layers, priors with their closure, labels, size, when trained last.

    Nothing is loaded.  A prior without a closure was not judged since it was trained.

    Examples:

        hebm runs
        hebm runs --json
    """
    from hebmtool.run import listing

    found = list(listing.below(runs))
    if not found:
        note(f"there is no run in {runs}; train one with `hebm train-vae digits`, or see `hebm models`")
    _list(found, as_json)


def models(as_json: options.JsonLines = False) -> None:
    """List the trained runs that come with the package.

    Any command takes them by name, as `hebm sample --run digits` does; the first time, they are copied beside other
    runs.

    Examples:

        hebm models
        hebm models --json
    """
    from hebmtool.run import listing

    _list(listing.in_package(), as_json)


def _list(found: list, as_json: bool) -> None:
    from hebmtool import table
    from hebmtool.run import listing

    if as_json:
        for each in found:
            streams.print_json(each.as_dict())
    elif found:
        print(table.for_stdout(listing.table(found)))


def info(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN or PICTURE",
            help="A run's name or folder, or hf://USER/NAME on the hub; or a PNG that hebm wrote.",
            show_default="the newest run",
            autocompletion=options.run_names,
        ),
    ] = None,
    as_json: options.Json = False,
    runs: options.Runs = options.RUNS,
) -> None:
    """Show what a run is: its generator's layers with their KL, its priors, labels and evaluations, with their figures.

    Nothing is computed: it is read from the run's folder.  Of a PNG that `hebm sample` and its like wrote, how it was
    made: software, run, prior, seed, index, and whatever was not as by default, one a line, key, tab, value.

    Examples:

        hebm info
        hebm info mnist --json
        hebm info a.png
    """
    if run is not None and run.lower().endswith(".png") and not Path(run).is_dir() and Path(run).exists():
        _picture(run, as_json)
        return
    opened = options.opened(run, runs)
    from hebmtool import api

    found = api.info(opened)
    if as_json:
        streams.print_json(found)
    else:
        print(found)


def _picture(path: str, as_json: bool) -> None:
    from hebmtool import picture

    found = picture.about(path)
    if not found:
        raise HebmError(f"{path} does not say how it was made; PNGs of hebm sample, decode and their like do")
    if as_json:
        streams.print_json(found)
    else:
        print("\n".join(f"{key}\t{text}" for key, text in found.items()))


# More than a screen, for its options are many; what it does is short.
def evaluate(
    run: options.RunNamed = None,
    prior: Annotated[str | None, options.prior("Only this kind.", "every trained prior")] = None,
    steps: options.Steps = None,
    chain: options.Chain = None,
    theta: options.Theta = None,
    persistence: options.Persistence = None,
    renew: options.Renew = None,
    h: options.H = None,
    eta: options.Eta = None,
    fast: options.Fast = False,
    samples: Annotated[
        int | None, typer.Option(min=2, max=options.MOST, help="Images per set.", show_default="the recipe's")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Feature network: safetensors, .pt or .pt2.", show_default="the recipe's")
    ] = None,
    trust_features: options.TrustFeatures = False,
    fid: Annotated[
        list[str] | None,
        typer.Option(
            "--fid",
            metavar="MODE",
            help="FID as clean-fid has it: clean (with IS) or legacy_pytorch; repeatable.",
            **options.one_of("--fid", "clean", "legacy_pytorch"),
        ),
    ] = None,
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            metavar="SPLIT",
            help="Hold against test images, or train as in published FIDs.",
            **options.one_of("--reference", "test", "train"),
        ),
    ] = "test",
    repeats: Annotated[
        int, typer.Option(min=1, max=options.MOST, help="Independent draws; figures are their mean.")
    ] = 1,
    seed: Annotated[int | None, options.seed("Of the draws.", "the recipe's")] = None,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Also bits per dimension under each prior, and nats per layer.")
    ] = False,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Also two-sample tests, moments and what the chains do.")
    ] = False,
    pixels: options.Pixels = None,
    out: Annotated[str | None, options.out("Also draw the first images of each set, as a .png.", "not drawn")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    as_markdown: options.Markdown = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    compile: options.Compile = False,
    data_path: options.DataPath = None,
) -> None:
    """Judge a run's priors side by side: distances to held-out images, precision and recall, closure, speed.

    Reconstructions are the floor that no prior of the generator gets below.  Prints a row per figure, each with one
    standard error, and what it takes to measure them again; keeps them in the run for `hebm compare`.  Features of
    reference images are cached in $HEBM_CACHE, by default ~/.cache/hebmtool.

    Examples:

        hebm evaluate mnist --features mnist_features.safetensors
        hebm evaluate --prior diffusion-ebm --steps 30 --repeats 5 --json
        hebm evaluate --chain underdamped --steps 30 --theta 0.3
        hebm evaluate mnist --fast --out strip.png
        hebm evaluate --fid clean --samples 50000 --reference train --markdown
    """
    options.check_stdout(as_json, "--markdown", as_markdown)
    options.check_fast(fast, steps)
    sink = outputs.picture(out, force, "evaluate")
    if trust_features and features is None:
        raise UsageError(
            "--trust-features is for a file named by --features; what a run's recipe names is never trusted"
        )
    parts = ("likelihood",) * likelihood + ("two-sample", "chains") * diagnose
    if fast and parts:
        raise UsageError("--fast draws otherwise than --likelihood and --diagnose judge; leave out either")
    sampler = options.sampler(chain, theta=theta, persistence=persistence, h=h, eta=eta, renew=renew)
    opened = options.opened(run, runs, prior, data_path=data_path)
    from hebmtool import api

    found = api.evaluate(
        opened,
        prior,
        steps=steps,
        samples=samples,
        features=features,
        trust_features=trust_features,
        fid=fid or (),
        reference=reference,
        repeats=repeats,
        seed=seed,
        fast=fast,
        parts=parts,
        pixels=pixels,
        command=_command(),
        device=device,
        **sampler,
    )
    if sink is not None:
        sink.write_picture(found.png())
        note(f"picture: {sink.path}")
    _print(found, as_json, as_markdown)


def compare(
    runs_named: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.")],
    as_json: options.Json = False,
    as_markdown: options.Markdown = False,
    runs: options.Runs = options.RUNS,
) -> None:
    """Put runs side by side, from the figures `hebm evaluate` kept in them.

    Prints a row per figure and a column per run and prior, the best prior starred.  Says on stderr where runs were not
    judged alike, and what closure is over those that differ in the seed of learning alone.

    Examples:

        hebm compare mnist published
        hebm compare runs/* --markdown
    """
    options.check_stdout(as_json, "--markdown", as_markdown)
    opened = [options.opened(name, runs) for name in runs_named]
    from hebmtool import api

    found = api.compare(*opened)
    for said in (*found.warnings, *(each.sentence() for each in found.seeds)):
        note(said)
    _print(found, as_json, as_markdown)


def report(
    run: options.RunNamed = None,
    seed: Annotated[int, options.seed("Of what is drawn; images are those of `hebm sample`.")] = 0,
    batch_size: options.BatchSize = 64,
    out: Annotated[str | None, options.out("The page, an .html.", "report.html in the run's folder")] = None,
    force: options.Force = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
) -> None:
    """Show a run on one self-contained HTML page, to read or to send.

    Samples of every prior, reconstructions, what each layer carries, training curves, an out-of-distribution figure,
    what `hebm evaluate` measured, checkpoints and recipe.  The page loads nothing.  Prints its path.

    Examples:

        hebm report
        hebm report mnist --out mnist.html
    """
    path = outputs.page(out, force)
    opened = options.opened(run, runs, data_path=data_path)
    from hebmtool import api

    path = path or opened.path / "report.html"
    api.report(opened, seed, batch_size, device=device).save(path)
    print(path)


# More than a screen, for its options are many; what it does is short.
def diagnose(
    run: options.RunNamed = None,
    prior: options.Prior = None,
    samples: Annotated[
        int, typer.Option(min=20, max=options.MOST, help="Draws of each law in the two-sample tests.")
    ] = 500,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Langevin steps per level.", show_default="the prior's own", rich_help_panel=options.CHAIN
        ),
    ] = None,
    chain: options.Chain = None,
    theta: options.Theta = None,
    persistence: options.Persistence = None,
    renew: options.Renew = None,
    h: options.H = None,
    eta: options.Eta = None,
    seed: Annotated[int, options.seed("Of every draw.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="likelihood, two-sample or chains; repeatable.",
            show_default="all three",
            **options.one_of("--only", "likelihood", "two-sample", "chains"),
        ),
    ] = None,
    out: Annotated[str | None, options.out("Also draw the chains, as a .png.", "not drawn")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
) -> None:
    """Find where a prior falls short: likelihood bounds, two-sample tests by layer and level, what its chains do.

    Prints a sentence on where the hole is and what of it the prior leaves, then the figures, then what they say.  None
    of it needs image features.  Layers are numbered from the bottom, 1.

    Examples:

        hebm diagnose mnist --out diag.png
        hebm diagnose --chain underdamped --steps 30 --only chains
        hebm diagnose --only two-sample --samples 2000 --steps 30 --json
    """
    sink = outputs.picture(out, force, "diagnose")
    if sink is not None and only and "chains" not in only:
        raise UsageError("--out draws the chains, and --only leaves them away; add --only chains")
    sampler = options.sampler(chain, theta=theta, persistence=persistence, h=h, eta=eta, renew=renew)
    opened = options.opened(run, runs, prior, data_path=data_path)
    from hebmtool import api

    model = api.load(opened, prior, device=device)
    if sink is not None and not model.prior.T:
        raise UsageError(f"--out draws the chains, and the {model.prior.kind} prior has none; name another --prior")
    found = model.diagnose(samples, steps, seed, **({"parts": only} if only else {}), **sampler)
    if sink is not None:
        sink.write_picture(found.png())
        note(f"picture: {sink.path}")
    if as_json:
        about = {"run": found.run, "prior": found.prior, "seed": seed, "samples": samples, "steps": steps}
        about |= {"verdict": found.verdict, "command": _command(), "picture": sink and str(sink.path)}
        streams.print_json(about | {"figures": [figure.as_dict() for figure in found.figures]})
    else:
        print(found)


def _command() -> str:
    """As it was typed."""
    return shlex.join(["hebm", *sys.argv[1:]])


def _print(found, as_json: bool, as_markdown: bool) -> None:
    """A table of figures, in the form asked for."""
    if as_json:
        streams.print_json(found.as_dict())
    elif as_markdown:
        print(found.markdown())
    else:
        found.show()
