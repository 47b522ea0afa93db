from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from boli.corpus.normalize import ascii_digits, normalize

# What was typed → what it becomes, by script; \u where two ways look alike.
GOLDEN = {
    "Deva": [
        ("\u092a\u095c\u0928\u093e", "\u092a\u0921\u093c\u0928\u093e"),  # पढ़ना's ड़: one form
        (
            "\u0958\u0932\u092e \u095b\u0930\u093e",
            "\u0915\u093c\u0932\u092e \u091c\u093c\u0930\u093e",
        ),
        ("\u0928\u093c \u0930\u093c", "\u0929 \u0931"),  # as NFC has them
        ("लड\u093f\u093cका", "लड\u093c\u093fका"),  # nukta behind the vowel sign
        ("बढा\u093cई", "बढ\u093cाई"),
        ("गिरफ\u094d\u093cतार", "गिरफ\u093c\u094dतार"),
        ("सड\u093c\u093cक", "सड\u093cक"),
        ("हम\u0939\u0901\u0942", "हम\u0939\u0942\u0901"),  # candrabindu before the vowel sign
        ("मे\u0902\u0902", "में"),
        ("भक\u094d\u094dहाय", "भक\u094dहाय"),
        ("\u0905\u093eम", "आम"),
        ("\u0905\u094b\u0915\u0930", "ओकर"),
        ("\u0930\u094d\u0907\u0936", "ईश"),
        ("\u0909\u0941\u092a\u0930", "ऊपर"),
        ("\u090f\u0947\u0938\u0928", "ऐसन"),
        ("ज\u093e\u0947", "जो"),
        ("डॉक्टर ब\u093e\u0945स", "डॉक्टर बॉस"),
        ("\u0905\u200d\u0945प", "\u0972प"),
        ("\u0972प, \u0911फिस, \u0950", "\u0972प, \u0911फिस, \u0950"),  # ॲ stays
        ("पञ्चायत में गेलइ।", "पञ्चायत में गेलइ।"),
        ("नञ्\u200d तऽ", "नञ्\u200d तऽ"),
        ("वक्\u200dत आ अद्\u200cभुत", "वक्\u200dत आ अद्\u200cभुत"),  # joiners behind a virama
        ("क\u200dमल\u200c हइ", "कमल हइ"),
        ("ऊ घर गेल| हम ना", "ऊ घर गेल। हम ना"),
        ("ऊ घर गेल |", "ऊ घर गेल ।"),
        ("ऊ घर गेल हल | फेर हम सब अइली |", "ऊ घर गेल हल । फेर हम सब अइली ।"),
        ("राम राम ||", "राम राम ॥"),
        ("मंगल भवन ||34||", "मंगल भवन ॥34॥"),
        ("कहिस।।", "कहिस॥"),
        ("मंगल भवन ॥३४॥ ।।। १२ आ 12", "मंगल भवन ॥३४॥ ।।। १२ आ 12"),
        ("होम | खबर | खेल", "होम | खबर | खेल"),  # a menu
        ("{{PLURAL:$1|बाइट|बाइट}} मिलल|", "{{PLURAL:$1|बाइट|बाइट}} मिलल|"),  # markup
        ("[[पन्ना| चर्चा]] देखीं", "[[पन्ना| चर्चा]] देखीं"),
        ("| नाम | गाँव |", "| नाम | गाँव |"),
        ("नाम | गाँव | जिला |", "नाम | गाँव | जिला |"),
    ],
    "Beng": [
        ("\u09ac\u09be\u09dc\u09bf", "\u09ac\u09be\u09a1\u09bc\u09bf"),  # বাড়ি
        (
            "\u09b8\u09ae\u09df \u0986\u09b7\u09be\u09dd",
            "\u09b8\u09ae\u09af\u09bc \u0986\u09b7\u09be\u09a2\u09bc",
        ),
        ("\u0995\u09c7\u09be\u09a8", "\u0995\u09cb\u09a8"),  # two halves
        ("\u0995\u09be\u09c7\u09a8", "\u0995\u09cb\u09a8"),
        ("\u09ae\u09c7\u09d7", "\u09ae\u09cc"),
        ("\u0985\u09be\u09ae\u09bf", "আমি"),
        ("হঠা\u09a4\u09cd\u200d", "হঠাৎ"),
        ("\u09b0\u200d\u09cdযাম", "\u09b0\u200d\u09cdযাম"),  # র‍্যাম keeps its full ra
        ("অ্যাপ ৰাজ্য ৱ", "অ্যাপ ৰাজ্য ৱ"),
        ("\u09ac\u09bc\u09be\u09ae", "রাম"),
        ("আমি যাই\u09f7 ৷৫", "আমি যাই। ৷৫"),
        ("আমি যাই| তুমি", "আমি যাই। তুমি"),
    ],
    "Orya": [
        ("\u0b13\u0b5c\u0b3f\u0b06", "\u0b13\u0b21\u0b3c\u0b3f\u0b06"),  # ଓଡ଼ିଆ
        ("\u0b15\u0b47\u0b3e\u0b23", "\u0b15\u0b4b\u0b23"),
        ("\u0b15\u0b3e\u0b47\u0b23", "\u0b15\u0b4b\u0b23"),
        ("\u0b15\u0b47\u0b56", "\u0b15\u0b48"),
        ("\u0b05\u0b3eମେ", "ଆମେ"),
        ("ସମ\u0b2f\u0b3c", "ସମ\u0b5f"),
        ("\u0b35 \u0b71 ସ୍ୱର", "\u0b35 \u0b71 ସ୍ୱର"),  # ଵ and ୱ stay apart
        ("ମୁଁ ଯାଏ\u0b64", "ମୁଁ ଯାଏ।"),
        ("୨୦୨୪ ମସିହା", "୨୦୨୪ ମସିହା"),
    ],
    "Knda": [
        ("\u0c95\u0cc6\u0cc2\u0cd5", "\u0c95\u0ccb"),  # ಕೋ in three parts
        ("\u0c95\u0cbf\u0cd5", "\u0c95\u0cc0"),
        ("\u0cb5\u0cc2\u0cc6\u0ca6\u0cb2", "\u0cb5\u0cca\u0ca6\u0cb2"),
        ("\u0c89\u0cbe\u0cb0\u0cc1", "ಊರು"),
        ("ಸ\u0ce6ಬ\u0ce6ಧ ೧೦ ೦", "ಸಂಬಂಧ ೧೦ ೦"),  # a nought for an anusvara
        ("ಆ್ಯಪ್ ಬಾರ್\u200cಗಳು", "ಆ್ಯಪ್ ಬಾರ್\u200cಗಳು"),
        ("\u0cb0\u200d\u0ccdಕ", "\u0cb0\u200d\u0ccdಕ"),
        ("ಮಾರ್ಚ್\u200c\u200cನಲ್ಲಿ", "ಮಾರ್ಚ್\u200cನಲ್ಲಿ"),
        ("ಫ\u0cbe\u0cbcದರ್", "ಫ\u0cbc\u0cbeದರ್"),
    ],
    "Olck": [
        ("ᱱᱚᱣᱟ ᱫᱚ ᱠᱟᱱᱟ᱾", "ᱱᱚᱣᱟ ᱫᱚ ᱠᱟᱱᱟ᱾"),
        ("ᱥᱟ\u1c78\u1c79ᱜᱤᱧ", "ᱥᱟ\u1c7aᱜᱤᱧ"),
        ("ᱢᱮᱱᱟᱜ\u200c-ᱟ\u2063 ᱠᱟᱱᱟ|", "ᱢᱮᱱᱟᱜ-ᱟ ᱠᱟᱱᱟ᱾"),
        ("ᱮᱪ.ᱠᱮ. ᱑ᱺ᱑᱕", "ᱮᱪ.ᱠᱮ. ᱑ᱺ᱑᱕"),
        ("ᱞᱮᱫᱮᱭᱟ।", "ᱞᱮᱫᱮᱭᱟ।"),
    ],
    "Arab": [
        ("\ufeb3\ufefc\ufee1", "\u0633\u0644\u0627\u0645"),  # shapes → سلام
        ("ا\u0653پ", "\u0622پ"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ه\u200d", "ه\u200d"),  # shows the joined shape
        ("سلام\u200c دنیا", "سلام دنیا"),
        ("سـلام", "سلام"),
        ("\u200fسلام\u200e", "سلام"),
        ("\ufdfa ۱۲۳ ١٢٣", "\ufdfa ۱۲۳ ١٢٣"),
        ("كتابي", "كتابي"),  # no language, no choice
    ],
    "Latn": [
        ("bolila\u0304", "bolilā"),
        ("e\ufb03cient ＢＲ０１", "efficient BR01"),
        ("co\u00adoperate\ufeff", "cooperate"),
        ("a\u00a0\u2003b\tc  d", "a b c d"),
        ("a|b || c", "a|b || c"),
        ("\x00a\x07b\x9f", "ab"),
        ("  one \r\n\r\n\r\n\u2028 two\r", "one\n\ntwo"),
        ("a\ud800b", "a\ufffdb"),
        ("zw\u200dj", "zwj"),
    ],
}


@pytest.mark.parametrize(
    ("typed", "expected"), [pair for pairs in GOLDEN.values() for pair in pairs], ids=ascii
)
def test_golden_words(typed: str, expected: str) -> None:
    assert normalize(typed) == expected
    assert normalize(expected) == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("urd", "کتابی ہے"),
        ("kas", "کتابی ہے"),
        ("fas", "کتابی هے"),
        ("snd", "كتابي هے"),  # Sindhi has ي and ک with other sounds
        ("ara", "كتابي هے"),
        ("hin", "كتابي هے"),
        ("", "كتابي هے"),
    ],
)
def test_kaf_and_yeh_follow_the_language(language: str, expected: str) -> None:
    assert normalize("كتابي هے", language) == expected


