from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boli.corpus.language import Identifier
from boli.corpus.language_file import KIND, load_identifier, save_identifier
from boli.corpus.language_training import train
from boli.corpus.ngrams import substrings
from boli.corpus.sources import read_labeled
from boli.durable import read_tensors, write_tensors
from boli.errors import CorpusError, CorruptFileError

Lines = Callable[[str, int], list[str]]


@pytest.fixture(scope="module")
def text(made_up_lines: Lines) -> dict[str, list[str]]:
    """Return 200 lines of each of three made-up languages; the last 100 are not trained on."""
    return {name: made_up_lines(name, 200) for name in ("bho", "hin", "mag")}


@pytest.fixture(scope="module")
def identifier(text: dict[str, list[str]]) -> Identifier:
    santali = [
        f"ᱥᱟᱱᱛᱟᱲᱤ ᱠᱟᱛᱷᱟ {'ᱟᱹᱠᱤᱢᱤᱱᱩᱯ'[n % 8 : n % 8 + 2]}{'ᱚᱛᱜ'[n % 3]} ᱯᱟᱲᱦᱟᱣ" for n in range(40)
    ]
    return train({name: lines[:100] for name, lines in text.items()} | {"sat": santali})


def told(identifier: Identifier, lines: list[str]) -> list[str]:
    return [answer.label for answer in identifier.identify(lines)]


def test_lines_not_trained_on_are_found(identifier: Identifier, text: dict[str, list[str]]) -> None:
    for name, lines in text.items():
        assert told(identifier, lines[100:]).count(name) >= 95


def test_script_alone_decides_where_one_label_has_it(identifier: Identifier) -> None:
    (answer,) = identifier.identify(["ᱥᱟᱱᱛᱟᱲᱤ ᱯᱟᱲᱦᱟᱣ ᱠᱟᱛᱷᱟ"])
    assert (answer.label, answer.confidence) == ("sat", 1.0)
    settings = identifier.settings
    assert dict(zip(settings.labels, settings.scripts, strict=True))["sat"] == ("Olck",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "no letters"),
        ("12 – 34 ।", "no letters"),
        ("plain English", "script"),
        ("ಕನ್ನಡ ಭಾಷೆ", "script"),
        ("ञठढ़ ऋषिणाम् ओढ़ णत्व झंझट ऐंठ", "other language"),
    ],
)
def test_other_text_is_undetermined_with_a_reason(
    identifier: Identifier, line: str, reason: str
) -> None:
    (answer,) = identifier.identify([line])
    assert (answer.label, answer.reason) == ("und", reason)
    assert 0 <= answer.confidence <= 1


