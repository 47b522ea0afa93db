"""Faults that dirty_text.py plants into clean lines: each takes a line and a generator."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable

CODES = "d x p t V M r n u i c e ; j y o l g v b m , f k h q w s S ks kS a ¡ ~ A 'k"
# Letters of Kruti Dev, the most frequent ones: enough for text that looks like it.
KRUTI = dict(
    zip(
        "कगचजटडतदनपबमयरलवसहअइउएिाीुूेैोौंँ्।श",
        CODES.split(),
        strict=True,
    )
)


Plant = Callable[[str, random.Random], str]


def kruti(text: str, _: random.Random) -> str:
    text = re.sub("(.)ि", r"ि\1", text)  # is typed before its letter
    return "".join(KRUTI.get(c, "" if "\u0900" <= c <= "\u097f" else c) for c in text)


def latin_1(text: str, _: random.Random) -> str:
    return text.encode().decode("latin-1")


def windows(text: str, _: random.Random) -> str:
    return text.encode().decode("cp1252", "ignore")


def half_latin_1(text: str, _: random.Random) -> str:
    middle = text.index(" ", len(text) // 2) if " " in text[len(text) // 2 :] else len(text) // 2
    return text[:middle] + text[middle:].encode().decode("latin-1")


def some(share: float, to: str, only: str = "") -> Plant:
    def plant(text: str, rng: random.Random) -> str:
        return "".join(
            to if (c in only if only else not c.isspace()) and rng.random() < share else c
            for c in text
        )

    return plant


def without_letters(text: str, rng: random.Random) -> str:
    """Lose three in ten letters, but not the signs that they carry."""
    return "".join(" " if c.isalpha() and rng.random() < 0.3 else c for c in text)


def tags(text: str, rng: random.Random) -> str:
    words = text.split()
    place = rng.randrange(len(words))
    words[place] = f'<a href="http://example.org/{place}" class="link">{words[place]}</a>'
    return f'<div class="post" style="margin:0"><p>{" ".join(words)}</p>\n<br/></div>&nbsp;'


def style_sheet(text: str, _: random.Random) -> str:
    return (
        "Normal 0 false false false EN-IN X-NONE X-NONE /* Style Definitions */ "
        'table.MsoNormalTable {mso-style-name:"Table Normal"; mso-style-parent:""; '
        f'font-size:10.0pt; font-family:"Calibri","sans-serif";}} {text}'
    )


def wiki(text: str, rng: random.Random) -> str:
    words = text.split()
    place = rng.randrange(len(words))
    words[place] = f"[[पन्ना {place}|{words[place]}]]"
    return f"'''{words[0]}''' {' '.join(words[1:])}{{{{साँचा|1}}}}"


def code(text: str, rng: random.Random) -> str:
    body = "var _gaq = _gaq || []; _gaq.push(['_setAccount']); document.write(unescape('x'));"
    return f"{body} function track({rng.choice('abc')}) {{ if (a) {{ return {len(text)}; }} }}"


def in_base64(text: str, _: random.Random) -> str:
    return base64.b64encode(text.encode()).decode()


def twice(text: str, _: random.Random) -> str:
    return f"{text}\n{text}\n{text}"


def stutter(text: str, rng: random.Random) -> str:
    words = text.split()
    place = rng.randrange(max(1, len(words) - 4))
    return " ".join(words[:place] + words[place : place + 4] * 12 + words[place + 4 :])


def glued(text: str, _: random.Random) -> str:
    return text.replace(" ", "")


def half_glued(text: str, rng: random.Random) -> str:
    return re.sub(" ", lambda _: "" if rng.random() < 0.5 else " ", text)


def table_of_numbers(text: str, rng: random.Random) -> str:
    return "\n".join(
        f"{rng.randrange(1900, 2030)} {rng.randrange(99999)} {word} {rng.random():.3f}"
        for word in text.split()[:8]
    )


def menu_line(text: str, rng: random.Random) -> str:
    return f"{text}\n{' | '.join(rng.sample(MENU, 7))}"


def menu_run(text: str, rng: random.Random) -> str:
    return "\n".join([*rng.sample(MENU, 8), text])


def button(text: str, rng: random.Random) -> str:
    return f"{text}\n{rng.choice(['और पढ़ें...', 'शेयर करें', 'Read more', '© 2019 सर्वाधिकार सुरक्षित'])}"


def english_line(text: str, _: random.Random) -> str:
    return f"{text}\nThis is a sentence in another language, which was left below the text."


NAMES = "मुख्य,खेल,राज्य,देश,विदेश,मनोरंजन,व्यापार,शिक्षा,स्वास्थ्य,धर्म,फोटो,वीडियो,संपर्क"
MENU = NAMES.split(",")
PLANTS: dict[str, Plant] = {
    "mojibake_latin_1": latin_1,
    "mojibake_windows_1252": windows,
    "mojibake_twice": lambda text, rng: latin_1(latin_1(text, rng), rng),
    "mojibake_half_of_the_line": half_latin_1,
    "kruti_dev": kruti,
    "replacement_characters_5_percent": some(0.05, "\ufffd"),
    "private_use_5_percent": some(0.05, "\uf0b7"),
    "question_marks": some(1.0, "?"),
    "signs_that_lost_their_letter": without_letters,
    "html_tags": tags,
    "word_style_sheet": style_sheet,
    "wiki_markup": wiki,
    "javascript": code,
    "base64": in_base64,
    "line_three_times": twice,
    "four_words_twelve_times": stutter,
    "all_spaces_lost": glued,
    "half_of_the_spaces_lost": half_glued,
    "table_of_numbers": table_of_numbers,
    "menu_with_bars": menu_line,
    "menu_of_short_lines": menu_run,
    "button_or_copyright_line": button,
    "english_line": english_line,
}
