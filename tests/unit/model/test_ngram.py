"""n-grams: Kneser-Ney against its definition, proper distributions, and an expert's mixture."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boli.corpus.starter import starter_lines
from boli.durable import read_tensors, write_tensors
from boli.errors import CorpusError, CorruptFileError, DivergedError, ModelError
from boli.model import ngram
from boli.model.ngram import DISCOUNTS, CharacterNGram, Expert, NGram, discounts

SMALL = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=6)


def plain(
    sequences: list[list[int]], order: int, num_symbols: int, context: list[int]
) -> np.ndarray:
    """Return a distribution by the definition of interpolated Kneser-Ney, in plain loops."""
    raw: list[Counter] = [Counter() for _ in range(order + 1)]
    begun: list[Counter] = [Counter() for _ in range(order + 1)]
    for row in sequences:
        for end in range(1, len(row)):
            for length in range(1, min(order, end + 1) + 1):
                gram = tuple(row[end + 1 - length : end + 1])
                raw[length][gram] += 1
                begun[length][gram] += length == end + 1
    counts: list[Counter] = [Counter() for _ in range(order + 1)]
    counts[order] = raw[order]
    for length in range(1, order):
        counts[length] = Counter(gram[1:] for gram in raw[length + 1]) + begun[length]
    found = np.full(num_symbols, 1 / num_symbols)
    for length in range(1, min(order, len(context) + 1) + 1):
        before = tuple(context[len(context) - length + 1 :])
        here = {g[-1]: n for g, n in counts[length].items() if g[:-1] == before and n}
        if not here:
            break
        off = (0, *discounts(np.array(list(counts[length].values()), np.int64)))
        total = sum(here.values())
        found = found * sum(off[min(n, 3)] for n in here.values()) / total
        for symbol, n in here.items():
            found[symbol] += (n - off[min(n, 3)]) / total
    return found


@given(SMALL, st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_agrees_with_its_definition(sequences, order, context) -> None:
    if all(len(row) < 2 for row in sequences):
        with pytest.raises(CorpusError, match="no text"):
            NGram.train(sequences, order, 5)
        return
    model = NGram.train(sequences, order, 5)
    found, _ = model.distribution(context)
    assert found == pytest.approx(plain(sequences, order, 5, context), abs=1e-12)
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0


@settings(max_examples=40)
@given(SMALL, st.integers(1, 5), SMALL)
def test_scores_what_its_distributions_say(sequences, order, texts) -> None:
    model = NGram.train([[0, 1], *sequences], order, 5)
    found, matched = model.score(texts)
    expected = [
        (math.log(probabilities[row[end]]), length)
        for row in texts
        for end in range(1, len(row))
        for probabilities, length in [model.distribution(row[:end])]
    ]
    assert found == pytest.approx([log for log, _ in expected])
    assert matched.tolist() == [length for _, length in expected]


def test_portions_score_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list(starter_lines("bho", 60))
    model = CharacterNGram.train(lines[:40])
    whole = model.line_bits(lines[40:])
    monkeypatch.setattr(ngram, "AT_ONCE", 50)
    assert model.line_bits(lines[40:]).tolist() == whole.tolist()


def test_characters_beat_uniform_and_a_longer_order_beats_a_shorter() -> None:
    lines = list(starter_lines("mag", 900))
    train, test = lines[:800], lines[800:]
    short, long = (CharacterNGram.train(train, order).line_bits(test).sum() for order in (2, 6))
    num_bytes = sum(len(line.encode()) + 1 for line in test)
    assert long < short < 8 * num_bytes / 2


def test_lines_cost_what_a_decoder_needs() -> None:
    """Every line of a small alphabet together: the probabilities of all codes sum to at most 1."""
    model = CharacterNGram.train(["ab", "ba", "aab"], 3)
    lines = [""]
    total = 0.0
    for _ in range(7):
        total += float(np.exp2(-model.line_bits(lines)).sum())
        lines = [line + character for line in lines for character in "ab"]
    assert 0.7 < total < 1  # the rest is of lines with unknown characters


def test_unseen_characters_cost_their_bytes() -> None:
    model = CharacterNGram.train(["कमल", "कलम"], 3)
    short, long = model.line_bits(["é", "ग"])  # two bytes and three
    assert long - short == pytest.approx(8)
    assert short > 16
    assert model.line_bits([""]).shape == (1,)
    assert model.line_bits([]).shape == (0,)


def test_long_text_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "MOST_SYMBOLS", 8)
    assert CharacterNGram.train(["ab", "cd", "ab", "cd"]).alphabet.tolist() == [97, 98]


def test_discounts_of_few_counts_are_fixed() -> None:
    assert discounts(np.array([1, 1, 2])) == DISCOUNTS
    many = np.repeat([1, 2, 3, 4], [400, 150, 80, 50])
    first, second, third = discounts(many)
    assert 0 < first < second < third < 3


@pytest.mark.parametrize(
    ("sequences", "order", "num_symbols"),
    [([[0, 7]], 3, 7), ([[0, -1]], 3, 7), ([[0, 1]], 0, 7), ([[0, 1]], 99, 7), ([[0, 1]], 3, 0)],
)
def test_wrong_symbols_and_orders_are_refused(sequences, order, num_symbols) -> None:
    with pytest.raises(ModelError):
        NGram.train(sequences, order, num_symbols)
    with pytest.raises(ModelError, match="symbol 9"):
        NGram.train([[0, 1]], 2, 7).score([[0, 9]])


def test_counts_come_back_from_a_file_of_their_owner(tmp_path: Path) -> None:
    lines = list(starter_lines("bho", 50))
    model = CharacterNGram.train(lines)
    path = tmp_path / "counts.safetensors"
    model.save(path)
    assert path.stat().st_mode & 0o077 == 0
    back = CharacterNGram.load(path)
    assert back.digest == model.digest
    assert back.line_bits(lines).tolist() == model.line_bits(lines).tolist()
    assert CharacterNGram.train(lines[:-1]).digest != model.digest
    NGram.load(path)  # without its characters
    tokens = NGram.train([[0, 3, 2]], 3, 4)
    tokens.save(path)
    assert NGram.load(path).digest == tokens.digest
    with pytest.raises(CorruptFileError, match="characters"):
        CharacterNGram.load(path)


def test_hostile_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counts.safetensors"
    with pytest.raises(CorruptFileError, match="cannot read"):
        NGram.load(path)
    NGram.train([[0, 3, 2, 3]], 2, 4).save(path)
    arrays, facts = read_tensors(path)
    wrong = [
        (arrays, facts | {"format": 2}),
        (arrays, facts | {"order": 3}),
        (arrays, facts | {"order": "2"}),
        (arrays, facts | {"num_symbols": 1 << 40}),
        (arrays, facts | {"num_symbols": 2}),
        (arrays, []),
        (arrays | {"keys.02": arrays["keys.02"][::-1].copy()}, facts),
        (arrays | {"keys.02": arrays["keys.02"] + (1 << 40)}, facts),
        (arrays | {"keys.02": arrays["keys.02"].astype(np.float64)}, facts),
        (arrays | {"counts.01": arrays["counts.01"][1:]}, facts),
        (arrays | {"counts.01": -arrays["counts.01"]}, facts),
    ]
    for arrays_there, facts_there in wrong:
        write_tensors(path, arrays_there, facts_there)
        with pytest.raises(CorruptFileError):
            NGram.load(path)
    write_tensors(path, arrays, facts)
    monkeypatch.setattr(ngram, "LARGEST_FILE_BYTES", 100)
    with pytest.raises(CorruptFileError, match="at most 100"):
        NGram.load(path)
    with pytest.raises(ModelError, match="ever read"):
        NGram.train([[0, 1]], 2, 4).save(path)


def expert(num_symbols: int = 12, seed: int = 0) -> tuple[Expert, list[list[int]], np.ndarray]:
    """Return an expert on noisy ascending runs, tuning text, and log-probabilities of a model."""
    generator = np.random.default_rng(seed)

    def rows(number: int) -> list[list[int]]:
        starts = generator.integers(0, num_symbols, number)
        return [
            [0, *((start + np.arange(9) + (generator.random(9) < 0.1)) % num_symbols)]
            for start in starts
        ]

    tuning = rows(20)
    model = np.log(generator.uniform(0.01, 0.5, 9 * len(tuning)))
    ngrams = NGram.train(rows(40), 3, num_symbols)
    return Expert.fit(ngrams, tuning, model), tuning, model


def test_mixture_is_no_worse_than_either_on_its_tuning_text() -> None:
    mixed_by, tuning, model = expert()
    alone, matched = mixed_by.ngrams.score(tuning)
    mixed = mixed_by.mix(tuning, model)
    assert mixed.sum() > max(alone.sum(), model.sum())
    assert ((mixed_by.weights > 0) & (mixed_by.weights < 1)).all()
    # What was never matched in tuning text has the weight of all.
    bare = Expert.fit(mixed_by.ngrams, [], np.zeros(0))
    assert np.isfinite(bare.weights).all()
    assert matched.max() == 2


@settings(max_examples=25)
@given(st.integers(0, 30), st.lists(st.integers(0, 11), min_size=1, max_size=8))
def test_mixture_is_a_distribution(seed: int, context: list[int]) -> None:
    mixed_by, _, _ = expert()
    generator = np.random.default_rng(seed)
    model = generator.dirichlet(np.full(12, 0.05))  # with zeros, or nearly
    mixed = mixed_by.distribution(context, model)
    assert mixed.sum() == pytest.approx(1)
    assert mixed.min() > 0
    with np.errstate(divide="ignore"):
        logs = np.log(model)
    for token in range(12):
        (*_, last) = mixed_by.mix(
            [[*context, token]], np.append(np.zeros(len(context) - 1), logs[token])
        )
        assert math.exp(last) == pytest.approx(mixed[token])


def test_expert_comes_back_from_a_file_of_its_owner(tmp_path: Path) -> None:
    mixed_by, tuning, model = expert()
    path = tmp_path / "expert.safetensors"
    mixed_by.save(path)
    assert path.stat().st_mode & 0o077 == 0
    back = Expert.load(path)
    assert back.digest == mixed_by.digest
    assert back.mix(tuning, model).tolist() == mixed_by.mix(tuning, model).tolist()
    arrays, facts = read_tensors(path)
    for weights in (arrays["weights"][1:], arrays["weights"] * np.nan, arrays["weights"] + 1):
        write_tensors(path, arrays | {"weights": weights}, facts)
        with pytest.raises(CorruptFileError, match="weights"):
            Expert.load(path)


def test_mixture_is_never_nan() -> None:
    mixed_by, tuning, model = expert()
    assert np.isfinite(mixed_by.mix(tuning, np.full_like(model, -np.inf))).all()
    assert np.isfinite(
        Expert.fit(mixed_by.ngrams, tuning, np.full_like(model, -np.inf)).weights
    ).all()
    assert np.isfinite(Expert.fit(mixed_by.ngrams, tuning, np.zeros_like(model)).weights).all()
    for wrong in (np.full_like(model, np.nan), np.full_like(model, 2.0)):
        with pytest.raises(DivergedError, match="no probabilities"):
            mixed_by.mix(tuning, wrong)
    with pytest.raises(ModelError, match="12"):
        mixed_by.distribution([0], np.ones(13) / 13)
    with pytest.raises(ModelError, match="same tokens"):
        mixed_by.mix(tuning, model[1:])
