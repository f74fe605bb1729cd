"""Commands that draw from a prior: images, some layers given the others, what is asked for."""

import re
from typing import Annotated

import typer

from hebmtool.cli import options, outputs, streams
from hebmtool.console import note
from hebmtool.errors import UsageError


# More than a screen, for its options are many; what it does is short.
def sample(
    n: Annotated[int, options.number("Number of images.")] = 64,
    seed: Annotated[int, options.seed(options.SAME_IMAGE)] = 0,
    progressive: Annotated[
        bool, typer.Option("--progressive", help="A strip per image: decoded u_T ... u_0, noise to the left.")
    ] = False,
    prior: options.Prior = None,
    temperature: options.Temperature = 1.0,
    steps: options.Steps = None,
    chain: options.Chain = None,
    theta: options.Theta = None,
    persistence: options.Persistence = None,
    renew: options.Renew = None,
    h: options.H = None,
    eta: options.Eta = None,
    fast: options.Fast = False,
    pixels: options.Pixels = None,
    out: Annotated[
        str | None,
        options.out(
            "A .png grid, an .npz file, a folder of PNGs, or - for a PNG on stdout.", "a grid in the run's samples"
        ),
    ] = None,
    columns: Annotated[
        int | None,
        typer.Option(
            min=1, max=options.MOST, help="Columns of the grid.", show_default="square", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="adm: an .npz as ADM's evaluation suite reads it, arr_0, uint8 [N, H, W, 3].",
            show_default="as --out ends",
            rich_help_panel=options.OUTPUT,
            **options.one_of("--format", "adm"),
        ),
    ] = None,
    force: options.Force = False,
    as_json: Annotated[
        bool, options.json("What the chain's moves came to, and whether it has arrived, as one JSON object on stdout.")
    ] = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    noise: options.Noise = "torch",
    compile: options.Compile = False,
    batch_size: options.BatchSize = 64,
    readjust_bn: options.Readjust = False,
    readjust_temperature: options.ReadjustTemperature = 1.0,
) -> None:
    """Draw images from a run's prior (HEBM's Algorithm 2).

    Prints the path written.  A sampler whose draws are less likely under the energies than posterior latents are, which
    has then not arrived, says so.  A folder that was not filled, for it was interrupted, is gone on with by the same
    command.  PNGs say how they were drawn, which `hebm info PICTURE.png` tells.

    Examples:

        hebm sample -n 100 --seed 7 --out grid.png
        hebm sample --prior gaussian -n 50000 --out samples/
        hebm sample --fast -n 10000 --out samples.npz
        hebm sample -n 50000 --out adm.npz --format adm
        hebm sample --chain underdamped --steps 30 --theta 0.3
        hebm sample --chain hmc --steps 64 --json
        hebm sample --progressive -n 8 --out - | display
    """
    if progressive and pixels is not None:
        raise UsageError("--progressive shows means of what is drawn; leave out either it or --pixels")
    options.check_stdout(as_json, "--out -", out == "-")
    if form and (progressive or out is None):
        raise UsageError(f"--format {form} writes images into an .npz; name one by --out, without --progressive")
    sink = outputs.images(out, force, columns, goes_on=not progressive, adm=form == "adm")
    sampler = options.sampler(chain, theta=theta, persistence=persistence, h=h, eta=eta, renew=renew)
    how = options.drawing(temperature, steps, fast, batch_size) | sampler
    batches = options.READJUST_BATCHES if readjust_bn else 0
    model = options.load(run, runs, prior, device, fast, readjust_bn=batches, readjust_temperature=readjust_temperature)
    readjusted = readjust_bn and (readjust_temperature == 1 or readjust_temperature)
    said = {"n": None if n == 64 else n, "columns": columns, "readjusted": readjusted}
    sink = sink or _in_samples(model, "progressive" if progressive else "sample", seed, columns, **said, **how)
    sink.about = outputs.about(model, seed, progressive=progressive, noise=noise, pixels=pixels, **how)
    if progressive:
        strips = model.progressive(n, seed, **how)
        sink.columns = columns or strips.shape[1]
        sink.write([strips.flatten(0, 1)])
    else:
        asked = {key: value for key, value in how.items() if key != "batch_size"}
        asked |= {"seed": seed, "noise": noise, "pixels": pixels, "readjusted": readjusted, "of": model.checkpoints()}
        sink.write(model.batches(n, seed, pixels=pixels, only=sink.begin(n, asked), **how))
    if as_json:
        arrival = None if model.arrival is None else model.arrival.as_dict()
        about = {"run": str(model.run.path), "prior": model.prior.kind, "seed": seed, "images": n}
        streams.print_json({"path": str(sink.path)} | about | {"arrival": arrival})
    elif sink.path is not None:
        print(sink.path)


