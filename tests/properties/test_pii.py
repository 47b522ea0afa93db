from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from boli.corpus.pii import KINDS, find, replace

PIECES = st.sampled_from(
    [
        "9812345678", "+91", "0", "98123", "45678", "0612", "2234567", "234567890124", "२३४५",
        "६७८९", "०१२४", "30123456789", "ram", "@", " at ", " dot ", "gmail", ".com", ".", "ybl",
        "http://", "www.", "/a?token=", "SBIN0001234", "ABCPK1234F", "BR 01 AB 1234", "खाता", "फोन",
        "₹", " ", "-", "(", ")", ",", "\n", "\0", "\u200b", "₂", "９", "<PHONE_1>", "।", "😀",
    ]
)  # fmt: skip
TEXT = st.lists(PIECES | st.characters(), max_size=25).map("".join)


@settings(max_examples=500)
@given(TEXT)
def test_spans_are_in_order_in_the_text_and_apart(text: str) -> None:
    end = 0
    for span in find(text):
        assert end <= span.start < span.end <= len(text)
        assert span.kind in KINDS
        assert span.value
        end = span.end


@settings(max_examples=500)
@given(TEXT)
def test_nothing_but_the_spans_changes(text: str) -> None:
    replaced = replace(text, keep=())
    rest, end = replaced.text, 0
    for span in replaced.spans:
        before = text[end : span.start]
        assert rest.startswith(before + f"<{span.kind}_")
        rest = rest[len(before) :].partition(">")[2]
        end = span.end
    assert rest == text[end:]


@settings(max_examples=500)
@given(st.lists(st.sampled_from(["हम", "घर", "12", "॥34॥", "।", "Patna"]), max_size=12))
def test_what_is_planted_between_words_is_gone(words: list[str]) -> None:
    planted = ["9812345678", "ram.kumar@example.org", "2345 6789 0124", "ABCPK1234F"]
    text = " . ".join(part for pair in zip(words, planted * 3, strict=False) for part in pair)
    replaced = replace(text).text
    assert not any(value in replaced for value in planted)
