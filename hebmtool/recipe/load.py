"""Recipes read from YAML and written to it; the built-in ones; overrides."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.recipe.mistakes import keys_of, sentence, show
from hebmtool.recipe.schema import Recipe


def names() -> dict[str, str]:
    """The built-in recipes: name -> one-line description (the first comment line of its YAML)."""
    return {path.stem: path.read_text("utf-8").split("\n", 1)[0].lstrip("# ") for path in _built_in()}


def text(name: str) -> str:
    """A built-in recipe's YAML as written, comments included.

    Raises UsageError when no built-in recipe has that name.
    """
    for path in _built_in():
        if path.stem == name:
            return path.read_text("utf-8")
    raise UsageError(f"no built-in recipe is named {show(name)}; there are {', '.join(names())}{_near(name)}")


def named(name: str, source: str | Path) -> str:
    """The YAML of the recipe `source` (a file, or a built-in one) under another name, its comments as they are.

    Raises UsageError when `source` is no recipe, or `name` cannot name one.
    """
    whole = _read(source)
    load(source, [f"name={json.dumps(name)}"])
    line = f"name: {name}"
    if _parse(line, name) != {"name": name}:  # a name such as 2024 or null
        line = f"name: {json.dumps(name)}"
    renamed, times = re.subn(r"(?m)^name:.*$", line, whole, count=1)
    return renamed if times else f"{line}\n\n{whole}"


def written(tree: Any) -> Any:
    """A recipe as a run or a checkpoint has it: where there was no key yet, what was done then."""
    if isinstance(tree, Mapping) and isinstance(tree.get("data"), Mapping):
        return {**tree, "data": {"hold_out": "order", **tree["data"]}}
    return tree


def load_written(path: Path) -> Recipe:
    """The recipe in a run's folder, as `load` has others."""
    return from_dict(written(_parse(_read(path), str(path))), str(path))


def load(source: str | Path | Mapping, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the YAML file `source`, or the built-in one of that name ("digits", or "recipes/digits.yaml" where
    no such file exists), or in a nested mapping, with `overrides` ("part.key=value", the value in YAML) applied in
    order.

    Raises UsageError (exit 2) naming the file or the override, the key, what was found and what is allowed.
    """
    named = not isinstance(source, Mapping)
    tree = _parse(_read(source), str(source)) if named else copy.deepcopy(dict(source))
    recipe = from_dict(tree, str(source) if named else "")
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UsageError(
                f"the override {show(override)} is malformed; write part.key=value, such as prior.levels=6"
            )
        *parts, leaf = key.split(".")
        branch = tree
        for part in parts:
            if not isinstance(branch.get(part), dict):
                branch[part] = {}
            branch = branch[part]
        branch[leaf] = _parse(value, f"the override of {key}")
    return from_dict(tree, "overrides") if overrides else recipe


def from_dict(d: Any, where: str = "") -> Recipe:
    """Validate a nested mapping, as read from YAML or a checkpoint's header; absent keys take their defaults.

    `where` (a file, "overrides") opens the error.  Raises UsageError for the first mistake, with the number of the
    others.
    """
    opening = f"{where}: " if where else ""
    if not isinstance(d, Mapping):
        raise UsageError(f"{opening}a recipe is a mapping with the keys {keys_of(Recipe)}, but this is {show(d)}")
    try:
        return Recipe.model_validate(d)
    except ValidationError as error:
        mistakes = error.errors()
    # Several mistakes inside one value (the entries of a list) are one mistake to the user.
    sentences = list(dict.fromkeys(sentence(mistake, d, Recipe) for mistake in mistakes))
    more = len(sentences) - 1
    raise UsageError(opening + sentences[0] + (f" (and {more} more mistake{'s' * (more > 1)})" if more else ""))


def dump(recipe: Recipe) -> str:
    """The recipe as YAML: every key, in order. `from_dict` of its parse equals `recipe`."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _built_in() -> list[Path]:
    inside = Path(__file__).parent.parent / "recipes"  # an installed package carries them inside; a checkout, beside it
    folder = inside if inside.is_dir() else Path(__file__).parent.parent.parent / "recipes"
    return sorted(folder.glob("*.yaml"), key=lambda path: path.stem)


def _read(source: str | Path) -> str:
    path = Path(source)
    name = path.stem if path.parts == ("recipes", f"{path.stem}.yaml") else str(path)
    if not path.is_file():
        if name in names():
            return text(name)
        if path.exists():
            raise UsageError(f"{path} is not a file; give a recipe file, or one of {', '.join(names())}")
        raise UsageError(
            f"there is no recipe file {path}, nor a built-in recipe of that name; the built-in ones are "
            f"{', '.join(names())}{_near(path.stem)}"
        )
    try:
        if path.stat().st_size > 4 * LARGEST:  # bytes a character takes at most
            raise UsageError(f"{path} is not a recipe: it has {path.stat().st_size:,} bytes; give a recipe file")
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not a recipe: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise HebmError(f"{source} cannot be read ({error.strerror}); check its permissions") from None


def _near(name: str) -> str:
    return did_you_mean(name, names())


LARGEST = 2**20
"""Characters of a recipe."""

MOST_VALUES = 20_000
"""Values of a recipe; more are only made by aliases of aliases, a few hundred bytes of which can stand for billions."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 that reads 1e-4 as a number and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        value = self.construct_yaml_float(node)
        # 1e4 updates are a whole number of updates.
        return int(value) if "." not in node.value and value.is_integer() else value


_Loader.add_implicit_resolver("!number", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))
_Loader.add_constructor("!number", _Loader.construct_number)


class _Dumper(yaml.SafeDumper):
    """Lists on one line, mappings over many, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))


def _parse(source: str, where: str) -> Any:
    if len(source) > LARGEST:
        raise UsageError(f"{where}: not a recipe, it has {len(source):,} characters and a recipe at most {LARGEST:,}")
    loader = None
    try:
        loader = _Loader(source)
        tree = loader.get_single_node()
        if tree is None:
            return None
        if (size := _size(tree, {})) > MOST_VALUES:
            raise UsageError(
                f"{where}: not a recipe, it holds {_rounded(size)} values once its aliases (*name) are followed, and a "
                f"recipe at most {MOST_VALUES:,}; write out what they stand for"
            )
        return loader.construct_document(tree)
    except HebmError:
        raise
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: not valid YAML, {problem or error.reason}; correct it there") from None
    except RecursionError:
        raise UsageError(f"{where}: not a recipe, it is nested too deeply; correct it there") from None
    except Exception as error:  # a date such as 2024-13-45, thousands of digits, a tag on what it is not for
        reason = str(error).partition(";")[0] or type(error).__name__
        raise UsageError(
            f"{where}: not valid YAML, {reason}; put the value in quotes, and leave out tags (!!)"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a document, those behind an alias counted each time; endless where one holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # found again before it is counted, it holds itself
        inner = [each for pair in node.value for each in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(node)]


def _rounded(size: int) -> str:
    return f"{size:,}" if size < 10**9 else "over a billion"
