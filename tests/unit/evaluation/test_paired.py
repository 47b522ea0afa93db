from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from boli.errors import CorpusError
from boli.evaluation.paired import (
    FEWEST_DOCUMENTS,
    Comparison,
    compare,
    folds,
    folds_sentence,
    together,
)


def articles(
    count: int, lines: int = 20, seed: int = 0
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return documents, bytes and bits of lines whose articles differ much."""
    rng = np.random.default_rng(seed)
    documents = [f"article {k}" for k in range(count) for _ in range(lines)]
    sizes = rng.integers(100, 400, len(documents)).astype(float)
    hardness = np.repeat(rng.uniform(0.5, 1.5, count), lines)
    return documents, sizes, sizes * hardness * rng.uniform(0.9, 1.1, len(documents))


def test_figures_are_ratios_of_sums() -> None:
    found = compare([1.0, 9.0], [2.0, 18.0], [1.0, 4.0], ["x", "y"])
    assert (found.a, found.b, found.change) == (2.0, 4.0, -0.5)
    assert (found.low, found.high) == (-0.5, -0.5)


def test_small_steady_gain_is_found_where_articles_differ_much() -> None:
    documents, sizes, bits = articles(12)
    gain = np.random.default_rng(1).normal(0.97, 0.01, bits.size)
    found = compare(bits * gain, bits, sizes, documents)
    assert found.better == "A"
    assert -0.035 < found.low < found.change < found.high < -0.025
    said = found.sentence("ours", "the 6-gram", "article")
    assert said.startswith("ours is better than the 6-gram by 3.1\N{NO-BREAK SPACE}% (3.0")
    assert said.endswith("12 articles), not noise")
    turned = compare(bits, bits * gain, sizes, documents)
    assert turned.better == "B"
    assert turned.sentence("the 6-gram", "ours", "article") == said


def test_gain_of_a_single_article_is_noise_and_without_articles_there_is_no_interval() -> None:
    documents, sizes, bits = articles(9)
    better = bits.copy()
    better[:20] *= 0.8
    by_article = compare(better, bits, sizes, documents)
    assert by_article.better is None
    assert "no difference between A and B that 9 articles could show" in by_article.sentence(
        unit="article"
    )
    unknown = compare(better, bits, sizes, None)
    assert (unknown.better, unknown.low, unknown.high, unknown.num_documents) == (None,) * 4
    assert unknown.change == by_article.change
    assert unknown.sentence("ours", "the base", "article").endswith(
        "not known: nothing says which lines belong to one article"
    )


def test_of_equal_models_few_are_called_different() -> None:
    rng = np.random.default_rng(2)
    called = 0
    for seed in range(200):
        documents, sizes, bits = articles(9, 10, seed)
        shift = np.repeat(rng.normal(0, 0.03, 9), 10)
        called += (
            compare(bits * (1 + shift), bits, sizes, documents, resamples=500).better is not None
        )
    assert called <= 24  # 10 are expected; 24 in one of 10,000 repetitions


def test_fewer_documents_than_can_show_anything_show_nothing() -> None:
    documents, sizes, bits = articles(FEWEST_DOCUMENTS - 1)
    found = compare(bits / 2, bits, sizes, documents)
    assert found.high < 0
    assert found.better is None
    documents, sizes, bits = articles(FEWEST_DOCUMENTS)
    assert compare(bits / 2, bits, sizes, documents).better == "A"


def test_more_is_better_where_it_is_said_to_be() -> None:
    documents, sizes, hits = articles(9)
    assert compare(hits * 2, hits, sizes, documents, smaller_is_better=False).better == "A"


@given(some.integers(0, 2**32), some.permutations(range(60)))
def test_order_of_documents_changes_little_and_a_seed_nothing(seed: int, order: list[int]) -> None:
    documents, sizes, bits = articles(6, 10, 3)
    other = bits * np.random.default_rng(4).normal(1, 0.05, bits.size)
    found = compare(other, bits, sizes, documents, seed=seed, resamples=200)
    assert found == compare(other, bits, sizes, documents, seed=seed, resamples=200)
    mixed = compare(
        other[order], bits[order], sizes[order], [documents[k] for k in order],
        seed=seed, resamples=200,
    )  # fmt: skip
    assert mixed.low == pytest.approx(found.low)
    assert isinstance(mixed, Comparison)


@pytest.mark.parametrize(
    ("a", "b", "sizes", "documents", "words"),
    [
        ([1.0], [1.0, 2.0], [1.0], None, "1, 2, 1 of A, B, sizes"),
        ([1.0], [1.0], [1.0], ["x", "y"], "1, 1, 1, 2 of A, B, sizes and documents"),
        ([], [], [], None, "0, 0, 0"),
        ([float("nan")], [1.0], [1.0], None, "not finite"),
        ([1.0], [0.0], [1.0], None, "B has 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    a: list[float], b: list[float], sizes: list[float], documents: list[str] | None, words: str
) -> None:
    with pytest.raises(CorpusError, match=words):
        compare(a, b, sizes, documents)


def test_a_mean_over_texts_is_as_wide_as_if_all_were_the_same_articles() -> None:
    documents, sizes, bits = articles(12)
    gain = np.random.default_rng(1).normal(0.97, 0.05, bits.size)
    one = compare(bits * gain, bits, sizes, documents)
    twice = together([one, one])
    assert (twice.a, twice.b, twice.change) == pytest.approx((one.a, one.b, one.change))
    assert (twice.low, twice.high) == pytest.approx((one.low, one.high))
    assert twice.num_documents == 24
    other = compare(bits * 1.5, bits * 2, sizes, documents)
    mean = together([one, other])
    assert mean.change == pytest.approx((one.a + other.a) / (one.b + other.b) - 1)
    assert mean.low == pytest.approx((one.low + 2 * other.low) / 3)  # the harder text counts more
    pooled = together([one, other], [100.0, 300.0])
    assert pooled.a == pytest.approx((one.a + 3 * other.a) / 4)
    without = together([one, compare(bits, bits, sizes, None)])
    assert (without.low, without.num_documents, without.better) == (None, None, None)
    with pytest.raises(CorpusError, match="no part"):
        together([])


def test_folds_keep_articles_whole_and_hold_every_line_once() -> None:
    documents, _, _ = articles(60, 3)
    found = folds(documents, 5)
    assert set(found.tolist()) == set(range(5))
    for name in set(documents):
        assert len({fold for fold, own in zip(found, documents, strict=True) if own == name}) == 1
    with pytest.raises(CorpusError, match="would be empty"):
        folds(["one", "two"], 5)
    with pytest.raises(CorpusError, match="1 folds"):
        folds(documents, 1)


def test_too_few_articles_are_said_to_be_too_few() -> None:
    assert "9 articles, fewer than 30" in folds_sentence([f"{k % 9}" for k in range(90)])
    assert "fewer" not in folds_sentence([f"{k}" for k in range(30)])
    assert "all 9 articles are judged once" in folds_sentence([f"{k % 9}" for k in range(90)], 5)
