"""Commands that take latents out of images, and make images of them."""

from typing import Annotated

import typer

from hebmtool.cli import options, outputs
from hebmtool.cli.failures import Unread
from hebmtool.cli.images import given_paths
from hebmtool.console import note


def encode(
    paths: options.Paths = None,
    null: options.Null = False,
    out: Annotated[str, options.out("An .npz.", default="latents.npz")] = "latents.npz",
    steps: options.InferenceSteps = None,
    n: Annotated[int, options.number("Test images taken when no PATH is given.")] = 16,
    fit: options.Fit = False,
    seed: Annotated[int, options.seed("Of the chains.")] = 0,
    prior: options.Prior = None,
    force: options.Force = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
) -> None:
    """Take the latents out of images: the posterior's mean, or where a chain of so many steps ends.

    Writes an .npz with u [N, D], the residuals; z = T(u), of that shape; names [N]; and the shapes [L, 3] of the layers
    that stand in a row one after another, top first.  Prints the names.  `hebm decode` makes images of it.

    Examples:

        hebm encode imgs/ --out latents.npz --fit
    """
    path = outputs.file(out, force, "encode writes latents", ".npz")
    model, unread = options.load(run, runs, prior, device, data_path=data_path), Unread()
    found = model.encode(given_paths(paths, null), n=n, steps=steps, seed=seed, fit=fit, failed=unread)
    found.save(path)
    for name in found.names:
        print(name)
    note(f"latents: {path}")
    unread.leave()


def decode(
    latents: Annotated[str, typer.Argument(metavar="NPZ", help="What `hebm encode` wrote, changed or not.")],
    out: Annotated[
        str, options.out("A .png grid, an .npz, a folder of PNGs, or - for a PNG on stdout.", default="decoded.png")
    ] = "decoded.png",
    prior: options.Prior = None,
    force: options.Force = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
) -> None:
    """Make images of latents: the mean of p(x | T(u)) for every u in the file.

    They are of one generator, and no other run's takes them.

    Examples:

        hebm decode latents.npz --out decoded.png
    """
    sink = outputs.images(out, force)
    model = options.load(run, runs, prior, device)
    made = model.decode(latents)
    sink.about = outputs.about(model, None)
    sink.write([made])
    if sink.path is not None:
        note(f"{len(made)} images: {sink.path}")


def interpolate(
    paths: options.Paths = None,
    null: options.Null = False,
    points: Annotated[int, typer.Option(min=3, max=options.MOST, help="Images of each way, ends included.")] = 9,
    steps: Annotated[
        int | None,
        typer.Option(min=0, max=options.MOST, help="Langevin steps of those between, on the prior.", show_default="2"),
    ] = None,
    seed: Annotated[int, options.seed("Of the posterior draws and the chains.")] = 0,
    fit: options.Fit = False,
    prior: options.Prior = None,
    out: Annotated[
        str, options.out("A .png, a row per way; an .npz or a folder of its images; - for stdout.", "interpolate.png")
    ] = "interpolate.png",
    force: options.Force = False,
    run: options.Run = None,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
    data_path: options.DataPath = None,
) -> None:
    """Go from each image to the next over the latents: on the great circle in u, and along the prior.

    Ends are draws of the posterior.  The points between make Langevin steps on p(u), all with the same noise, so that
    they are images that the prior knows and still go over into one another; `--steps 0` leaves them on the circle.
    Without PATH the run's first two test images are taken.

    Examples:

        hebm interpolate a.png another.png --points 9
    """
    sink = outputs.images(out, force)
    model, unread = options.load(run, runs, prior, device, data_path=data_path), Unread()
    found = model.interpolate(given_paths(paths, null), points, steps=steps, seed=seed, fit=fit, failed=unread)
    sink.about = outputs.about(model, seed, steps=steps)
    if sink.one_picture:
        sink.write_picture(found.png())
    else:
        sink.write([found.made.flatten(0, 1)])
    if sink.path is not None:
        note(f"{'picture' if sink.one_picture else 'images'}: {sink.path}")
    unread.leave()
