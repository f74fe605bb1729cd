"""Commands about recipes: those that come with the package, their keys, and one's own."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hebmtool.cli import options
from hebmtool.cli.streams import print_json
from hebmtool.console import note
from hebmtool.errors import HebmError

app = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")


@app.callback()
def names(context: typer.Context) -> None:
    """List the built-in recipes, one a line: name, tab, what it is.

    A recipe is one YAML file; any key of it can be overridden where it is used, by `--set`.

    Examples:

        hebm recipes
        hebm recipes show digits
    """
    if context.invoked_subcommand is None:
        from hebmtool import recipe

        for name, description in recipe.names().items():
            print(f"{name}\t{description}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A built-in recipe.")]) -> None:
    """Print a built-in recipe as written, ready to be saved and changed.

    Its comments tell what the values are for.

    Examples:

        hebm recipes show mnist > mine.yaml
    """
    from hebmtool import recipe

    print(recipe.text(name), end="")


@app.command()
def keys(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="Part of a name or description; a regular expression.", show_default="every key"
        ),
    ] = None,
    as_json: options.JsonLines = False,
) -> None:
    """List the keys a recipe has, one a line: name, tab, default, tab, what it takes, tab, what it is for.

    Each can be overridden where a recipe is used, by `--set NAME=VALUE`.

    Examples:

        hebm recipes keys lr
        hebm recipes keys '^prior[.]' --json
    """
    from hebmtool import recipe

    for key in recipe.keys(pattern):
        if as_json:
            print_json(key.as_dict())
        else:
            print(key)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Names the recipe, its file NAME.yaml, and its runs.")],
    base: Annotated[
        str,
        typer.Option(
            "--from", metavar="RECIPE", help="A built-in recipe, or a file.", autocompletion=options.recipe_names
        ),
    ] = "digits",
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write NAME.yaml, a copy of another recipe under its own name, to be changed.

    Prints the file's name.

    Examples:

        hebm recipes new cats --from cifar10-small
    """
    from hebmtool import files, recipe

    text, path = recipe.named(name, base), Path(f"{name}.yaml")
    if path.exists() and not force:
        raise HebmError(f"the file {path} exists; choose another name, or add --force")
    files.write_bytes(path, text.encode())
    note(f"train it with `hebm train-vae {path}`")
    print(path)


@app.command()
def check(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Files, or built-in recipes.")],
    overrides: options.Overrides = None,
) -> None:
    """Read recipes as a training would, and train nothing: a line for each, recipe, tab, name.

    A mistake is told in a sentence that names the key, what was found and what it takes; the exit status is then 2.

    Examples:

        hebm recipes check recipes/*.yaml
    """
    from hebmtool import recipe

    for each in recipes:
        print(f"{each}\t{recipe.load(each, overrides or []).name}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, by which editors complete keys and mark mistakes.

    In VS Code, with the YAML extension: `# yaml-language-server: $schema=recipe.schema.json` as a recipe's first line.

    Examples:

        hebm recipes schema > recipe.schema.json
    """
    from hebmtool import recipe

    print(json.dumps(recipe.schema(), indent=2))
