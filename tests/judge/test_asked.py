"""Whether samples are as asked: the share counted, the judges that are trained on real images, and the report."""

import numpy as np
import pytest
import torch

from hebmtool import data
from hebmtool.errors import HebmError
from hebmtool.judge import classifier
from hebmtool.judge.labels import diversity, judge, lines, report
from hebmtool.use.controllable import Wish

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    """Classifiers of a few seconds."""
    monkeypatch.setattr(classifier, "UPDATES", 200)


def test_diversity_is_the_mean_pairwise_distance():
    points = np.random.default_rng(1).normal(size=(300, 4))
    exact = np.linalg.norm(points[:, None] - points[None], axis=2).sum() / (300 * 299)
    assert diversity(points) == pytest.approx(exact, rel=0.03)


class Brightness:
    """The value of an image is the number in its corner."""

    def predict(self, images):
        return images[:, 0, 0, 0].long()


def test_what_was_asked_is_counted():
    images = torch.tensor([0, 1, 1, 2]).reshape(4, 1, 1, 1)
    judges = {"class": (Brightness(), ["a", "b", "c"]), "kind": (Brightness(), ["x", "y", "z"])}
    assert judge(images, [Wish("class", "b")], judges)["controllability"] == 0.5
    assert judge(images, [Wish("class", "b", -1.0)], judges)["controllability"] == 0.5
    assert judge(images, [Wish("class", "c", -1.0)], judges)["controllability"] == 0.75
    both = judge(images, [Wish("class", "c", -1.0), Wish("kind", "y")], judges)
    assert both["controllability"] == 0.5 and both["by_label"] == {"class": 0.75, "kind": 0.5}


def test_a_classifier_learns_from_real_images_and_is_kept(run, quick, capsys):
    settings = run.recipe()
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    state = torch.get_rng_state()
    model, accuracy = classifier.trained("class", run, settings, images, test, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    right = (model.predict(test.batch(range(len(test)))) == test.labels).double().mean().item()
    assert accuracy == pytest.approx(right) and accuracy > 0.8
    path = run.path / "classifier-class.safetensors"
    before = path.stat().st_mtime_ns
    again, same = classifier.trained("class", run, settings, images, test, CPU)
    assert same == accuracy and path.stat().st_mtime_ns == before
    assert torch.equal(again.predict(images.batch(range(50))), model.predict(images.batch(range(50))))


def test_an_attribute_made_of_other_classes_is_learned_anew(run, quick):
    settings = run.recipe()
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    path = run.path / "classifier-odd.safetensors"
    written = []
    for classes in (["1", "3"], ["1", "3", "5", "7", "9"]):
        settings.data.attributes = {"odd": classes}
        marked = [data.load(settings.data, split) for split in ("train", "test")]
        classifier.trained("odd", run, settings, *marked, CPU)
        written.append(path.stat().st_mtime_ns)
    assert written[0] != written[1]
    with pytest.raises(HebmError, match="hats"):
        classifier.trained("hats", run, settings, images, test, CPU)


def test_real_images_are_as_asked(run, quick):
    """Threes of the training images for samples: most are seen to be, they lie at the real ones, and are as diverse."""
    settings = run.recipe()
    images = data.load(settings.data, "train")
    threes, others = (images.batch(torch.nonzero(mask)[:60, 0]) for mask in (images.labels == 3, images.labels != 3))
    wanted = [[Wish("class", "3")], [Wish("class", "3")], [Wish("class", "3", -1.0)]]
    found = report([threes, others, others], wanted, run, settings, CPU)
    assert list(found["classifiers"]) == ["class"] and found["features"] == "embedded"
    three, other, without = found["rows"]
    assert three["controllability"] > 0.8 > 0.2 > other["controllability"] and without["controllability"] > 0.8
    assert three["fd"] < other["fd"] and without["fd"] < other["fd"]
    assert three["diversity"] == pytest.approx(1, abs=0.2) and other["diversity"] > three["diversity"]
    said = lines(found)
    assert said[0].startswith("the classifier of class is right on ") and len(said) == 4
    assert said[1].startswith("class 3: ") and "of 60 as asked, FD " in said[1]
