"""Which classes images fall into, and how many are clean, by the reference images nearest to them in given features.

    class shares    TV(A, B) = 1/2 sum_k |share of class k in A - in B|
    clean           share of images whose `NEIGHBOURS` nearest reference images are all of one class

A prior that gives modes the wrong weight has images no distance finds fault with one by one.  Where the reference has
no labels, clusters of it stand in for classes (k-means), and nothing is called clean.
"""

import numpy as np

NEIGHBOURS = 5
CLUSTERS = 10
DRAWS = 1000  # of counts, by which what counting alone does is known


class Classes:
    """The classes of a reference, or clusters of it.

    Arguments:
        reference: features [M, D].
        labels: class of each, integers [M]; clusters are made when None.
    """

    def __init__(self, reference: np.ndarray, labels: np.ndarray | None = None):
        from sklearn.cluster import KMeans  # slow to import
        from sklearn.neighbors import NearestNeighbors

        self.labels = labels
        if labels is None:
            self._clusters = KMeans(min(CLUSTERS, len(reference)), n_init=1, random_state=0).fit(reference)
            self.K = self._clusters.n_clusters
        else:
            self._near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(reference)), algorithm="brute").fit(reference)
            self.K = int(labels.max()) + 1

    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(share of each class [K], which images are clean, bool [N]); features [N, D]."""
        if self.labels is None:
            return self._shares(self._clusters.predict(features)), None
        near = self.labels[self._near.kneighbors(features, return_distance=False)]
        votes = (near[:, :, None] == np.arange(self.K)).sum(1)
        return self._shares(votes.argmax(1)), votes.max(1) == near.shape[1]

    def _shares(self, classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=self.K) / len(classes)


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two laws over classes, [K] each."""
    return 0.5 * float(np.abs(a - b).sum())


def counting(a: np.ndarray, b: np.ndarray, n: int) -> tuple[float, float]:
    """What counting n images each does to the total variation of the shares a and b, [K]: its mean where both sets are
    of one law, theirs together, and the standard deviation of the one that was measured."""
    rng = np.random.default_rng(0)

    def distances(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return 0.5 * np.abs(rng.multinomial(n, p, DRAWS) - rng.multinomial(n, q, DRAWS)).sum(1) / n

    both = (a + b) / 2
    return float(distances(both, both).mean()), float(distances(a, b).std(ddof=1))
