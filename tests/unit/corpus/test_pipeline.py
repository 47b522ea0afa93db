"""From folders to records: what is kept, what is dropped and why, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from boli.corpus import final
from boli.corpus.consent import MANIFEST, TEMPLATE, Consent
from boli.corpus.documents import Reading
from boli.corpus.explain import explain
from boli.corpus.listing import SourceFile
from boli.corpus.pipeline import Preparation, Progress, note
from boli.corpus.record import content_hash, read_records, record_id, root_key
from boli.corpus.source_state import read_consent
from boli.corpus.survey import Request, Survey
from boli.errors import CorpusError, StorageError

Lines = Callable[[str, int], list[str]]


@pytest.fixture(scope="module")
def lines(made_up_lines: Lines) -> list[str]:
    return made_up_lines("bho", 300)


@pytest.fixture
def source(tmp_path: Path, lines: list[str]) -> Path:
    """Return a folder with clean lines, repeats, junk, and personal data."""
    folder = tmp_path / "archive"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("\n".join(lines[:100]), encoding="utf-8")
    bad = [lines[3], f"{lines[200]} फोन 9812345678 पर", "ने", "\ufffd" * 40 + lines[201]]
    (folder / "deep" / "b.txt").write_text("\n".join(bad), encoding="utf-8")
    (folder / "c.bin").write_bytes(b"\0\1")
    return folder


def request(source: Path, out: Path, **values: Any) -> Request:
    return Request((source,), out, "bho", **{"workers": 0, **values})


def rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).to_pylist() if list(folder.glob("*.parquet")) else []


def prepared(request: Request) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    figures = Preparation(request).run()
    assert figures is not None
    return rows(request.out / "records"), rows(request.out / "dropped"), figures


def test_every_document_is_a_record_or_dropped_with_a_reason(
    source: Path, tmp_path: Path, lines: list[str]
) -> None:
    kept, dropped, figures = prepared(request(source, tmp_path / "out"))
    sources = {row["source"] for row in kept} | {row["source"] for row in dropped}
    assert len(sources) == 105 == figures["documents"] == len(kept) + len(dropped)
    assert {row["source"]: row["reason"] for row in dropped if "/a.txt" not in row["source"]} == {
        "archive/c.bin": "unknown kind of file",
        "archive/deep/b.txt#1": "exact duplicate",
        "archive/deep/b.txt#3": "too short",
        "archive/deep/b.txt#4": "broken encoding",
    }
    assert sum(figures["dropped"].values()) == len(dropped)
    assert figures["kept_characters"] == sum(len(row["text"]) for row in kept)
    assert kept[0]["text"] == lines[0]


def test_a_duplicate_names_the_record_that_stays(source: Path, tmp_path: Path) -> None:
    kept, dropped, _ = prepared(request(source, tmp_path / "out"))
    twice = next(row for row in dropped if row["reason"] == "exact duplicate")
    assert twice["duplicate_of"] == record_id("archive/a.txt#4", root_key(source))
    assert twice["duplicate_of"] in {row["id"] for row in kept}


def test_records_hold_what_they_promise(source: Path, tmp_path: Path) -> None:
    (source / MANIFEST).write_text(
        'licence = "CC-BY-4.0"\n[consent]\npurposes = ["training"]\nexpires = 2031-05-06\n'
        '[residency]\nlimit = "country"\nregion = "IN-BR"\n[contact]\naddress = "a@b.in"\n'
    )
    prepared(request(source, tmp_path / "out"))
    for record in (record for batch in read_records(tmp_path / "out") for record in batch):
        assert record.id == record_id(record.source, root_key(source))
        assert record.content_hash == content_hash(record.text)
        assert (record.language, record.script) == ("bho", "Deva")
        assert (record.purposes, record.licence) == (("training",), "CC-BY-4.0")
        assert str(record.expires) == "2031-05-06"
        assert (record.residency, record.region, record.contact) == ("country", "IN-BR", "a@b.in")
        assert len(record.signature) in (0, 512)  # none where the text is too short


def test_personal_data_is_replaced_and_counted(source: Path, tmp_path: Path) -> None:
    kept, _, figures = prepared(request(source, tmp_path / "out"))
    row = next(row for row in kept if row["source"] == "archive/deep/b.txt#2")
    assert "<PHONE_1>" in row["text"]
    assert "9812345678" not in row["text"]
    assert json.loads(row["personal"]) == {"PHONE": 1}
    assert figures["personal"] == {"PHONE": 1}


def test_the_nearest_manifest_counts(source: Path, tmp_path: Path) -> None:
    (source / MANIFEST).write_text('licence = "CC0-1.0"')
    (source / "deep" / MANIFEST).write_text('licence = "MIT"')
    kept, _, _ = prepared(request(source, tmp_path / "out"))
    licences = {"deep" in row["source"]: row["licence"] for row in kept}
    assert licences == {True: "MIT", False: "CC0-1.0"}


def test_a_template_is_written_once_and_allows_nothing(source: Path, tmp_path: Path) -> None:
    first = Preparation(request(source, tmp_path / "out"))
    first.run()
    assert first.templates == [source / MANIFEST]
    assert (source / MANIFEST).read_text(encoding="utf-8") == TEMPLATE
    assert read_consent(source) == Consent()
    second = Preparation(request(source, tmp_path / "out"))
    second.run()
    assert second.templates == []


@pytest.mark.parametrize(
    "text",
    ["licence = 3", "[consent]\npurposes = ['everything']", "x", "licence = '../x'", "a = 1"],
)
def test_a_manifest_that_is_wrong_is_refused(source: Path, tmp_path: Path, text: str) -> None:
    (source / MANIFEST).write_text(text)
    with pytest.raises(CorpusError, match=MANIFEST):
        Preparation(request(source, tmp_path / "out")).run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(source: Path, tmp_path: Path, workers: int) -> None:
    here = prepared(request(source, tmp_path / "here"))
    there = prepared(request(source, tmp_path / "there", workers=workers, part_documents=30))
    assert here[0] == there[0]
    assert sorted(map(str, here[1])) == sorted(map(str, there[1]))


def test_a_stopped_preparation_goes_on(source: Path, tmp_path: Path) -> None:
    whole = prepared(request(source, tmp_path / "whole"))
    stopped: list[Progress] = []
    step = request(source, tmp_path / "out", part_documents=20)
    for _ in range(20):
        asked = iter([False, True])
        done = Preparation(step, stopped.append, lambda asked=asked: next(asked, True)).run()
        if done is not None:
            break
    assert len(stopped) >= 1
    again = prepared(step)
    assert again[0] == whole[0]
    assert sorted(map(str, again[1])) == sorted(map(str, whole[1]))


def test_what_is_done_is_not_done_again(source: Path, tmp_path: Path) -> None:
    first = Preparation(request(source, tmp_path / "out")).run()
    seen: list[Progress] = []
    assert Preparation(request(source, tmp_path / "out"), seen.append).run() == first
    assert seen == []


def test_other_sources_or_settings_need_another_folder(source: Path, tmp_path: Path) -> None:
    Preparation(request(source, tmp_path / "out")).run()
    with pytest.raises(CorpusError, match="other settings"):
        Preparation(request(source, tmp_path / "out", reading=Reading("document"))).run()
    (source / "new.txt").write_text("x")
    with pytest.raises(CorpusError, match="sources have changed"):
        Preparation(request(source, tmp_path / "out")).run()
    (source / "new.txt").unlink()
    (source / "deep").rename(source / "diary")  # as many files, as large and as old as before
    with pytest.raises(CorpusError, match="sources have changed"):
        Preparation(request(source, tmp_path / "out")).run()


def test_what_sources_allow_can_be_noted_where_they_have_changed(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(CorpusError, match="no finished preparation"):
        note(out)
    prepared(request(source, out))
    (source / MANIFEST).write_text('licence = "MIT"\n')
    (source / "new.txt").write_text("x")
    (source / "deep" / "b.txt").unlink()
    figures, loosened = note(out)
    found = {row["source"]: row["licence"] for row in rows(out / "records")}
    assert {name: kind for name, kind in found.items() if "deep" in name} == {
        "archive/deep/b.txt#2": ""
    }
    assert set(found.values()) == {"", "MIT"}
    assert loosened == len(found) - 1
    assert sum(each["records"] for each in figures["consents"]) == len(found)
    (source / MANIFEST).write_text("x")
    with pytest.raises(CorpusError, match=MANIFEST):
        note(out)


def test_a_preparation_of_an_older_boli_over_a_link_goes_on(source: Path, tmp_path: Path) -> None:
    """It wrote down the paths of files by the link that was named."""
    whole = prepared(request(source, tmp_path / "whole"))
    (tmp_path / "link").symlink_to(source)
    step = request(tmp_path / "link", tmp_path / "out", part_documents=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boli.corpus.parts.BATCH_DOCUMENTS", 10)
        assert Preparation(step, should_stop=lambda: True).run() is None
    survey = Survey.load(step.out)
    assert survey is not None
    by_link = [
        SourceFile(tmp_path / "link" / file.path.relative_to(source), file.name, file.root)
        for file in survey.files
    ]
    replace(survey, files=tuple(by_link)).save(step.out)
    assert prepared(step)[0] == whole[0]


def test_the_folder_for_records_may_lie_in_the_source(source: Path, tmp_path: Path) -> None:
    out = source / "clean"
    first = Preparation(request(source, out)).run()
    assert Preparation(request(source, out)).run() == first


def test_nothing_to_keep_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt").write_text("x\ny\n")
    kept, dropped, figures = prepared(request(tmp_path / "s", tmp_path / "out"))
    assert (kept, len(dropped), figures["kept"]) == ([], 2, 0)


def test_a_record_is_explained(source: Path, tmp_path: Path) -> None:
    prepared(request(source, tmp_path / "out"))
    told = "\n".join(explain(tmp_path / "out", record_id("archive/deep/b.txt#2", root_key(source))))
    assert "1 PHONE" in told
    assert "outcome  kept" in told
    assert "9812345678" in told  # before it was replaced: this is for people at the site
    told = "\n".join(explain(tmp_path / "out", record_id("archive/deep/b.txt#1", root_key(source))))
    assert "dropped: exact duplicate" in told
    assert "of archive/a.txt#4" in told
    (source / "deep" / "b.txt").unlink()
    assert "not there any more" in "\n".join(
        explain(tmp_path / "out", record_id("archive/deep/b.txt#3", root_key(source)))
    )
    with pytest.raises(CorpusError, match="knows no record"):
        list(explain(tmp_path / "out", "0" * 32))


def test_sources_are_never_written_over(source: Path, tmp_path: Path) -> None:
    for name in ("records", "dropped", "work"):
        inner = tmp_path / name / "in" / name
        inner.mkdir(parents=True)
        (inner / "a.txt").write_text("x", encoding="utf-8")
        with pytest.raises(CorpusError, match="is inside"):
            Preparation(request(inner, inner.parent)).run(again=True)
        assert (inner / "a.txt").exists()
    with pytest.raises(CorpusError, match="is inside"):
        Preparation(request(source, source)).run()


def test_a_folder_of_others_is_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    (out / "work").mkdir(parents=True)
    (out / "work" / "thesis.txt").write_text("years")
    with pytest.raises(CorpusError, match="did not write it"):
        Preparation(request(source, out)).run(again=True)
    assert (out / "work" / "thesis.txt").read_text() == "years"


def test_beginning_anew_first_looks_at_everything(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = prepared(request(source, out))
    with pytest.raises(CorpusError, match="nothing at"):
        Preparation(request(tmp_path / "typo", out)).run(again=True)
    with pytest.raises(CorpusError, match="no identifier"):
        Preparation(request(source, out, identifier="typo")).run(again=True)
    assert rows(out / "records") == before[0]
    (source / "new.txt").write_text((source / "a.txt").read_text()[:50], encoding="utf-8")
    assert Preparation(request(source, out)).run(again=True) != before[2]


def test_what_sources_allow_is_told_anew_without_cleaning_again(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kept, _, figures = prepared(request(source, out))
    assert {row["licence"] for row in kept} == {""}
    (source / MANIFEST).write_text('licence = "MIT"\n[residency]\nlimit = "any"\n')
    seen: list[Progress] = []
    second = Preparation(request(source, out), seen.append)
    again = second.run()
    assert seen == []
    assert second.loosened == figures["kept"]
    assert {row["licence"] for row in rows(out / "records")} == {"MIT"}
    assert again is not None
    assert again["consents"][0]["records"] == figures["kept"]
    (source / MANIFEST).unlink()  # taken back
    third = Preparation(request(source, out))
    third.run()
    assert third.loosened == 0
    told = {(row["licence"], row["residency"]) for row in rows(out / "records")}
    assert told == {("", "premises")}


def test_a_manifest_above_the_source_counts_for_nothing(source: Path, tmp_path: Path) -> None:
    (source / MANIFEST).write_text('licence = "MIT"')
    preparation = Preparation(request(source / "deep", tmp_path / "out"))
    preparation.run()
    assert preparation.templates == [source / "deep" / MANIFEST]
    assert {row["licence"] for row in rows(tmp_path / "out" / "records")} == {""}
    # The control: where the folder itself is named, it counts for what lies below.
    prepared(request(source, tmp_path / "whole"))
    whole = rows(tmp_path / "whole" / "records")
    assert {row["licence"] for row in whole if "deep" not in row["source"]} == {"MIT"}


def test_records_prepared_before_do_not_come_back_with_other_words(
    source: Path, tmp_path: Path
) -> None:
    (source / MANIFEST).write_text('licence = "MIT"')
    (source / "deep" / MANIFEST).write_text("")
    Preparation(request(source, source / "clean")).run()
    kept, _, figures = prepared(request(source, source / "clean2"))
    assert not any("clean" in row["source"] for row in kept)
    assert figures["files"] == 3
    assert {row["licence"] for row in kept if "deep" in row["source"]} <= {""}


def test_what_comes_later_is_not_read_by_a_preparation_that_goes_on(
    source: Path, tmp_path: Path
) -> None:
    whole = prepared(request(source, tmp_path / "whole"))
    step = request(source, tmp_path / "out", part_documents=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boli.corpus.parts.BATCH_DOCUMENTS", 10)
        assert Preparation(step, should_stop=lambda: True).run() is None
    (source / "late.txt").write_text("x")
    assert prepared(step)[0] == whole[0]


def test_a_manifest_that_goes_while_text_is_cleaned_takes_the_consent_with_it(
    source: Path, tmp_path: Path
) -> None:
    given = 'licence = "MIT"\n[residency]\nlimit = "any"\n'
    (source / MANIFEST).write_text(given)
    (source / "deep" / MANIFEST).write_text(given.replace("any", "premises"))
    step = request(source, tmp_path / "out", part_documents=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boli.corpus.parts.BATCH_DOCUMENTS", 10)
        assert Preparation(step, should_stop=lambda: True).run() is None
    (source / "deep" / MANIFEST).unlink()
    kept, _, _ = prepared(step)
    found = {"deep" in row["source"]: (row["licence"], row["residency"]) for row in kept}
    assert found == {True: ("", "premises"), False: ("MIT", "any")}
    note(step.out)  # in so many words: what stands now is meant
    assert {row["licence"] for row in rows(step.out / "records")} == {"MIT"}


def test_a_file_that_changes_while_it_is_read_is_told(source: Path, tmp_path: Path) -> None:
    step = request(source, tmp_path / "out", part_documents=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boli.corpus.parts.BATCH_DOCUMENTS", 10)
        assert Preparation(step, should_stop=lambda: True).run() is None
    (source / "a.txt").write_text("x")
    with pytest.raises(CorpusError, match="has changed while"):
        Preparation(step).run()


def test_other_shares_after_a_kill_double_nothing(source: Path, tmp_path: Path) -> None:
    whole = prepared(request(source, tmp_path / "whole"))
    step = request(source, tmp_path / "out")
    for number in range(3):
        Preparation(step).clean_share(number, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boli.corpus.final.sync_folder", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Preparation(step).finish(3)
    (tmp_path / "out" / "records").rename(tmp_path / "out" / "records.new")
    assert prepared(step)[0] == whole[0]


@pytest.mark.parametrize("fails_at", ["records.new", "dropped.new"])
def test_a_disk_that_refuses_the_last_files_costs_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    real = final.write_table

    def refuses(path: Path, table: Any) -> None:
        if fails_at in str(path):
            raise StorageError(f"cannot write {path}", "make room")
        real(path, table)

    given = request(source, tmp_path / "out", part_documents=40)
    monkeypatch.setattr(final, "write_table", refuses)
    with pytest.raises(StorageError, match="part-0000"):
        Preparation(given).run()
    assert not (tmp_path / "out" / "records").exists()
    assert not (tmp_path / "out" / "report.json").exists()
    monkeypatch.undo()
    assert prepared(given)[:2] == prepared(request(source, tmp_path / "other"))[:2]


def test_archives_of_one_name_have_ids_of_their_own(tmp_path: Path, lines: list[str]) -> None:
    ids = set()
    for place in ("one", "two"):
        folder = tmp_path / place / "archive"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(lines[0], encoding="utf-8")
        kept, _, _ = prepared(request(folder, tmp_path / f"out-{place}"))
        ids.add(kept[0]["id"])
    assert len(ids) == 2


def test_only_their_owner_may_read_what_holds_text(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(request(source, out))
    for path in out.rglob("*"):
        if path.is_file() and path.name not in ("report.json", "lock"):
            assert path.stat().st_mode & 0o077 == 0, path
    assert str(tmp_path) not in (out / "report.json").read_text()


def test_exact_duplicates_alone_can_be_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    text = "हमार चाचा के पटना में एगो बड़का घर बा आ ओकरा में बारह कोठरी बा"
    (folder / "a.txt").write_text(f"{text}\n{text}\n{text} जी", encoding="utf-8")
    assert len(prepared(request(folder, tmp_path / "near"))[0]) == 1
    assert len(prepared(request(folder, tmp_path / "exact", near=False))[0]) == 2


@pytest.mark.parametrize("name", ["preparation.json", "report.json"])
def test_torn_files_are_told(source: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    Preparation(request(source, out)).run()
    (out / name).write_text('{"x":')
    with pytest.raises(CorpusError, match="not whole"):
        Preparation(request(source, out)).run()
    assert Preparation(request(source, out)).run(again=True) is not None


def test_an_unknown_script_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="'deva' is not known"):
        Preparation(request(source, tmp_path / "out", script="deva")).run()


def test_links_to_nowhere_and_names_that_are_no_text_do_not_end_it(
    source: Path, tmp_path: Path
) -> None:
    import os

    (source / "gone.txt").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(source) + b"/\xff.html")).write_text("<p>x</p>")
    _, dropped, _ = prepared(request(source, tmp_path / "out", workers=1))
    reasons = {row["source"]: row["reason"] for row in dropped}
    assert reasons["archive/gone.txt"] == "link"
    assert reasons["archive/\\xff.html#1"] == "wrong script"
