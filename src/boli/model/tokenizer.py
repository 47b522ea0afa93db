"""Byte-level BPE from text, or from counts of pieces that several sites sent.

The pre-tokenizer keeps vowel signs with their letters; the usual pattern of byte-level BPE
splits Devanagari words at every one.

Of counts, each contributor has the same weight, whatever its counts add up to, and no more than
its share of the vocabulary: every merge costs each of them what it brought of the pair's count,
and whoever has spent its share is not asked any more. The order of sites changes nothing.

Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909 (BPE). Ties go to the pair of
older symbols, as in the library `tokenizers`, whose result this is for a single contributor.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.corpus.pieces import PRE_TOKENIZER, words_of
from boli.errors import ModelError

END = "<|end|>"
WEIGHT = 1 << 40  # of each contributor, over all its words
SLACK = 1.5  # times an equal part of the merges, that one contributor may use up

Pair = tuple[int, int]


def train_tokenizer(lines: Sequence[str], vocabulary_size: int) -> Any:
    """Train byte-level BPE that keeps vowel signs with their letters."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _frame(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return _finished(tokenizer)


def tokenizer_from_counts(
    contributors: Iterable[Mapping[str, int]],  # piece of a word to its count
    vocabulary_size: int,
) -> Any:
    """Make byte-level BPE from what sites sent, and from the base's own words.

    Raises:
        ModelError: there is nothing to make it from.
    """
    from tokenizers import models

    symbols, merges = _merges(list(contributors), vocabulary_size)
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    return _finished(_frame(models.BPE(vocab=vocabulary, merges=merges)))


def words_in(lines: Iterable[str]) -> Counter[str]:
    """Return how often each word is in text of one's own, which needs no threshold."""
    return Counter(word for line in lines for word in words_of(line))


def tokens_of(
    tokenizer: Any,  # of a base that is there already
    contributors: Iterable[Mapping[str, int]],
) -> dict[str, int]:
    """Return the tokens that are in the pieces that sites sent, with numbers of lines.

    It says which of a large vocabulary a cut has to keep. Tokens that span several words are
    not found.
    """
    found: Counter[str] = Counter()
    for counts in contributors:
        pieces = sorted(counts)
        rows = tokenizer(pieces, add_special_tokens=False)["input_ids"] if pieces else []
        for piece, row in zip(pieces, rows, strict=True):
            for token in tokenizer.convert_ids_to_tokens(sorted(set(row))):
                found[token] += counts[piece]
    return dict(found)


def _frame(model: Any) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finished(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)


def _alphabet() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE, by byte.

    Source: Radford et al. 2019, GPT-2's bytes_to_unicode.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _merges(
    contributors: list[Mapping[str, int]], vocabulary_size: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return all symbols by number, and the merges in their order."""
    contributors = [counts for counts in contributors if counts]
    if not contributors:
        raise ModelError("no words are there to make a tokenizer from", "add text to the base")
    alphabet = _alphabet()
    symbols = [END, *sorted(alphabet)]
    number_of = {symbol: number for number, symbol in enumerate(symbols)}
    words = sorted({word for counts in contributors for word in counts})
    weights = _weights(contributors, words)
    rows = [[number_of[alphabet[byte]] for byte in word.encode()] for word in words]
    known, merges = set(symbols), list[tuple[str, str]]()
    most = SLACK * max(0, vocabulary_size - len(symbols)) / len(contributors)
    spent = np.zeros(len(contributors))
    pairs = _Pairs(rows, weights)
    while len(symbols) < vocabulary_size:
        found = pairs.best()
        if found is None:
            break
        (left, right), brought = found
        spent += brought / brought.sum()
        merged = symbols[left] + symbols[right]
        if merged not in known:  # two ways may lead to the same symbol
            known.add(merged)
            number_of[merged] = len(symbols)
            symbols.append(merged)
        merges.append((symbols[left], symbols[right]))
        pairs.join((left, right), number_of[merged])
        over = spent >= most
        if over.any() and not over.all() and len(contributors) > 1:
            spent[over] = -np.inf  # dropped once
            weights[:, over] = 0
            pairs = _Pairs(rows, weights)
    return symbols, merges


def _weights(contributors: list[Mapping[str, int]], words: Sequence[str]) -> NDArray[np.int64]:
    """Return what each word counts for by contributor, (words, contributors).

    Whole numbers, so that a sum does not depend on its order; contributors in the order of what
    they say, so that nothing depends on theirs.
    """
    if len(contributors) == 1:  # as it stands, so that ties stay ties
        return np.array([[contributors[0][word]] for word in words], np.int64)
    columns = []
    for counts in contributors:
        total = sum(counts.values())
        columns.append(tuple(counts.get(word, 0) * WEIGHT // total for word in words))
    return np.array(sorted(columns), np.int64).T.copy()


class _Pairs:
    """How often symbols stand side by side in weighted words, kept up to date over merges."""

    def __init__(self, rows: list[list[int]], weights: NDArray[np.int64]) -> None:
        self._rows, self._weights = rows, weights
        self._totals: list[int] = weights.sum(axis=1).tolist()
        self._counts: dict[Pair, int] = {}
        self._words: dict[Pair, set[int]] = {}
        for word, row in enumerate(rows):
            if self._totals[word]:
                self._add(word, row, self._totals[word])
        self._heap = [(-count, pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)

    def _add(self, word: int, row: Sequence[int], weight: int) -> None:
        for pair in pairwise(row):
            self._counts[pair] = self._counts.get(pair, 0) + weight
            self._words.setdefault(pair, set()).add(word)

    def best(self) -> tuple[Pair, NDArray[np.float64]] | None:
        """Return the pair that is there most often, and what each contributor has of it."""
        while self._heap:
            count, pair = heapq.heappop(self._heap)
            if self._counts.get(pair, 0) != -count or not count:
                continue  # it was changed since; the newer entry is in the heap too
            words = sorted(self._words[pair])
            times = [sum(found == pair for found in pairwise(self._rows[word])) for word in words]
            brought = self._weights[words] * np.array(times, np.int64)[:, None]
            return pair, brought.sum(axis=0).astype(np.float64)
        return None

    def join(self, pair: Pair, symbol: int) -> None:
        """Put a symbol in the place of a pair, in all words."""
        changed: set[Pair] = set()
        for word in self._words.pop(pair):
            row, weight = self._rows[word], self._totals[word]
            before = Counter(pairwise(row))
            self._rows[word] = row = list(_merged(row, pair, symbol))
            after = Counter(pairwise(row))
            for found in before.keys() | after.keys():
                more = after[found] - before[found]
                if more:
                    self._counts[found] = self._counts.get(found, 0) + more * weight
                    changed.add(found)
            for found in before.keys() - after.keys() - {pair}:
                self._words[found].discard(word)
            for found in after.keys() - before.keys():
                self._words.setdefault(found, set()).add(word)
        self._counts.pop(pair)
        for found in changed - {pair}:
            if self._counts[found]:
                heapq.heappush(self._heap, (-self._counts[found], found))
            else:
                del self._counts[found], self._words[found]


def _merged(row: Sequence[int], pair: Pair, symbol: int) -> Iterator[int]:
    i = 0
    while i < len(row):
        if i + 1 < len(row) and (row[i], row[i + 1]) == pair:
            yield symbol
            i += 2
        else:
            yield row[i]
            i += 1
