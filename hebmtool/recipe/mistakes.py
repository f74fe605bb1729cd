"""What a user wrote wrong in a recipe, from pydantic's errors, in a sentence that names the key and what it takes."""

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hebmtool.errors import did_you_mean
from hebmtool.recipe.words import Words


def sentence(mistake: Mapping[str, Any], tree: Mapping, owner: type[BaseModel]) -> str:
    """What a user wrote wrong in `tree`, from one of pydantic's errors; `owner` is the model that found it."""
    if mistake["type"] == "value_error":  # a check of ours, which speaks for itself
        return str(mistake["ctx"]["error"])
    path = mistake["loc"]
    for depth, key in enumerate(path, 1):
        field = owner.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            part = f"{'.'.join(path[: depth - 1])} has" if depth > 1 else "a recipe has"
            full = ".".join(str(key) for key in path[:depth])
            return f"unknown key {full}; {part} the keys {keys_of(owner)}{did_you_mean(key, owner.model_fields)}"
        tree = tree[key]
        if not is_part(field) or depth == len(path):
            break
        owner = field.annotation
    words = _words(field)
    near = did_you_mean(tree, words) if isinstance(tree, str) and all(isinstance(word, str) for word in words) else ""
    return f"{'.'.join(path[:depth])} is {show(tree)}, but must be {allowed(field)}{near}"


def allowed(field: FieldInfo) -> str:
    """The values a key takes: "a whole number of at least 2"."""
    if is_part(field):
        return f"a mapping with the keys {keys_of(field.annotation)}"
    return " or ".join(sorted(_phrases(field), key=lambda phrase: phrase != "null"))


def _phrases(field: FieldInfo) -> Iterator[str]:
    for kind in _kinds(field):
        if get_origin(kind) is Literal or _listed(field):
            yield f"one of {', '.join(map(str, _words(field)))}"
        elif get_origin(kind) is tuple:
            entries = get_args(kind)
            yield f"a list of {len(entries)} numbers, each{_range(entries[0].__metadata__[0].metadata)}"
        elif get_origin(kind) is list:
            yield f"a list of {_entries(get_args(kind)[0])}"
        elif get_origin(kind) is dict:
            yield "a mapping from names to lists of names"
        elif kind is NoneType:
            yield "null"
        elif kind is str:
            made_of = field.description.partition(": ")[2] if field.metadata else ""
            yield "text" + (f" ({made_of})" if made_of else ", in quotes where it looks like something else")
        else:
            noun = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            yield noun if kind is bool else noun + _range(field.metadata)


def _entries(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"words, each one of {', '.join(get_args(kind))}"
    return "names" if kind is str else "whole numbers"


def _listed(field: FieldInfo) -> Words | None:
    return next((each for each in field.metadata if isinstance(each, Words)), None)


def _words(field: FieldInfo) -> list[Any]:
    """The words a field takes, where it takes no others."""
    listed = _listed(field)
    if listed is not None:
        return list(listed)
    return [word for kind in _kinds(field) if get_origin(kind) is Literal for word in get_args(kind)]


def _range(bounds: Sequence[Any]) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [
        f"{word} {getattr(bound, name)}" for bound in bounds for name, word in words.items() if hasattr(bound, name)
    ]
    return " " + " and ".join(said) if said else ""


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    # `int | None` is a UnionType, `Literal[...] | None` a Union
    return get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)


def is_part(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def keys_of(part: type[BaseModel]) -> str:
    return ", ".join(part.model_fields)


def show(value: Any) -> str:
    """A value found, as its YAML on one short line."""
    if isinstance(value, Mapping):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**60:  # Python itself shows none of more than 4,300 digits
        return "a number of more than 60 digits"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def told(error: ValidationError) -> str:
    """What is wrong in what is no recipe, from the first of pydantic's errors: "extra.image_shape.0: input should be a
    valid integer"."""
    first, *_ = error.errors(include_url=False, include_context=False)
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}".removeprefix(": ").partition("\n")[0]
