from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from boli.corpus.markup import strip_markup, unwrap
from boli.corpus.pages import decode_page, html_to_text
from boli.errors import CorpusError


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Check what the processor needs, however many others it serves."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


STRIPPED = {
    "अमर<b>कथा</b> घर<br>जा": "अमरकथा घर\nजा",
    "<p>एक</p><p>दो</p>": "\nएक\n\nदो\n",
    "<td>नाम</td><td>उमिर</td>": " नाम  उमिर ",
    '<div class="a" style="x:y">क</div>': "\nक\n",
    "क<o:p></o:p><v:shape id='x'> ख</v:shape>": "क ख",
    "क<!-- कुछ\nनहीं -->ख<script>var a = '<p>';</script>": "कख ",
    "&lt;b&gt;क&lt;/b&gt; &#2361;&nbsp;म &amp; ल &amp;amp; व": "क ह म & ल & व",
    "क&nbsp ख nbsp; ग": "क  ख   ग",
    "/* Style */ table.MsoNormalTable {mso-style-name:\"T\"; font-size:10.0pt;} क": "   क",
    "http://a.in/b.html table.X {mso-a:b;} क": "http://a.in/b.html   क",
    "''वेब'' '''मोट''' [[पन्ना|पृष्ठ]] [[घर]] {{साँचा|1}}": "वेब मोट पृष्ठ घर ",
    "[[चित्र:क.jpg|thumb|एगो [[घर]]]]गाँव": "गाँव",
    "[http://a.in गाँव] [गाँव](http://a.in)": "गाँव गाँव",
    "{{PLURAL:$2|पन्ना|पन्ना सभ}}": "पन्ना",
    "== शीर्षक ==\nबात": "शीर्षक\nबात",
    "{| class=\"x\"\n|-\n| एक || दो\n|}": "\n\nएक दो\n",
    "| एक | दो | तीन |": "एक दो तीन",
    "$1 कय $2 बदलाव, $3केँ": " कय  बदलाव, केँ",
    "नाम %s (%1$s) %d": "नाम   ",
    "[b]मोट[/b] [url=http://x.y]कड़ी[/url]": "मोट कड़ी",
    "एक------------दो": "एक\nदो",
    "बोलल----'चलीं' ----": "बोलल — 'चलीं'  — ",
    "क\n----\nख": "क\n \nख",
    "''ऊपर'' आगू": '"ऊपर" आगू',
    "{0} में {1}": " में ",
    "क a, b:hover > c {filter: progid:X(a='b'); d : e} ख {x:y}  {z:w;}": "क   ख  ",
    "# शीर्षक": "शीर्षक",
    "एक ═══ दो": "एक   दो",
    "नाम \"$1\" बा": "नाम  बा",
    "* पहिला\n** दुसरा": "पहिला\nदुसरा",
}  # fmt: skip
UNTOUCHED = [
    "<PHONE_1> अउर <EMAIL_2> पर लिखीं",
    "a < b && c > d, 5 > 3 < 4",
    "<नाम> लिखीं, <username> भी",
    "दाम $5 अउर $100 बा, $1.5 नाहीं, $1 million",
    "AT&T, R&D, Q&A; क & ख",
    "राम गइल | ऊ आइल |",
    "|| १ ||",
    "राम-लखन - सीता -- भरत --- शत्रुघ्न",
    "बात.... बात..... ठीक?!",
    "[नोट] (बात) {क}",
    "it's 'fine' rock 'n' roll",
    "बार { mon: news at ten, tue: songs and talk, wed: a talk, thu: b, fri: c : राम",
    "100% सही, 50 %s नहीं"[:9],
    "#हैशटैग @नाम",
    "# गीत #",
    "217-अ-{3}",
    "x = y; a: b",
    "मुँह :-) ;-) <3 ^_^",
    "www.example.org/a_b_c?d=e&f=g",
]


@pytest.mark.parametrize(("text", "stripped"), STRIPPED.items())
def test_markup_goes_and_words_stay_apart(text: str, stripped: str) -> None:
    assert strip_markup(text) == stripped


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_is_no_markup_stays(text: str) -> None:
    assert strip_markup(text) == text


def test_word_style_sheet_goes_with_its_preamble() -> None:
    text = (
        "Normal 0 false false false EN-IN X-NONE X-NONE /* Style\nDefinitions */ "
        'table.MsoNormalTable {mso-style-name:"Table Normal";\nmso-tstyle-rowband-size:0; '
        'mso-padding-alt:0cm 5.4pt 0cm 5.4pt;\nfont-family:"Calibri","sans-serif";}\nएगो राजा हल ।'
    )
    assert strip_markup(text).split() == "एगो राजा हल ।".split()  # noqa: SIM905


