"""Fingerprints, and which of them are duplicates."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from boli.corpus import dedup, signatures
from boli.corpus.dedup import KEPT, Duplicates, SignatureFile, near_duplicates
from boli.corpus.signatures import (
    BANDS,
    SIGNATURE_BYTES,
    THRESHOLD,
    bands_of,
    fingerprints,
    matrix_of,
    signature_of,
    similarity,
)
from boli.corpus.similar import SignatureIndex, similar
from boli.corpus.sources import normal_form
from boli.errors import CorpusError, CorruptFileError, StorageError

ARTICLE = (
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। "
    "उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।"
)


def grouped(folder: Path, texts: Sequence[str], **settings: int) -> Duplicates:
    with SignatureFile(folder / "rows") as file:
        file.append(fingerprints(texts))
    return near_duplicates(folder / "rows", **settings)  # type: ignore[arg-type]


def documents(made_up_lines: Callable[[str, int], list[str]], count: int) -> list[str]:
    lines = made_up_lines("hin", count * 6)
    return [" ".join(lines[first : first + 6]) for first in range(0, count * 6, 6)]


def edited(text: str, share: float, seed: int) -> str:
    rng = random.Random(seed)
    words = text.split()
    for place in rng.sample(range(len(words)), round(share * len(words))):
        words[place] = "".join(rng.sample("कखगघचछजझटठ", 4))
    return " ".join(words)


def test_signature_stays_the_same_for_ever() -> None:
    (signature,) = signature_of([ARTICLE])
    short, long = signature_of(["ᱩᱱᱤᱭᱟᱜ ᱧᱩᱛᱩᱢ ᱫᱚ ᱠᱤᱱᱜᱲᱴᱚᱱ ᱠᱟᱱᱟ᱾", ARTICLE * 40 + "!"])
    found = [hashlib.sha256(each).hexdigest()[:16] for each in (signature, short, long)]
    assert signature[:8].hex() == "e2b5db714c25e130"
    assert found == ["20419e73650d134c", "fe3930e2099108d8", "7c742665d693442a"]
    exact, seeded = fingerprints([ARTICLE], seed=7)[0]
    assert exact.hex() == "0d0cd68667a2af85008206c3f93e8551"
    assert hashlib.sha256(seeded).hexdigest()[:16] == "b8bf2d8d3c2ef9b3"


def test_signature_is_of_normal_form() -> None:
    plain, spaced = fingerprints([ARTICLE, "  " + ARTICLE.replace(" ", " - ") + "!?"])
    assert plain == spaced
    assert fingerprints(["HELLO ﬁne ① World, hello!"]) == fingerprints(["hello fine 1 world hello"])


def test_short_text_has_no_signature_but_exact_hash() -> None:
    (exact, signature), (same, _) = fingerprints(["नमस्ते दुनिया", "नमस्ते, दुनिया!"])
    assert signature == b""
    assert exact == same
    assert len(signature_of(["अ" * 20])[0]) == SIGNATURE_BYTES


def test_texts_without_letters_are_not_all_the_same() -> None:
    prints = fingerprints(["!!!", "???", "", "!!!"])
    assert len({exact for exact, _ in prints}) == 3


def test_half_a_surrogate_pair_is_taken() -> None:
    assert len(fingerprints(["\ud800" * 30, "\ud800!"])) == 2


def test_other_seed_gives_signature_that_compares_with_none() -> None:
    assert similarity(signature_of([ARTICLE])[0], signature_of([ARTICLE], seed=1)[0]) < 0.02


def test_similarity_estimates_jaccard(made_up_lines: Callable[[str, int], list[str]]) -> None:
    texts = documents(made_up_lines, 60)
    others = [edited(text, place / 100, place) for place, text in enumerate(texts)]
    errors = []
    for text, other, one, two in zip(
        texts, others, signature_of(texts), signature_of(others), strict=True
    ):
        sets = [
            {form[at : at + 4] for at in range(len(form) - 3)}
            for form in map(normal_form, (text, other))
        ]
        errors.append(similarity(one, two) - len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.035
    assert similarity(b"", b"") == 0


def test_very_repetitive_text_gets_whole_signature() -> None:
    signature = signature_of(["क" * 70_000])[0]
    assert np.frombuffer(signature, "<u2").any()
    assert signature == signature_of(["क" * 30])[0]


def test_bands_of_no_signature_are_zero() -> None:
    keys = bands_of(matrix_of([b"", *signature_of([ARTICLE])]))
    assert keys.shape == (BANDS, 2)
    assert not keys[:, 0].any()
    assert keys[:, 1].all()


def test_two_bands_share_at_most_one_slot() -> None:
    # A changed slot changes only the keys of bands with it, so the keys tell the slots.
    base = np.full((1, 256), 7, np.uint16)
    changed = np.repeat(base, 256, axis=0)
    changed[np.arange(256), np.arange(256)] = 9
    has = (bands_of(changed) != bands_of(base)).astype(int)  # (bands, slots)
    assert (has.sum(1) == 5).all()
    assert (has @ has.T - 5 * np.eye(BANDS)).max() == 1


def test_edited_copies_are_dropped_for_the_first(
    tmp_path: Path, made_up_lines: Callable[[str, int], list[str]]
) -> None:
    texts = documents(made_up_lines, 40)
    copies = [edited(text, 0.1, seed) for seed, text in enumerate(texts)]
    found = grouped(tmp_path, texts + copies)
    assert (found.kept_of[:40] == KEPT).all()
    assert found.kept_of[40:].tolist() == list(range(40))
    assert not found.exact.any()


def test_exact_copies_are_told_from_near_ones(tmp_path: Path) -> None:
    found = grouped(tmp_path, [ARTICLE, "हाँ", ARTICLE + "!", edited(ARTICLE, 0.1, 1), "हाँ।", "ना"])
    assert found.kept_of.tolist() == [KEPT, KEPT, 0, 0, 1, KEPT]
    assert found.exact.tolist() == [False, False, True, False, True, False]


def chain(seed: int) -> list[str]:
    """Return A, B, C where A ~ B ~ C, and A is unlike C."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("कखगघचजटडतदनपबमयरलवसह", k=5)) for _ in range(160)]
    return [" ".join(words[first : first + 100]) for first in (0, 30, 60)]


