"""Take away markup that was left in running text: HTML, Word style sheets, CSS, wiki, BBCode.

What is cut between two lines or cells leaves a space or a line end, what is cut within a word
leaves nothing. Names between < and > that HTML has not are text. Lines that were wrapped at a
column become paragraphs. Whole pages are for pages.py.

Source: written for this project; names of elements lie in tables/markup.toml.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from boli.corpus.script import table

SUSPECT_SIGNS = "<&{}[$%|"
# A text without any of these is left as it is. `traits.py` has the like by pairs.
_SUSPECT = re.compile(
    rf"[{re.escape(SUSPECT_SIGNS)}\u2500-\u257f]|''|[-=_*~]{{4}}|nbsp;|^[#*]|^ ?="
    r"|\*\*|/\*|//|__|\(\)|function",
    re.M,
)
# Emphasis in a wiki, quotation marks elsewhere.
_QUOTED = re.compile(r"('{2,5})(?!')([^'\n]+(?:'[^'\n]+)*)\1")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});|&?nbsp;?")
_RULE = re.compile(  # and whether it begins its line
    r"(^[^\S\n]*+)?((?<![-=_*~+|])[-=_*~+|]*(?:[-=_*~]{4}|-\+-)[-=_*~+|]*|[\u2500-\u257f]+)", re.M
)
_MAY_BE_RULE = re.compile(r"[-=_*~]{4}|-\+-|[\u2500-\u257f]")  # without it there is none
# $1, $2 of interface messages. Where there is no $1, $5 is money.
_FIRST_PLACEHOLDER = re.compile(
    r"\$[1१](?![0-9A-Za-z]|[.,][0-9]| ?(?:million|billion|मिलियन|बिलियन|अरब|=))"
)
_PLACEHOLDER = re.compile(r"\$[1-9१-९](?![0-9A-Za-z]|[.,][0-9])")
_MOST_PASSES = 12
_SIGNS = re.compile(r"[<>&{}\[\]|'\"$%*_=#/()~]+|Normal")  # without them little can be cut
_LEAST_COLUMN, _MOST_COLUMN = 50, 130
_LEAST_WRAPPED, _FEWEST_WRAPPED = 0.85, 4  # share and number of the line ends within paragraphs
_ENDS = ("।", "॥", "᱾", "᱿", ".", "?", "!", "|", '"', "”")
_MOST_OVER = 0.15  # of the lines: a word that is longer than the column


@dataclass(frozen=True)
class _Cut:
    """A pattern, what comes in its place, and a string without which it cannot match.

    Texts are long and not ours. A pattern takes time in proportion to the text: it begins with a
    sign that it does not go on over, or at the begin of a line, and what stands side by side in it
    has no character in common, or is possessive.
    """

    needs: str
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]

    def __call__(self, text: str) -> str:
        return self.pattern.sub(self.replacement, text) if self.needs in text else text


def strip_markup(text: str) -> str:
    """Return the text without residue of markup; doing it again changes nothing.

    Never grows. Spaces may be left doubled or at line ends: `normalize` comes next. Links,
    addresses and placeholders such as <PHONE_1> stay.
    """
    passes = 0
    while (changed := _once(text)) != text:
        # What is nested so deeply is no residue, and would take a pass for each level.
        text, passes = changed, passes + 1
        if passes > _MOST_PASSES:
            text = _SIGNS.sub(" ", text)
    return text


def unwrap(text: str) -> str:
    """Join lines that were wrapped at a fixed column; other line ends stay.

    Wrapped is a text of which nearly all lines end where the next line's first word would not
    have fitted. Verse is not: its lines end where they like, or where a verse ends.
    """
    if text.count("\n") < 2:
        return text
    lines = text.split("\n")
    if sum(line.rstrip().endswith(_ENDS) for line in lines) * 2 > len(lines):
        return text  # one sentence or verse a line
    lengths = [len(line.rstrip()) for line in lines]
    needed = [  # columns for a line with the first word of the next; 0 around empty lines
        length + 1 + len(after.split(None, 1)[0]) if length and after.strip() else 0
        for length, after in zip(lengths, lines[1:], strict=False)
    ]
    column = _column(lengths, needed)
    if not column:
        return text
    parts = [lines[0]]
    for need, line in zip(needed, lines[1:], strict=True):
        parts += [" " if need > column else "\n", line]
    return "".join(parts)


def _column(lengths: list[int], needed: list[int]) -> int:
    """Return the column at which lines were wrapped, 0 where they were not."""
    filled = sorted(length for length in lengths if length)
    inner = sorted(need for need in needed if need)
    for column in sorted(set(filled), reverse=True):
        over = len(filled) - bisect_right(filled, column)
        if column < _LEAST_COLUMN or over > _MOST_OVER * len(filled):
            break
        full = len(inner) - bisect_right(inner, column)
        if column <= _MOST_COLUMN and full >= max(_FEWEST_WRAPPED, _LEAST_WRAPPED * len(inner)):
            return column
    return 0


def _once(text: str) -> str:
    text = before = unwrap(text)
    if not _SUSPECT.search(text):
        return text
    if "&" in text or "nbsp" in text:
        text = _ENTITY.sub(_character, text)
    if "$" in text and _FIRST_PLACEHOLDER.search(text):
        text = _PLACEHOLDER.sub("", text)
    for cut in _cuts():
        text = cut(text)
    if "''" in text:
        is_wiki = any(sign in before for sign in ("'''", "[[", "{{"))
        text = _QUOTED.sub(r"\2" if is_wiki else r'"\2"', text)
    if _MAY_BE_RULE.search(text):
        text = _RULE.sub(_drawn, text)
    if text != before:
        text = _EMPTY.sub("", text)
    return text


# Not \s, which would begin anew at each of many empty lines.
_LINE = r"^[^\S\n]*+"
_ATTRIBUTES = re.compile(r"^\s*(?:[a-z]+=\"[^\"\n]*\"\s*)+\|(?!\|)")
_EMPTY = re.compile(r"\(\s*\)|\[\s*\]|\"\"|“\s*”|‘\s*’|^[*#|]+$", re.M)  # what a cut left


def _character(match: re.Match[str]) -> str:
    if "nbsp" in match[0]:
        return " "
    character = html.unescape(match[0])
    return " " if character.isspace() else character


def _drawn(match: re.Match[str]) -> str:
    """Return what stands for a drawn line: a long one parts paragraphs, a short one is a dash."""
    blanks, line = match.groups()
    if len(line) >= 8:
        return (blanks or "") + "\n"
    return " — " if blanks is None and set(line) == {"-"} else (blanks or "") + " "


def _cells(match: re.Match[str]) -> str:
    """Return the cells of a table's row, without bars and attributes."""
    row = _ATTRIBUTES.sub("", match[0].strip().lstrip("|+"))
    return " ".join(cell.strip() for cell in row.rstrip("|").split("|") if cell.strip())


