"""`hebm export`, `push` and `pull`, against a stand-in for the hub (`hub.py`): what goes out comes back the same."""

import re
import sys

import pytest
import yaml
from children import one_by_one
from hub import TOKEN, Hub, sha
from PIL import Image

from hebmtool import recipe
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.header import contents


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server
        server.shutdown()


@pytest.fixture
def elsewhere(hub, heard, tmp_path):
    """`elsewhere(*commands, **environment)`: commands in a process of their own, for where the hub is, is read when its
    client is imported; each as (arguments, more of its environment).  Exit status, stdout and stderr of each."""

    def run(*commands, **environment):
        settings = {"HF_ENDPOINT": hub.address, "HF_HOME": tmp_path / "hf", "HF_TOKEN": TOKEN} | environment
        return [found[:3] for found in one_by_one(commands, env=settings, cwd=tmp_path)]

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def draw(run, name):
    return ("sample", "--run", run, "-n", 3, "--out", f"{name}.npz"), {"HF_TOKEN": ""}


def test_a_run_goes_to_the_hub_and_comes_back_bit_for_bit(elsewhere, hub, tiny, tmp_path):
    there = "hf://somebody/digits"
    pushed, pulled, *drawn, found, absent = elsewhere(
        *((("push", tiny / "digits", "somebody/digits"), {}), (("pull", "somebody/digits"), {})),
        *(draw(tiny / "digits", "own"), draw(there, "hub")),
        *((("info", f"{there}@{revision}"), {}) for revision in (sha(1), "absent")),
    )
    assert pushed[:2] == (0, f"{hub.address}/somebody/digits\n"), pushed
    sent = {name: content for name, content in hub.repositories["somebody/digits"][-1].items() if name[0] != "."}
    assert {"recipe.yaml", "README.md", "generator.safetensors", "prior-ebm.safetensors", "samples.png"} <= set(sent)
    assert not any(".train." in name for name in sent)
    assert pulled[0] == 0, pulled
    assert files(type(tmp_path)(pulled[1].strip())) == sent
    assert [status for status, *_ in drawn] == [0, 0], drawn
    assert (tmp_path / "own.npz").read_bytes() == (tmp_path / "hub.npz").read_bytes()
    # What is here is not fetched again.
    fetched = [asked for asked in hub.asked if asked.startswith("GET") and "/resolve/" in asked]
    assert len(fetched) == len(set(fetched)) >= len(sent)
    assert found[0] == 0 and "not at that revision" in absent[2]
    # Nor is a network needed for it.
    [again] = elsewhere((("pull", "somebody/digits"), {}), HF_HUB_OFFLINE="1")
    assert again[:2] == pulled[:2], again


def test_what_goes_wrong_is_a_sentence(elsewhere, tiny):
    cases = [
        (("pull", "nowhere"), {}, 2, "names no run on a hub"),
        (("pull", "somebody/absent"), {}, 1, "no run hf://somebody/absent"),
        (("info", "hf://somebody/absent"), {}, 1, "no run hf://somebody/absent"),
        (("push", tiny / "digits", "somebody/other"), {"HF_TOKEN": "wrong"}, 1, "refuses|may not|who asks"),
    ]
    told = elsewhere(*((words, more) for words, more, *_ in cases))
    told += elsewhere((("pull", "somebody/absent"), {}), HF_ENDPOINT="http://127.0.0.1:9")
    expected = [*((status, said) for *_, status, said in cases), (1, "cannot be reached")]
    for (status, out, err), (as_expected, said) in zip(told, expected, strict=True):
        assert (status, out) == (as_expected, ""), err
        assert re.search(said, err) and "Traceback" not in err and len(err.splitlines()) == 1, err


def test_without_its_client_it_says_what_to_install(child, tiny):
    program = (
        "import sys; sys.modules['huggingface_hub'] = None; sys.argv = ['hebm', 'pull', 'a/b'];"
        "from hebmtool.cli.main import main; main()"
    )
    status, _, err = child(sys.executable, "-c", program).finish()
    assert status == 1 and 'pip install "hebmtool[hub]"' in err


