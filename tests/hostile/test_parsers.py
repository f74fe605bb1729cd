"""The parsers of what comes from outside, on what nobody thought of: a value, or an error of the package's own in one
line; nothing else."""

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hebmtool import recipe
from hebmtool.cli import streams
from hebmtool.console import printable
from hebmtool.data import masks
from hebmtool.errors import HebmError
from hebmtool.metrics import networks
from hebmtool.run import header, info
from hebmtool.run.folder import Run

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
KEYS = st.sampled_from(
    [*recipe.Recipe.model_fields, *recipe.Data.model_fields, *recipe.Prior.model_fields, *recipe.Generator.model_fields]
) | st.text(max_size=8)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
SYNTAX = st.lists(
    st.sampled_from([*"{}[]:,&*!|>-#'\"\n \t01e.~?%@`x", "data:", "<<: *a", "&a", "!!int ", "\x00"]), max_size=25
)


def settled(parse, *arguments):
    """What it yields, or None where it refuses in a sentence."""
    try:
        return parse(*arguments)
    except HebmError as error:
        assert str(error) and "\n" not in str(error) and "Traceback" not in str(error), repr(str(error))
        return None


@few
@given(SYNTAX.map("".join))
def test_recipes_as_text(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, "utf-8")
    found = settled(recipe.load, path)
    assert found is None or recipe.load(path) == found


@few
@given(st.binary(max_size=60))
def test_recipes_as_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    settled(recipe.load, path)


@few
@given(TREES)
def test_recipes_as_trees(tree):
    found = settled(recipe.from_dict, tree)
    assert found is None or recipe.from_dict(found.model_dump(mode="json")) == found


@few
@given(KEYS, KEYS, SYNTAX.map("".join) | SCALARS.map(str))
def test_overrides(part, key, value):
    settled(recipe.load, "digits", [f"{part}.{key}={value}"])


@few
@given(
    st.dictionaries(
        st.sampled_from(["format", "format_version", "kind", "step", "recipe", "extra", "package_version"]),
        TREES.map(lambda tree: json.dumps(tree, default=str)) | st.text(max_size=9),
    ),
    st.booleans(),
)
def test_headers_of_checkpoints(tmp_path_factory, fields, ours):
    if ours:
        fields = {
            "format": "hebmtool",
            "format_version": "1",
            "kind": "generator",
            "step": "1",
            "recipe": "{}",
            "extra": "{}",
            "package_version": "0",
        } | fields
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    text = json.dumps({"__metadata__": fields}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    found = settled(header.header, path)
    if found is not None:
        settled(header.recipe, path, found)
    settled(networks.load, path)


@few
@given(st.binary(max_size=80))
def test_checkpoints_as_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    assert settled(header.header, path) is None


@few
@given(st.lists(st.binary(max_size=9).map(lambda name: name.replace(b"\0", b"")), max_size=5))
def test_lists_of_paths(names):
    with pytest.MonkeyPatch.context() as patch:
        for end, null in ((b"\0", True), (b"\n", False)):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(end.join(names))))
            found = list(streams.paths(null))
            if null:
                assert [name.encode("utf-8", "surrogateescape") for name in found] == [n for n in names if n.strip()]


@few
@given(
    st.text(max_size=12)
    | st.sampled_from(["center:", "random:"]).flatmap(lambda w: st.floats().map(lambda f: f"{w}{f}"))
)
def test_masks_in_words(word):
    found = settled(masks.parse, word, (1, 8, 8), 0, 3)
    if found is not None:
        hidden = found(range(3))
        assert hidden.shape == (3, 1, 8, 8) and hidden.any() and not hidden.all()


@few
@given(st.binary(max_size=60), st.sampled_from(["npy", "npz", "png"]), st.booleans())
def test_masks_as_bytes(tmp_path_factory, content, ending, opens):
    path = tmp_path_factory.getbasetemp() / f"any.{ending}"
    path.write_bytes(
        {"npy": np.lib.format.magic(1, 0), "npz": b"PK\x03\x04", "png": b"\x89PNG\r\n\x1a\n"}[ending] * opens + content
    )
    settled(masks.from_file, str(path), (8, 8), 1)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The tiny run, with figures of its own."""
    root = tmp_path_factory.mktemp("figures")
    for name in ("recipe.yaml", "generator.safetensors", "prior-ebm.safetensors"):
        (root / name).symlink_to(tiny / "digits" / name)
    return Run(root)


@few
@given(TREES | st.dictionaries(st.sampled_from(["closure", "evaluate", "evaluations", "label_accuracy", "of"]), TREES))
def test_figures(run, tree):
    run.figures_path.write_text(json.dumps(tree))
    settled(run.figures)
    settled(lambda run: (info.describe(run), info.evaluations(run)), run)


@few
@given(st.text())
def test_what_is_printed_steers_nothing(text):
    shown = printable(text)
    assert not set(shown) & {chr(i) for i in (*range(27), *range(28, 32), *range(127, 160))}
    assert "\x1b" not in shown.replace("\x1b[", "") or "\x1b[" in text
