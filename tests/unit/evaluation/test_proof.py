from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boli.errors import CorpusError
from boli.evaluation import proof
from boli.evaluation.fidelity import Fidelity, learn
from boli.evaluation.generation import (
    SHOTS,
    continuations,
    translation_score,
    translations,
)
from boli.evaluation.metrics import bits_per_byte
from boli.evaluation.proof import Wanted, as_json, plain_test, prove
from boli.evaluation.suites import SuiteTest
from boli.model.adapter import initial_vector
from boli.model.export import export_adapter, load_adapter
from boli.plan import AdapterPlan

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
Lines = Callable[[str, int], list[str]]


@pytest.fixture(scope="module")
def adapters(
    micro_base: Path, load_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return the folders of two adapters: the base as it is, and one that is spoiled."""
    folder = tmp_path_factory.mktemp("adapters")
    plan = AdapterPlan(kind="lora", rank=2, alpha=4.0)
    base = load_tiny(micro_base)
    same = initial_vector(base.model, plan)
    noise = np.random.default_rng(0).normal(size=same.size).astype(np.float32)
    for name, theta in (("same", same), ("spoiled", same + noise)):
        (folder / name).mkdir()
        export_adapter(theta, plan, base, folder / name)
    return folder / "same", folder / "spoiled"


@pytest.fixture(scope="module")
def fidelity(made_up_lines: Lines) -> Fidelity:
    return learn({code: [made_up_lines(code, 60)] for code in ("bho", "hin")})


def suite(lines: list[str], **values: Any) -> SuiteTest:
    return SuiteTest("set", "bho", lines, **values)


def test_everything_is_measured_of_adapter_and_base(
    adapters: tuple[Path, Path],
    made_up_lines: Lines,
    fidelity: Fidelity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "TYPED_LINES", 1)
    monkeypatch.setattr(proof, "WRITTEN_LINES", 2)
    same, spoiled = adapters
    lines = made_up_lines("hin", 16)
    test = suite(lines, documents=[str(k // 2) for k in range(16)], sources=lines[::-1])
    own = SuiteTest("own", "hin", lines)
    wanted = Wanted(fidelity, keystrokes=True, translations=True)
    found, forgotten = prove(spoiled, [test], [own], wanted, other=same)
    base = load_adapter(same)
    with base.without_adapter():
        bits = bits_per_byte(base.model, base.tokenizer, lines, base.max_length)
    assert found.base == pytest.approx(bits.per_byte)
    assert found.adapted > found.base
    assert found.against_base.better == "B"
    assert found.against_base.num_documents == 8
    # The other adapter is the base, so that both comparisons are one.
    assert found.against_other is not None
    assert found.against_other.change == pytest.approx(found.against_base.change)
    assert set(found.keystrokes) == set(found.translation) == {"base", "adapter"}
    assert set(found.fidelity) == {"base", "adapter", "text"}
    assert found.keystrokes["base"].num_words == len(lines[0].split()) + 1
    assert forgotten.is_forgetting
    assert (forgotten.keystrokes, forgotten.fidelity) == ({}, {})
    told = json.loads(json.dumps(as_json([found, forgotten], "new", "old")))
    assert told["sentences"][0].startswith("set: its base is better than the adapter by")
    assert told["sentences"][1].startswith("set: old is better than new by")
    assert "nothing says which lines" in told["sentences"][2]


def test_untrained_adapter_makes_no_difference(
    adapters: tuple[Path, Path], made_up_lines: Lines, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("\n".join(made_up_lines("mag", 9)), encoding="utf-8")
    (found,) = prove(adapters[0], [plain_test(tmp_path / "t.txt")])
    assert found.against_base.better is None
    assert found.num_documents is None
    with pytest.raises(CorpusError, match="no text was given"):
        prove(adapters[0], [])


def test_writing_depends_on_its_seed_alone_and_stays_on_a_line(
    adapters: tuple[Path, Path], made_up_lines: Lines
) -> None:
    base = load_adapter(adapters[0])
    lines = made_up_lines("hin", 3)
    first, again, other = (
        continuations(base.model, base.tokenizer, lines, base.max_length, seed)
        for seed in (1, 1, 100)
    )
    assert first == again
    assert first != other
    assert not any("\n" in text for text in first)
    pairs = [(line, line) for line in made_up_lines("hin", SHOTS + 2)]
    assert len(translations(base.model, base.tokenizer, pairs, base.max_length)) == 2
    with pytest.raises(CorpusError, match="too few"):
        translations(base.model, base.tokenizer, pairs[:SHOTS], base.max_length)


def test_translations_are_scored_beside_their_copied_source() -> None:
    references = ["राम घर गइल बा ।", "सीता खेत में काम करत रहली ।"]
    sources = ["राम घर गया है ।", "सीता खेत में काम कर रही थी ।"]
    exact = translation_score(references, references, sources)
    assert (exact.chrf, exact.bleu) == (pytest.approx(100), pytest.approx(100))
    assert 0 < exact.copied_chrf < 100
    copied = translation_score(sources, references, sources)
    assert copied.chrf == copied.copied_chrf
    assert "nw:2" in exact.signature
    with pytest.raises(CorpusError, match="1 translations of 2"):
        translation_score(sources[:1], references, sources)
