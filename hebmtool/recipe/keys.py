"""The keys a recipe has: what each takes, its default, and what it is for, as `schema` has it."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from hebmtool.errors import UsageError, did_you_mean
from hebmtool.recipe.mistakes import allowed, is_part, show
from hebmtool.recipe.schema import Recipe


@dataclass(frozen=True)
class Key:
    """name: as an override has it, "prior.levels".  takes: in words.  default: as in JSON.  description: one line."""

    name: str
    takes: str
    default: Any
    description: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return "\t".join([self.name, json.dumps(self.default), self.takes, self.description])


def keys(pattern: str | None = None) -> list[Key]:
    """Every key in the order of a recipe, or those whose name or description has the regular expression `pattern`, in
    whatever case.

    Raises UsageError when `pattern` is none, or no key has it.
    """
    every = list(_keys(Recipe, Recipe().model_dump(mode="json")))
    if pattern is None:
        return every
    try:
        wanted = re.compile(pattern, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{show(pattern)} is no regular expression: {error}; a word such as lr is one") from None
    found = [key for key in every if wanted.search(key.name) or wanted.search(key.description)]
    if not found:
        names = [name for key in every for name in (key.name, key.name.rpartition(".")[2])]
        raise UsageError(
            f"no key of a recipe has {show(pattern)} in its name or description{did_you_mean(pattern, names)}"
        )
    return found


def _keys(part: type[BaseModel], defaults: dict[str, Any], prefix: str = "") -> Iterator[Key]:
    for name, field in part.model_fields.items():
        if is_part(field):
            yield from _keys(field.annotation, defaults[name], f"{prefix}{name}.")
        else:
            yield Key(prefix + name, allowed(field), defaults[name], field.description)


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors: keys, types, bounds, words and descriptions."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()
