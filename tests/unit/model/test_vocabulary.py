from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from boli.errors import ModelError
from boli.model.base import kept_in, save_base, train_tokenizer
from boli.model.framing import framing_of
from boli.model.vocabulary import (
    build_cut,
    check_fit,
    cut_model,
    cut_tokenizer,
    merged_counts,
    piece_counts,
)

Lines = Callable[[str, int], list[str]]
OTHER = ["ꯃꯩꯇꯩ ᱥᱟᱱᱛᱟᱲᱤ", "plain English, with digits 12345", "\ttab  two spaces\u200d", "ॐ 🙂"]


def byte_level(lines: list[str]) -> Any:
    return train_tokenizer(lines, 700)


def byte_fallback(lines: list[str]) -> Any:
    """Return a tokenizer as Gemma has it: SentencePiece's BPE, with bytes for what it lacks."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<unused1>"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*specials, *bytes_], show_progress=False
    )
    inner.train_from_iterator(lines, trainer)
    tables = json.loads(inner.to_str())
    tables["added_tokens"] = [
        one for one in tables["added_tokens"] if not one["content"].startswith("<0x")
    ]
    inner = tokenizers.Tokenizer.from_str(json.dumps(tables))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def unigram(lines: list[str]) -> Any:
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=list("".join(OTHER)),
    )
    inner.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=[byte_level, byte_fallback, unigram])
def trained(request: pytest.FixtureRequest, made_up_lines: Lines) -> tuple[Any, list[str]]:
    """Return a tokenizer of two languages, and lines of the one that is kept."""
    kept, dropped = made_up_lines("bho", 80), made_up_lines("mai", 80)
    return request.param(kept + dropped), kept


def tokens_of(tokenizer: Any, line: str) -> list[int]:
    found: list[int] = tokenizer(line, add_special_tokens=False)["input_ids"]
    return found


def test_text_of_kept_pieces_has_the_same_tokens(
    trained: tuple[Any, list[str]], made_up_lines: Lines
) -> None:
    tokenizer, lines = trained
    cut, what = cut_tokenizer(tokenizer, piece_counts(tokenizer, lines))
    assert len(cut) == len(what.kept) < len(tokenizer)
    kept, same = set(what.kept), 0
    # Also of lines that were not counted, where all their pieces happen to be kept.
    for line in [*lines, *made_up_lines("mai", 80), *made_up_lines("hin", 80), *OTHER]:
        before = tokens_of(tokenizer, line)
        if kept.issuperset(before):
            assert [what.kept[token] for token in tokens_of(cut, line)] == before
            same += 1
    assert same >= len(lines)


def test_other_text_comes_back_from_smaller_pieces(
    trained: tuple[Any, list[str]], made_up_lines: Lines
) -> None:
    tokenizer, lines = trained
    cut, _ = cut_tokenizer(tokenizer, piece_counts(tokenizer, lines[:5]))
    longer = 0
    for line in [*made_up_lines("mai", 30), *OTHER]:
        before, after = tokens_of(tokenizer, line), tokens_of(cut, line)
        assert cut.decode(after) == tokenizer.decode(before)
        longer += len(after) > len(before)
    assert longer


def test_every_kept_piece_can_be_reached(trained: tuple[Any, list[str]]) -> None:
    tokenizer, lines = trained
    cut, what = cut_tokenizer(tokenizer, of_several_lines(tokenizer, lines, 4))
    for old in what.kept:
        piece = tokenizer.convert_ids_to_tokens(old)
        model = cut.backend_tokenizer.model
        reached = [token.value for token in model.tokenize(piece)]
        alone = [token.value for token in tokenizer.backend_tokenizer.model.tokenize(piece)]
        if alone == [piece]:
            assert reached == [piece]


def test_texts_begin_and_end_as_before_and_placeholders_go(
    trained: tuple[Any, list[str]], tmp_path: Path
) -> None:
    tokenizer, lines = trained
    cut, what = cut_tokenizer(tokenizer, of_several_lines(tokenizer, lines, 2))
    cut.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    before, after = framing_of(tokenizer), framing_of(loaded)
    assert [what.kept[token] for token in after.scored(())] == before.scored(())
    assert not any("unused" in piece for piece in loaded.get_vocab())
    assert loaded.get_vocab() == cut.get_vocab()


def of_several_lines(tokenizer: Any, lines: list[str], least: int) -> dict[str, int]:
    return {p: n for p, n in piece_counts(tokenizer, lines).items() if n >= least}


def test_equal_lines_count_once() -> None:
    tokenizer = train_tokenizer(["पटना गया"] * 9, 300)
    found = piece_counts(tokenizer, ["पटना गया", "पटना गया", "पटना"])
    assert max(found.values()) == 2


def test_counts_of_sites_add_up() -> None:
    assert merged_counts([{"a": 2, "b": 1}, {}, {"b": 4}]) == {"a": 2, "b": 5}


def test_model_says_the_same_of_what_is_kept(family: Path, made_up_lines: Lines) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(family)
    lines = made_up_lines("hin", 12)
    folder = build_cut(family, piece_counts(tokenizer, lines))
    assert build_cut(family, piece_counts(tokenizer, lines)) == folder
    cut = transformers.AutoTokenizer.from_pretrained(folder)
    small = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32)
    number = small.config.vocab_size
    assert number < len(tokenizer)
    assert small.config.eos_token_id == cut.eos_token_id
    # The class of Qwen 2 adds one more, which no model knows.
    kept = tokenizer.convert_tokens_to_ids(cut.convert_ids_to_tokens(range(number)))
    for line in lines[:3]:
        before = whole(torch.tensor([tokens_of(tokenizer, line)])).logits[0][:, kept]
        after = small(torch.tensor([tokens_of(cut, line)])).logits[0]
        assert torch.allclose(before, after, atol=1e-5)


def test_base_in_half_precision_stays_so_on_the_disk_alone(
    family_folder: Callable[[str], Path], tmp_path: Path, made_up_lines: Lines
) -> None:
    origin = family_folder("gemma3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(origin)
    tokenizer.save_pretrained(tmp_path)
    save_base(transformers.AutoModelForCausalLM.from_pretrained(origin).half(), tmp_path)
    folder = build_cut(tmp_path, piece_counts(tokenizer, made_up_lines("hin", 3)))
    assert kept_in(folder) == torch.float16
    assert transformers.AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


def test_layout_whose_other_parts_may_know_the_vocabulary_is_refused(
    family_folder: Callable[[str], Path],
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(family_folder("llama"))
    model.config.model_type = "gemma3n_text"
    with pytest.raises(ModelError, match="'gemma3n_text' cannot be cut") as caught:
        cut_model(model, [0, 1])
    assert "gemma3_text" in caught.value.hint


def test_wordpiece_is_refused() -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[UNK]")
    with pytest.raises(ModelError, match="type WordPiece cannot be cut"):
        cut_tokenizer(tokenizer, {"a"})


def test_text_that_a_cut_does_not_fit_is_refused(made_up_lines: Lines) -> None:
    mine, theirs = made_up_lines("bho", 60), made_up_lines("mai", 60)
    tokenizer = byte_level(mine + theirs)
    cut, _ = cut_tokenizer(tokenizer, piece_counts(tokenizer, mine))
    assert check_fit(tokenizer, cut, mine, "site arrah", 0.0) == 0
    with pytest.raises(ModelError, match=r"site gaya takes .* more tokens") as caught:
        check_fit(tokenizer, cut, theirs, "site gaya", 0.05)
    assert "model.base.pieces" in caught.value.hint
    assert np.isfinite(check_fit(tokenizer, cut, theirs, "site gaya", 99.0))
