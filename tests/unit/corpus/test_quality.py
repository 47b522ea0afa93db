from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from boli.corpus.language import Answer
from boli.corpus.lines import clean_lines, drop_menus
from boli.corpus.markup import strip_markup
from boli.corpus.normalize import normalize
from boli.corpus.quality import (
    KEEP,
    REASONS,
    RULE_ORDER,
    RULES,
    Verdict,
    agreed,
    judge,
    score_limit,
)
from boli.corpus.script import table
from boli.corpus.shape import shape_of

CLEAN = {
    "Deva": "एगो गाँव में एगो राजा रहत रहे । ओकर दू गो बेटा रहले स, जे बड़ी दयालु रहले स ।",
    "Olck": "ᱱᱤᱛ ᱵᱷᱩᱨ ᱛᱮ, ᱪᱮᱫ ᱨᱟᱱ ᱠᱚᱦᱚᱸ ᱱᱚᱶᱟ ᱤᱱᱯᱷᱮᱠᱥᱚᱱ ᱨᱮ ᱵᱟᱝ ᱛᱮᱭᱟᱨ ᱜᱚᱫ ᱞᱮᱱᱟ ᱾",
    "Knda": "ಈ ಪುಟ ಬದಲಾವಂದಿ ಲೆಕ್ಕ ಇರೆನ ಬಳಕೆಪುದರು ಇಜಿಂಡ ಐಪಿ ವಿಳಾಸನ್ ತಡೆತುದುಂಡು.",
    "Latn": "Gaon mein ek raja rehta tha, jiske do bete the aur dono bahut dayalu the.",
}
LINE = CLEAN["Deva"]
HINDI = "एक गाँव में एक राजा रहता था और उसके दो बेटे थे, जो बहुत दयालु थे।"
VERSE = ["रात भइल अन्हार", "चान ना निकलल", "मन में डर", "घर बड़ी दूर", "राह ना सूझे", "के आई अब"]
DROPPED = {
    "broken encoding": [
        LINE.encode().decode("latin-1"),
        LINE.encode().decode("cp1252", "ignore"),
        LINE.encode().decode("latin-1").encode().decode("latin-1"),
        LINE.replace("ज", "\ufffd").replace("व", "\ufffd"),
        LINE.replace("र", "\uf0b7"),
        "???? ??? ????? ?????? ?? ?????? ????",
        "fdlh xk¡o esa ,d jktk jgrk Fkk vkSj mlds nks csVs Fks",
        "ेक ोर ाव िस ीम ुप",
    ],
    "markup": [
        'क <font size="2" face="Mangal"> ख <span lang="HI" style="x"> ग',
        "एगो { color: red; margin: 0px; padding: 1px; } बात",
        "var _gaq = _gaq || []; document.write(unescape('x'));",
    ],
    "wrong script": [CLEAN["Latn"], CLEAN["Olck"], "राजा of the village and his sons"],
    "too short": ["", " ", "राजा", "जा ना", "123 456 789", "।।"],
    "mixed scripts": ["राजा रानी घर king गाँव son"],
    "too many digits or signs": [
        "12:15, 13:45, 14:20 अध्याय 18:30 - 19:45 / 20:30 (12) [13] भाग पाठ"
    ],
    "glued words": ["एगोगाँवमेंएगोराजारहतरहे ओकरदूगोबेटारहलेसजेबड़ी दयालुरहलेस"],
    "boilerplate": ["और पढ़ें...", "शेयर करें | लॉग इन", "© 2019 सर्वाधिकार सुरक्षित"],
    "list or table": [
        "मुख्य | खेल समाचार | राज्य | देश | विदेश",
        "मुख्य\nखेल कूद\nराज्य\nदेश\nविदेश\nगाँव घर",
    ],
    "repeated lines": ["\n".join([LINE] * 3)],
    "repeated n-grams": ["हमार गाँव बड़ा सुन्नर " * 8, "हो हो हो हो हो हो हो हो हो जा"],
}


