"""The `hebm` command: its groups of commands put together, and what becomes of their failures.

Data goes to stdout, everything else to stderr.  Exit status: 0 success, 1 failure, 2 usage.
"""

import os
import sys
from typing import Annotated

import typer

from hebmtool import ranks
from hebmtool.cli import distance, draw, images, latents, look, recipes, share, train
from hebmtool.cli.failures import explain, hush
from hebmtool.cli.streams import prepare
from hebmtool.console import be_quiet, protect, stderr
from hebmtool.errors import UsageError

COMMANDS = {
    "Train": (train.plan, train.train_vae, train.train_prior, train.import_nvae, train.demo),
    "Use": (draw.sample, draw.hier_sample, draw.controllable, images.ood_score, images.reconstruct, images.inpaint),
    "Latents": (latents.encode, latents.decode, latents.interpolate),
    "Look": (
        look.runs,
        look.models,
        look.info,
        look.evaluate,
        distance.fid,
        look.compare,
        look.diagnose,
        images.flow_match,
        look.report,
    ),
    "Share": (share.export, share.push, share.pull),
}
"""By the panel of the help they stand in, in order; a command's name is its function's."""

app = typer.Typer(
    name="hebm",
    help="Hierarchical latent energy-based priors: train a multi-layer generator, close its prior hole, sample.",
    epilog="Add --quiet to any command to hear of errors alone, --debug to see the whole traceback of one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(recipes.app, name="recipes", rich_help_panel="Look")


def _print_version(wanted: bool) -> None:
    if wanted:
        import hebmtool

        print(f"hebmtool {hebmtool.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


TOGETHER = ("train-vae", "train-prior", "sample", "hier-sample", "ood-score", "reconstruct", "inpaint", "evaluate")
"""Commands whose work several processes share."""


def _check_together(arguments: list[str]) -> None:
    """Of several processes the first alone writes on stdout.  Raises UsageError where they have nothing to share."""
    if ranks.world() == 1:
        return
    command = next((word for word in arguments if not word.startswith("-")), "hebm")
    if command not in TOGETHER:
        raise UsageError(f"{command} works in one process, and torchrun started {ranks.world()}; run it without")
    if not ranks.is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process)


def _options(arguments: list[str]) -> set[str]:
    """The options of the command that these arguments run."""
    commands = typer.main.get_command(app).commands
    command = next((commands[word] for word in arguments if word in commands), None)
    return set() if command is None else {name for parameter in command.params for name in parameter.opts}


def main() -> None:
    """Entry point: run the command, turn every failure into one sentence and an exit status."""
    protect()
    prepare()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    be_quiet("--quiet" in arguments)
    arguments = [argument for argument in arguments if argument not in ("--debug", "--quiet")]
    if not debug:
        hush()
    try:
        _check_together(arguments)
        status = app(arguments, prog_name="hebm", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as stopped:
        # Click makes a failure of a reader that went away, as `head` does.
        if not isinstance(stopped.__context__, BrokenPipeError):
            raise
        status = explain(stopped.__context__, debug)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            stderr.print_exception(show_locals=False)
        status = explain(error, debug, _options(arguments))
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
