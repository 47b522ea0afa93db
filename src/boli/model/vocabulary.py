"""Cut a base's vocabulary to the pieces that sites write: most of a small multilingual model.

Of the 262,144 pieces of Gemma 3 some 11,000 occur in text of a few Indic languages; with the
others go three fifths of its parameters, and most of the time and memory of a step.

What is kept: the pieces that were asked for, every piece that they are merged from, the bytes and
characters that all other text falls back to, and the special tokens. A text whose tokens are all
kept has the same tokens as before, and the same logits for them.

Source: Sennrich et al. 2016, byte-pair encoding, https://arxiv.org/abs/1508.07909; Abdaoui et al.
2020, Load What You Need: Smaller Versions of Multilingual BERT, https://arxiv.org/abs/2010.05609.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from boli.errors import ModelError
from boli.model.base import built, kept_in, save_base
from boli.model.base_check import TOKENIZER, check_base, is_allowed_name
from boli.model.framing import END_OF_TEXT, framing_of
from boli.pretrained import CONFIG, load_config, load_model, load_part, refused

FORMAT = 2  # of a base that was cut; part of the cache's name
# Whose embedding and head are the only parts that know the vocabulary.
LAYOUTS = ("llama", "mistral", "gemma3_text", "qwen2", "qwen3", "bloom", "gpt2")
LINES_AT_ONCE = 1000
BLOCK_BYTES = 1 << 20
_PLACEHOLDER = re.compile(r"unused|reserved|extra_id|^\[PAD\d+\]$|^\[control_", re.IGNORECASE)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def piece_counts(
    tokenizer: Any,
    lines: Iterable[str],  # that are nobody's secret: every piece of them is named
) -> dict[str, int]:  # piece to lines that it occurs in
    """Count the pieces of a text; lines that are equal count once."""
    counts: Counter[int] = Counter()
    different = list(dict.fromkeys(lines))
    for start in range(0, len(different), LINES_AT_ONCE):
        rows = tokenizer(different[start : start + LINES_AT_ONCE], add_special_tokens=False)
        for row in rows["input_ids"]:
            counts.update(set(row))
    names = tokenizer.convert_ids_to_tokens(list(counts))
    return dict(zip(names, counts.values(), strict=True))


def merged_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of several sites' counts."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


@dataclass(frozen=True)
class Cut:
    """A tokenizer with fewer pieces, and where they were before."""

    kept: tuple[int, ...]  # old numbers, ascending; a token's new number is its place
    tables: dict[str, Any]  # of tokenizer.json


def cut_tables(tokenizer: Any, pieces: Collection[str], num_tokens: int) -> Cut:
    """Return the tables of a tokenizer that knows these pieces and what they are made of.

    Of `num_tokens` on the model knows no token, whatever the tokenizer has added.

    Raises:
        ModelError: it is neither BPE nor Unigram.
    """
    tables = json.loads(tokenizer.backend_tokenizer.to_str())
    tables["added_tokens"] = [one for one in tables["added_tokens"] if one["id"] < num_tokens]
    model, added = tables["model"], {one["content"]: one for one in tables["added_tokens"]}
    if model["type"] == "BPE":
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise _unknown("BPE that marks the parts of words")
        numbers = dict(model["vocab"])
    elif model["type"] == "Unigram":
        numbers = {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    else:
        raise _unknown(model["type"])
    wanted = {piece for piece in pieces if piece in numbers}
    kept = wanted | _specials(tokenizer, tables, pieces) | _fallback(tables, numbers, wanted)
    numbers |= {content: one["id"] for content, one in added.items()}
    if model["type"] == "BPE":
        ranks = {_pair(both): rank for rank, both in enumerate(model["merges"])}
        for piece in wanted - added.keys():
            kept.update(part for part in _parts(piece, ranks) if part in numbers)
    places = {piece: place for place, piece in enumerate(sorted(kept, key=numbers.__getitem__))}
    _rewrite(tables, places)
    return Cut(tuple(sorted(numbers[piece] for piece in kept)), tables)


def _unknown(kind: str) -> ModelError:
    return refused(
        f"the vocabulary of a tokenizer of type {kind} cannot be cut",
        'set model.base.vocabulary.cut = "none", or choose a base with BPE or Unigram',
    )


def _pair(both: Any) -> tuple[str, str]:
    left, right = both.split(" ") if isinstance(both, str) else both
    return left, right


def _parts(piece: str, ranks: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """Yield the characters of a piece and all that BPE makes of them on the way to it.

    Within a longer word the piece comes about by the same merges, as none crosses its ends.
    """
    symbols = list(piece)
    yield from symbols
    while len(symbols) > 1:
        pairs = list(pairwise(symbols))
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairs))
        if rank == len(ranks):
            return
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        yield symbols[place]


def _specials(tokenizer: Any, tables: Mapping[str, Any], pieces: Collection[str]) -> set[str]:
    """Return the added tokens that a text or its frame needs, and the unknown token."""
    named = set(tokenizer.all_special_tokens) | {END_OF_TEXT}
    kept = {
        one["content"]
        for one in tables["added_tokens"]
        if one["content"] in named
        or one["content"] in pieces
        or (one["special"] and not _PLACEHOLDER.search(one["content"]))
    }
    unknown = tables["model"].get("unk_token")
    kept |= {unknown} & tables["model"]["vocab"].keys() if isinstance(unknown, str) else set()
    number = tables["model"].get("unk_id")
    kept |= set() if number is None else {tables["model"]["vocab"][number][0]}
    framing = framing_of(tokenizer)
    kept.update(tokenizer.convert_ids_to_tokens([*framing.begin, framing.end]))
    return kept


def _fallback(
    tables: Mapping[str, Any], numbers: Mapping[str, int], wanted: Collection[str]
) -> set[str]:
    """Return what other text is spelled with: bytes, or all single characters where there are none.

    The characters of what is wanted are kept as well.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    kept = {character for piece in wanted for character in piece}
    if tables["model"].get("byte_fallback"):
        kept |= {f"<0x{byte:02X}>" for byte in range(256)}
    elif '"ByteLevel"' in json.dumps([tables["pre_tokenizer"], tables["normalizer"]]):
        kept |= set(ByteLevel.alphabet())
    else:
        kept |= {piece for piece in numbers if len(piece) == 1}
    return kept & numbers.keys()


