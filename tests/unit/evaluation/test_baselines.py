from __future__ import annotations

import sys
from pathlib import Path

import pytest

from boli.corpus.sources import read_split
from boli.corpus.starter import starter_lines
from boli.errors import CorpusError
from boli.evaluation.baselines import PPMD_MISSING, baselines, ppmd, site_baselines, six_gram
from boli.plan_file import load_plan

PLANS = Path(__file__).parents[3] / "plans"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list(starter_lines("bho", 400))


def test_both_rows_are_of_the_same_bytes(lines: list[str]) -> None:
    pytest.importorskip("pyppmd")
    train, test = lines[:300], lines[300:]
    found = baselines(train, test)
    assert [row.name for row in found] == ["6-gram", "PPMd"]
    for row in found:
        assert row.bits.shape == (100,)
        assert row.bytes.tolist() == [len(line.encode()) + 1 for line in test]
        assert row.per_byte is not None
        assert row.per_byte < 2
        assert row.bits.min() >= 0


def test_compressor_counts_what_it_writes_for_the_test_lines_alone(lines: list[str]) -> None:
    pyppmd = pytest.importorskip("pyppmd")

    def size(texts: list[str]) -> int:
        encoder = pyppmd.Ppmd7Encoder(10, 16 << 20)
        return len(
            encoder.encode("".join(f"{line}\n" for line in texts).encode()) + encoder.flush()
        )

    found = ppmd(lines[:300], lines[300:], 10, 16 << 20)
    assert found.bits.sum() == pytest.approx(8 * (size(lines) - size(lines[:300])), abs=8 * 4)
    assert ppmd(lines[:300], []).per_byte is None
    assert ppmd(lines[:300], lines[300:], 2).bits.sum() > found.bits.sum()


def test_missing_library_is_said_in_its_row(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    _, row = baselines(lines[:300], lines[300:])
    assert (row.per_byte, row.missing) == (None, PPMD_MISSING)


def test_nothing_to_train_on_is_an_error(lines: list[str]) -> None:
    for baseline in (six_gram, baselines):
        with pytest.raises(CorpusError, match="no text"):
            baseline([], lines)


@pytest.mark.corpora
def test_figures_on_real_text(corpora: Path) -> None:
    """The figures that a model is held against, on boli's own split by article."""
    pytest.importorskip("pyppmd")
    plan = load_plan(PLANS / "real.toml", [f"corpus.root={corpora}"])
    site = next(one for one in plan.site if one.language == "bho")
    found = site_baselines(plan, site)["bho"]["test"]
    assert [row.per_byte for row in found] == pytest.approx([0.886, 0.887], abs=0.003)
    split = read_split(plan, site.text, "bho")["bho"]
    assert ppmd(split.train, split.test, 10).per_byte == pytest.approx(0.939, abs=0.003)