@pytest.mark.parametrize(("script", "text"), CLEAN.items())
def test_clean_text_is_kept(script: str, text: str) -> None:
    assert judge(normalize(text), language="und", script=script) == KEEP
    assert KEEP.keep


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in DROPPED.items() for text in texts]
)
def test_bad_text_is_dropped_for_its_reason(reason: str, text: str) -> None:
    verdict = judge(normalize(text), language="bho", script="Deva")
    assert verdict.reason == reason
    assert not verdict.keep
    assert verdict.detail
    assert not set(verdict.detail) & set(normalize(LINE) + CLEAN["Olck"]) - set(" ,.")


def test_reasons_are_those_of_the_rules() -> None:
    assert set(REASONS) == {"too long", *(reason for reason, _ in RULE_ORDER)}
    assert len(REASONS) == len(RULE_ORDER) + 1
    tried = set(DROPPED) | {"too long", "other language", "low score"}
    assert tried == set(REASONS)


def test_text_that_is_too_long_is_not_looked_at() -> None:
    rules = replace(RULES, most_characters=10)
    assert judge(LINE, language="bho", script="Deva", rules=rules).reason == "too long"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("hin", 0.9, "hin", ""), "other language"),
        (Answer("hin", 0.7, "hin", ""), ""),
        (Answer("bho", 0.9, "bho", ""), ""),
        (Answer("mag", 0.999, "mag", ""), ""),  # a sister dialect
        (Answer("und", 0.99, "hin", "unsure"), ""),
        (Answer("und", 0.99, "hin", "other language"), ""),
        (None, ""),
    ],
)
def test_only_what_is_surely_in_a_wide_language_is_in_another(
    answer: Answer | None, reason: str
) -> None:
    labels = ("bho", "hin", "mag")
    verdict = judge(HINDI, language="bho", script="Deva", answer=answer, labels=labels)
    assert verdict.reason == reason
    unknown = judge(HINDI, language="mai", script="Deva", answer=answer, labels=labels)
    assert unknown.keep  # the identifier was not trained on it


def test_text_with_words_that_hindi_has_not_is_not_plainly_hindi() -> None:
    answer, labels = Answer("hin", 0.99, "hin", ""), ("bho", "hin")
    text = HINDI.replace("और", "अउर")
    assert judge(text, language="bho", script="Deva", answer=answer, labels=labels).keep
    verdict = judge(HINDI, language="bho", script="Deva", answer=answer, labels=labels)
    assert verdict == Verdict("other language", "hin, confidence 0.99")


def test_two_answers_are_one_where_they_agree() -> None:
    sure, less = Answer("hin", 0.9, "hin", ""), Answer("hin", 0.6, "hin", "")
    assert agreed(sure, less) == agreed(less, sure) == less
    other = Answer("mag", 0.9, "mag", "")
    assert agreed(sure, other) == Answer("und", 0.9, "mag", "unsure")


def test_sister_dialects_are_told_apart_where_the_rules_say_so() -> None:
    rules = replace(RULES, sure_other=0.99)
    answer = Answer("mag", 0.999, "mag", "")
    verdict = judge(
        LINE, language="bho", script="Deva", answer=answer, labels=("bho", "mag"), rules=rules
    )
    assert verdict == Verdict("other language", "mag, confidence 1.00")


def test_surprising_text_is_dropped_where_a_limit_is_given() -> None:
    rules = replace(RULES, most_bits_per_byte=score_limit([1.0, 1.2, 0.9]))
    assert judge(LINE, language="bho", script="Deva", score=1.9, rules=rules).keep
    assert judge(LINE, language="bho", script="Deva", rules=rules).keep
    verdict = judge(LINE, language="bho", script="Deva", score=2.1, rules=rules)
    assert verdict == Verdict("low score", "2.10 bits per byte, at most 2.00")
    assert score_limit([]) == float("inf")


def test_sanskrit_joins_words_and_is_not_glued() -> None:
    words = "सर्वभूतानामन्तरात्मा विश्वविद्यालयप्राध्यापकाः धर्मशास्त्रानुसारेण प्रतिपादितसिद्धान्तः"
    text = normalize(words + " गच्छन्ति च पुनरागच्छन्ति")
    assert judge(text, language="bho", script="Deva").reason == "glued words"
    assert judge(text, language="san", script="Deva").keep


