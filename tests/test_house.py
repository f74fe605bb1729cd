"""What the sources of the package keep to: sizes a reader can hold, docstrings, no options and no kinds asked for."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from hebmtool.prior import KINDS

PACKAGE = Path(__file__).parents[1] / "hebmtool"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
LIBRARY = [name for name in FILES if not name.startswith("cli/")]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

every_file = pytest.mark.parametrize("name", FILES)
every_library_file = pytest.mark.parametrize("name", LIBRARY)


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


@every_file
def test_a_file_is_short_and_opens_with_what_it_is(name):
    text = FILES[name].read_text()
    said = ast.get_docstring(parsed(name)) or ""
    assert len(said) > 20 and not said.startswith("TODO")
    assert text.count("\n") <= LONGEST_FILE


@pytest.mark.parametrize("room", [name for name in FILES if name.endswith("/__init__.py")])
def test_a_room_opens_with_what_lives_there_and_what_is_changed_alone(room):
    assert len(re.findall(r"[.;](\s|$)", ast.get_docstring(parsed(room)))) >= 3


@every_file
def test_a_function_fits_a_screen_or_says_why_not(name):
    lines = FILES[name].read_text().splitlines()
    for function in (f for f in ast.walk(parsed(name)) if isinstance(f, ast.FunctionDef)):
        first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
        if function.end_lineno - function.lineno >= LONGEST_FUNCTION:
            above = lines[first - 2].strip()
            assert above.startswith("#"), f"{function.name} takes {function.end_lineno - function.lineno + 1} lines"


@every_library_file
def test_the_library_names_no_option(name):
    """Who imports the package has arguments and recipe keys; `--steps` is the command line's business."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.findall(r"(?<![\w(-])--[a-z][a-z-]*", node.value)
            assert not found, f"line {node.lineno} names {found[0]}"


@every_library_file
def test_what_kind_a_prior_is_is_not_asked(name):
    """Its `T`, `learned`, and its generator's `has_encoder` are; words are compared where a recipe is validated."""
    if name == "recipe/schema.py":
        return
    classes = {
        of.__name__ for kind in KINDS.values() for of in kind.__mro__ if of.__module__.startswith("hebmtool.prior")
    }
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Compare):
            words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            asked = [n for n in ast.walk(node.left) if isinstance(n, ast.Attribute | ast.Name)]
            kinds = [n for n in asked if getattr(n, "attr", getattr(n, "id", "")) == "kind"]
            assert not (kinds and words & set(KINDS)), f"line {node.lineno} compares a kind"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            assert not named & classes, f"line {node.lineno} asks of what class a prior is"
