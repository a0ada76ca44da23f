"""The vectors that are searched: real ones and noisy copies of them, questions, and which documents are nearest to each."""

from pathlib import Path

import numpy

DIMENSION = 384
DEPTH = 10
# Length of the noise that a copy differs from its vector by, which has length 1: a cosine of about 0.96.
NOISE = 0.3
SCORED_AT_ONCE = 50_000
# Scores that differ by less are the same: the order of additions decides them.
TIE = 1e-6


def read(path: Path) -> numpy.ndarray:
    return numpy.fromfile(path, dtype="<f4").reshape(-1, DIMENSION)


def with_copies(real: numpy.ndarray, count: int) -> numpy.ndarray:
    """The first `count` of the real vectors, then of noisy copies of all of them, again and again."""
    vectors = numpy.empty((count, DIMENSION), dtype="<f4")
    chance = numpy.random.default_rng(7)
    for first in range(0, count, len(real)):
        some = vectors[first : first + len(real)]
        some[:] = real[: len(some)]
        if first > 0:
            some += chance.standard_normal(some.shape, dtype="<f4") * numpy.float32(NOISE / DIMENSION**0.5)
            some /= numpy.linalg.norm(some, axis=1, keepdims=True)
    return vectors


def draws(count: int) -> numpy.ndarray:
    """A number of each document's that has nothing to do with its vector, from 0 up to 1: for filters."""
    return numpy.random.default_rng(8).permutation(count) / count


class Truth:
    """How near the ten nearest documents of each question are, of those whose draw is below a share."""

    def __init__(self, documents: numpy.ndarray, questions: numpy.ndarray, share: float = 1.0) -> None:
        self.documents, self.questions, self.share = documents, questions, share
        self.draws = draws(len(documents))
        eligible = numpy.flatnonzero(self.draws < share)
        best = numpy.full((len(questions), DEPTH), -numpy.inf, dtype="<f4")
        for first in range(0, len(eligible), SCORED_AT_ONCE):
            scores = questions @ documents[eligible[first : first + SCORED_AT_ONCE]].T
            best = -numpy.partition(-numpy.hstack([best, scores]), DEPTH - 1, axis=1)[:, :DEPTH]
        self.wanted = min(DEPTH, len(eligible))
        self.worst = -numpy.sort(-best, axis=1)[:, self.wanted - 1]

    def recall(self, found: numpy.ndarray) -> float:
        """Of rows of documents, -1 where there are fewer. Of documents that are equally near, any will do."""
        rows = numpy.maximum(found, 0)
        scores = numpy.einsum("qd,qkd->qk", self.questions, self.documents[rows])
        is_near = (scores >= self.worst[:, None] - TIE) & (found >= 0) & (self.draws[rows] < self.share)
        return float(is_near.sum()) / (self.wanted * len(self.questions))

    def recall_of_ids(self, found: list[list[str]]) -> float:
        """As `recall`, of documents whose ids are the numbers of their rows."""
        rows = numpy.full((len(self.questions), DEPTH), -1)
        for question, ids in enumerate(found):
            rows[question, : len(ids)] = [int(one) for one in ids]
        return self.recall(rows)
