"""What README and docs/ show is so: every command has its options and keys, the notebook runs, the site builds.

Commands are read here as a shell and the command line would, and not run: that, for those of README, tutorial and uses,
is `cli/test_examples.py`'s.
"""

import argparse
import re
import runpy
import shlex
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from shown import PAGES, ROOT, commands

from hebmtool import recipe
from hebmtool.cli.main import app

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BUILT_IN = recipe.names()
SHOWN = [pytest.param(line, id=f"{page.relative_to(ROOT)}: {line}") for page in PAGES for line in commands(page)]


def check_recipe(name: str, overrides: list[str]) -> None:
    """Of one that does not come with the package the keys alone are read, on the defaults."""
    recipe.load(name if name in BUILT_IN else {}, overrides)


def check_hebm(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while words and not words[0].startswith("-") and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    if command.name == "hebm":
        assert words and set(words) <= {"--version", "--install-completion"}, words
        return
    given = command.make_context(command.name, list(words)).params
    if given.get("overrides"):
        check_recipe(given["recipe"], given["overrides"])


def check_python(words: list[str], monkeypatch) -> None:
    if words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[2:] if word.startswith("tests"))
    elif words[:2] == ["-m", "hebmtool.metrics.networks"]:
        assert [Path(word).suffix for word in words[2:]] == [".pt", ".safetensors"]
    elif words[0] == "-m":
        assert find_spec(words[1])
    else:
        check_script(ROOT / words[0], words[1:], monkeypatch)


class Parsed(Exception):
    """Carries what a program was told."""


def check_script(path: Path, arguments: list[str], monkeypatch) -> None:
    """A program of the repository's own: up to where it has read its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*given, **named):
        raise Parsed(parse(*given, **named))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(Parsed) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    told = vars(stopped.value.args[0])
    for key in ("set", "joint"):
        if told.get(key):
            check_recipe(told.get("recipe", ""), told[key])


def check_install(words: list[str]) -> None:
    named = re.findall(r"\[([\w,]+)\]", " ".join(words))
    assert {each for group in named for each in group.split(",")} <= set(EXTRAS)


def check(line: str, monkeypatch) -> None:
    """Raises where a command could not be meant."""
    words = shlex.split(line)
    if "&&" in words or "|" in words:
        at = next(i for i, word in enumerate(words) if word in ("&&", "|"))
        check(shlex.join(words[:at]), monkeypatch)
        return check(shlex.join(words[at + 1 :]), monkeypatch)
    words = words[: words.index(">")] if ">" in words else words
    match words:
        case ["hebm", *rest]:
            check_hebm(rest)
        case ["torchrun", *rest] if "hebmtool" in rest:
            check_hebm(rest[rest.index("hebmtool") + 1 :])
        case ["python", *rest]:
            check_python(rest, monkeypatch)
        case ["pip" | "uv", *rest] if "install" in rest:
            check_install(rest)
        case ["mkdocs", *rest]:
            assert (ROOT / rest[rest.index("-f") + 1]).is_file()
        case ["git", "clone", "ADDRESS", "hebmtool"]:
            pass
        case ["cd" | "cp" | "find" | "head" | "rm" | "sort", *_]:
            pass
        case _:
            pytest.fail(f"nobody knows what to make of: {line}")


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_shown_has_its_options_and_keys(line, monkeypatch):
    monkeypatch.setattr("hebmtool.compute.BACKEND", "eager")  # so that what compiles is shown without a compiler
    check(line, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "hebm sample --sedd 1",
        "hebm simple",
        "hebm train-prior mnist --set prior.kindd=ebm",
        "python benchmarks/results.py seeds mnist --sampels 3",
        "python -m pytest tests/gone.py",
        "torchrun --nproc-per-node 8 -m hebmtool sample --nn 3",
        'pip install ".[none]"',
        "hebm sample | hobm",
    ],
)
def test_one_that_has_not_is_found(line, monkeypatch):
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception)):
        check(line, monkeypatch)


# Notebook and site ----------------------------------------------------------------------------------------------------


def test_the_notebook_runs(tmp_path, cache, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason='needs pip install ".[docs]"')
    pytest.importorskip("ipykernel", reason='needs pip install ".[docs]"')
    import nbformat

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", 4)
    kept = shown_by(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert shown_by(notebook) == kept and sum("image/png" in each for cell in kept for each in cell) >= 8


def shown_by(notebook) -> list[list[list[str]]]:
    """Of every cell of code the kinds of what it shows, notes aside."""
    cells = [cell.get("outputs", []) for cell in notebook.cells if cell.cell_type == "code"]
    return [[sorted(each["data"]) for each in cell if "data" in each] for cell in cells]


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path, child):
    for module in ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason='needs pip install ".[docs]"')
    config, site = ROOT / ".ci/mkdocs.yml", tmp_path / "site"
    status, out, err = child(
        sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "--site-dir", site
    ).finish()
    assert status == 0, out + err
    pages = {str(page.relative_to(site)): page.read_text() for page in site.rglob("*.html")}
    assert {"index.html", "tutorial.html", "notebook.html", "api.html", "use/sample.html"} <= set(pages)
    assert "Sixty-four images" in pages["notebook.html"] and "data:image/png" in pages["notebook.html"]
    for name, text in pages.items():
        linked = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="((?:https?:)?//[^"]*)"', text)
        assert not linked, f"{name} fetches {linked[0]}"