def test_an_export_is_a_run_without_what_only_training_needs(hebm, tiny, copied, tmp_path):
    path = copied / "digits" / "recipe.yaml"
    path.write_text(path.read_text().replace("path: null", f"path: {tmp_path}/mine.npz"))
    status, out, err = hebm("export", copied / "digits", "--out", tmp_path / "given")
    assert (status, out) == (0, f"{tmp_path / 'given'}\n"), err
    assert not list((tmp_path / "given").glob("*.train.*")) and not (tmp_path / "given" / "metrics.jsonl").exists()
    assert recipe.load(tmp_path / "given" / "recipe.yaml").data.path is None
    assert "mine.npz" not in (tmp_path / "given" / "README.md").read_text()
    for name in ("generator", "prior-ebm", "prior-diffusion-ebm", "label-class"):
        here, there = (
            checkpoint.load(root / f"{name}.safetensors")[0] for root in (tiny / "digits", tmp_path / "given")
        )
        assert here.keys() == there.keys() and all(here[key].equal(there[key]) for key in here)
    for kind in ("gaussian", "ebm", "diffusion-ebm"):
        for where in (tiny / "digits", tmp_path / "given"):
            how = ("--prior", kind, "-n", 2, "--force", "--out", tmp_path / f"{where.name}.npz")
            assert hebm("sample", "--run", where, *how)[0] == 0
        assert (tmp_path / "digits.npz").read_bytes() == (tmp_path / "given.npz").read_bytes()
    status, _, err = hebm("export", copied / "digits", "--out", tmp_path / "given")
    assert status == 1 and "exists" in err


def test_a_half_is_another_model_with_its_weights_rounded(hebm, tiny, tmp_path):
    assert hebm("export", tiny / "digits", "--half", "--out", tmp_path / "half")[0] == 0
    for name in ("generator", "prior-diffusion-ebm", "label-class"):
        whole, half = (
            checkpoint.load(root / f"{name}.safetensors")[0] for root in (tiny / "digits", tmp_path / "half")
        )
        assert whole.keys() == half.keys()
        for key, x in whole.items():
            rounded = x.bfloat16() if x.is_floating_point() else x
            assert half[key].dtype == rounded.dtype and half[key].equal(rounded)
    assert not (tmp_path / "half" / "figures.json").exists(), "of another model"
    assert "| Closure" not in (tmp_path / "half" / "README.md").read_text()
    drawn = ("sample", "--run", tmp_path / "half", "-n", 2, "--out", tmp_path / "drawn.npz")
    status, _, err = hebm(*drawn)
    assert status == 0 and "another generator" not in err
    # Once rounded it is given away as it is.
    assert hebm("export", tmp_path / "half", "--out", tmp_path / "again")[0] == 0
    for name in ("generator", "prior-diffusion-ebm"):
        paths = [tmp_path / root / f"{name}.safetensors" for root in ("half", "again")]
        assert contents(paths[0]) == contents(paths[1])


def test_the_card_says_what_it_is_and_how_it_is_used(hebm, tiny, tmp_path):
    assert hebm("export", tiny / "digits", "--out", tmp_path / "given")[0] == 0
    card = (tmp_path / "given" / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "hebmtool"
    assert "hebm report given" in body and "![" in body
    [shown] = re.findall(r"```yaml\n(.*?)```", body, re.DOTALL)
    (tmp_path / "shown.yaml").write_text(shown)
    assert recipe.load(tmp_path / "shown.yaml") == recipe.load(tmp_path / "given" / "recipe.yaml")
    with Image.open(tmp_path / "given" / "samples.png") as picture:
        assert picture.width > picture.height > 48


def test_figures_stay_those_of_checkpoints_written_by_another_version(hebm, tiny, copied, tmp_path):
    """Whose recipes have fewer keys, so that the copy's digests differ."""
    run = Run(copied / "digits")
    path = run.generator_path
    tensors, header = checkpoint.load(path)
    defaults = recipe.Generator().model_dump(mode="json")
    fewer = {**header.recipe, "generator": {k: v for k, v in header.recipe["generator"].items() if v != defaults[k]}}
    checkpoint.save(path, tensors, kind=header.kind, recipe=fewer, step=header.step, extra=header.extra)
    run.set_figure("generator", {"elbo": -1.5, "bits_per_dim": 0.5, "kl": [1.0, 2.0], "step": 3}, [path])
    for kind in run.priors()[1:]:
        run.prior_path(kind).unlink()  # they were learned on the generator as it was
    for name in run.labels():
        run.label_path(name).unlink()
    status, _, err = hebm("export", run.path, "--out", tmp_path / "given")
    assert status == 0, err
    assert contents(tmp_path / "given" / "generator.safetensors") != contents(path)
    status, out, err = hebm("info", tmp_path / "given")
    assert status == 0 and "ELBO -1.50 nats" in out and "other checkpoints" not in out.splitlines()[1], out + err
