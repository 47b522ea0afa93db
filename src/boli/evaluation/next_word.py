"""A language model and its tokenizer as a predictor of words (keystrokes.py), by beam search.

A word is spelled by tokens from the space before it, so that what was typed of it need not end
where a token does. A beam holds the likeliest spellings that agree with what was typed; a word
ends where a space, a sign or the end of the line may follow, and ways to spell it are added up.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from boli.errors import ModelError
from boli.evaluation.keystrokes import SIGNS, WORD, Candidates
from boli.model.framing import Framing, framing_of

BEAM = 12  # spellings that are followed at once
DEEPEST = 12  # tokens of a word
SPACES = (b" ", b"\n", b"\t", b"\r")
SIGN_BYTES = tuple(sign.encode() for sign in SIGNS)
Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Spelling:
    """Tokens that begin a word, and what they say of it."""

    log: float  # natural logarithm of their probability
    text: bytes  # with the space before the word, where there is one
    tokens: tuple[int, ...]


@dataclass
class Pieces:
    """What each token of a tokenizer writes, in UTF-8."""

    texts: list[bytes]  # of each token; empty: it writes nothing
    ordered: list[bytes]  # sorted
    numbers: NDArray[np.int64]  # of the tokens in that order
    ends: NDArray[np.bool_]  # (tokens,) a word before it has ended
    whole: dict[bytes, list[int]]  # text → its tokens

    def beginning_with(self, text: bytes) -> list[int]:
        """Return the tokens whose text begins with one."""
        start = bisect_left(self.ordered, text)
        end = bisect_left(self.ordered, text + b"\xff" * 8)
        return [int(number) for number in self.numbers[start:end]]

    def agreeing(self, rest: bytes) -> list[int]:
        """Return the tokens that say a part of what is left to say, all of it, or more."""
        found = self.beginning_with(rest)
        for size in range(1, len(rest)):
            found += self.whole.get(rest[:size], ())
        return found


def pieces_of(tokenizer: Any, size: int) -> Pieces:
    """Return what the first `size` tokens write, for tokenizers on bytes and for SentencePiece's.

    Raises:
        ModelError: the tokenizer writes words in no way that is known here.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    special = set(tokenizer.all_special_ids)
    if any("▁" in name for name in names if name):
        texts = [b"" if k in special else _sentencepiece(name) for k, name in enumerate(names)]
    elif any("Ġ" in name for name in names if name):
        letters = _byte_letters()
        texts = [
            b"" if k in special or name is None else bytes(letters.get(c, 63) for c in name)
            for k, name in enumerate(names)
        ]
    else:
        raise ModelError(
            "cannot tell where the tokenizer's words begin: it marks spaces neither by Ġ nor by ▁",
            "use a model whose tokenizer works on bytes, or is of SentencePiece",
        )
    order = sorted((number for number, text in enumerate(texts) if text), key=texts.__getitem__)
    whole: dict[bytes, list[int]] = defaultdict(list)
    for number in order:
        whole[texts[number]].append(number)
    ends = np.array([text.startswith((*SPACES, *SIGN_BYTES)) for text in texts])
    return Pieces(texts, [texts[k] for k in order], np.array(order, np.int64), ends, whole)


