"""How many bytes of a text its tokens give back: what a tokenizer leaves out is not predicted.

A byte is given back where decoding the tokens says it, in its place. Tokens that say nothing of
the text are left out first: the unknown token, and pieces that the text does not hold, as
lower-casing or compatibility normalization make them. What is left is aligned with the text.

Source: Hyyrö 2004, Bit-Parallel LCS-length Computation Revisited,
https://www.cs.uta.fi/~helmu/pubs/psc04.pdf (`_common_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BITS_A_BYTE = 8  # that a byte costs which the tokens do not give back
BLOCK = 2048  # characters that are aligned at once: work grows with the text, not its square


def lost_bytes(
    tokenizer: Any,
    texts: Sequence[str],
    rows: Sequence[Sequence[int]],  # tokens of each text, without any that were added around it
) -> list[int]:
    """Return how many bytes of each text its tokens do not give back; at most all of them.

    Tokens that give back more than the text has are held against it as well: else a piece that
    says every letter would give back any text.
    """
    pieces: dict[int, str] = {}
    return [
        0 if _is_same(text, back) else _lost(tokenizer, text, row, pieces)
        for text, row, back in zip(texts, rows, _decoded(tokenizer, rows), strict=True)
    ]


def _decoded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    return [
        tokenizer.decode(list(row), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for row in rows
    ]


def _is_same(text: str, back: str) -> bool:
    """Tell whether a text came back; some tokenizers put one space in front of every text."""
    return back == text or (back[:1] == " " and back[1:] == text)


def _lost(tokenizer: Any, text: str, row: Sequence[int], pieces: dict[int, str]) -> int:
    new = sorted({token for token in row if token not in pieces})
    pieces.update(zip(new, _decoded(tokenizer, [[token] for token in new]), strict=True))
    says_nothing = {
        token
        for token in set(row)
        # A replacement character stands for a part of one, which decodes beside its others.
        if token == tokenizer.unk_token_id
        or ("\ufffd" not in pieces[token] and pieces[token].strip() not in text)
    }
    (back,) = _decoded(tokenizer, [[token for token in row if token not in says_nothing]])
    backs = [back, back[1:]] if back[:1] == " " and text[:1] != " " else [back]
    size = _size(text)
    return min(size, *(max(size, _size(back)) - _given_back(text, back) for back in backs))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _given_back(text: str, back: str) -> int:
    """Return at least how many bytes stand in both, in the same order."""
    num_blocks = -(-max(len(text), len(back)) // BLOCK)
    return sum(
        _common_bytes(_part(text, number, num_blocks), _part(back, number, num_blocks))
        for number in range(num_blocks)
    )


def _part(text: str, number: int, num_parts: int) -> str:
    return text[len(text) * number // num_parts : len(text) * (number + 1) // num_parts]


def _common_bytes(text: str, back: str) -> int:
    """Return the bytes of a longest common subsequence of characters."""
    places: dict[str, int] = {}
    for place, character in enumerate(text):
        places[character] = places.get(character, 0) | 1 << place
    mask = (1 << len(text)) - 1
    # A zero at a place: the subsequence with what came back so far grows by its character.
    rows = [mask]
    for character in back:
        row = rows[-1]
        matches = row & places.get(character, 0)
        rows.append(((row + matches) | (row - matches)) & mask)
    size, place, number = 0, len(text) - 1, len(back)
    while place >= 0 and number > 0:
        bit = 1 << place
        if rows[number] & bit:
            place -= 1
        elif not rows[number - 1] & bit:
            number -= 1
        else:
            size += _size(text[place])
            place, number = place - 1, number - 1
    return size