def test_lines_wrapped_at_a_column_become_a_paragraph() -> None:
    text = "एगो गाँव में एगो राजा रहत रहे अउर ओकर दू गो बेटा रहले स । " * 12
    wrapped = textwrap.fill(text.strip(), 72)
    assert wrapped.count("\n") > 6
    assert unwrap(wrapped) == text.strip()
    two = wrapped + "\n\n" + wrapped
    assert unwrap(two) == text.strip() + "\n\n" + text.strip()


def test_verse_and_sentences_stay_on_their_lines() -> None:
    verse = "\n".join(
        ["बंदउँ गुरु पद पदुम परागा। सुरुचि सुबास सरस अनुरागा॥" + "।" * (i % 3) for i in range(30)]
    )
    assert unwrap(verse) == verse
    lines = "\n".join("क" * 3 + " ख" * (20 + 7 * (i % 5)) for i in range(30))
    assert unwrap(lines) == lines


@pytest.mark.parametrize(
    "text",
    ["&" + "amp;" * 20_000, "<b" * 5_000 + ">" * 5_000, "{{" * 5_000 + "}}" * 5_000,
     "<!--" * 20_000, "[[" * 5_000 + "]]" * 5_000, "-+" * 20_000, "a|" * 20_000,
     "<style>" * 5_000 + "</",
     "{" + "a:" * 40_000, "राम {" + " " * 200_000, "a {b:c} " * 25_000, "a " * 90_000 + "{",
     "a=b|);" + "\n" * 200_000, "राम ---- " * 40_000, "[http://a" + " " * 200_000,
     "function" + " " * 200_000, "/* " * 60_000, "%s " + "(" * 50_000 + ")" * 50_000,
     "$" * 20_000 + "$1" + "१" * 20_000, "Normal " * 9_000 + " 0 false" * 9_000,
     "__A" * 8_000 + "__AAA__" + "AA__" * 8_000, "''" + "a'" * 50_000],
)  # fmt: skip
def test_hostile_nesting_takes_no_time(text: str) -> None:
    with at_most(10):
        once = strip_markup(text)
        assert strip_markup(once) == once


PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>समाचार</title>
<style>p{color:red}</style></head><body><header><a href="/">घर</a></header>
<nav><ul><li><a>खेल</a></li></ul></nav><div><a>एक</a> <a>दो</a> <a>तीन</a> <a>चार</a></div>
<div id="main"><h1>गाँव के <b>कथा</b></h1><p>एगो राजा <em>हल</em>ई।<br>ऊ <a href="x">दयालु</a>
   हल।</p><table><tr><td>नाम</td><td>उमिर</td></tr></table><pre>पहिला पंक्ति कविता के
