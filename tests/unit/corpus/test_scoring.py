"""Scores are bits per byte, whatever stands beside a text in its batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from boli.corpus.cleaning import Cleaner, Settings
from boli.corpus.documents import Document
from boli.corpus.scoring import Scorer, open_scorer
from boli.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an untrained model over bytes."""
    path = tmp_path_factory.mktemp("scorer")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(path)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return open_scorer(folder)


def test_an_untrained_model_needs_about_eight_bits(scorer: Scorer) -> None:
    (score,) = scorer(["आज बाजार में बहुत भीड़ बा"])
    assert score == pytest.approx(math.log2(257), abs=0.3)


def test_a_score_does_not_depend_on_the_batch(scorer: Scorer) -> None:
    texts = ["क ख ग", "आज बाजार में बहुत भीड़ बा " * 40, "घ", "", "आज"]
    together = scorer(texts)
    for text, score in zip(texts, together, strict=True):
        assert scorer([text])[0] == pytest.approx(score, rel=1e-4)
    assert together[3] == math.inf


def test_records_carry_the_score_and_the_worst_are_dropped(folder: Path) -> None:
    text = "आज बाजार में बहुत भीड़ बा, सब लोग आइल बाड़न।"
    document = Document("a.txt#1", text)
    for most_bits, kept in ((None, 1), (9.0, 1), (7.0, 0)):
        settings = Settings("bho", "Deva", scorer=str(folder), most_bits=most_bits)
        records, _, dropped, _ = Cleaner(settings).clean([document], [0])
        assert len(records) == kept
        assert [row.reason for row in dropped] == ["low score"] * (1 - kept)
        assert all(7 < (record.quality or 0) < 9 for record in records)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="no language model"):
        open_scorer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load"):
        open_scorer(tmp_path)