# More than a screen, for its options are many; what it does is short.
def hier_sample(
    layer: Annotated[
        str | None, typer.Option(metavar="K or A:B", help="A layer's number (1 = bottom), or a range of them.")
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(
            "--vary",
            help="Resample the layers above those named, below them, or only them.",
            show_default="above; only for a range",
            **options.one_of("--vary", "above", "below", "only"),
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every part of the hierarchy in turn, top to bottom, a block of rows each.")
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="IMAGE", help="Start from a real image's posterior; repeatable, a row each."),
    ] = None,
    n: Annotated[int | None, options.number("Base samples, a row each.", default="8; 4 with --all")] = None,
    columns: Annotated[int, typer.Option(min=1, max=1000, help="Resamples of each.")] = 8,
    seed: Annotated[int, options.seed("Base i is image i of `hebm sample` with this seed.")] = 0,
    prior: options.Prior = None,
    temperature: options.Temperature = 1.0,
    steps: options.Steps = None,
    chain: options.Chain = None,
    theta: options.Theta = None,
    persistence: options.Persistence = None,
    renew: options.Renew = None,
    h: options.H = None,
    eta: options.Eta = None,
    fast: options.Fast = False,
    out: Annotated[str | None, options.out("A .png, or - for a PNG on stdout.", "in the run's samples")] = None,
    force: options.Force = False,
    as_json: Annotated[bool, options.json("How much of the image changed, as one JSON object on stdout.")] = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    noise: options.Noise = "torch",
    compile: options.Compile = False,
    batch_size: options.BatchSize = 64,
) -> None:
    """Resample some layers and hold the others: what of the image does each layer carry?

    Rows are base samples, framed; columns their resamples, drawn from the prior of the varied layers given those held.
    `--layer K` resamples the layers above K.  `--all` shows the whole hierarchy (the first 4 rows of each part, many
    layers in six parts), and with `--json` measures every row and every single layer.  Prints the path written.

    Examples:

        hebm hier-sample --layer 3
        hebm hier-sample --layer 5:6 --from mine.png --from another.png
        hebm hier-sample --all -n 64 --json
    """
    _check_layers(layer, every, vary, images, n)
    options.check_stdout(as_json, "--out -", out == "-")
    sink = outputs.picture(out, force, "hier-sample", stdout=True)
    sampler = options.sampler(chain, theta=theta, persistence=persistence, h=h, eta=eta, renew=renew)
    how = options.drawing(temperature, steps, fast, batch_size) | sampler
    model = options.load(run, runs, prior, device, fast)
    drawn = model.resample("all" if every else layer, vary, n, columns, seed, images=images or None, **how)
    said = {"of": images, "n": n, "columns": None if columns == 8 else columns}
    sink = sink or _in_samples(model, "hier-sample", seed, words=drawn.title.replace(" ", "-"), **said, **how)
    sink.write_picture(drawn.png())
    if as_json:
        for sentence in drawn.rises:
            note(sentence)
        streams.print_json(drawn.figures() | {"picture": str(sink.path)})
    elif sink.path is not None:
        print(sink.path)


