"""Commands about the recipes that come with the package."""

from typing import Annotated

import typer

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
