"""Running text from a whole HTML page: menus, forms and link lists go, paragraphs stay.

Source: Kohlschütter, Fankhauser & Nejdl 2010, Boilerplate Detection using Shallow Text Features
    (link density), https://doi.org/10.1145/1718487.1718542; WHATWG Encoding Standard (labels).
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from boli.corpus.lines import drop_menus
from boli.corpus.script import table
from boli.errors import CorpusError

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser

_BREAK = "\ufdd0"  # no character, stands for a line end until spaces are folded
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHARSET = re.compile(
    rb"<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*+=\s*+[\"']?+\s*+([\w:.-]+)", re.I
)
_HEAD_BYTES = 4096
_FOLDED = re.compile(r"[ \t\r\n\f\xa0]+")
_MOST_LINKED = 0.5  # of a block's letters
_FEWEST_LINKS, _MOST_BESIDE = 3, 200  # links; characters that are no link
_MOST_DEPTH = 5000
_LARGEST_BYTES = 8 << 20  # without what is embedded; the text of a long novel has 2
_EMBEDDED = re.compile(rb";base64,[A-Za-z0-9+/=]{1000,}+")  # pictures and fonts
_MOST_OPEN = 100  # formatting elements at once
_MOST_REOPENED = 500_000  # of them, on a page: 200 MB
_FEW_TAGS = 1000  # can do no harm
# The parser takes 500 bytes for a tag and 250 for an attribute, whatever they say: 200 MB.
_MOST_TAGS, _MOST_ATTRIBUTES = 200_000, 400_000
_ATTRIBUTE = r"\s++[^\s<>\"'/=]++(?:\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|[^\s<>\"'=`]++))?"
# No group of these two is possessive: Python before 3.11.5 matches such groups wrongly at times.
# A tag as it should be. Of any other it cannot be told where the parser ends it.
_SOUND_TAG = re.compile(rf"</?+[a-z][^\s<>\"'/=]*+((?:{_ATTRIBUTE})*)\s*+/?+>", re.I)
_ATTRIBUTES, _WORDS = re.compile(_ATTRIBUTE), re.compile(r"[^\s\"'>/=]+")
_TAG = re.compile(
    r"<!--(?:-?>|.*?(?:--!?>|\Z))|<(script|style|textarea|title|xmp|iframe)\b.*?(?:</\1\b|\Z)"
    r"|<(/?)([a-z][^\s/>]*+)((?:[\s/]++|[^\s/>][^\s/>=]*+"  # and attributes, where > may stand
    r"(?:\s*+=\s*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z)|[^\s>\"'][^\s>]*+)?+)?+)*+)",
    re.I | re.S,
)
_FORMATTING = frozenset(
    (
        "a",
        "b",
        "big",
        "code",
        "em",
        "font",
        "i",
        "nobr",
        "s",
        "small",
        "strike",
        "strong",
        "tt",
        "u",
    )
)
_VOID = ("area", "base", "br", "col", "embed", "img", "input", "link", "meta", "source", "wbr")
# Elements that more than their own end tag closes; and those that close none.
_NO_DEPTH = frozenset((*_VOID, "p", "li", "td", "tr", "th", "dd", "dt", "option", "hr"))
_KEEPS_OPEN = frozenset((*_VOID, "abbr", "cite", "label", "q", "span", "sub", "sup", "time"))
_LISTS = frozenset(("ul", "ol", "dl", "table", "tr", "div", "section", "p"))
_LEVELS = 8  # of blocks around a link


@dataclass(slots=True)
class _Counts:
    """What is in an element: letters, letters of links, links."""

    size: int = 0
    linked: int = 0
    num_links: int = 0

    def add(self, within: _Counts) -> None:
        self.size += within.size
        self.linked += within.linked
        self.num_links += within.num_links


def html_to_text(page: bytes | str) -> str:
    """Return the running text of a page, a line for each block.

    Left out are scripts, styles, navigation, headers, footers, forms, blocks that are mostly
    links, and runs of very short lines. The character set of bytes is that of the byte order
    mark, else of the page's meta element, else UTF-8. Call `strip_markup` on what comes back:
    pages hold escaped markup.

    Raises:
        CorpusError: the bytes are not of the character set, there are millions of them or
            hundreds of thousands of tags or attributes, elements are nested thousands deep or a
            hundred formatting elements are never closed, or selectolax is missing.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise CorpusError(
            "HTML pages need selectolax, which is not installed", "pip install 'boli[corpus]'"
        ) from None
    if isinstance(page, bytes):
        page = _EMBEDDED.sub(b"", page)
        if len(page) > _LARGEST_BYTES:
            raise _unreadable(f"{len(page)} bytes, and {_LARGEST_BYTES} are the most")
        text = decode_page(page)
    else:
        text = page.encode("utf-8", "replace").decode()  # no half surrogates
    text = text.replace(_BREAK, "")
    if not text.strip():
        return ""
    _check_tags(text)
    tree = LexborHTMLParser(text)
    _remove(tree)
    _remove_link_lists(tree)
    root = tree.body or tree.root
    if root is None:
        return ""
    _mark_blocks(root)
    parts = _FOLDED.sub(" ", root.text(deep=True, separator="")).split(_BREAK)
    lines = [line for part in parts if (line := part.strip())]
    return "\n".join(drop_menus(lines))