def _names(key: str) -> str:
    return "|".join(sorted(map(re.escape, table("markup")[key]), key=len, reverse=True))


@cache
def _cuts() -> tuple[Callable[[str], str], ...]:
    before, after = (*_html_cuts(), *_word_cuts()), (*_code_cuts(), *_wiki_cuts(), *_other_cuts())
    return (*before, _without_style_rules, *after)


def _html_cuts() -> list[_Cut]:
    whole = _names("whole")
    attributes = r"(?:[\s/][^<>]{0,2000})?"
    return [
        _Cut("<!--", re.compile(r"<!--(?:(?!<!--).)*?-->", re.S), ""),
        _Cut("<!", re.compile(r"<!\[?(?:DOCTYPE|CDATA|if|endif)\b[^<>]{0,300}>", re.I), ""),
        _Cut("]]>", re.compile(r"(?://)?\]\]>"), ""),
        # Up to the next one that begins, not to the end of the text again and again.
        _Cut(
            "</",
            re.compile(rf"<({whole})\b[^<>]{{0,500}}>(?:(?!<\1\b).)*?</\1\s*>", re.S | re.I),
            " ",
        ),
        _Cut("<", re.compile(rf"</?(?:{_names('block')}){attributes}>", re.I), "\n"),
        _Cut("<", re.compile(rf"</?(?:{_names('cell')}){attributes}>", re.I), " "),
        _Cut("<", re.compile(rf"</?(?:{_names('inline')}){attributes}>", re.I), ""),
        _Cut("<", re.compile(rf"</?(?:{whole}){attributes}>", re.I), " "),
        # Word's own: <o:p>, <v:shape ...>, <st1:place>.
        _Cut("<", re.compile(rf"<[/?]?[a-z]\w{{0,9}}:[a-z]\w{{0,20}}{attributes}>", re.I), ""),
    ]


# The last value may lack its semicolon. A value has colons too, and is not parted at them: there
# would be a way to part it for each subset of them.
_DECLARATION = r"[a-z-]++\s*+:\s*+[^;{}\u0900-\uffff]{0,200}+"
_STYLE_RULE = re.compile(
    rf"\{{\s*+(?:(?:{_DECLARATION};\s*+)++(?:{_DECLARATION}\s*+)?+|{_DECLARATION}\s*+)\}}"
)
_SELECTOR = re.compile(r"(?<![\w./])[.#@*]?[A-Za-z][\w.#:>,@ -]{0,80}\Z")
_LONGEST_SELECTOR = 82


