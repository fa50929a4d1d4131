"""Scores against counts made by hand."""

import math

import numpy as np
import pytest

from deeplabzoo.errors import DataError
from deeplabzoo.inference import Scores, agreement, confusion

TRUTH = np.array([[0, 0, 1, 1], [2, 2, 255, 0]], np.uint8)
GUESS = np.array([[0, 1, 1, 1], [2, 0, 3, 3]], np.uint8)


def test_confusion_by_hand():
    counts = confusion(TRUTH, GUESS, 5)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 1, 0, 1, 0], [0, 2, 0, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0] * 5]


def test_scores_by_hand():
    scores = Scores.of(confusion(TRUTH, GUESS, 5))
    assert scores.pixel_accuracy == pytest.approx(4 / 7)
    assert scores.iou[:4] == pytest.approx((1 / 4, 2 / 3, 1 / 2, 0))
    assert math.isnan(scores.iou[4])  # neither there nor predicted
    assert scores.present == (True, True, True, False, False)
    assert scores.miou == pytest.approx((1 / 4 + 2 / 3 + 1 / 2) / 3)  # class 3 is not in the truth


def test_perfect_and_swapped():
    truth = np.array([[0, 1], [1, 0]])
    assert Scores.of(confusion(truth, truth, 2)).miou == 1
    assert Scores.of(confusion(truth, 1 - truth, 2)).miou == 0


def test_truth_and_prediction_are_not_the_same():
    assert (confusion(GUESS, np.minimum(TRUTH, 4), 5, None) == confusion(np.minimum(TRUTH, 4), GUESS, 5, None).T).all()
    assert (confusion(TRUTH, GUESS, 5) != confusion(TRUTH, GUESS, 5).T).any()


def test_counts_of_two_photos_add_up():
    both = confusion(np.vstack([TRUTH, TRUTH]), np.vstack([GUESS, GUESS]), 5)
    assert (both == 2 * confusion(TRUTH, GUESS, 5)).all()


def test_nothing_to_judge():
    scores = Scores.of(confusion(np.full((2, 2), 255), np.zeros((2, 2), int), 3))
    assert math.isnan(scores.pixel_accuracy)
    assert math.isnan(scores.miou)
    assert scores.present == (False,) * 3


def test_another_void():
    assert confusion(np.array([[0, 1]]), np.array([[0, 0]]), 2, ignore=0).tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("truth", "guess", "words"),
    [
        ([[0, 5]], [[0, 0]], "truth holds the label 5: expected 0 to 4, or 255"),
        ([[0, 1]], [[0, 9]], "prediction holds the label 9: expected 0 to 4"),
        ([[0, 1]], [[0, -1]], "prediction holds the label -1"),
        ([[0, 1]], [[0], [1]], "expected one size"),
        ([[0.0, 1.0]], [[0, 1]], "whole numbers"),
    ],
)
def test_wrong_labels_are_refused(truth, guess, words):
    with pytest.raises(DataError, match=words):
        confusion(np.array(truth), np.array(guess), 5)


def test_prediction_at_void_pixels_does_not_matter():
    assert confusion(np.array([[255, 1]]), np.array([[200, 1]]), 2).sum() == 1


@pytest.mark.parametrize("counts", [np.zeros((2, 3), int), np.zeros(4, int), np.zeros((2, 2)), -np.eye(2, dtype=int)])
def test_what_is_no_confusion_is_refused(counts):
    with pytest.raises(DataError, match="confusion matrix"):
        Scores.of(counts)


def test_agreement():
    assert agreement(TRUTH, TRUTH) == 1
    assert agreement(TRUTH, GUESS) == 4 / 8
    with pytest.raises(DataError, match="one size"):
        agreement(TRUTH, GUESS.T)