def _rewrite(tables: dict[str, Any], places: Mapping[str, int]) -> None:
    """Give the kept pieces their new numbers, wherever the tables name them."""
    model = tables["model"]
    if model["type"] == "BPE":
        # Added tokens too: else they would be numbered behind all others.
        model["vocab"] = dict(places)
        model["merges"] = [
            list(pair)
            for pair in map(_pair, model["merges"])
            if pair[0] in places and pair[1] in places and "".join(pair) in places
        ]
    else:
        scores = dict(map(tuple, model["vocab"]))
        unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
        worst = min(scores.values(), default=0.0)
        model["vocab"] = [[piece, scores.get(piece, worst)] for piece in places]
        model["unk_id"] = None if unknown is None else places[unknown]
    tables["added_tokens"] = [
        {**one, "id": places[one["content"]]}
        for one in tables["added_tokens"]
        if one["content"] in places
    ]
    _renumber(tables.get("post_processor"), places)


def _renumber(processor: Any, places: Mapping[str, int]) -> None:
    """Renumber the tokens that a post-processor, or each of several, adds."""
    if not isinstance(processor, dict):
        return
    for one in processor.get("processors", ()):
        _renumber(one, places)
    specials = processor.get("special_tokens", {})
    for name, one in list(specials.items()):
        if all(token in places for token in one["tokens"]):
            one["ids"] = [places[token] for token in one["tokens"]]
        else:
            del specials[name]  # of no template: what templates add is kept
    for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
        if isinstance(processor.get(name), list):
            processor[name] = [processor[name][0], places[processor[name][0]]]


