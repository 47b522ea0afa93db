"""A text without a trait is as it is after the step that the trait is named for."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from boli.corpus.markup import strip_markup
from boli.corpus.normalize import normalize, normalize_all
from boli.corpus.pii import find, may_find
from boli.corpus.residue import _MARKUP_SIGNS, _residue, may_be_marked
from boli.corpus.script import SCRIPTS, in_ranges, script_of, table
from boli.corpus.shape import main_script, shape_of, shapes_of
from boli.corpus.signatures import SHORTEST, fingerprints
from boli.corpus.traits import MARKUP, NORMAL, VARIANT, traits_of

ASSIGNED = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) != "Cn"]
INDIC = "".join(c for script in SCRIPTS for c in in_ranges(table(script.lower())["blocks"]))
MARKS = "".join(c for c in ASSIGNED if unicodedata.combining(c))
SIGNS = "<>&{}[]$%|\u2500'()-=_*~#/@.:;,।॥\u200c\u200d \n\u00a0ww"
WORDS = (
    *("at", "AT", "डॉट", "एट", "dot", "com", "gmail", "www", "http", "nbsp;", "function", "BR01AB"),
    *(
        "1234",
        "९८७६",
        "SBIN0001234",
        "ABCPE1234F",
        "''",
        "()",
        "----",
        "\n\n",
        "\n \n",
        "अा",
        "<b>",
    ),
)
TEXT = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(SIGNS),
        st.sampled_from(INDIC),
        st.sampled_from(MARKS),
        st.sampled_from(ASSIGNED),
        st.characters(),
    ),
    max_size=40,
).map("".join)


@settings(max_examples=1500)
@given(TEXT)
@example("क" + "\u093c" * 40)
@example("a" + "\u0300" * 31)
@example("\u1100\u1161\u11a8")
@example("\U00020001 \U000e0001")
@example("ravi at gmail . com")
@example("\uff32\uff10@x")
@example("a\u0301\u0323")
@example("\u00e1\u0323")
@example("\u0dd9\u093c\u0dca")
@example("init(a, b});")
@example("\uff21\uff22\uff23\uff30\uff251234\uff26")
def test_without_a_trait_nothing_is_changed(text: str) -> None:
    (traits,) = traits_of([text]).tolist()
    if not traits & NORMAL:
        for language in ("", "urd", "fas"):
            assert normalize(text, language) == text
    if not traits & (VARIANT | NORMAL):
        assert unicodedata.normalize("NFKC", text).lower() == text
    if not traits & MARKUP and text.count("\n") < 2:
        assert strip_markup(text) == text
    if not may_find(traits, shape_of(text).digits):
        assert find(text) == ()
    assert find(text, traits=traits) == find(text)


@settings(max_examples=300)
@given(st.lists(TEXT, max_size=6), st.sampled_from(["", "urd"]))
def test_many_at_once_are_as_one_by_one(texts: list[str], language: str) -> None:
    assert traits_of(texts).tolist() == [traits_of([text])[0] for text in texts]
    normal, traits = normalize_all(texts, language, traits_of(texts))
    assert normal == [normalize(text, language) for text in texts]
    assert ((traits ^ traits_of(normal)) & ~np.uint8(MARKUP)).tolist() == [0] * len(texts)
    assert shapes_of(texts) == [shape_of(text) for text in texts]
    assert [main_script(t, shape_of(t)) for t in texts] == list(map(script_of, texts))


@settings(max_examples=300)
@given(TEXT)
@example("functıon(क; ")
@example("wİndow.b;")
@example("a;---: b;")
def test_residue_of_markup_is_looked_for_wherever_it_may_be(text: str) -> None:
    if any(sign in text for sign in _MARKUP_SIGNS) and _residue().search(text):
        assert may_be_marked(text)


def test_no_letter_that_holds_a_mark_keeps_the_next_in_the_wrong_order() -> None:
    taken_apart = {c: unicodedata.normalize("NFD", c) for c in ASSIGNED if c < "\U00020000"}
    letters = [c for c, parts in taken_apart.items() if len(parts) > 1]
    letters = [c for c in letters if unicodedata.combining(taken_apart[c][-1])]
    tails = MARKS[::7] + "\u0301\u0323\u0308\u0327\u0345\u093c\u094d\u09bc\u0dca"
    texts = [letter + mark for letter in letters for mark in tails]
    assert len(texts) > 50_000
    for text, trait in zip(texts, traits_of(texts).tolist(), strict=True):
        assert trait & NORMAL or unicodedata.is_normalized("NFC", text), ascii(text)


@pytest.mark.parametrize(
    "character", ["ड़", "क़", "\u0958", "É", "é", "ﬁ", "Ａ", "ß", "İ", "ς", "한"]
)
def test_a_normal_form_takes_case_and_variants_away(character: str) -> None:
    text = "क" * SHORTEST + character
    plain = unicodedata.normalize("NFKC", text).lower()
    assert fingerprints([text]) == fingerprints([plain])


@pytest.mark.corpora
def test_in_real_text_nothing_is_missed(corpora: Path) -> None:
    for name in ("i18n", "dirty", "mono"):
        for path in sorted((corpora / name).rglob("*.t*")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:3000]
            assert normalize_all(lines, "hin")[0] == [normalize(line, "hin") for line in lines]
            for line, trait, shape in zip(
                lines, traits_of(lines).tolist(), shapes_of(lines), strict=True
            ):
                assert trait & MARKUP or strip_markup(line) == line
                assert may_find(trait, shape.digits) or find(line) == ()
