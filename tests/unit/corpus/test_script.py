from __future__ import annotations

import pytest

from boli.corpus.script import NO_SCRIPT, SCRIPTS, UNKNOWN_SCRIPT, script_of, table

WORDS = {
    "Deva": "हम भोजपुरी बोलिला।",
    "Beng": "আমি বাংলায় গান গাই",
    "Orya": "ମୁଁ ଓଡ଼ିଆ କହେ",
    "Knda": "ನಾನು ಕನ್ನಡ ಮಾತನಾಡುತ್ತೇನೆ",
    "Olck": "ᱱᱚᱣᱟ ᱫᱚ ᱥᱟᱱᱛᱟᱲᱤ ᱠᱟᱱᱟ᱾",
    "Arab": "میں اردو بولتا ہوں",
    "Latn": "ham Bhojpuri bolilā",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_is_known_by_its_words(script: str) -> None:
    assert script_of(WORDS[script]) == script
    assert table(script.lower())["script"] == script


@pytest.mark.parametrize("text", ["", "१२३ 456", "।॥ !?", "़ा"])
def test_text_without_letters_has_no_script(text: str) -> None:
    assert script_of(text) == NO_SCRIPT


@pytest.mark.parametrize(
    ("text", "script"), [("தமிழ்", "Taml"), ("русский язык, too", "Cyrl"), ("ꓐꓬ", UNKNOWN_SCRIPT)]
)
def test_scripts_without_tables_are_named_too(text: str, script: str) -> None:
    assert script_of(text) == script


def test_majority_decides_and_marks_do_not_count() -> None:
    assert script_of("पटना में WhatsApp") == "Latn"  # 5 letters against 8
    assert script_of("पटना में हम लोग WhatsApp") == "Deva"
    assert script_of("कि ab") == "Latn"
    assert script_of("क a") == "Deva"  # as many: the first


def test_shapes_of_letters_count_as_their_script() -> None:
    assert script_of("ﺳﻼﻡ") == "Arab"
    assert script_of("ＡＢＣ") == "Latn"
