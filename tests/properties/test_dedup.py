"""What holds of near duplicates for any texts, in any batches."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from boli.corpus import signatures
from boli.corpus.dedup import KEPT, Duplicates, SignatureFile, near_duplicates
from boli.corpus.signatures import THRESHOLD, bands_of, fingerprints, matrix_of, signature_of
from boli.corpus.similar import similar
from boli.corpus.sources import normal_form


@st.composite
def corpora(draw: st.DrawFn) -> list[str]:
    """Return texts of which many are edits, parts and repeats of each other."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    letters = draw(st.sampled_from(["कखगघचजटडतािी", "abcdefghij", "ᱚᱛᱜᱝᱞᱟᱠ"]))
    words = ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(200)]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 60)))]
    for _ in range(draw(st.integers(0, 40))):
        text = rng.choice(texts).split()
        for _ in range(rng.randint(0, 1 + len(text) // 3)):
            text[rng.randrange(len(text))] = rng.choice(words)
        texts.append(" ".join(rng.choice([text, text, rng.choices(words, k=30)])))
    return texts


def grouped(texts: list[str], batch: int, memory_bytes: int = 64 << 20) -> Duplicates:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows")
        for first in range(0, len(texts), batch):
            with SignatureFile(path, keep_rows=first) as file:
                file.append(fingerprints(texts[first : first + batch]))
        return near_duplicates(path, memory_bytes=memory_bytes)


def jaccard(one: str, other: str) -> float:
    first, second = (
        {form[at : at + signatures.SHINGLE] for at in range(len(form) - signatures.SHINGLE + 1)}
        for form in (normal_form(one), normal_form(other))
    )
    return len(first & second) / max(1, len(first | second))


@settings(deadline=None, max_examples=40)
@given(corpora(), st.integers(1, 50), st.integers(200, 4000))
def test_result_depends_on_no_batch_and_no_memory(
    texts: list[str], batch: int, memory_bytes: int
) -> None:
    whole, small = grouped(texts, len(texts)), grouped(texts, batch, memory_bytes)
    np.testing.assert_array_equal(whole.kept_of, small.kept_of)
    np.testing.assert_array_equal(whole.exact, small.exact)


@settings(deadline=None, max_examples=60)
@given(corpora())
def test_dropped_row_is_like_the_earlier_one_that_is_kept(texts: list[str]) -> None:
    kept_of, exact = grouped(texts, 100)
    forms = [normal_form(text) for text in texts]
    for row, kept in enumerate(kept_of.tolist()):
        assert exact[row] == (forms[row] in forms[:row])
        assert kept < row
        if kept != KEPT:
            assert kept_of[kept] == KEPT
            # Four and a half standard errors of the estimate.
            assert forms[row] == forms[kept] or jaccard(texts[row], texts[kept]) > THRESHOLD - 0.14
        else:
            assert not exact[row]


@settings(deadline=None, max_examples=40)
@given(corpora())
def test_second_pass_over_what_is_kept_finds_nothing(texts: list[str]) -> None:
    kept = [texts[row] for row in np.flatnonzero(grouped(texts, 100).kept_of == KEPT)]
    assert (grouped(kept, 100).kept_of == KEPT).all()


@settings(deadline=None, max_examples=40)
@given(corpora(), corpora())
def test_similar_agrees_with_comparing_each_with_each(own: list[str], others: list[str]) -> None:
    ours, theirs = signature_of(own), signature_of(own[::2] + others)
    found = similar(ours, theirs)
    one, other = matrix_of(ours), matrix_of(theirs)
    shared = (bands_of(one)[:, :, None] == bands_of(other)[:, None]).any(0)
    like = shared & ((one[:, None] == other).mean(2) >= THRESHOLD)
    like &= np.array([bool(sign) for sign in ours])[:, None]
    assert [place != -1 for place in found] == like.any(1).tolist()
    assert all(like[row, place] for row, place in enumerate(found) if place != -1)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(max_size=80), max_size=12))
def test_fingerprints_go_by_normal_form(texts: list[str]) -> None:
    prints = fingerprints(texts)
    forms = [normal_form(text) or text for text in texts]
    for form, (exact, signature) in zip(forms, prints, strict=True):
        assert bool(signature) == (len(form) >= signatures.SHORTEST and normal_form(form) != "")
        for other, (twin, same) in zip(forms, prints, strict=True):
            assert (exact == twin) == (form == other)
            assert exact != twin or signature == same
