"""Keep a text, or drop it with a reason: rules for these scripts, from counts and patterns.

The rules stand in RULE_ORDER; the first that speaks decides. None knows English stop words: what is
plausible is read off clean text in the script, and lies in tables/quality.toml and `Rules`.

Source: after Rae et al. 2021, Scaling Language Models: Gopher, appendix A.1.1 (repeated lines and
    n-grams), https://arxiv.org/abs/2112.11446; word lengths instead of its list of words.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from boli.corpus.language import UNDETERMINED, Answer
from boli.corpus.lines import drop_menus
from boli.corpus.residue import (
    LONGEST_BUTTON,
    boilerplate_share,
    is_loose,
    is_menu,
    legacy_share,
    markup_share,
    mojibake_share,
    words_not_in,
)
from boli.corpus.script import table
from boli.corpus.shape import Shape, shape_of

REASONS = (
    "too long",
    "broken encoding",
    "markup",
    "wrong script",
    "boilerplate",
    "too short",
    "mixed scripts",
    "too many digits or signs",
    "glued words",
    "list or table",
    "repeated lines",
    "repeated n-grams",
    "other language",
    "low score",
)
Scorer = Callable[[list[str]], list[float]]  # texts → bits per byte of each, fewer is better


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds. What a default rests on: quantiles of 107,000 Devanagari lines that are clean,
    `TUNED_ON` of benchmarks/dirty_text.py; of lines of ten to twenty words, where texts are longer.
    """

    most_characters: int = 1_000_000  # a book; the longest text of the blog has 39,010
    least_words: int = 2  # 1 % of learner-style sentences have one
    least_letters: int = 6  # 0.1 % of mag_kmi have fewer
    most_broken: float = 0.005  # of the text, and more than one; clean text has none
    most_loose: float = 0.05  # of letters, and three or more; 99.9 % quantile 0.03
    most_mojibake: float = 0.02  # of the text; clean text has none
    most_legacy: float = 0.36  # of Latin words; most in English 0.20, in advertisements 0.33
    most_questions: float = 0.2  # of what is no space: "???? ?? ???"; most 0.13
    most_markup: float = 0.08  # of the text; most 0.03
    least_own_script: float = 0.5  # of letters; 0.01 % quantile 0.58
    least_pure: float = 0.55  # below it two scripts share a text
    most_digits_and_signs: float = 0.25  # of what is no space, and 3 ÷ words; 99.99 % quantile 0.2
    most_glued: float = 0.2  # of letters, in words that are too long; 99.9 % quantile 0
    most_boilerplate: float = 0.5  # of the text; most 0.28
    most_short_lines: float = 0.7  # of the lines, in runs of five or more that clean_lines drops
    most_repeated_lines: float = 0.3  # of the text (Gopher)
    most_repeated_grams: float = 0.3  # of four words in a row; 99.99 % quantile 0.28
    least_different: float = 0.3  # words, of a text with six or more; least 0.37
    sure_wide: float = 0.8  # confidence in a language such as Hindi
    # Confidence in a sister dialect; None: no reason to drop. An identifier adapted to interface
    # messages in Awadhi was more than 99 % sure of Braj for 6 % of them.
    sure_other: float | None = None
    most_not_in_wide: float = (
        0.03  # of the words, which Hindi has not; 0.1 % in Hindi, 9 % beside it
    )
    words_for_language: int = 4  # with fewer the identifier is not believed
    most_bits_per_byte: float | None = None  # absolute; else see `score_limit`