def _check_tags(text: str) -> None:
    """Refuse what the parser would recurse into, or build up, until the process dies.

    What is in b or font and not closed is opened again in each block that follows.
    """
    num_tags = text.count("<")
    if num_tags > _MOST_TAGS:
        raise _unreadable(f"{num_tags} tags, and {_MOST_TAGS} are the most")
    _check_attributes(text)
    if num_tags <= _FEW_TAGS:
        return
    depth = reopened = 0
    formatting: list[tuple[str, str]] = []
    for match in _TAG.finditer(text):
        if not match[3]:
            continue
        name, is_end = match[3].lower(), bool(match[2])
        if name not in _NO_DEPTH:
            depth = max(0, depth - 1) if is_end else depth + 1
        if name in _FORMATTING:
            reopened += _format(formatting, name, match[4], is_end)
        elif is_end or name not in _KEEPS_OPEN:
            reopened += len(formatting)
        if depth > _MOST_DEPTH:
            raise _unreadable(f"elements nested more than {_MOST_DEPTH} deep")
        if len(formatting) > _MOST_OPEN or reopened > _MOST_REOPENED:
            raise _unreadable(f"{len(formatting)} elements such as b or font that nothing closes")


def _check_attributes(text: str) -> None:
    """Refuse a page with more attributes than any has, also where quotes hide them from us.

    Behind a quote in what is no sound tag, each word may be an attribute: who knows what the
    parser takes for quoted.
    """
    number, is_sure = 0, True
    end = text.find("<") + 1
    while end:
        begin, end = end, text.find("<", end) + 1
        last = end - 1 if end else len(text)
        tag = _SOUND_TAG.match(text, begin - 1, last) if is_sure else None
        if tag is None:
            number += sum(1 for _ in _WORDS.finditer(text, begin, last))
            quoted = text.find('"', begin, last) >= 0 or text.find("'", begin, last) >= 0
            is_sure = is_sure and not quoted
        elif tag[1]:
            number += sum(1 for _ in _ATTRIBUTES.finditer(tag[1]))
        if number > _MOST_ATTRIBUTES:
            raise _unreadable(f"more than {_MOST_ATTRIBUTES} attributes")


def _format(formatting: list[tuple[str, str]], name: str, attributes: str, is_end: bool) -> int:
    """Open or close a formatting element as the standard says; return how many open anew."""
    closed = 0
    if is_end or name in ("a", "nobr"):  # the next a closes the last
        for place in range(len(formatting) - 1, -1, -1):
            if formatting[place][0] == name:
                del formatting[place]
                closed = len(formatting) - place
                break
    if not is_end:
        element = (name, attributes)
        if formatting.count(element) >= 3:  # of more than three that are the same, three open anew
            formatting.remove(element)
        formatting.append(element)
    return closed


