from __future__ import annotations

import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from boli.corpus.normalize import ascii_digits, normalize
from boli.corpus.script import SCRIPTS, in_ranges, table

JUNK = "\u200b\u200c\u200d\u200e\u2060\ufeff\u00ad\u202e\u00a0\u3000\t\r\n \x00\x0b\u2028\ud800"
SIGNS = "|।॥᱾᱿।|\"'”.,{}[]<>=$0123456789०१२೦৷ـ"
LETTERS = "".join(
    character
    for script in SCRIPTS
    for character in in_ranges(table(script.lower())["blocks"])
    if unicodedata.category(character) != "Cn"
)
# Letters with rules of their own, so that the rules meet each other.
TANGLED = "अआएओउरड़्ािीुूेैोॅॆंँ" + "অাে়্ৗত্‍ব" + "ଅାୌୖ଼୍ଯ" + "ಉಒಂೂೇಾ಼್೦ಕ" + "ᱸᱹᱟ" + "كيىهةآٔ"
TEXT = st.text(
    st.one_of(
        st.sampled_from(LETTERS),
        st.sampled_from(TANGLED),
        st.sampled_from(JUNK),
        st.sampled_from(SIGNS),
        st.characters(),
    ),
    max_size=60,
)
TANGLE = st.text(st.sampled_from(TANGLED + JUNK + SIGNS), max_size=30)
LANGUAGE = st.sampled_from(["", "urd", "fas", "snd"])


@settings(max_examples=600)
@given(TEXT | TANGLE, LANGUAGE)
@example("ड\u094d\u093c\u200d", "")
@example("अा\u0945", "")
@example("क\u0902\u093c\u093e\u0902", "")
def test_twice_is_once(text: str, language: str) -> None:
    once = normalize(text, language)
    assert normalize(once, language) == once


@settings(max_examples=300)
@given(TEXT | TANGLE)
def test_result_is_nfc_and_clean(text: str) -> None:
    text = normalize(text)
    assert unicodedata.is_normalized("NFC", text)
    assert not set(text) & set("\u200b\u200e\u2060\ufeff\u00ad\u202e\u00a0\t\r\x00")
    assert "  " not in text
    assert text == text.strip(" \n")
    text.encode()


@settings(max_examples=300)
@given(TEXT | TANGLE)
def test_text_with_letters_keeps_letters(text: str) -> None:
    def has_letters(text: str) -> bool:
        return any(unicodedata.category(character)[0] == "L" for character in text)

    assert has_letters(normalize(text)) == has_letters(text)


@given(TEXT)
def test_ascii_digits_keep_the_length(text: str) -> None:
    plain = ascii_digits(text)
    assert len(plain) == len(text)
    assert all(new == old or new.isascii() for new, old in zip(plain, text, strict=True))
