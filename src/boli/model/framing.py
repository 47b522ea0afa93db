"""How a text begins and ends under a tokenizer: in training, judging, scoring and serving alike.

A base that was trained with a begin token judges a text badly that starts with anything else:
Gemma 3 270M needs 1.65 bits a byte for Bhojpuri behind its end token and 1.19 behind `<bos>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boli.errors import CorpusError

END_OF_TEXT = "<|endoftext|>"  # between documents, where an instructed model's end token ends turns
PROBE = "a"
LONGEST_BEGIN = 8  # tokens; every tokenizer known puts at most two in front


@dataclass(frozen=True)
class Framing:
    """The tokens around a text."""

    begin: tuple[int, ...]  # the first token of a text is predicted from them; at least one
    end: int

    @property
    def begins(self) -> bool:
        """Tell whether the end of the text before does not already begin the next one."""
        return self.begin != (self.end,)

    @property
    def ignored(self) -> tuple[int, ...]:
        """Tokens that are put in front of a text and are nothing to learn."""
        return self.begin if self.begins else ()

    def packed(self, tokens: Sequence[int]) -> list[int]:
        """Return a text's tokens as they stand in a stream of texts."""
        return [*(self.begin if self.begins else ()), *tokens, self.end]

    def scored(self, tokens: Sequence[int]) -> list[int]:
        """Return a text's tokens with all that they are predicted from, and their end."""
        return [*self.begin, *tokens, self.end]


def framing_of(tokenizer: Any) -> Framing:
    """Return the tokenizer's own way to begin and to end a text.

    A text begins with what the tokenizer itself puts in front of it (Gemma, Llama, Mistral).
    Where it puts nothing there, texts followed each other in training, and each began behind the
    token that ended the one before: `<|endoftext|>` where that is a special token (GPT-2, Qwen,
    SmolLM2; of their instructed variants too), otherwise the end token (BLOOM, a micro-LLM).

    Raises:
        CorpusError: the tokenizer has neither an end nor a begin token, or puts a whole text in
            front of every text.
    """
    end = tokenizer.eos_token_id
    if end is None:
        end = tokenizer.bos_token_id
    if end is None:
        raise CorpusError("the tokenizer has no end token", "set eos_token in its tokenizer_config")
    begin = _added_in_front(tokenizer) or (_end_of_text(tokenizer, int(end)),)
    if len(begin) > LONGEST_BEGIN:
        raise CorpusError(
            f"the tokenizer puts {len(begin)} tokens in front of every text",
            f"give its post-processor at most {LONGEST_BEGIN}",
        )
    return Framing(begin, int(end))


def _added_in_front(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that the tokenizer's post-processor puts in front of a text."""
    plain = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    framed = list(tokenizer(PROBE, add_special_tokens=True)["input_ids"])
    for start in range(len(framed) - len(plain) + 1):
        if plain and framed[start : start + len(plain)] == plain:
            return tuple(framed[:start])
    return ()


def _end_of_text(tokenizer: Any, end: int) -> int:
    for token, added in tokenizer.added_tokens_decoder.items():
        # Behind the end token, it was added later, as some classes do: no base saw it in training.
        if added.special and added.content == END_OF_TEXT and token < end:
            return int(token)
    return end
