"""Class shares and clean images: by labels of the nearest reference images, or by clusters of the reference."""

import numpy as np
import pytest

from hebmtool.metrics.shares import Classes, counting, total_variation

RNG = np.random.default_rng(0)
CENTRES = np.array([[0.0, 0], [10, 0], [0, 10]])


def images(*counts):
    """Features of so many images about each centre, and their classes."""
    y = np.repeat(np.arange(len(counts)), counts)
    return (CENTRES[y] + RNG.normal(size=(len(y), 2))).astype(np.float32), y


def test_shares_are_of_the_nearest_labels_and_what_lies_between_is_not_clean():
    reference, y = images(50, 50, 50)
    shares, clean = Classes(reference, y)(images(30, 60, 10)[0])
    assert shares == pytest.approx([0.3, 0.6, 0.1]) and clean.all()
    # Where neighbours are of two classes in turns.
    line = np.stack([np.arange(40), np.zeros(40)], 1).astype(np.float32)
    assert not Classes(line, np.arange(40) % 2)(line[10:30] + 0.1)[1].any()


def test_without_labels_clusters_stand_in_and_nothing_is_called_clean():
    classes = Classes(images(100, 100, 100)[0])
    same, clean = classes(images(100, 100, 100)[0])
    other, _ = classes(images(200, 90, 10)[0])
    assert clean is None and same.sum() == pytest.approx(1)
    assert total_variation(same, other) > 0.25 and total_variation(same, same) == 0


def test_counting_alone_is_what_two_sets_of_one_law_differ_by():
    law, n = np.array([0.5, 0.3, 0.2]), 400
    alone, error = counting(law, law, n)
    drawn = [total_variation(*(RNG.multinomial(n, law, 2) / n)) for _ in range(2000)]
    assert alone == pytest.approx(np.mean(drawn), rel=0.1) and error == pytest.approx(np.std(drawn), rel=0.1)
    assert counting(law, law, 100 * n)[0] < alone / 5