# More than a screen, for its options are many; what it does is short.
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
    n: Annotated[int, options.number("Images for each condition.")] = 64,
    seed: Annotated[int, options.seed(options.SAME_IMAGE)] = 0,
    judged: Annotated[
        bool, typer.Option("--report/--no-report", help="Judge the samples by a classifier of real images.")
    ] = True,
    prior: options.Prior = None,
    temperature: options.Temperature = 1.0,
    steps: options.Steps = None,
    chain: options.Chain = None,
    theta: options.Theta = None,
    persistence: options.Persistence = None,
    renew: options.Renew = None,
    h: options.H = None,
    eta: options.Eta = None,
    fast: options.Fast = False,
    out: Annotated[str | None, options.out("A .png, or - for a PNG on stdout.", "in the run's samples")] = None,
    force: options.Force = False,
    as_json: Annotated[bool, options.json("The figures as one JSON object on stdout.")] = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    noise: options.Noise = "torch",
    compile: options.Compile = False,
    data_path: options.DataPath = None,
    batch_size: options.BatchSize = 64,
) -> None:
    """Draw images under conditions on labels, and say how many came out as asked.

    Needs labels coupled to the prior: `hebm train-prior RECIPE --finetune --set prior.labels=class`.  The first report
    trains a classifier on real images and keeps it in the run.  Prints the path written.

    Examples:

        hebm controllable --class 3 -n 64
        hebm controllable --class all
        hebm controllable --attribute Smiling=1 --attribute Male=0:0.5
    """
    if value is None and not attribute:
        raise UsageError("say what to condition on, by --class (a class, or all) or --attribute NAME=VALUE")
    for text in attribute or ():
        if re.fullmatch("[^=]+=.+", text) is None:
            raise UsageError(f"--attribute is '{text}'; write NAME=VALUE or NAME=VALUE:WEIGHT, as Smiling=1:0.5")
    options.check_stdout(as_json, "--out -", out == "-")
    sink = outputs.picture(out, force, "controllable", stdout=True)
    sampler = options.sampler(chain, theta=theta, persistence=persistence, h=h, eta=eta, renew=renew)
    how = options.drawing(temperature, steps, fast, batch_size) | sampler
    model = options.load(run, runs, prior, device, fast, data_path=data_path)
    found = model.controllable(
        value, attribute, n, seed, weight=weight, across_layers=across_layers, judged=judged, **how
    )
    said = {"class": value, "weight": None if weight == 1 else weight, "": attribute, "across_layers": across_layers}
    said |= {"n": None if n == 64 else n, "no_report": not judged}
    sink = sink or _in_samples(model, "controllable", seed, **said, **how)
    sink.write_picture(found.png())
    for line in found.lines():
        note(line)
    if as_json:
        about = {"run": str(model.run.path), "prior": found.prior, "seed": seed}
        streams.print_json({"picture": str(sink.path)} | about | found.figures)
    elif sink.path is not None:
        print(sink.path)


def _check_layers(layer: str | None, every: bool, vary: str | None, images: list[str] | None, n: int | None) -> None:
    if (layer is None) != every:
        found = "both are given" if every else "neither is given"
        raise UsageError(f"say what to resample by --layer or by --all; {found}")
    if layer is not None and re.fullmatch(r"\d{1,4}(:\d{1,4})?", layer) is None:
        raise UsageError(f"--layer is '{layer}'; give a layer's number, as 5, or a range of them, as 2:5")
    if every and vary is not None:
        raise UsageError("--vary chooses layers around --layer, and --all resamples each part in turn; drop one")
    if images and n is not None:
        raise UsageError("-n counts base samples, and with --from there is one row per image; drop one")


def _in_samples(
    model, what: str, seed: int, grid: int | None = None, words: str = "", **settings: object
) -> outputs.Sink:
    """The place in the run's samples, in which an earlier picture made alike is replaced."""
    drawn = {key: value for key, value in settings.items() if key != "batch_size"}
    if drawn.get("temperature") == 1:
        del drawn["temperature"]
    name = outputs.name(what, model.prior.kind, words, **drawn, seed=seed)
    return outputs.Sink(str(model.run.samples_dir / name), grid, force=True)