RULES = Rules()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Keep, or drop for one of REASONS; `detail` has figures, never a piece of the text."""

    reason: str = ""
    detail: str = ""

    @property
    def keep(self) -> bool:
        """Whether the text is kept."""
        return not self.reason


KEEP = Verdict()


@dataclass(slots=True)
class _Case:
    """One text, and what is known of it."""

    text: str
    language: str
    script: str
    answer: Answer | None
    labels: Collection[str]
    score: float | None
    rules: Rules
    shape: Shape
    words: list[str]
    filled: int  # code points that are no space, or 1


def judge(
    text: str,
    *,
    language: str,
    script: str,
    answer: Answer | None = None,
    labels: Collection[str] = (),
    score: float | None = None,
    rules: Rules = RULES,
    shape: Shape | None = None,
) -> Verdict:
    """Say whether a text that should be in a language (ISO 639-3) and script is kept.

    Give it text that `normalize` returned. `answer` is what the identifier said of the text, and
    `labels` what it can say: of a language that it was not trained on it knows nothing, and "und"
    is no reason to drop. `score` is bits per byte under a language model, and `shape` what
    `shape_of` says, where that is known already.
    """
    if len(text) > rules.most_characters:
        return Verdict("too long", f"{len(text)} characters, at most {rules.most_characters}")
    shape = shape or shape_of(text)
    filled = max(1, shape.length - shape.spaces)
    case = _Case(text, language, script, answer, labels, score, rules, shape, text.split(), filled)
    for reason, rule in RULE_ORDER:
        detail = rule(case)
        if detail:
            return Verdict(reason, detail)
    return KEEP


def agreed(trained: Answer, adapted: Answer) -> Answer:
    """Return the less sure of two answers with one label, "und" where the labels differ.

    Adaptation to text of one dialect can carry an identifier away: of NLLB-Seed Magahi it called
    a third Hindi, which as it was trained it called 6 %.
    """
    if trained.label == adapted.label:
        return min(trained, adapted, key=lambda answer: answer.confidence)
    return Answer(UNDETERMINED, adapted.confidence, adapted.best, "unsure")


def score_limit(scores: Sequence[float], times_median: float = 2.0) -> float:
    """Return the most bits per byte for `Rules.most_bits_per_byte`, from a batch's scores.

    Relative to the batch, because a model that has seen little of a language finds all of it
    surprising. Infinite where there are no scores.
    """
    return times_median * statistics.median(scores) if scores else float("inf")


def _broken(case: _Case) -> str:
    shape, rules = case.shape, case.rules
    if shape.broken > max(1, rules.most_broken * shape.length):
        return f"{shape.broken} characters that are none"
    if is_loose(shape, rules.most_loose):
        return f"{shape.loose} signs without a letter"
    questions = case.text.count("?")
    if questions > max(5, rules.most_questions * case.filled):
        return f"{questions} question marks"
    latin = shape.letters.get("Latn", 0)
    if (shape.latin_1 or latin) and mojibake_share(case.text) > rules.most_mojibake:
        return f"{mojibake_share(case.text):.0%} read in another encoding"
    if latin > 0.5 * shape.num_letters and legacy_share(case.text) > rules.most_legacy:
        return f"{legacy_share(case.text):.0%} of the words as a Hindi font has them"
    return ""


def _markup(case: _Case) -> str:
    share = markup_share(case.text)
    return f"{share:.0%} of the text" if share > case.rules.most_markup else ""


def _wrong_script(case: _Case) -> str:
    own, letters = case.shape.letters.get(case.script, 0), case.shape.num_letters
    if letters and own < case.rules.least_own_script * letters:
        return f"{own} of {letters} letters"
    return ""


def _short(case: _Case) -> str:
    return _few(case.shape, case.rules)


def _few(shape: Shape, rules: Rules) -> str:
    words, letters = len(shape.words), shape.num_letters
    if words < rules.least_words or letters < rules.least_letters:
        return f"{words} words, {letters} letters"
    return ""


def _mixed(case: _Case) -> str:
    own, letters = case.shape.letters.get(case.script, 0), case.shape.num_letters
    return f"{own} of {letters} letters" if own < case.rules.least_pure * letters else ""


def _signs(case: _Case) -> str:
    share = (case.shape.digits + case.shape.signs) / case.filled
    most = case.rules.most_digits_and_signs + 3 / len(case.words)  # a few words say little
    return f"{share:.0%} of the text" if share > most else ""


def _glued(case: _Case) -> str:
    words, size = case.shape.words, sum(case.shape.words)
    longest, mean = _lengths(case.language, case.script)
    if size > mean * (len(words) + 3):  # a few long words say little
        return f"words of {size / len(words):.1f} letters on average"
    if max(words) > longest:
        share = sum(length for length in words if length > longest) / size
        if share > case.rules.most_glued:
            return f"{share:.0%} of the letters in words of more than {longest}"
    return ""


@cache
def _lengths(language: str, script: str) -> tuple[int, float]:
    """Return the longest word and the highest mean that are plausible."""
    longest, mean = (
        limits.get(language, limits.get(script, limits["other"]))
        for limits in (table("quality")["longest_word"], table("quality")["longest_mean"])
    )
    return longest, mean


def _boilerplate(case: _Case) -> str:
    if len(case.text) > LONGEST_BUTTON:  # lines of a longer text are cleaned one by one
        return ""
    share = boilerplate_share(case.text)
    return f"{share:.0%} of the text" if share > case.rules.most_boilerplate else ""


def _list(case: _Case) -> str:
    lines = [line for line in case.text.split("\n") if line.strip()]
    if len(lines) == 1:
        return "a line of short parts" if len(case.words) < 60 and is_menu(case.text) else ""
    short = len(lines) - len(drop_menus(lines))
    if short > case.rules.most_short_lines * len(lines):
        return f"{short} of {len(lines)} lines in runs of short ones"
    return ""


def _repeated_lines(case: _Case) -> str:
    if "\n" not in case.text:
        return ""
    lines = [line for line in case.text.split("\n") if line.strip()]
    counts = Counter(lines) if len(set(lines)) < len(lines) else {}
    again = sum((count - 1) * len(line) for line, count in counts.items() if count > 1)
    share = again / len(case.text)
    return f"{share:.0%} of the text" if share > case.rules.most_repeated_lines else ""


def _repeated_grams(case: _Case) -> str:
    words = case.words
    if len(words) < 6:
        return ""
    different = len(set(words))
    if different < case.rules.least_different * min(len(words), 60):
        return f"{different} different of {len(words)} words"
    most = case.rules.most_repeated_grams * (len(words) - 3)
    # Where four words are there again, so are the first two of them, and the first.
    if len(words) < 16 or len(words) - different < most:
        return ""
    if len(words) - len(set(pairwise(words))) < most:
        return ""
    grams = len(words) - 3
    again = grams - len(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
    if again > most:
        return f"{again} of {grams} runs of four words"
    return ""


def _other_language(case: _Case) -> str:
    """Drop only what is surely in another: the identifier is weak on domains it has not seen."""
    answer, rules = case.answer, case.rules
    if answer is None or case.language not in case.labels:
        return ""
    if answer.label in (UNDETERMINED, case.language):
        return ""
    wide = answer.label in table("quality")["language"]["wide"]
    least = rules.sure_wide if wide else rules.sure_other
    if least is None or answer.confidence < least:
        return ""
    if len(case.words) < rules.words_for_language:
        return ""
    if words_not_in(answer.label, case.words) > rules.most_not_in_wide * len(case.words):
        return ""
    return f"{answer.label}, confidence {answer.confidence:.2f}"


def _low_score(case: _Case) -> str:
    limit = case.rules.most_bits_per_byte
    if limit is None or case.score is None or case.score <= limit:
        return ""
    return f"{case.score:.2f} bits per byte, at most {limit:.2f}"


RULE_ORDER: tuple[tuple[str, Callable[[_Case], str]], ...] = (
    ("broken encoding", _broken),
    ("markup", _markup),
    ("wrong script", _wrong_script),
    ("boilerplate", _boilerplate),
    ("too short", _short),
    ("mixed scripts", _mixed),
    ("too many digits or signs", _signs),
    ("glued words", _glued),
    ("list or table", _list),
    ("repeated lines", _repeated_lines),
    ("repeated n-grams", _repeated_grams),
    ("other language", _other_language),
    ("low score", _low_score),
)
