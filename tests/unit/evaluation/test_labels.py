from __future__ import annotations

import numpy as np
import pytest

from boli.evaluation.labels import calibration_error, confusion, label_scores, macro_f1

TRUTH = ["bho", "bho", "bho", "mag"]
TOLD = ["bho", "mag", "und", "mag"]


def test_scores_of_a_label_match_those_counted_by_hand() -> None:
    scores = label_scores(TRUTH, TOLD)
    assert list(scores) == ["bho", "mag"]
    assert scores["bho"].precision == 1
    assert scores["bho"].recall == pytest.approx(1 / 3)
    assert scores["bho"].f1 == pytest.approx(1 / 2)
    assert scores["mag"].f1 == pytest.approx(2 / 3)
    assert macro_f1(TRUTH, TOLD) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_label_that_is_never_told_scores_0() -> None:
    assert label_scores(["awa"], ["hin"])["awa"].f1 == 0


def test_confusion_has_every_label_told() -> None:
    assert confusion(TRUTH, TOLD) == {
        "bho": {"bho": 1, "mag": 1, "und": 1},
        "mag": {"bho": 0, "mag": 1, "und": 0},
    }


def test_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    sure = np.array([0.9, 0.9, 0.9, 0.9, 1.0])
    assert calibration_error(sure, np.array([True] * 5)) == pytest.approx(0.08)
    assert calibration_error(sure, np.array([False] * 5)) == pytest.approx(0.92)
    half = np.full(10, 0.5)
    assert calibration_error(half, np.arange(10) % 2 == 0) == pytest.approx(0)
    assert calibration_error(np.array([]), np.array([], bool)) == 0