def test_line_between_languages_is_unsure_and_says_its_best(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    mixed = [
        " ".join((a + " " + b + " " + c).replace("।", "").split())
        for a, b, c in zip(text["bho"], text["hin"], text["mag"], strict=True)
    ]
    hot = replace(identifier, settings=replace(identifier.settings, temperature=50.0))
    (answer,) = hot.identify(mixed[:1])
    assert (answer.label, answer.reason) == ("und", "unsure")
    assert answer.best in text


def test_record_is_judged_as_a_whole_and_by_line(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    lines = [*text["bho"][100:108], text["mag"][100], "plain English"]
    whole, each = identifier.identify_record("\n".join(lines))
    assert whole.label == "bho"
    assert [answer.label for answer in each] == ["bho"] * 8 + ["mag", "und"]


def test_answers_do_not_depend_on_how_many_are_asked(
    identifier: Identifier, text: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for own in text.values() for line in own[:9]]
    together = identifier.identify(lines)
    monkeypatch.setattr("boli.corpus.language.CHUNK_LINES", 4)
    assert identifier.identify(lines) == together


def respelled(lines: list[str]) -> list[str]:
    """Return lines of another domain: of all but two signs another is made."""
    return [line.translate(str.maketrans("ेोकगजल", "ोेखघझळ")) for line in lines]


def test_adaptation_finds_more_in_a_new_domain(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    pairs = [(line, name) for name, own in text.items() for line in respelled(own[100:])]
    lines, truth = [line for line, _ in pairs], [name for _, name in pairs]
    open_gate = replace(identifier, settings=replace(identifier.settings, least_known=0.0))

    def right(judge: Identifier) -> int:
        return sum(a.best == name for a, name in zip(judge.identify(lines), truth, strict=True))

    before = right(open_gate)
    assert before < 295
    assert right(open_gate.adapted(lines)) > before
    assert right(open_gate.adapted(lines, follow=50)) > before


def test_adaptation_on_one_language_invents_no_other(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    lines = text["hin"][100:]
    assert told(identifier.adapted(lines, follow=50), lines).count("hin") >= 95


def test_foreign_lines_teach_nothing(identifier: Identifier, made_up_lines: Lines) -> None:
    strangers = [
        line.translate(str.maketrans("कगजदपम", "ठढझथफण")) for line in made_up_lines("x", 99)
    ]
    assert identifier.adapted(["plain English"] * 99 + strangers + ["", "12"]) is identifier


def test_adaptation_leaves_the_identifier_as_it_was_and_needs_no_order(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    lines = [line for own in text.values() for line in own[100:]]
    before = identifier.trained.forms.counts.copy()
    one, two = identifier.adapted(lines, follow=50), identifier.adapted(lines[::-1], follow=50)
    assert identifier.target is None
    assert np.array_equal(before, identifier.trained.forms.counts)
    assert one.target is not None
    assert two.target is not None
    assert np.allclose(one.target.forms.counts, two.target.forms.counts, atol=1e-2)


def test_saved_identifier_answers_alike(
    identifier: Identifier, text: dict[str, list[str]], tmp_path: Path
) -> None:
    lines = [line for own in text.values() for line in own[100:]]
    for number, original in enumerate((identifier, identifier.adapted(lines))):
        path = tmp_path / f"{number}.safetensors"
        save_identifier(original, path)
        loaded = load_identifier(path)
        assert loaded.settings == original.settings
        assert loaded.identify(lines) == original.identify(lines)


def test_file_that_is_cut_or_altered_is_refused(identifier: Identifier, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_identifier(identifier, path)
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(CorruptFileError):
        load_identifier(path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(CorruptFileError):
        load_identifier(path)
    with pytest.raises(CorruptFileError):
        load_identifier(tmp_path / "none.safetensors")


WRONG_FACTS = [
    {"kind": "adapter"},
    {"format": 2},
    {"labels": ["bho"]},
    {"labels": ["mag", "hin", "bho", "sat"]},
    {"labels": [1, 2, 3, 4]},
    {"scripts": [["Deva"]]},
    {"temperature": 0.0},
    {"temperature": float("nan")},
    {"least_known": "much"},
    {"adapted_temperature": -1.0},
]


@pytest.mark.parametrize("wrong", WRONG_FACTS, ids=str)
def test_facts_that_are_no_identifier_are_refused(
    identifier: Identifier, tmp_path: Path, wrong: dict[str, object]
) -> None:
    path = tmp_path / "m.safetensors"
    save_identifier(identifier, path)
    arrays, facts = read_tensors(path)
    assert facts["kind"] == KIND
    write_tensors(path, arrays, facts | wrong)
    with pytest.raises(CorruptFileError, match="not a language identifier"):
        load_identifier(path)


@pytest.mark.parametrize("wrong", ["negative", "infinite", "order", "range", "shape", "names"])
def test_tables_that_are_no_counts_are_refused(
    identifier: Identifier, tmp_path: Path, wrong: str
) -> None:
    path = tmp_path / "m.safetensors"
    save_identifier(identifier, path)
    arrays, facts = read_tensors(path)
    arrays = {name: array.copy() for name, array in arrays.items()}
    match wrong:
        case "negative":
            arrays["forms.counts"][0, 0] = -1
        case "infinite":
            arrays["forms.counts"][0, 0] = np.inf
        case "order":
            arrays["forms.buckets"] = arrays["forms.buckets"][::-1].copy()
        case "range":
            arrays["characters.buckets"][-1] = 1 << 30
        case "shape":
            arrays["characters.counts"] = arrays["characters.counts"][:2]
        case "names":
            arrays["stranger.counts"] = arrays["forms.counts"]
    write_tensors(path, arrays, facts)
    with pytest.raises(CorruptFileError, match="not a language identifier"):
        load_identifier(path)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ({}, "none"),
        ({"bho": ["अ"] * 99}, "bho"),
        ({"bho": ["अ ब"], "und": ["क"]}, "und"),
        ({"bho": ["एके लाइन"] * 99, "hin": [f"पंक्ति {n}" for n in range(99)]}, "bho has 1 different"),
    ],
)
def test_too_little_to_train_on_is_said(lines: dict[str, list[str]], problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        train(lines)


def test_too_few_lines_of_a_domain_change_nothing(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    assert identifier.adapted(text["hin"][100:102]) is identifier
    assert identifier.adapted(text["hin"][100:130]) is identifier
    assert identifier.adapted(text["hin"][100:150]) is not identifier


def test_few_lines_of_a_domain_change_little(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    lines = [line for own in text.values() for line in respelled(own[100:120])]
    forms = substrings(lines).forms

    def likeness(judge: Identifier) -> float:
        assert judge.target is not None
        before, after = identifier.trained.forms.scores(forms), judge.target.forms.scores(forms)
        return float(np.corrcoef(before.ravel(), after.ravel())[0, 1])

    careful, bold = (identifier.adapted(lines, 1, follow) for follow in (500, 1))
    assert likeness(careful) > likeness(bold)


@pytest.mark.parametrize("name", ["bho", "hin", "mag"])
@pytest.mark.parametrize("number", [40, 60, 100])
def test_few_lines_of_one_language_invent_no_other(
    identifier: Identifier, text: dict[str, list[str]], name: str, number: int
) -> None:
    lines = text[name][100 : 100 + number]
    before, after = told(identifier, lines), told(identifier.adapted(lines), lines)
    assert after.count(name) >= before.count(name)


def test_few_lines_do_not_let_the_label_of_most_take_the_rest(
    identifier: Identifier, text: dict[str, list[str]]
) -> None:
    lines = text["mag"][100:200] + text["bho"][100:112]
    assert told(identifier.adapted(lines), lines)[100:].count("bho") >= 11


@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_text_gets_an_answer(identifier: Identifier, lines: list[str]) -> None:
    answers = identifier.identify(lines)
    assert len(answers) == len(lines)
    for answer in answers:
        assert asdict(answer)["label"] in {"und", *identifier.labels}
        assert 0 <= answer.confidence <= 1
        assert (answer.label == "und") == bool(answer.reason)


@pytest.mark.corpora
def test_adaptation_leaves_less_than_half_of_the_errors_on_real_text(corpora: Path) -> None:
    """Trained on one domain, judged on another; the benchmark has the exact figures."""
    identifier = train(read_labeled(corpora / "ili2018/dev.tsv"))
    folder = corpora / "parallel/flores200_devtest_001-300"
    pairs = [
        (line, name)
        for name in ("awa", "bho", "hin", "mag")
        for line in (folder / f"devtest.{name}").read_text(encoding="utf-8").splitlines()
    ]
    lines = [line for line, _ in pairs]

    def wrong(judge: Identifier) -> int:
        return sum(a.best != b for a, (_, b) in zip(judge.identify(lines), pairs, strict=True))

    assert wrong(identifier.adapted(lines)) < wrong(identifier) / 2
