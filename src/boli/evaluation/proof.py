"""All that is measured of an adapter beside its base, on tests of suites or plain files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boli.errors import CorpusError
from boli.evaluation.fidelity import Fidelity, FidelityScore, judge
from boli.evaluation.paired import Comparison, compare
from boli.evaluation.suites import SuiteTest

if TYPE_CHECKING:
    from boli.evaluation.generation import TranslationScore
    from boli.evaluation.metrics import LineBits
    from boli.model.export import Adapted

TYPED_LINES = 50  # of a test, evenly along it: a search for each key
WRITTEN_LINES = 50  # that a model continues or translates
BASE, ADAPTED, TEXT = "base", "adapter", "text"


@dataclass(frozen=True)
class Typed:
    """What a keyboard with a model's suggestions would spare, see keystrokes.py."""

    saved: float
    hit_at_1: float
    hit_at_3: float
    num_words: int


@dataclass(frozen=True)
class TestFigures:
    """What was measured on one test."""

    name: str
    language: str
    num_lines: int
    num_documents: int | None  # None: not known
    num_bytes: int
    base: float  # bits per byte
    adapted: float
    lost_share: float  # of the bytes, that the base's tokens do not give back: 8 bits each
    tokens_a_word: float
    against_base: Comparison  # A is the adapter
    is_forgetting: bool  # the text is in the base's own language
    keystrokes: dict[str, Typed]  # by BASE and ADAPTED
    fidelity: dict[str, FidelityScore]  # of what both write, and of the test's own TEXT
    translation: dict[str, TranslationScore]
    against_other: Comparison | None = None  # A is the adapter


@dataclass(frozen=True)
class Wanted:
    """What is measured beside bits per byte."""

    fidelity: Fidelity | None = None
    keystrokes: bool = False
    translations: bool = False


def plain_test(path: Path, language: str = "und") -> SuiteTest:
    """Return the test of a text file, one sentence a line.

    Raises:
        CorpusError: it is missing, empty or not UTF-8.
    """
    from boli.corpus.sources import read_lines

    return SuiteTest(str(path), language, read_lines(path))


def prove(
    adapter: Path,
    tests: Sequence[SuiteTest],
    forgetting: Sequence[SuiteTest] = (),
    wanted: Wanted | None = None,
    other: Path | None = None,
    progress: Callable[[str], None] = lambda _doing: None,
) -> list[TestFigures]:
    """Measure an adapter and its base on tests; with `other`, compare with that adapter.

    Raises:
        ModelError: an adapter or its base cannot be loaded, or sacrebleu is missing.
        CorpusError: nothing is to be judged, or a language of a test was not learned.
    """
    from boli.evaluation.metrics import line_bits
    from boli.model.export import load_adapter

    every = [*tests, *forgetting]
    if not every:
        raise CorpusError("no text was given", "give --text FILE or --suite FOLDER")
    wanted = wanted or Wanted()
    base = load_adapter(adapter)
    found, bits = [], []
    for number, test in enumerate(every):
        progress(test.name)
        after = line_bits(base.model, base.tokenizer, test.lines, base.max_length)
        with base.without_adapter():
            before = line_bits(base.model, base.tokenizer, test.lines, base.max_length)
        is_own = number >= len(tests)
        found.append(_figures(base, test, before, after, Wanted() if is_own else wanted, is_own))
        bits.append(after)
    if other is None:
        return found
    del base
    against = load_adapter(other)
    for number, test in enumerate(every):
        progress(f"{test.name}, the other adapter")
        theirs = line_bits(against.model, against.tokenizer, test.lines, against.max_length)
        own = bits[number]
        comparison = compare(own.bits, theirs.bits, own.bytes, test.documents)
        found[number] = replace(found[number], against_other=comparison)
    return found


def _figures(
    base: Adapted, test: SuiteTest, before: LineBits, after: LineBits, wanted: Wanted, own: bool
) -> TestFigures:
    num_tokens = sum(map(len, base.tokenizer(test.lines, add_special_tokens=False)["input_ids"]))
    num_words = sum(len(line.split()) for line in test.lines)
    against = compare(after.bits, before.bits, after.bytes, test.documents)
    return TestFigures(
        test.name,
        test.language,
        len(test.lines),
        None if test.documents is None else len(set(test.documents)),
        int(after.bytes.sum()),
        against.b,
        against.a,
        float(after.lost_bytes.sum() / after.bytes.sum()),
        num_tokens / num_words,
        against,
        own,
        _both(base, lambda: _typed(base, test)) if wanted.keystrokes else {},
        _stays(base, test, wanted.fidelity) if wanted.fidelity else {},
        _translated(base, test) if wanted.translations and test.sources else {},
    )


def _both(base: Adapted, measure: Callable[[], Any]) -> dict[str, Any]:
    with base.without_adapter():
        before = measure()
    return {BASE: before, ADAPTED: measure()}


def _some(lines: Sequence[str], most: int) -> list[str]:
    return list(lines[:: max(1, -(-len(lines) // most))])


def _typed(base: Adapted, test: SuiteTest) -> Typed:
    from boli.evaluation.keystrokes import type_lines
    from boli.evaluation.next_word import LanguageModel

    model = LanguageModel(base.model, base.tokenizer, base.max_length)
    score = type_lines(model, _some(test.lines, TYPED_LINES))
    return Typed(score.saved, score.hit_at_1, score.hit_at_3, int(score.words.sum()))


def _stays(base: Adapted, test: SuiteTest, fidelity: Fidelity) -> dict[str, FidelityScore]:
    """Judge what both models write after the first words of lines, and the lines themselves."""
    from boli.evaluation.generation import continuations

    lines = _some(test.lines, WRITTEN_LINES)

    def measure() -> FidelityScore:
        written = continuations(base.model, base.tokenizer, lines, base.max_length)
        return judge(fidelity, written, test.language)

    return {TEXT: judge(fidelity, test.lines, test.language), **_both(base, measure)}


def _translated(base: Adapted, test: SuiteTest) -> dict[str, TranslationScore]:
    from boli.evaluation.generation import SHOTS, translation_score, translations

    assert test.sources is not None
    pairs = list(zip(test.sources, test.lines, strict=True))[: SHOTS + WRITTEN_LINES]

    def measure() -> TranslationScore:
        written = translations(base.model, base.tokenizer, pairs, base.max_length)
        sources, references = zip(*pairs[SHOTS:], strict=True)
        return translation_score(written, references, sources)

    return _both(base, measure)


def sentences(figures: Sequence[TestFigures], name: str = "A", other: str = "B") -> Iterator[str]:
    """Yield what the figures say: which model is better, and whether that is noise."""
    for found in figures:
        said = found.against_base.sentence("the adapter", "its base")
        forgot = " (the base's own language)" if found.is_forgetting else ""
        yield f"{found.name}{forgot}: {said}"
        if found.against_other is not None:
            yield f"{found.name}: {found.against_other.sentence(name, other)}"


def as_json(figures: Sequence[TestFigures], name: str = "A", other: str = "B") -> dict[str, Any]:
    """Return the figures as JSON has them, the sentences beside them."""
    return {
        "schema": 1,
        "tests": [asdict(found) for found in figures],
        "sentences": list(sentences(figures, name, other)),
    }
