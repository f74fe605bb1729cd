"""The command that says how far two sets of images are from each other."""

from typing import Annotated

import typer

from hebmtool.cli import options, streams
from hebmtool.errors import UsageError


def fid(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A folder of images, an .npz or .npy; RUN, RUN:train, RUN:test.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="MODE",
            help="clean-fid's: clean or legacy_pytorch.",
            show_default="clean; where Inception is not to be had the embedded network",
            **options.one_of("--mode", "clean", "legacy_pytorch"),
        ),
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Another feature network: safetensors, .pt or .pt2.", show_default="Inception")
    ] = None,
    trust_features: options.TrustFeatures = False,
    n: Annotated[
        int | None, options.number("Images taken of a run.", 2, "1,000 of what it draws, all that it has")
    ] = None,
    seed: Annotated[int, options.seed("Of what a run draws.")] = 0,
    fit: options.Fit = False,
    as_json: options.Json = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
) -> None:
    """Measure the Fréchet distance between two sets of images: FID, through clean-fid.

    A set is a folder (at any depth), an .npz or .npy; a run, for what its best prior draws; RUN:train or RUN:test, for
    the images it has.  Prints the value, tab, FID or FD, tab, the features it is in, tab, the images of each set.  In
    other features than Inception's the number is an FD, comparable with its like alone.

    Examples:

        hebm fid mnist:test dogs.npz --features mnist_features.safetensors --json
        hebm fid imgs/ cats/ --mode legacy_pytorch
    """
    if features is not None and mode is not None:
        raise UsageError("--mode is of clean-fid's Inception, and --features names another network; leave out either")
    if trust_features and features is None:
        raise UsageError("--trust-features is for a file named by --features; name one, or leave it out")
    from hebmtool import api

    networks = {"mode": mode, "features": features, "trust_features": trust_features}
    found = api.fid(a, b, **networks, n=n, seed=seed, fit=fit, runs=runs, device=device)
    if as_json:
        streams.print_json(found.as_dict())
    else:
        print(f"{found.value:.6g}\t{found.figure}\t{found.features}\t{found.a[1]}\t{found.b[1]}")