def test_shape_of_an_arabic_kaf_becomes_an_urdu_kaf() -> None:
    assert normalize("\ufedb\ufe98\ufe8e\ufe8f", "urd") == "کتاب"


def test_family_of_farmers_keeps_its_joiners() -> None:
    assert normalize("👩\u200d🌾 किसान") == "👩\u200d🌾 किसान"
    assert normalize("👩\u200d किसान") == "👩 किसान"


def test_digits_of_every_script_match_as_ascii() -> None:
    text = "०९ ০৯ ୦୯ ೦೯ ᱐᱙ ٠٩ ۰۹ ０９ 09 क²"
    assert ascii_digits(text) == " ".join(["09"] * 9) + " क²"
    assert len(ascii_digits(text)) == len(text)


@pytest.mark.parametrize(
    "text",
    ["\u094d\u093c", "\u0902\u093e", "\u200d\u200c", "ـس", "क | ", "क|", "||5", "क।।", " \n", "ाे"],
    ids=ascii,
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    normalize("क" + text * 100_000)  # quadratic time would run into the limit of the suite


def test_letter_carries_at_most_thirty_marks() -> None:
    assert normalize("a" + "\u0323" * 40 + "b") == "\u1ea1" + "\u0323" * 29 + "b"


def test_long_chain_of_signs_is_settled() -> None:
    text = "\u0905" + "\u093e\u0945\u093c\u0902" * 50_000
    once = normalize(text)
    assert normalize(once) == once
    assert len(once) < len(text)


@pytest.mark.corpora
@pytest.mark.parametrize(
    ("pattern", "most_changed"),
    [
        # Share of lines that are more than NFC with single spaces; measured, then doubled.
        ("parallel/flores200_devtest_001-300/devtest.*", 0.04),
        ("parallel/nllb_seed/seed.[bhm]*", 0.03),
        ("parallel/ntrex/newstest2019.*", 0.02),
        ("mono/*.txt", 0.01),
        ("udhr/*.txt", 0.01),
        ("wordfreq/*.tsv", 0.003),
        ("parallel/kangri/*", 0.2),  # every fourteenth line has a nukta behind its vowel sign
    ],
)
def test_real_text_changes_only_where_it_should(
    corpora: Path, pattern: str, most_changed: float
) -> None:
    num_lines, num_changed, lost = 0, 0, Counter[str]()
    for path in sorted(corpora.glob(pattern)):
        for line in path.read_text(encoding="utf-8").split("\n"):
            plain = " ".join(unicodedata.normalize("NFC", line).split())
            text = normalize(line)
            assert unicodedata.is_normalized("NFC", text)
            num_lines += 1
            if text != plain:
                num_changed += 1
                assert normalize(text) == text
                lost += Counter(plain) - Counter(text)
    assert num_changed <= most_changed * num_lines
    # No letter or digit gets lost but those that look like another, and no mark but doubled ones.
    gone = {c for c in lost if unicodedata.category(c)[0] in "LN"}
    assert gone <= set("अआइएरळ०೦"), gone