def test_one_bad_line_does_not_cost_the_document() -> None:
    bad = {
        "boilerplate": "और पढ़ें...",
        "list or table": "मुख्य | खेल | राज्य | देश | विदेश",
        "markup": '<a href="http://x.in/y" class="z">',
        "too many digits or signs": "* * * *",
        "wrong script": "This was left below the text in another language.",
        "repeated lines": LINE + " ।",
    }
    other = "दुसरका बेटा बड़ी तेज रहे अउर सब लोग ओकरा के मानत रहे ।"
    text = normalize("\n".join([LINE, *bad.values(), other]))
    cleaned = clean_lines(text, script="Deva")
    assert cleaned.text == normalize(f"{LINE}\n{other}")
    assert cleaned.dropped == dict.fromkeys(bad, 1)
    assert cleaned.reason == ""


def test_text_of_nothing_but_bad_lines_has_a_reason() -> None:
    cleaned = clean_lines("और पढ़ें\nशेयर करें\n* * *")
    assert cleaned.text == ""
    assert cleaned.reason == "boilerplate"


def test_clean_lines_leaves_clean_text_as_it_is() -> None:
    text = f"{LINE}\n\nहाँ ।\nहाँ ।\nऊ बोलल कि ठीक बा"
    assert clean_lines(text, script="Deva").text is text
    assert clean_lines("और पढ़ें").text == "और पढ़ें"  # one line: for judge


def test_runs_of_short_lines_are_menus_and_verse_is_not() -> None:
    menu = ["मुख्य", "खेल कूद", "राज्य", "", "देश", "विदेश"]
    assert drop_menus([*menu, LINE]) == ["", LINE]
    assert drop_menus(VERSE) == VERSE
    assert drop_menus(menu[:4]) == menu[:4]


def test_no_phrase_of_pages_is_without_a_word_that_is_looked_for() -> None:
    phrases = [phrase for own in table("quality")["boilerplate"].values() for phrase in own]
    without = [
        phrase
        for phrase in phrases
        if not re.search("[A-Za-z]{3}", phrase)
        and not any(word in phrase for word in table("quality")["phrases"]["words"])
    ]
    assert without == []


def test_phrases_of_pages_may_stand_in_sentences() -> None:
    for text in ("अरे, हमारे बारे में क्या?", "ऊ बोलल कि इहाँ क्लिक करीं, तब आगे पढ़ीं अउर सब कुछ समझ में आई ।"):
        assert judge(normalize(text), language="hin", script="Deva").keep
    assert judge("हमारे बारे में", language="hin", script="Deva").reason == "boilerplate"


def test_short_sentences_and_verse_are_no_list() -> None:
    for lines in (["हाँ ।", "का भइल ?", "कुछ ना ।", "ठीक बा ।", "चलs अब ।", "जा ।"], VERSE):
        assert judge("\n".join(lines), language="bho", script="Deva").keep


def test_marks_belong_to_words_in_every_script() -> None:
    assert shape_of("क्षत्रिय राज्‍य").words == (8, 6)
    shape = shape_of("ᱱᱤᱛ ᱵᱷᱩᱨ 12, ab\n\ufffd")
    assert shape.words == (3, 4, 2)
    assert shape.letters == {"Olck": 7, "Latn": 2}
    assert (shape.digits, shape.signs, shape.spaces, shape.broken) == (2, 1, 4, 1)


def test_loose_signs_are_counted() -> None:
    assert shape_of("ेक क ्ख").loose == 2
    assert shape_of("काा क््").loose == 2
    assert shape_of("कि की काँ र्‍य कं").loose == 0


@pytest.mark.corpora
def test_rules_keep_clean_text_and_save_dirty_documents(corpora: Path) -> None:
    rng = random.Random(3)
    lines = (corpora / "parallel/flores200_devtest_001-300/devtest.bho").read_text("utf-8")
    kept = [
        judge(normalize(line), language="bho", script="Deva").keep for line in lines.splitlines()
    ]
    assert sum(kept) >= 0.99 * len(kept)
    blog = (corpora / "dirty/magahi_blog_raw.jsonl").read_text("utf-8").splitlines()
    for record in rng.sample(blog, 60):
        text = strip_markup(json.loads(record)["text"])
        assert "mso-" not in text
        assert strip_markup(text) == text
