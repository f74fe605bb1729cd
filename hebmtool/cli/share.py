"""Commands that give runs away, and take them from others."""

from typing import Annotated

import typer

from hebmtool.cli import options
from hebmtool.console import note

ADDRESS = typer.Argument(metavar="USER/NAME", help="On the hub; @REVISION may follow.", show_default=False)


def export(
    run: options.RunNamed = None,
    out: Annotated[str, options.out("A folder that does not exist yet.", default="exported")] = "exported",
    half: Annotated[
        bool, typer.Option("--half", help="Weights in bf16, half as large: another model, without the run's figures.")
    ] = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
) -> None:
    """Copy a run without optimizer states and paths of this machine, with a card: ready to be given away.

    The copy draws and scores as the run does, bit for bit unless its weights are rounded.  Prints the folder.

    Examples:

        hebm export mnist --out shared-mnist
    """
    options.opened(run, runs)
    from hebmtool import api

    print(api.export(run, out, half=half, runs=runs, device=device))


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.", show_default=False)],
    address: Annotated[str, ADDRESS],
    private: Annotated[bool, typer.Option("--private", help="Where it is made: for your eyes only.")] = False,
    runs: options.Runs = options.RUNS,
    device: options.Device = "auto",
) -> None:
    """Upload to the Hugging Face Hub what `hebm export` makes of a run.  Prints where it can be looked at.

    Needs `pip install "hebmtool[hub]"`, and a token in HF_TOKEN or by `hf auth login`.

    Examples:

        hebm push mnist somebody/mnist
    """
    options.opened(run, runs)
    from hebmtool import api

    print(api.push(run, address, private=private, runs=runs, device=device))


def pull(address: Annotated[str, ADDRESS]) -> None:
    """Fetch a run from the Hugging Face Hub, or take what was fetched before.  Prints its folder.

    Every command takes it by its address too: `--run hf://user/name`.

    Examples:

        hebm pull somebody/mnist
    """
    from hebmtool.run import hub

    folder = hub.pull(address)
    print(folder)
    note(f"draw from it by `hebm sample --run {hub.SCHEME}{address.removeprefix(hub.SCHEME)}`")