def _without_style_rules(text: str) -> str:
    """Cut a, b {c: d; e: f}, from the brace to the left: a selector could begin at any word."""
    if "{" not in text:
        return text
    parts: list[str] = []
    done = 0
    for rule in _STYLE_RULE.finditer(text):
        before = text[done : rule.start()].rstrip()
        # From `text`, as what stands before the selector decides whether it is one.
        end = done + len(before)
        selector = _SELECTOR.search(text, max(done, end - _LONGEST_SELECTOR), end)
        parts += [text[done : selector.start() if selector else end], " "]
        done = rule.end()
    return "".join([*parts, text[done:]])


def _word_cuts() -> list[_Cut]:
    return [
        _Cut(
            "Normal",
            re.compile(
                r"\bNormal\s+0(?:\s+\S{1,30}){0,9}?\s+(?=/\*\s*Style)|\bNormal\s+0\s+false\b"
            ),
            "",
        ),
        _Cut("/*", re.compile(r"/\*[^\u0900-\uffff]{0,400}?\*/"), ""),
    ]


def _code_cuts() -> list[_Cut]:
    return [
        # A page's code, one statement a line or a whole function.
        _Cut(
            "function",
            re.compile(r"\(?\bfunction\s*+\w*+\s*+\([^()]{0,200}+\)\s*+\{[\x20-z|~\n]*+\}"),
            " ",
        ),
        _Cut("=", re.compile(rf"{_LINE}(?:var|let|const)\s+\w+\s*=[\x20-\x7e]*;\s*$", re.M), ""),
        _Cut(");", re.compile(rf"{_LINE}[\w$.]+\([\x20-\x7e]*\);\s*$", re.M), ""),
    ]


def _wiki_cuts() -> list[_Cut]:
    spaces = _names("namespaces")
    return [
        _Cut(
            "{{",
            re.compile(
                r"\{\{\s*(?:PLURAL|GENDER|GRAMMAR)\s*:[^{}|]{0,60}\|([^{}|]*)(?:\|[^{}]*)?\}\}",
                re.I,
            ),
            r"\1",
        ),
        _Cut("{{", re.compile(r"\{\{[^{}]*\}\}"), ""),
        _Cut(
            "[[", re.compile(rf"\[\[\s*:?(?:{spaces})\s*:[^\[\]]*(?:\[[^\[\]]*\])*\]\]", re.I), ""
        ),
        _Cut("[[", re.compile(r"\[\[[^\[\]|\n]*\|([^\[\]\n]*)\]\]"), r"\1"),
        _Cut("[[", re.compile(r"\[\[:?([^\[\]|\n]*)\]\]"), r"\1"),
        _Cut("://", re.compile(r"\[(?:https?:)?//[^\s\[\]]+\s++([^\[\]\n]*)\]"), r"\1"),
        _Cut("](", re.compile(r"!?\[([^\[\]\n]*)\]\((?:https?:|/|#)[^()\s]*\)"), r"\1"),
        _Cut("'''", re.compile(r"'{3,}"), ""),
        _Cut("=", re.compile(r"^ ?(={2,6}) ?([^=\n]+?) ?\1\s*$", re.M), r"\2"),
        _Cut("__", re.compile(r"__[A-Z]{3,20}__"), ""),
        _Cut("|", re.compile(rf"{_LINE}(?:\{{\||\|[-}}]).*$", re.M), ""),
        _Cut("|", re.compile(r"^[ \t]*\|(?!\|? ?\d+ ?\|).*$", re.M), _cells),
        _Cut("**", re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
        _Cut("*", re.compile(r"^\*{1,3}[ \t]*(?=[^\s*])", re.M), ""),
        _Cut("#", re.compile(r"^#{1,6}[ \t]+(?=[^#\n]+$)", re.M), ""),
    ]


def _other_cuts() -> list[_Cut]:
    return [
        _Cut("[", re.compile(rf"\[/?(?:{_names('bbcode')})(?:=[^\[\]\n]{{0,300}})?\]", re.I), ""),
        _Cut("%", re.compile(r"(?<![\d%])%(?:\d\$)?(?:\(\w{1,30}\))?l{0,2}[sdiuf](?![\w%])"), ""),
        _Cut("{0}", re.compile(r"\{\d\}"), ""),
    ]