def test_end_of_chain_stays(tmp_path: Path) -> None:
    texts = [text for seed in range(8) for text in chain(seed)]
    a, b, c = signature_of(texts[:3])
    assert similarity(a, b) > THRESHOLD
    assert similarity(b, c) > THRESHOLD
    assert similarity(a, c) < THRESHOLD
    assert grouped(tmp_path, texts).kept_of.tolist() == [
        kept for first in range(0, 24, 3) for kept in (KEPT, first, KEPT)
    ]


def test_every_order_of_chain_leaves_kept_rows_unlike(tmp_path: Path) -> None:
    texts = [text for seed in range(30) for text in chain(seed)]
    random.Random(4).shuffle(texts)
    kept_of = grouped(tmp_path, texts).kept_of
    prints = signature_of(texts)
    kept = np.flatnonzero(kept_of == KEPT).tolist()
    for place, row in enumerate(kept):
        assert all(similarity(prints[row], prints[other]) < THRESHOLD for other in kept[:place])
    for row in np.flatnonzero(kept_of != KEPT).tolist():
        assert kept_of[row] < row
        assert kept_of[kept_of[row]] == KEPT
        assert similarity(prints[row], prints[kept_of[row]]) >= THRESHOLD


def test_thousands_of_copies_are_compared_with_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    alike = dedup._Grouping._alike

    def counted(self: dedup._Grouping, rows: dedup.Rows, others: dedup.Rows) -> np.ndarray:  # type: ignore[type-arg]
        compared.append(rows.size)
        return alike(self, rows, others)

    monkeypatch.setattr(dedup._Grouping, "_alike", counted)
    texts = [f"{ARTICLE} {number}" for number in range(3000)]
    assert (grouped(tmp_path, texts).kept_of[1:] == 0).all()
    assert sum(compared) < 20_000


