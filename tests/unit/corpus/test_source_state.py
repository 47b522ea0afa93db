"""What sources allow now: what is gone, moved, a link or unreadable allows nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from boli.corpus.consent import MANIFEST, Terms
from boli.corpus.source_state import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST_GONE,
    NAMED_ALONE,
    NOT_NOTED,
    UNKNOWN,
    read_consent,
)
from boli.corpus.survey import Request, Survey
from boli.errors import CorpusError

OPEN = 'licence = "MIT"\n[consent]\npurposes = ["training"]\n[residency]\nlimit = "any"\n'
CLOSED = OPEN.replace('"any"', '"premises"')


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a source that may leave, with a folder in it that may not."""
    root = tmp_path / "archive"
    (root / "diary" / "deep").mkdir(parents=True)
    (root / MANIFEST).write_text(OPEN)
    (root / "diary" / MANIFEST).write_text(CLOSED)
    for name in ("a.txt", "diary/b.txt", "diary/deep/c.txt"):
        (root / name).write_text("x")
    return root


def prepared(root: Path) -> Survey:
    """Return a survey as it is when records have been written."""
    survey, _ = Survey.take(Request((root,), root.parent / "out", "bho")).noted(anew=True)
    survey.save(root.parent / "out")
    loaded = Survey.load(root.parent / "out")
    assert loaded is not None
    return loaded


def limits(survey: Survey) -> dict[str, str]:
    """Return the limit of each file, or why it is not known."""
    found = {file.name: survey.state().terms_of(f"{file.name}#1") for file in survey.files}
    return {
        name.removeprefix("archive/"): terms.residency if isinstance(terms, Terms) else terms
        for name, terms in found.items()
    }


def test_what_stands_as_it_was_allows_what_it_says(root: Path) -> None:
    assert limits(prepared(root)) == {
        "a.txt": "any",
        "diary/b.txt": "premises",
        "diary/deep/c.txt": "premises",
    }


def test_a_nearer_manifest_that_comes_later_counts(root: Path) -> None:
    survey = prepared(root)
    (root / "diary" / "deep" / MANIFEST).write_text(OPEN)
    assert limits(survey)["diary/deep/c.txt"] == "any"  # what was noted stays the bound
    (root / "diary" / MANIFEST).unlink()  # and the one from before has to stay
    assert limits(survey)["diary/deep/c.txt"] == MANIFEST_GONE


Change = Callable[[Path], object]


def become_link(root: Path, name: str) -> None:
    """Move something of a source away, and put a link to it there."""
    (root / name).rename(root.parent / "elsewhere")
    (root / name).symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: shutil.rmtree(root), "gone"),
        (lambda root: shutil.rmtree(root / "diary"), "gone"),
        (lambda root: (root / "diary" / "b.txt").unlink(), "gone"),
        (lambda root: (root / "diary").rename(root / "notes"), "gone"),
        (lambda root: root.rename(root.parent / "old"), "gone"),
        (lambda root: become_link(root, "diary"), "a link now"),
        (lambda root: become_link(root, "diary/b.txt"), "a link now"),
        (lambda root: (root / "diary" / MANIFEST).unlink(), MANIFEST_GONE),
        (lambda root: (root / "diary" / MANIFEST).write_text("x"), "cannot read"),
        (lambda root: become_link(root, f"diary/{MANIFEST}"), "cannot read"),
    ],
)
def test_what_is_gone_allows_nothing(root: Path, change: Change, reason: str) -> None:
    survey = prepared(root)
    change(root)
    assert reason in limits(survey)["diary/b.txt"]


def test_a_root_that_is_a_link_now_allows_nothing(root: Path) -> None:
    survey = prepared(root)
    root.rename(root.parent / "old")
    root.symlink_to(root.parent / "old")
    assert all("a link now" in each for each in limits(survey).values())


def test_a_file_that_is_another_kind_now_allows_nothing(root: Path) -> None:
    survey = prepared(root)
    (root / "a.txt").unlink()
    os.mkfifo(root / "a.txt")
    assert "no plain file" in limits(survey)["a.txt"]
    (root / "a.txt").unlink()
    (root / "a.txt").mkdir()
    assert "no plain file" in limits(survey)["a.txt"]
    (root / "a.txt").rmdir()
    (root / "a.txt").write_text("other words")  # the record has those that were prepared
    assert limits(survey)["a.txt"] == "any"


def test_a_file_that_was_named_by_itself_allows_nothing(root: Path) -> None:
    survey = prepared(root / "a.txt")
    assert list(limits(survey).values()) == [NAMED_ALONE]


def test_no_manifest_above_the_root_counts(root: Path) -> None:
    survey = prepared(root / "diary" / "deep")
    found = survey.state().terms_of("deep/c.txt#1")
    assert found == Terms()


def test_what_is_not_known_allows_nothing(root: Path) -> None:
    survey = prepared(root)
    for source in ("", "#1", "archive", "archive/other.txt#1", "../archive/a.txt#1", "a.txt#1"):
        assert survey.state().terms_of(source) == UNKNOWN
    assert isinstance(survey.state().terms_of("archive/a.txt/in/a/zip.txt#1"), Terms)
    old = replace(survey, governed=None)
    assert set(limits(old).values()) == {NOT_NOTED}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "long"])
def test_a_manifest_is_a_short_plain_file(root: Path, kind: str) -> None:
    path = root / MANIFEST
    path.rename(root / "other.toml")
    match kind:
        case "link":
            path.symlink_to(root / "other.toml")
        case "pipe":
            os.mkfifo(path)  # opening it must not wait
        case "folder":
            path.mkdir()
        case "long":
            path.write_text(OPEN + "#" * LARGEST_MANIFEST_BYTES)
    with pytest.raises(CorpusError, match=MANIFEST):
        read_consent(root)
    with pytest.raises(CorpusError, match=MANIFEST):
        prepared(root)


def test_a_template_is_not_written_through_a_link(root: Path, tmp_path: Path) -> None:
    (root / MANIFEST).unlink()
    survey = Survey.take(Request((root,), tmp_path / "out", "bho"))
    (root / MANIFEST).symlink_to(tmp_path / "victim")
    with pytest.raises(CorpusError, match="it is a link"):
        list(survey.write_templates())
    assert not (tmp_path / "victim").exists()
