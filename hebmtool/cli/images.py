"""Commands that look at images: how likely they are, what the model makes of them, what it fills in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hebmtool.cli import options, outputs, streams
from hebmtool.cli.failures import Unread, explain
from hebmtool.console import note
from hebmtool.errors import HebmError, UsageError, did_you_mean

MASKS = ("left", "right", "top", "bottom", "center", "random")


# More than a screen, for its options are many; what it does is short.
def ood_score(
    paths: options.Paths = None,
    null: options.Null = False,
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
            "--score",
            help="energy; likelihood (the ELBO in nats, layers up to --layer drawn from the prior); llr (Havtorn's "
            "likelihood ratio, its sign turned so that high is in-distribution here too); or joint (log p(x, z) but "
            "for a constant).  A run without an encoder has one: posterior, log p(z, x) at the inferred z.",
            show_default="energy; with --auroc all three",
            **options.one_of("--score", "energy", "likelihood", "llr", "joint", "posterior"),
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="inference scores the image's own latents; diffusion noises them and lets the prior bring them back.",
            show_default="inference; with --auroc both",
            **options.one_of("--scheme", "inference", "diffusion"),
        ),
    ] = None,
    level: Annotated[int, typer.Option(min=1, max=options.MOST, help="Noise level of the diffusion scheme.")] = 1,
    draws: Annotated[
        int | None,
        typer.Option(
            min=1, max=options.MOST, help="Posterior draws averaged per image.", show_default="4; 1 without an encoder"
        ),
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
    n: Annotated[int, options.number("Images per set, with --auroc.", least=2)] = 300,
    seed: Annotated[int, options.seed("Of the draws and of the battery.")] = 0,
    prior: options.Prior = None,
    out: Annotated[str | None, options.out("A .png for the figure of --auroc.", "in the run's samples")] = None,
    force: options.Force = False,
    as_json: Annotated[bool, options.json("A JSON object per line; with --auroc a single one.")] = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
    batch_size: options.BatchSize = 64,
) -> None:
    """Score how in-distribution images are to a run: high = in-distribution.

    Prints a line per image, SCORE, tab, PATH, as they come.  Any image is cropped as the run's own were, turned grey
    or RGB and resized to the run's shape.  What cannot be read is named on stderr, and the exit status is then 1.

    `--auroc` holds the run's test images against out-of-distribution sets, these being the positives: AUROC, AUPRC and
    the share of test images flagged when 95% of the others are, with 95% bootstrap intervals, at every cut.  Without
    `--ood` the sets are made of the run's own images and of what scikit-learn carries.  Says first, on stderr, which
    score to use, above which layer, and how sure that is.  Also draws the figure.

    Examples:

        find imgs -name '*.png' | hebm ood-score - | sort -n | head
        hebm ood-score --auroc --ood cats/ --ood dogs.npz
    """
    if auroc and paths:
        raise UsageError(f"--auroc scores the run's own test images, and '{paths[0]}' is named too; give it by --ood")
    if not auroc and not paths:
        raise UsageError("say what to score: give images, folders, .npz files or -, or --auroc")
    for option, given in (("--ood", ood), ("--out", out)):
        if given and not auroc:
            raise UsageError(f"{option} belongs to --auroc; add that, or drop {option}")
    sink = outputs.picture(out, force, "ood-score")
    model, unread = options.load(run, runs, prior, device, data_path=data_path), Unread()
    how = {"layer": layer, "score": score, "scheme": scheme, "level": level, "draws": draws, "seed": seed}
    if auroc:
        found = model.auroc(ood or None, n, failed=unread, **how)
        said = how | {"level": None if level == 1 else level, "seed": seed or None, "n": None if n == 300 else n}
        _print_separation(model, found, sink, as_json, outputs.name("ood", found.prior, **said, against=ood))
    else:
        given = given_paths(paths, null)
        _print_scores(model.score_stream(given, batch_size=batch_size, failed=unread, **how), unread, as_json)
    unread.leave()


def _print_separation(model, found, sink: outputs.Sink | None, as_json: bool, name: str) -> None:
    path = model.run.samples_dir / name if sink is None else sink.path
    found.save(path)
    if as_json:
        streams.print_json(found.figures() | {"picture": str(path)})
        return
    note(found.verdict)
    print(found.table())
    for line in found.lines():
        print(line)
    note(f"figure: {path}")


def _print_scores(scores: Iterator, unread: Unread, as_json: bool) -> None:
    count = 0
    try:
        for each in scores:
            if as_json:
                streams.print_json(each._asdict(), flush=True)
            else:
                print(f"{each.score:.6g}\t{each.path}", flush=True)
            count += 1
    except BrokenPipeError as error:
        # Left to itself, typer would make a failure of it.
        raise typer.Exit(max(explain(error, False), int(unread.count > 0))) from None
    if not count and not unread.count:
        raise HebmError("no image was named on standard input; give one path per line")


def reconstruct(
    paths: options.Paths = None,
    null: options.Null = False,
    steps: options.InferenceSteps = None,
    n: Annotated[int, options.number("Test images taken when no PATH is given.")] = 16,
    fit: options.Fit = False,
    seed: Annotated[int, options.seed("Of the chains.")] = 0,
    prior: options.Prior = None,
    out: Annotated[
        str | None,
        options.out(
            "A .png with originals above reconstructions; an .npz or a folder of reconstructions; or - for a PNG on "
            "stdout.",
            "a picture in the run's samples",
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.JsonLines = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
) -> None:
    """Infer the latents of images and decode them: how much of an image does the model keep?

    A run without an encoder infers by Langevin dynamics; a hierarchical one by its encoder, then, with `--steps`, by
    Langevin dynamics on p(u) p(x | T(u)), p(u) being its prior.  Prints a line per image: MSE (of pixels in [0, 1]),
    PSNR in dB, path.  Without PATH the run's first test images are taken.

    Examples:

        hebm reconstruct imgs/ --out picture.png
        hebm reconstruct --run mnist -n 100 --steps 100 --json
    """
    options.check_stdout(as_json, "--out -", out == "-")
    sink = outputs.images(out, force)
    model, unread = options.load(run, runs, prior, device, data_path=data_path), Unread()
    given = given_paths(paths, null)
    found = model.reconstruct(given, n=n, steps=steps, seed=seed, fit=fit, failed=unread)
    said = {"of": found.names} if paths else {"n": None if n == 16 else n}
    name = outputs.name("reconstruct", found.prior, **said, steps=steps, fit=fit, seed=seed)
    sink = _write(found, found.made, sink, model, name, outputs.about(model, seed, steps=steps))
    if sink.path is not None:
        for each in found.figures():
            psnr = float("inf") if each["psnr"] is None else each["psnr"]
            if as_json:
                streams.print_json(each)
            else:
                print(f"{each['mse']:.6f}\t{psnr:.2f}\t{each['path']}")
    _say(found, sink, "reconstructions")
    unread.leave()


def _check_mask(mask: str) -> str:
    if mask.partition(":")[0] not in MASKS and not Path(mask).suffix and not Path(mask).exists():
        raise UsageError(
            f"there is no mask '{mask}', nor a file of that name; give left, right, top, bottom, center:0.5, "
            f"random:0.5, or a picture, .npy or .npz{did_you_mean(mask, MASKS)}"
        )
    return mask


# More than a screen, for its options are many; what it does is short.
def inpaint(
    paths: options.Paths = None,
    null: options.Null = False,
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            callback=_check_mask,
            help="What is hidden: left, right, top or bottom; center:F, a box with the share F of either side; "
            "random:P, each pixel with probability P; a picture of the images' size, white where pixels are hidden; or "
            "an .npy or .npz of one mask, or of one per image.",
        ),
    ] = "center:0.5",
    draws: Annotated[int, typer.Option(min=1, max=options.MOST, help="Completions of each image.")] = 4,
    damaged: Annotated[
        bool,
        typer.Option("--damaged", help="What stands at hidden pixels is not the original: no errors, no last row."),
    ] = False,
    steps: options.InferenceSteps = None,
    n: Annotated[int, options.number("Test images taken when no PATH is given.")] = 8,
    fit: options.Fit = False,
    seed: Annotated[int, options.seed("Of the chains, and of random masks.")] = 0,
    prior: options.Prior = None,
    out: Annotated[
        str | None,
        options.out(
            "A .png with masked images, completions and originals, an .npz or a folder of completions, or - for a PNG "
            "on stdout.",
            "a picture in the run's samples",
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.JsonLines = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
) -> None:
    """Complete images whose pixels are partly hidden, several times each; visible pixels stay exactly as they are.

    Latents are inferred from the visible pixels alone: by Langevin dynamics where there is no encoder; in a
    hierarchical run by encoder and generator in turns, then Langevin dynamics on p(u) p(x_visible | T(u)), p(u) being
    its prior.  Prints a line per image: PSNR in dB on hidden pixels, averaged over completions, that of their mean,
    path; with `--damaged`, where there is nothing to compare with, none.  Without PATH the run's first test images are
    taken.

    Examples:

        hebm inpaint face.png --mask scratch.png --damaged --out filled/
        hebm inpaint --run mnist --mask random:0.7 --draws 8
    """
    options.check_stdout(as_json, "--out -", out == "-")
    sink = outputs.images(out, force)
    model, unread = options.load(run, runs, prior, device, data_path=data_path), Unread()
    given = given_paths(paths, null)
    found = model.inpaint(given, mask, draws, n=n, damaged=damaged, steps=steps, seed=seed, fit=fit, failed=unread)
    said = {"of": found.names} if paths else {"n": None if n == 8 else n}
    said |= {"draws": None if draws == 4 else draws, "damaged": damaged, "steps": steps, "fit": fit}
    name = outputs.name("inpaint", found.prior, **{"": mask}, **said, seed=seed)
    told = outputs.about(model, seed, mask=mask if mask.partition(":")[0] in MASKS else None, steps=steps)
    sink = _write(found, found.completions.flatten(0, 1), sink, model, name, told)
    if sink.path is not None:
        for each in found.figures():
            values = (float("inf") if each[key] is None else each[key] for key in ("psnr", "psnr_of_mean"))
            text = "\t".join(f"{value:.2f}" for value in values)
            if as_json:
                streams.print_json(each)
            else:
                print(f"{text}\t{each['path']}")
    _say(found, sink, "completions")
    unread.leave()


def given_paths(paths: list[str] | None, null: bool) -> Iterator[str] | None:
    """The paths, with those on standard input, one a line (or each ended by NUL), in place of -."""
    if null and "-" not in (paths or ()):
        raise UsageError("--null is of paths on standard input; name - among the paths, or leave it out")
    if not paths:
        return None
    return (name for path in paths for name in (streams.paths(null) if path == "-" else [path]))


def _write(found, made, sink: outputs.Sink | None, model, name: str, about: dict[str, str]) -> outputs.Sink:
    """`made` into a folder or .npz; otherwise the result's picture, by default under this name in the run's samples."""
    sink = sink or outputs.Sink(str(model.run.samples_dir / name), force=True)
    sink.about = about
    if sink.one_picture:
        sink.write_picture(found.png())
    else:
        sink.write([made])
    return sink


def _say(found, sink: outputs.Sink, what: str) -> None:
    if found.figures():
        note(found.sentence())
    if sink.path is not None:
        note(f"{'picture' if sink.one_picture else what}: {sink.path}")


def flow_match(
    run: options.RunNamed = None,
    n: Annotated[int, options.number("Test images to infer.", least=16)] = 256,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0, max=options.MOST, help="Langevin steps of inference.", show_default="as many as in learning"
        ),
    ] = None,
    out: Annotated[str | None, options.out("A .png for the picture.", "in the run's samples")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
) -> None:
    """Short-run inference seen as a flow: do latents inferred from images have the law of the prior?

    Prints the sliced Wasserstein distance between the two, its floor (between two draws of the prior), and the distance
    to N(0, I); draws both over inferred latents.

    Examples:

        hebm flow-match mnist-flow
    """
    sink = outputs.picture(out, force, "flow-match")
    model = options.load(run, runs, None, device, data_path=data_path)
    found = model.flow_match(n, steps)
    name = outputs.name("flow-match", "", steps=found.steps, n=None if n == 256 else n)
    path = model.run.samples_dir / name if sink is None else sink.path
    found.save(path)
    if as_json:
        streams.print_json(found.figures() | {"picture": str(path)})
    else:
        print(found.sentence())
        note(f"figure: {path}")