def _unreadable(what: str) -> CorpusError:
    return CorpusError(f"the page has {what}", "no browser writes such a page: leave the file out")


def decode_page(page: bytes) -> str:
    """Return the characters of a page.

    Raises:
        CorpusError: the bytes are not of the character set, which is named.
    """
    for mark, name in _BOMS:
        if page.startswith(mark):
            return _decoded(page[len(mark) :], name)
    found = _CHARSET.search(page[:_HEAD_BYTES])
    name = found[1].decode("ascii") if found else "utf-8"
    try:
        name = codecs.lookup(name).name
    except LookupError:
        raise CorpusError(
            f"the page names the character set {name!r}, which is not known",
            "convert the page to UTF-8; a font's own code needs a converter for that font",
        ) from None
    # As browsers do: a meta element that could be read is not UTF-16, and few mean Latin-1.
    if name.startswith("utf-16") or name.startswith("utf-32"):
        name = "utf-8"
    if name in ("iso8859-1", "ascii"):
        name = "cp1252"
    if name != "utf-8":
        try:
            return page.decode("utf-8") if not page.isascii() else _decoded(page, name)
        except UnicodeDecodeError:
            pass  # it is what it says
    return _decoded(page, name)


def _decoded(page: bytes, name: str) -> str:
    try:
        return page.decode(name)
    except (UnicodeDecodeError, LookupError) as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise CorpusError(
            f"the page is not valid {name}{where}",
            "name its character set in a meta element, or convert it to UTF-8",
        ) from None


@cache
def _selectors() -> tuple[str, str, str]:
    rules = table("markup")
    gone = [*rules["not_text"], *(f'[role="{role}"]' for role in rules["roles"]), "[hidden]"]
    blocks = [name for name in rules["block"] if name not in ("html", "head", "body")]
    return ", ".join(gone), ", ".join(blocks), ", ".join(rules["cell"])


def _remove(tree: LexborHTMLParser) -> None:
    for node in reversed(tree.css(_selectors()[0])):  # what is within first: it goes with the other
        node.decompose()


def _remove_link_lists(tree: LexborHTMLParser) -> None:
    """Drop blocks that are mostly links, the innermost first."""
    links = Counter[int]()
    for link in tree.css("a"):
        node = link.parent
        for _ in range(_LEVELS):
            if node is None:
                break
            links[node.mem_id] += 1
            node = node.parent
    if tree.root is None or max(links.values(), default=0) < _FEWEST_LINKS:
        return
    # Counted once for all blocks: within each other they would be read again and again.
    counts: dict[int, _Counts] = {}
    for node in reversed(list(tree.root.traverse(include_text=True))):  # what is within first
        own = counts.pop(node.mem_id, None) or _Counts()
        if node.is_text_node:
            own.size = len(_FOLDED.sub("", node.text_content or ""))
        elif node.tag == "a":
            own.num_links += 1
            own.linked += own.size
        elif (
            node.tag in _LISTS
            and links[node.mem_id] >= _FEWEST_LINKS
            and own.num_links >= _FEWEST_LINKS  # else the others went with a block within
            and own.linked > _MOST_LINKED * own.size
            and own.size - own.linked < _MOST_BESIDE
        ):
            node.decompose()
            continue
        if node.parent is not None:
            counts.setdefault(node.parent.mem_id, _Counts()).add(own)


def _mark_blocks(root: Any) -> None:
    _, blocks, cells = _selectors()
    for node in root.css("pre"):  # keeps its line ends: poems
        kept = node.text(deep=True).strip("\n").replace("\n", _BREAK)
        node.replace_with(_BREAK + kept + _BREAK)
    for node in root.css(blocks):
        node.insert_before(_BREAK)
        node.insert_after(_BREAK)
    for node in root.css(cells):
        node.insert_before(" ")
        node.insert_after(" ")