def cut_tokenizer(
    tokenizer: Any,
    pieces: Collection[str],
    num_tokens: int = sys.maxsize,  # that the model knows
) -> tuple[Any, Cut]:
    """Return a tokenizer that knows these pieces and what they are made of, and what was cut.

    Raises:
        ModelError: it is neither BPE nor Unigram, or would not begin texts as before.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    cut = cut_tables(tokenizer, pieces, num_tokens)
    there = set(tokenizer.convert_ids_to_tokens(list(cut.kept)))
    named = {name: value for name in _NAMED if (value := getattr(tokenizer, name, None)) in there}
    cut_down = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(cut.tables)),
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **named,
    )
    places = {old: new for new, old in enumerate(cut.kept)}
    before, after = framing_of(tokenizer), framing_of(cut_down)
    expected = [places[token] for token in before.scored(())]
    if len(cut_down) != len(cut.kept) or after.scored(()) != expected:
        raise refused(
            f"the tokenizer does not survive a cut: {len(cut.kept)} pieces were kept, and "
            f"{len(cut_down)} are known, begun by {after.begin} and not by {expected[:-1]}",
            'set model.base.vocabulary.cut = "none"',
        )
    return cut_down, cut


def cut_model(model: Any, kept: Sequence[int]) -> None:
    """Keep these rows of a model's embedding and head, in place.

    Raises:
        ModelError: it is of a layout in which other parts may know the vocabulary.
    """
    import torch
    from torch import nn

    kind = model.config.model_type
    if kind not in LAYOUTS:
        raise refused(
            f"the vocabulary of a base of type {kind!r} cannot be cut",
            f'set model.base.vocabulary.cut = "none", or choose one of {", ".join(LAYOUTS)}',
        )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = torch.tensor(kept)
    if int(rows[-1]) >= embedding.num_embeddings:
        raise ModelError(
            f"the tokenizer has token {int(rows[-1])}, and the model knows "
            f"{embedding.num_embeddings} tokens",
            "use the tokenizer that belongs to the model",
        )
    tied = head.weight is embedding.weight
    embedding.weight = nn.Parameter(embedding.weight.detach()[rows].clone())
    embedding.num_embeddings = head.out_features = len(kept)
    old = embedding.padding_idx
    embedding.padding_idx = kept.index(old) if old in kept else None
    head.weight = embedding.weight if tied else nn.Parameter(head.weight.detach()[rows].clone())
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias.detach()[rows].clone())
    model.config.vocab_size = len(kept)


def _renumber_config(model: Any, kept: Sequence[int]) -> None:
    places = {old: new for new, old in enumerate(kept)}
    for settings in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
            old = getattr(settings, name, None)
            if isinstance(old, list):
                setattr(settings, name, [places[one] for one in old if one in places] or None)
            elif old is not None:
                setattr(settings, name, places.get(old))
    for name in ("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"):
        setattr(model.generation_config, name, None)


def build_cut(origin: Path, pieces: Collection[str]) -> Path:
    """Return the folder of a base whose vocabulary is cut to these pieces; built once for each set.

    Plain transformers loads it.

    Raises:
        ModelError: its vocabulary cannot be cut.
        StorageError: the cache cannot be written.
    """
    import transformers

    tokenizer = load_part(transformers.AutoTokenizer, origin)
    num_tokens = load_config(str(origin)).vocab_size
    cut_down, cut = cut_tokenizer(tokenizer, pieces, num_tokens)
    digest = hashlib.sha256(f"{FORMAT}\n{cut.kept}\n".encode())
    for path in sorted(origin.iterdir()):
        if path.suffix == ".safetensors" or path.name in (CONFIG, TOKENIZER):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)

    def build(folder: Path) -> None:
        transformers.utils.logging.disable_progress_bar()
        model = load_model(transformers.AutoModelForCausalLM, origin, dtype=kept_in(origin))
        whole = model.get_input_embeddings().num_embeddings
        cut_model(model, cut.kept)
        _renumber_config(model, cut.kept)
        save_base(model, folder)
        cut_down.save_pretrained(folder)
        about = {"vocabulary": {"pieces": len(cut.kept), "of": whole}}
        (folder / "boli.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
        check_base(folder, [file.name for file in folder.iterdir() if is_allowed_name(file.name)])

    return built(digest.hexdigest()[:16], build)


def check_fit(whole: Any, cut: Any, lines: Sequence[str], whose: str, most_longer: float) -> float:
    """Return the share of tokens that a text takes more under a cut tokenizer.

    `whose` says in an error whose text it is.

    Raises:
        ModelError: it is more than `most_longer`.
    """
    before, after = (
        sum(len(row) for row in tokenizer(list(lines), add_special_tokens=False)["input_ids"])
        for tokenizer in (whole, cut)
    )
    longer = after / max(1, before) - 1
    if longer > most_longer:
        raise ModelError(
            f"the text of {whose} takes {longer:.1%} more tokens with the vocabulary cut, and "
            f"model.base.vocabulary.most_longer is {most_longer:.1%}",
            "lower the floors of model.base.pieces, so that more of its words are kept, or set "
            'cut = "none"',
            code="model.vocabulary",
        )
    return longer
