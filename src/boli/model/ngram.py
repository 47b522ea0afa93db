"""n-grams: interpolated modified Kneser-Ney over characters or tokens, and one as an expert.

**The counts are text.** Whoever has them can read most of what they were counted from. They stay
at the site that counted them: nothing of boli sends, pools or exports them, and a file of them
can be read by its owner alone. What may be told is a sum of bits over many lines.

Context and symbol make one exact 64-bit key, the keys of an order are sorted, and all positions
of a text are looked up together: no hash collides, and numpy needs no loop over symbols.

Source: Chen & Goodman 1998, An Empirical Study of Smoothing Techniques for Language Modeling,
https://dash.harvard.edu/handle/1/25104739; Heafield 2011, KenLM, https://aclanthology.org/W11-2123;
Khandelwal et al. 2020 mix a model with counts of its text in the same place,
https://arxiv.org/abs/1911.00172.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boli.durable import read_tensors, tensors_digest, write_tensors
from boli.errors import CorpusError, CorruptFileError, DivergedError, ModelError

FORMAT = 1
MOST_ORDER = 16
MOST_DIFFERENT = 1 << 24  # symbols
CHARACTER_ORDER = 6
TOKEN_ORDER = 4
DISCOUNTS = (0.7, 1.05, 1.4)  # of counts 1, 2, and 3 or more, where they cannot be estimated
MOST_SYMBOLS = 1 << 23  # that are counted, in about 1 GB; of a longer text, lines evenly along it
AT_ONCE = 1 << 18  # symbols that are scored together
LARGEST_FILE_BYTES = 256 << 20
LARGEST_KEY = 1 << 62
WHAT = "delete it, and count the text again"

ROUNDS = 50  # of expectation and maximization
PRIOR_TOKENS = 20.0  # that a weight of one matched order is worth, drawn to the weight of all

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Symbols = Sequence[ArrayLike]  # sequences of integers; the first of each is not predicted


@dataclass(frozen=True)
class _Level:
    """All n-grams of one length; a context is an n-gram of the level below, by its row there."""

    keys: Integers  # (n,) ascending: row of the context · num_symbols + last symbol
    counts: Integers  # (n,) occurrences at the highest order, else different symbols before it
    share: Floats  # (n,) of its context's probability, less the discount
    backoff: Floats  # (n of the level below,) what is left to shorter contexts; 1: never seen
    seen: NDArray[np.bool_]  # (n of the level below,) contexts with a symbol behind them

    @classmethod
    def of(cls, keys: Integers, counts: Integers, num_symbols: int, num_contexts: int) -> _Level:
        contexts = keys // num_symbols
        discount = np.concatenate([[0.0], discounts(counts)])[np.minimum(counts, 3)]
        totals = np.bincount(contexts, counts, num_contexts)
        left = np.bincount(contexts, discount, num_contexts)
        seen = totals > 0
        divisor = np.where(seen, totals, 1.0)
        return cls(
            keys,
            counts,
            (counts - discount) / divisor[contexts],
            np.where(seen, left / divisor, 1.0),
            seen,
        )

    def rows(self, keys: Integers) -> Integers:
        """Return the row of each key; −1 where there is none."""
        if not self.keys.size:
            return np.full(keys.shape, -1, np.int64)
        found = np.searchsorted(self.keys, keys)
        found[found == self.keys.size] = 0
        found[self.keys[found] != keys] = -1
        return found


def discounts(counts: Integers) -> tuple[float, float, float]:
    """Return what is taken off counts of 1, 2, and 3 or more, after Chen & Goodman.

    Fixed ones where the counts of counts are too few to tell.
    """
    once, twice, thrice, often = (int((counts == times).sum()) for times in (1, 2, 3, 4))
    if not min(once, twice, thrice, often):
        return DISCOUNTS
    unit = once / (once + 2 * twice)
    found = (
        1 - 2 * unit * twice / once,
        2 - 3 * unit * thrice / twice,
        3 - 4 * unit * often / thrice,
    )
    sound = 0 < found[0] <= found[1] <= found[2] < 3 and found[0] < 1 and found[1] < 2
    return found if sound else DISCOUNTS


def _flat(sequences: Symbols) -> tuple[Integers, Integers]:
    """Return all symbols behind each other, and the place of each in its own sequence."""
    rows = [np.asarray(sequence, np.int64).reshape(-1) for sequence in sequences]
    lengths = np.array([row.size for row in rows], np.int64)
    symbols = np.concatenate([np.zeros(0, np.int64), *rows])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return symbols, np.arange(symbols.size, dtype=np.int64) - starts


@dataclass(frozen=True)
class NGram:
    """Interpolated modified Kneser-Ney over the integers below `num_symbols`.

    Every symbol has a probability above zero after every context, and they sum to 1: what the
    shortest contexts leave is shared evenly by all symbols.
    """

    num_symbols: int
    levels: tuple[_Level, ...] = field(repr=False)

    @property
    def order(self) -> int:
        """The longest n-gram that is counted."""
        return len(self.levels)

    @classmethod
    def train(cls, sequences: Symbols, order: int, num_symbols: int) -> Self:
        """Count sequences; the first symbol of each is where it begins, and is not predicted.

        Raises:
            CorpusError: there is nothing to predict in them.
            ModelError: a symbol is out of range, or order and symbols are too many.
        """
        symbols, places = _flat(sequences)
        _check(symbols, order, num_symbols)
        if not (places > 0).any():
            raise CorpusError("there is no text to count n-grams in", "give lines of text")
        levels, num_contexts = [], 1
        begun = np.where(places > 0, places, -1)
        grams = chain(_grams(symbols, places, order, num_symbols), [None])
        for length, (gram, longer) in enumerate(pairwise(grams), 1):
            assert gram is not None
            keys, _, rows = gram
            if longer is None:
                counted = rows[(rows >= 0) & (places > 0)]
            else:
                # Once for each symbol that stands before it; where none can, as often as it is.
                counted = np.concatenate([rows[longer[1]], rows[begun == length - 1]])
            counts = np.bincount(counted, minlength=keys.size).astype(np.int64)
            levels.append(_Level.of(keys, counts, num_symbols, num_contexts))
            num_contexts = keys.size
        return cls(num_symbols, tuple(levels))

    def score(
        self,
        sequences: Symbols,
    ) -> tuple[Floats, Integers]:  # (n,) log-probabilities, (n,) length of the context seen
        """Score every symbol but the first of each sequence, one sequence behind the other.

        With each comes how many symbols of its context the model has seen together, which says
        how far it can be believed; it does not depend on the symbol itself.

        Raises:
            ModelError: a symbol is out of range.
        """
        scored, matched = [np.zeros(0)], [np.zeros(0, np.int64)]
        for some in _portions(sequences):
            symbols, places = _flat(some)
            _check(symbols, self.order, self.num_symbols)
            found, lengths = self._score(symbols, places)
            scored.append(np.log(found[places > 0]))
            matched.append(lengths[places > 0])
        return np.concatenate(scored), np.concatenate(matched)

    def _score(self, symbols: Integers, places: Integers) -> tuple[Floats, Integers]:
        found = np.full(symbols.size, 1 / self.num_symbols)
        matched = np.zeros(symbols.size, np.int64)
        where, contexts = np.arange(symbols.size), np.zeros(symbols.size, np.int64)
        rows = np.empty(symbols.size, np.int64)
        for length, level in enumerate(self.levels, 1):
            if not level.keys.size:
                break
            there = level.rows(contexts * self.num_symbols + symbols[where])
            share = np.where(there >= 0, level.share[there], 0.0)
            found[where] = share + level.backoff[contexts] * found[where]
            matched[where] = np.where(level.seen[contexts], length - 1, matched[where])
            rows.fill(-1)
            rows[where] = there
            # What stands before the next symbol of the same sequence is its context.
            where = np.flatnonzero((rows[:-1] >= 0) & (places[1:] >= length)) + 1
            contexts = rows[where - 1]
        return found, matched

    def distribution(self, context: ArrayLike) -> tuple[Floats, int]:  # (num_symbols,), matched
        """Return the probability of every symbol after a context that begins with its sequence.

        Raises:
            ModelError: a symbol is out of range.
        """
        before = np.asarray(context, np.int64).reshape(-1)
        _check(before, self.order, self.num_symbols)
        found, matched = np.full(self.num_symbols, 1 / self.num_symbols), 0
        for length, level in enumerate(self.levels):
            if length > before.size:
                break
            row = self._row(before[before.size - length :])
            if row < 0 or not level.seen[row]:
                break
            first = row * self.num_symbols
            span = np.searchsorted(level.keys, [first, first + self.num_symbols])
            children = slice(*span)
            found *= level.backoff[row]
            found[level.keys[children] - first] += level.share[children]
            matched = length
        return found, matched

    def _row(self, gram: Integers) -> int:
        row = 0
        for level, symbol in zip(self.levels, gram, strict=False):
            row = int(level.rows(np.array([row * self.num_symbols + int(symbol)]))[0])
            if row < 0:
                break
        return row

    @cached_property
    def digest(self) -> str:
        """Hash of all counts."""
        return tensors_digest(self._arrays(), json.dumps(self._facts(), sort_keys=True))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        keys = {f"keys.{n:02d}": level.keys for n, level in enumerate(self.levels, 1)}
        return keys | {f"counts.{n:02d}": level.counts for n, level in enumerate(self.levels, 1)}

    def _facts(self) -> dict[str, Any]:
        return {"format": FORMAT, "order": self.order, "num_symbols": self.num_symbols}

    def save(self, path: Path) -> None:
        """Write the counts for their owner's eyes alone: they are text.

        Raises:
            ModelError: there are more than are ever read again.
            StorageError: the disk is full or refuses.
        """
        _save(path, self._arrays(), self._facts())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read counts; a file that is larger than any of ours is not looked into.

        Raises:
            CorruptFileError: it is missing, torn, altered, too large or of another format.
        """
        return cls._of(path, *_load(path))

    def _save_beside(self, path: Path, name: str, array: NDArray[Any]) -> None:
        """Write the counts with what makes a model of them."""
        _save(path, {**self._arrays(), name: array}, self._facts())

    @classmethod
    def _load_beside(cls, path: Path, name: str) -> tuple[Self, NDArray[Any] | None]:
        arrays, facts = _load(path)
        return cls._of(path, arrays, facts), arrays.get(name)

    @classmethod
    def _of(cls, path: Path, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> Self:
        order, num_symbols = facts.get("order"), facts.get("num_symbols")
        if not isinstance(order, int) or not isinstance(num_symbols, int):
            raise CorruptFileError(f"{path} names no order and no number of symbols", WHAT)
        try:
            _check(np.zeros(0, np.int64), order, num_symbols)
        except ModelError as error:
            raise CorruptFileError(f"{path}: {error.problem}", WHAT) from None
        levels, num_contexts = [], 1
        for length in range(1, order + 1):
            keys, counts = (arrays.get(f"{name}.{length:02d}") for name in ("keys", "counts"))
            if not _is_sound(keys, counts, num_contexts * num_symbols):
                raise CorruptFileError(f"{path} has no sound counts of length {length}", WHAT)
            assert keys is not None
            assert counts is not None
            levels.append(_Level.of(keys, counts, num_symbols, num_contexts))
            num_contexts = keys.size
        return cls(num_symbols, tuple(levels))


def _check(symbols: Integers, order: int, num_symbols: int) -> None:
    if not 1 <= order <= MOST_ORDER:
        raise ModelError(f"an n-gram model of order {order}", f"choose 1 to {MOST_ORDER}")
    if not 1 <= num_symbols <= MOST_DIFFERENT:
        raise ModelError(
            f"n-grams of {num_symbols} different symbols", f"choose 1 to {MOST_DIFFERENT}"
        )
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < num_symbols:
        wrong = int(symbols.min()) if symbols.min() < 0 else int(symbols.max())
        raise ModelError(
            f"symbol {wrong} of a text, where n-grams know 0 to {num_symbols - 1}",
            "use the tokenizer that they were counted with",
        )


def _grams(
    symbols: Integers, places: Integers, order: int, num_symbols: int
) -> Iterator[tuple[Integers, Integers, NDArray[np.int32]]]:
    """Yield for each length the keys, where each stands first, and each position's row or −1."""
    where, contexts = np.arange(symbols.size), np.zeros(symbols.size, np.int64)
    for length in range(1, order + 1):
        keys = contexts * num_symbols + symbols[where]
        if keys.size and int(keys.max()) > LARGEST_KEY:
            raise ModelError(
                f"too many n-grams of length {length} over {num_symbols} symbols",
                "lower the order, or count less text",
            )
        keys, first, there = np.unique(keys, return_index=True, return_inverse=True)
        rows = np.full(symbols.size, -1, np.int32)
        rows[where] = there
        yield keys, where[first], rows
        where = np.flatnonzero((rows[:-1] >= 0) & (places[1:] >= length)) + 1
        contexts = rows[where - 1].astype(np.int64)


def _portions(sequences: Symbols) -> Iterator[list[ArrayLike]]:
    portion: list[ArrayLike] = []
    size = 0
    for sequence in sequences:
        portion.append(sequence)
        size += np.size(sequence)
        if size >= AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _is_sound(keys: NDArray[Any] | None, counts: NDArray[Any] | None, above: int) -> bool:
    """Tell whether a file's keys are ascending and below a bound, with a count for each."""
    if keys is None or counts is None or above > LARGEST_KEY:
        return False
    if keys.dtype != np.int64 or counts.dtype != np.int64 or keys.ndim != 1:
        return False
    if counts.shape != keys.shape:
        return False
    if not keys.size:
        return True
    fits = int(keys[0]) >= 0 and int(keys[-1]) < above and bool((np.diff(keys) > 0).all())
    return fits and int(counts.min()) >= 0 and int(counts.max()) < 1 << 40


def _save(path: Path, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
    num_bytes = sum(array.nbytes for array in arrays.values())
    if num_bytes > LARGEST_FILE_BYTES - (1 << 20):
        raise ModelError(
            f"the n-grams take {num_bytes} bytes, and {LARGEST_FILE_BYTES} are ever read",
            "lower the order, or count less text",
        )
    write_tensors(path, arrays, facts, private=True)


def _load(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror}", WHAT) from error
    if num_bytes > LARGEST_FILE_BYTES:
        raise CorruptFileError(
            f"{path} has {num_bytes} bytes, and n-grams at most {LARGEST_FILE_BYTES}", WHAT
        )
    arrays, facts = read_tensors(path, WHAT)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CorruptFileError(f"{path} holds no n-grams of format {FORMAT}", WHAT)
    return arrays, facts


def counted_lines(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines whose symbols are counted: all, or of a very long text some along it."""
    size = sum(map(len, lines)) + 2 * len(lines)
    return lines[:: max(1, -(-size // MOST_SYMBOLS))]


END, UNKNOWN = 0, 1  # a line's end, from which its first character is predicted; any other one


@dataclass(frozen=True)
class CharacterNGram:
    """An n-gram model of characters: a code for lines of any text, in bits.

    A line is coded by itself, character by character, and then its end. A character that the
    model has never seen costs what the unknown one costs there, and 8 bits for each of its
    UTF-8 bytes: whoever has the model can decode the line.
    """

    alphabet: Integers  # (characters,) code points, ascending
    ngrams: NGram = field(repr=False)

    @classmethod
    def train(cls, lines: Sequence[str], order: int = CHARACTER_ORDER) -> Self:
        """Count the characters of lines; of very long texts, lines evenly along it.

        Raises:
            CorpusError: there are no lines.
            ModelError: the order is none that can be counted.
        """
        points = [_points(line) for line in counted_lines(lines)]
        alphabet = np.unique(np.concatenate([np.zeros(0, np.int64), *points]))
        rows = [_framed(alphabet, line) for line in points]
        return cls(alphabet, NGram.train(rows, order, alphabet.size + 2))

    def line_bits(self, lines: Sequence[str]) -> Floats:  # (lines,)
        """Return the bits that each line takes, with its end."""
        points = [_points(line) for line in lines]
        rows = [_framed(self.alphabet, line) for line in points]
        found, _ = self.ngrams.score(rows)
        lengths = np.array([line.size + 1 for line in points], np.int64)
        bits = _sums(-found / math.log(2), lengths)
        for number, (line, row) in enumerate(zip(points, rows, strict=True)):
            bits[number] += 8 * _utf8_bytes(line[row[1:-1] == UNKNOWN])
        return bits

    @cached_property
    def digest(self) -> str:
        """Hash of all counts and of the characters that they are of."""
        return tensors_digest({"alphabet": self.alphabet}, self.ngrams.digest)

    def save(self, path: Path) -> None:
        """Write the counts for their owner's eyes alone: they are text.

        Raises:
            ModelError: there are more than are ever read again.
            StorageError: the disk is full or refuses.
        """
        self.ngrams._save_beside(path, "alphabet", self.alphabet)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read counts; a file that is larger than any of ours is not looked into.

        Raises:
            CorruptFileError: it is missing, torn, altered, too large or of another format.
        """
        ngrams, alphabet = NGram._load_beside(path, "alphabet")
        sound = (
            alphabet is not None
            and alphabet.dtype == np.int64
            and alphabet.shape == (ngrams.num_symbols - 2,)
            and bool((np.diff(alphabet) > 0).all())
        )
        if not sound:
            raise CorruptFileError(f"{path} names no characters for its counts", WHAT)
        assert alphabet is not None
        return cls(alphabet, ngrams)


def _points(line: str) -> Integers:
    return np.frombuffer(line.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def _utf8_bytes(points: Integers) -> int:
    return int(sum((points >= least).sum() for least in (0, 0x80, 0x800, 0x10000)))


def _framed(alphabet: Integers, points: Integers) -> Integers:
    """Return a line as symbols, between two ends."""
    row = np.full(points.size + 2, END, np.int64)
    if alphabet.size:
        found = np.minimum(np.searchsorted(alphabet, points), alphabet.size - 1)
        row[1:-1] = np.where(alphabet[found] == points, found + 2, UNKNOWN)
    else:
        row[1:-1] = UNKNOWN
    return row


def _sums(values: Floats, lengths: Integers) -> Floats:
    """Return the sum of each run of values; no run is empty."""
    ends = np.cumsum(lengths)
    return np.add.reduceat(values, ends - lengths) if lengths.size else np.zeros(0)


@dataclass(frozen=True)
class Expert:
    """Token n-grams of one site's text, mixed with a language model, token by token.

    p = w(m) · p_ngram + (1 − w(m)) · p_model, where m is how long a context the n-grams have seen:
    a proper distribution, because m does not depend on the token. It stays at its site.
    """

    ngrams: NGram
    weights: Floats  # (order,) of the n-grams, by matched length; above 0 and below 1

    @classmethod
    def fit(
        cls,
        ngrams: NGram,
        sequences: Symbols,  # of tuning lines: neither counted nor judged
        model: Floats,  # (n,) log-probabilities of every token but the first of each
    ) -> Self:
        """Find the weights that give the tuning lines the fewest bits, by expectation-maximization.

        A matched length that is rare there is drawn to the weight that suits all of them.

        Raises:
            DivergedError: the model gives no probabilities.
            ModelError: there are not as many of them as tokens.
        """
        found, matched = ngrams.score(sequences)
        _check_model(model, found)
        ratio = np.exp(np.clip(found - model, -700, 700))
        whole = _weight(ratio, 0.5, 1.0)
        weights = [
            _weight(ratio[matched == length], whole, PRIOR_TOKENS) for length in range(ngrams.order)
        ]
        return cls(ngrams, np.array(weights))

    def mix(self, sequences: Symbols, model: Floats) -> Floats:  # (n,)
        """Return log-probabilities under the mixture, from those of the model.

        Raises:
            DivergedError: the model gives no probabilities.
            ModelError: there are not as many of them as tokens.
        """
        found, matched = self.ngrams.score(sequences)
        _check_model(model, found)
        weights = self.weights[matched]
        mixed: Floats = np.logaddexp(np.log(weights) + found, np.log1p(-weights) + model)
        return mixed

    def distribution(self, context: ArrayLike, model: Floats) -> Floats:  # both (num_symbols,)
        """Return the mixture's probability of every token after a context.

        Raises:
            DivergedError: the model gives no probabilities.
            ModelError: the model has another number of tokens.
        """
        found, matched = self.ngrams.distribution(context)
        if model.shape != found.shape or np.isnan(model).any():
            _check_model(np.log(model), found)
        weight = self.weights[matched]
        mixed: Floats = weight * found + (1 - weight) * model
        return mixed

    @cached_property
    def digest(self) -> str:
        """Hash of all counts and weights."""
        return tensors_digest({"weights": self.weights}, self.ngrams.digest)

    def save(self, path: Path) -> None:
        """Write counts and weights for their owner's eyes alone: they are text.

        Raises:
            ModelError: there are more than are ever read again.
            StorageError: the disk is full or refuses.
        """
        self.ngrams._save_beside(path, "weights", self.weights)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an expert; a file that is larger than any of ours is not looked into.

        Raises:
            CorruptFileError: it is missing, torn, altered, too large or of another format.
        """
        ngrams, weights = NGram._load_beside(path, "weights")
        sound = (
            weights is not None
            and weights.dtype == np.float64
            and weights.shape == (ngrams.order,)
            and bool(((weights > 0) & (weights < 1)).all())
        )
        if not sound:
            raise CorruptFileError(f"{path} has no weights for its counts", WHAT)
        assert weights is not None
        return cls(ngrams, weights)


def _weight(ratio: Floats, prior: float, prior_tokens: float) -> float:
    """Return the share of the n-grams; `ratio` is their probability by the model's."""
    weight = prior
    for _ in range(ROUNDS):
        share = weight * ratio / (weight * ratio + 1 - weight)
        weight = (float(share.sum()) + prior_tokens * prior) / (ratio.size + prior_tokens)
    return float(np.clip(weight, 1e-4, 1 - 1e-4))


def _check_model(model: Floats, found: Floats) -> None:
    if model.shape != found.shape:
        raise ModelError(
            f"a model gives {model.size} probabilities where n-grams give {found.size}",
            "give both the same tokens, of the same vocabulary",
        )
    if np.isnan(model).any() or (model > 1e-3).any():
        raise DivergedError(
            "the model gives no probabilities to mix with n-grams",
            "it diverged, or its weights are damaged: judge an earlier version",
        )