def test_memory_and_batches_change_nothing(
    tmp_path: Path, made_up_lines: Callable[[str, int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents(made_up_lines, 80)
    texts += [edited(text, 0.2, seed) for seed, text in enumerate(texts)] + texts[:9]
    whole = grouped(tmp_path, texts)
    for name, value in (("_BLOCK", 16), ("_COMPARED", 3), ("_SPAN", 4), ("_GAP", 1)):
        monkeypatch.setattr(dedup, name, value)
    monkeypatch.setattr(signatures, "_TOGETHER", 100)
    monkeypatch.setattr(signatures, "_PAIRS", 50)
    small = grouped(tmp_path, texts, memory_bytes=800)
    np.testing.assert_array_equal(whole.kept_of, small.kept_of)
    np.testing.assert_array_equal(whole.exact, small.exact)


def test_no_rows_have_no_duplicates(tmp_path: Path) -> None:
    assert grouped(tmp_path, []).kept_of.size == 0


def test_signature_file_goes_on_after_known_rows(tmp_path: Path) -> None:
    path, prints = tmp_path / "rows", fingerprints([ARTICLE, "हाँ", "ना"])
    with SignatureFile(path) as file:
        file.append(prints)
        file.flush()
    with SignatureFile(path, keep_rows=1) as file:
        file.append(prints[:1])
        assert file.num_rows == 2
    assert near_duplicates(path).kept_of.tolist() == [KEPT, 0]
    with pytest.raises(CorruptFileError, match="holds 2 signatures, not 5"):
        SignatureFile(path, keep_rows=5)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        near_duplicates(tmp_path / "none")
    with pytest.raises(StorageError, match="cannot write"):
        SignatureFile(tmp_path / "none" / "rows")
    (tmp_path / "rows").write_bytes(b"half a row")
    with pytest.raises(CorruptFileError, match="within a signature"):
        near_duplicates(tmp_path / "rows")


def test_similar_names_other_site_text(made_up_lines: Callable[[str, int], list[str]]) -> None:
    theirs = documents(made_up_lines, 50)
    own = [edited(theirs[20], 0.1, 1), ARTICLE, "हाँ", theirs[3]]
    assert similar(signature_of(own), signature_of(theirs)) == [20, -1, -1, 3]
    assert similar([], signature_of(theirs)) == []
    assert similar(signature_of(own), []) == [-1] * 4
    assert similar([b""], [b""]) == [-1]


def test_index_goes_on_with_more_of_others(
    made_up_lines: Callable[[str, int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = documents(made_up_lines, 50)
    signs = signature_of(theirs)
    monkeypatch.setattr("boli.corpus.similar._COMPARED", 2)
    index: SignatureIndex[str] = SignatureIndex([signs[40], signs[2]] * 3)
    index.look_up((f"t{row}", signs[row]) for row in range(30))
    assert index.keys == [None, "t2"] * 3
    index.look_up((f"t{row}", signs[row]) for row in range(30, 50))
    assert index.keys == ["t40", "t2"] * 3


@pytest.mark.corpora
def test_template_with_other_names_is_found_in_real_text(tmp_path: Path, corpora: Path) -> None:
    lines = (corpora / "mono" / "sat_hembram.txt").read_text(encoding="utf-8").splitlines()
    found = grouped(tmp_path, lines)
    forms = [normal_form(line) for line in lines]
    assert found.exact.sum() == len(forms) - len(set(forms))
    assert (found.kept_of != KEPT).sum() > 5000