दुसरा पंक्ति कविता के</pre></div>
<ul><li>होम<li>खेल<li>राज्य<li>देश<li>विदेश<li>संपर्क</ul>
<script>var a = "<p>x</p>";</script><form><input value="q"><button>खोजीं</button></form>
<footer>© 2020</footer></body></html>"""
TEXT = "गाँव के कथा\nएगो राजा हलई।\nऊ दयालु हल।\nनाम उमिर\nपहिला पंक्ति कविता के\nदुसरा पंक्ति कविता के"


def test_page_becomes_its_running_text() -> None:
    assert html_to_text(PAGE) == TEXT
    assert html_to_text(PAGE.encode()) == TEXT
    assert html_to_text(PAGE.encode("utf-16")) == TEXT


def test_paragraph_with_links_in_it_stays() -> None:
    text = " ".join(["गाँव के लोग खेत में काम करत रहे"] * 8)
    page = f"<p><a>एक</a> {text} <a>दो</a> <a>तीन</a> <a>चार</a></p>"
    assert html_to_text(page) == f"एक {text} दो तीन चार"


@pytest.mark.parametrize(
    "page", ["", " ", "बात", "<p>", "<svg><p>", "<template>x", "<frameset>", "<p>\ud800", "<" * 9]
)
def test_odd_pages_are_read(page: str) -> None:
    assert isinstance(html_to_text(page), str)


def test_character_set_of_a_page() -> None:
    assert decode_page(b"\xef\xbb\xbf\xe0\xa4\x95") == "क"
    assert decode_page(b"\xff\xfe\x15\x09") == "क"
    assert decode_page("<meta charset=iso-8859-1>é’".encode("cp1252")).endswith("é’")
    assert decode_page('<meta charset="windows-1252">क'.encode()).endswith("क")
    assert decode_page('<?xml version="1.0" encoding="utf-16"?>क'.encode()).endswith("क")


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (b"<p>caf\xe9", "not valid utf-8 at byte 6"),
        (b"<meta charset=kruti-dev><p>\xe9", "'kruti-dev', which is not known"),
        (b"<meta charset=shift_jis><p>\xff\xff", "not valid shift_jis at byte"),
        (b"<meta charset=base64>x\xff", "base64"),
    ],
)
def test_page_that_cannot_be_read_says_why(page: bytes, problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        decode_page(page)


def test_page_nested_too_deeply_is_refused() -> None:
    with at_most(10):
        with pytest.raises(CorpusError, match="nested more than 5000 deep"):
            html_to_text("<div>" * 200_000)
        assert html_to_text("<p>क" * 20_000).count("क") <= 20_000


NEVER_CLOSED = {
    "in a paragraph": "".join(f"<b id={i}>" for i in range(1000)) + "</p>" + "<p>x" * 1000,
    "few, many paragraphs": "".join(f"<i id={i}>" for i in range(90)) + "<p>x" * 9000,
    "end tags in attributes": "".join(f"<b id={i}><br x='</b>'>" for i in range(1000)),
    "end tags in comments": "".join(f"<u id={i}><!-- </u> -->" for i in range(1000)),
}


@pytest.mark.parametrize("page", NEVER_CLOSED.values(), ids=NEVER_CLOSED)
def test_page_that_the_parser_would_blow_up_is_refused(page: str) -> None:
    with pytest.raises(CorpusError, match="elements such as b or font that nothing closes"):
        html_to_text("<p>" + page)


def test_page_with_elements_that_nothing_closes_is_read() -> None:
    bold = "".join(f"<font color=c{i}>" for i in range(40)) + "<b>" * 300
    page = bold + "<p>गाँव में राम आ श्याम रहले आ घर गइल<br>\n" * 3000
    assert html_to_text(page).count("गाँव में राम") == 3000


@pytest.mark.parametrize(
    "page",
    [
        "".join(f"<p>गाँव <b class=a{i}>राम</b> आ <a>घर</a> गइल।</p>\n" for i in range(20_000)),
        ("<div>" + "<p><a>x</a><a>x</a><a>x</a>" * 2) * 4900 + "गाँव " * 100,
        "<div>" * 4900 + "<p>गाँव में" * 100_000,
    ],
    ids=["closed", "links", "deep"],
)
def test_long_page_takes_no_time(page: str) -> None:
    with at_most(20):
        assert "गाँव" in html_to_text(page + "<p>ऊ गाँव में रहले आ घर गइल।")


def test_missing_parser_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selectolax.lexbor", None)
    with pytest.raises(CorpusError, match=r"pip install 'boli\[corpus\]'"):
        html_to_text("<p>x")


@pytest.mark.parametrize(
    "page",
    [
        "<p>" * 250_000,
        "<br>" * 250_000,
        "</p>" * 250_000,
        "<!-->" * 250_000,
        "<!-->" + "<p>" * 250_000,
        "<svg><title>" + "<p>" * 250_000,
        "<script>" + "<p>" * 250_000,
    ],
    ids=lambda page: page[:20],
)
def test_page_with_very_many_tags_is_refused_however_they_are_hidden(page: str) -> None:
    with pytest.raises(CorpusError, match=r"tags, and 200000 are the most|attributes"):
        html_to_text(page)


MANY = " ".join(f"a{number}" for number in range(100))


@pytest.mark.parametrize(
    "tag",
    [
        f"<p {MANY}>",
        f"<p {MANY.replace(' ', '/')}>",
        f"<p {MANY.replace(' ', '=1 ')}>",
        f"""<p {MANY.replace(" ", '="x"')}>""",
        f"""<p x"=" {MANY}">""",
        f'<p = "{MANY}">',
        f"""<p a="<" {MANY}>""",
        f"""<p a"="x>y" {MANY}>""",
        f"""<p a=b"{MANY}">""",
        f"<!--><p {MANY}>",
        f"""<p a="<x>" {MANY}>""",
        f"""<p a='<x y="z">' {MANY}>""",
        f"""<p a="x" <b> <p c="<i>"{MANY}>""",
    ],
)
def test_page_with_very_many_attributes_is_refused_however_they_are_quoted(tag: str) -> None:
    with pytest.raises(CorpusError, match="more than 400000 attributes"):
        html_to_text(tag * 4400)
    html_to_text(tag * 20)


def test_large_page_as_people_write_it_is_read() -> None:
    row = (
        '<tr class="even row"><td style="color: red; width: 3em" data-x=\'{"a": 1}\'>'
        '<a href="https://example.org/a?b=c&d=e" title="a long title of some words">गया</a>'
        "</td></tr>"
    )
    page = f"<table>{row * 20_000}</table><p>{'आज बाजार में बहुत भीड़ बा। ' * 1000}</p>"
    assert len(page) > 3_000_000
    assert "आज बाजार में" in html_to_text(page)


def test_pictures_in_a_page_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = b'<img src="data:image/png;base64,' + b"QUJD" * 3_000_000 + b'">'
    page = "<p>आज बाजार में बहुत भीड़ बा।</p>".encode()
    assert html_to_text(picture + page) == "आज बाजार में बहुत भीड़ बा।"
    with pytest.raises(CorpusError, match="bytes, and 8388608 are the most"):
        html_to_text(b"<p>" + b"a b " * 3_000_000)
