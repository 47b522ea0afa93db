"""preparation.json of every version that there ever was: old ones load, and share nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from boli.corpus.listing import MARKER, SourceFile
from boli.corpus.source_state import NOT_NOTED
from boli.corpus.survey import Survey
from boli.errors import CorpusError

FOLDER = Path(__file__).parent
PREPARATIONS = ["preparation-v1.json", "preparation-v1-governed.json"]


def survey() -> Survey:
    """Return one that uses every field, as this program has them."""
    root = Path("/srv/archive")
    return Survey(
        digest="0" * 64,
        settings={"language": "bho", "script": "Deva", "roots": ["0123456789abcdef"]},
        reading={"unit": "auto", "column": ""},
        sources=(str(root),),
        files=(
            SourceFile(root / "a.txt", "archive/a.txt", root),
            SourceFile(root / "diary/d.txt", "archive/diary/d.txt", root),
        ),
        stamps=((12, 1_764_000_000_000_000_000), (34, 1_764_000_000_000_000_001)),
        governed={str(root): {str(root): str(root), f"{root}/diary": f"{root}/diary"}},
    )


@pytest.mark.parametrize("name", PREPARATIONS)
def test_every_preparation_ever_written_can_be_read(tmp_path: Path, name: str) -> None:
    shutil.copy(FOLDER / name, tmp_path / MARKER)
    expected = survey() if "governed" in name else replace(survey(), governed=None)
    assert Survey.load(tmp_path) == expected


def test_a_preparation_is_written_as_before(tmp_path: Path) -> None:
    for name, found in zip(PREPARATIONS, (replace(survey(), governed=None), survey()), strict=True):
        found.save(tmp_path)
        assert (tmp_path / MARKER).read_bytes() == (FOLDER / name).read_bytes()


def test_an_old_preparation_shares_nothing_until_it_is_noted_again(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "archive"
    root.mkdir()
    (root / "a.txt").write_text("x")
    (root / "source.toml").write_text('licence = "MIT"')
    file = SourceFile(root / "a.txt", "archive/a.txt", root)
    old = replace(survey(), files=(file,), sources=(str(root),), governed=None)
    assert old.state().terms_of("archive/a.txt#1") == NOT_NOTED
    again, _ = old.noted(anew=True)
    assert again.state().terms_of("archive/a.txt#1") != NOT_NOTED


def test_a_torn_note_is_told(tmp_path: Path) -> None:
    for governed in ([1], {"/srv": 3}, {"/srv": {"/srv": None}}, "x"):
        replace(survey(), governed=governed).save(tmp_path)  # type: ignore[arg-type]
        with pytest.raises(CorpusError, match="not whole"):
            Survey.load(tmp_path)


if __name__ == "__main__":
    if not (FOLDER / PREPARATIONS[-1]).exists():
        survey().save(FOLDER)
        (FOLDER / MARKER).rename(FOLDER / PREPARATIONS[-1])
