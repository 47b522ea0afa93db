from __future__ import annotations

import textwrap

from hypothesis import given, settings
from hypothesis import strategies as st

from boli.corpus.lines import clean_lines
from boli.corpus.markup import strip_markup, unwrap
from boli.corpus.pages import html_to_text
from boli.corpus.quality import REASONS, judge
from boli.corpus.shape import shape_of

PIECES = st.sampled_from(
    [
        "<b>", "</b>", "<p>", "<br/>", "<", ">", "</", "<!--", "-->", "<style>", "</style>",
        "&amp;", "&lt;", "&gt;", "&#39;", "&#124;", "&nbsp", ";", "&", "{{", "}}", "{|", "|}",
        "|-", "|", "||", "[[", "]]", "[", "]", "](http:", ")", "''", "'''", "==", "=", "$1",
        "$2", "%s", "%", "{", "}", "a:b;", "/*", "*/", "Normal 0 ", "false", "function(",
        "var x = 1;", "----", "-+-", "***", "* ", "# ", "__NOTOC__", "[b]", "[/b]", "\n", "\n\n",
        " ", "\t", "क", "राजा ", "ि", "्", "।", "ab", "word " * 12, "शब्द " * 12, "─", "( )",
        "http://a.b/", "<PHONE_1>", "और पढ़ें", "\ufffd", "à¤", "ᱱᱤᱛ ", "123", "\u200d",
        "\ud800", "PLURAL:x|", "File:", "चित्र:",
    ]
)  # fmt: skip
TEXT = st.lists(PIECES | st.characters(), max_size=25).map("".join)
WRAPPED = st.builds(
    lambda words, column: textwrap.fill(" ".join(words), column),
    st.lists(st.sampled_from(["क", "राजा", "गाँव", "बा ।", "<b>", "*", "x" * 60]), max_size=150),
    st.integers(40, 140),
)
LINES = st.lists(st.text("कख ।\n", max_size=90) | WRAPPED, max_size=9).map("\n".join)


@settings(max_examples=600)
@given(TEXT | LINES)
def test_stripping_again_changes_nothing_and_never_adds(text: str) -> None:
    once = strip_markup(text)
    assert len(once) <= len(text)
    assert strip_markup(once) == once


@settings(max_examples=300)
@given(LINES)
def test_unwrapping_changes_only_line_ends(text: str) -> None:
    joined = unwrap(text)
    assert joined.replace("\n", " ") == text.replace("\n", " ")


@settings(max_examples=300)
@given(TEXT, st.sampled_from(["Deva", "Olck", "Latn", "Knda", "Thai"]))
def test_every_text_has_a_verdict_and_always_the_same(text: str, script: str) -> None:
    verdict = judge(text, language="bho", script=script)
    assert verdict == judge(text, language="bho", script=script)
    assert verdict.keep == (verdict.reason == "")
    assert verdict.keep or verdict.reason in REASONS


@settings(max_examples=300)
@given(TEXT)
def test_cleaned_lines_are_lines_of_the_text(text: str) -> None:
    cleaned = clean_lines(text, script="Deva")
    assert len(cleaned.text) <= len(text)
    assert set(filter(None, cleaned.text.split("\n"))) <= set(text.split("\n"))
    assert set(cleaned.dropped) <= set(REASONS)
    assert bool(cleaned.reason) == bool(cleaned.dropped and not cleaned.text)


@settings(max_examples=300)
@given(TEXT)
def test_every_page_is_read(text: str) -> None:
    assert "\ufdd0" not in html_to_text(text)


@settings(max_examples=300)
@given(st.text())
def test_shape_counts_every_code_point_once(text: str) -> None:
    shape = shape_of(text)
    assert shape.length == len(text)
    parts = shape.spaces + shape.digits + shape.signs + shape.broken + shape.num_letters
    assert parts <= shape.length
    assert sum(shape.words) >= shape.num_letters