def _sentencepiece(name: str | None) -> bytes:
    if name is None:
        return b""
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def _byte_letters() -> dict[str, int]:
    """Return the letter that byte-level BPE writes for each byte, and the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


@dataclass
class LanguageModel:
    """A causal language model that suggests words; it reads the line so far, and no more."""

    model: Any
    tokenizer: Any
    max_length: int
    pieces: Pieces = field(init=False)
    framing: Framing = field(init=False)
    ends: NDArray[np.bool_] = field(init=False)  # (tokens,) a word before it has ended
    _last: tuple[str, Any, Logs] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        size = self.model.get_output_embeddings().weight.shape[0]
        self.pieces = pieces_of(self.tokenizer, size)
        self.ends = self.pieces.ends.copy()
        self.framing = framing_of(self.tokenizer)
        self.ends[self.framing.end] = True
        self.model.eval()

    def candidates(self, before: str, prefix: str, most: int) -> Candidates:
        """Return the likeliest words, see `keystrokes.Predictor`; at most BEAM or so are found."""
        past, first = self._context(before)
        beam = self._begun(before, prefix, first)
        scale = self._ending(first) if before else 0.0  # that the word before has ended is known
        typed, words = prefix.encode(), defaultdict[str, float](float)
        for _ in range(DEEPEST):
            if not beam:
                break
            following: list[Spelling] = []
            rows = self._next(past, [spelling.tokens for spelling in beam])
            for spelling, logs in zip(beam, rows, strict=True):
                said = spelling.text.lstrip()
                word, whole = _word_in(said) if len(said) >= len(typed) else ("", False)
                if word:
                    ending = 0.0 if whole else self._ending(logs)
                    words[word] += float(np.exp(spelling.log + ending - scale))
                if not whole:
                    following += self._spelled(spelling, logs, typed[len(said) :])
            following.sort(key=lambda spelling: -spelling.log)
            beam = following[:BEAM]
            floor = sorted(words.values(), reverse=True)[most - 1 : most]
            if floor and beam and np.exp(beam[0].log - scale) < floor[0]:
                break  # what is still unfinished is less likely than what is found
        return sorted(words.items(), key=lambda item: -item[1])[:most]

    def _context(self, before: str) -> tuple[Any, Logs]:
        """Return the cache of a text, and the log probabilities of the next token."""
        if self._last is None or self._last[0] != before:
            tokens = self.tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
            room = max(1, self.max_length - DEEPEST - len(self.framing.begin))
            tokens = [*self.framing.begin, *tokens[-room:]]
            with torch.no_grad():
                found = self.model(input_ids=self._tensor([tokens]), use_cache=True)
            self._last = before, found.past_key_values, _logs(found.logits[:, -1])[0]
        return self._last[1], self._last[2]

    def _next(self, past: Any, rows: list[tuple[int, ...]]) -> Logs:  # (rows, tokens)
        cache = copy.deepcopy(past)
        cache.batch_repeat_interleave(len(rows))
        with torch.no_grad():
            found = self.model(input_ids=self._tensor(rows), past_key_values=cache, use_cache=True)
        return _logs(found.logits[:, -1])

    def _tensor(self, rows: Any) -> torch.Tensor:
        return torch.tensor(rows, device=next(self.model.parameters()).device)

    def _begun(self, before: str, prefix: str, logs: Logs) -> list[Spelling]:
        """Return the likeliest first tokens: a space and a word, or a sign."""
        typed, pieces = prefix.encode(), self.pieces
        tokens = pieces.agreeing(b" " + typed)
        if not before:
            tokens += pieces.agreeing(typed) if typed else pieces.numbers.tolist()
        elif typed.startswith(SIGN_BYTES):
            tokens += pieces.agreeing(typed)
        elif not typed:
            tokens += [number for sign in SIGN_BYTES for number in pieces.beginning_with(sign)]
        return self._best(Spelling(0.0, b"", ()), logs, sorted(set(tokens)))

    def _spelled(self, spelling: Spelling, logs: Logs, rest: bytes) -> list[Spelling]:
        """Return the likeliest ways on that agree with the rest of what was typed."""
        pieces = self.pieces
        if rest:
            return self._best(spelling, logs, pieces.agreeing(rest))
        open_ended = spelling.text.strip() != b""
        likely = np.argpartition(-logs, min(8 * BEAM, logs.size - 1))[: 8 * BEAM].tolist()
        tokens = [
            number
            for number in likely
            if pieces.texts[number]
            and not (pieces.ends[number] if open_ended else pieces.texts[number][:1] in SPACES)
        ]
        return self._best(spelling, logs, tokens)

    def _best(self, spelling: Spelling, logs: Logs, tokens: list[int]) -> list[Spelling]:
        numbers = np.array(tokens, np.int64)
        best = numbers[np.argsort(-logs[numbers], kind="stable")[:BEAM]].tolist()
        return [
            Spelling(
                spelling.log + float(logs[number]),
                spelling.text + self.pieces.texts[number],
                (*spelling.tokens, number),
            )
            for number in best
        ]

    def _ending(self, logs: Logs) -> float:
        """Return the log probability that the word before has ended."""
        return float(np.logaddexp.reduce(logs[: self.ends.size][self.ends]))


def _word_in(said: bytes) -> tuple[str, bool]:
    """Return the word that a spelling begins with, and whether the spelling shows its end."""
    try:
        text = said.decode()
    except UnicodeDecodeError:  # it ends within a character
        return "", False
    found = WORD.match(text)
    return (found.group(), found.end() < len(text)) if found else ("", False)


def _logs(logits: torch.Tensor) -> Logs:
    return np.asarray(torch.log_softmax(logits.float(), -1).cpu().numpy(), np.float64)
