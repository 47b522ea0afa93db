"""What a model writes: continuations of lines, and translations from a few examples.

Continuations are sampled from the whole distribution cut at nine tenths of its mass. Translations
are greedy, after SHOTS pairs of the same test, each written `source = target` on a line.

Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration,
    https://arxiv.org/abs/1904.09751 (nucleus sampling)
Source: Post 2018, A Call for Clarity in Reporting BLEU Scores, https://aclanthology.org/W18-6319
Source: Popović 2017, chrF++: words helping character n-grams, https://aclanthology.org/W17-4770
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from boli.errors import CorpusError, ModelError
from boli.model.framing import framing_of

PROMPT_WORDS = 5
CONTINUED_TOKENS = 48
NUCLEUS = 0.9
SHOTS = 4
EQUALS = " = "


@dataclass(frozen=True)
class TranslationScore:
    """How near translations are to their references; more is better."""

    num_lines: int
    chrf: float  # chrF++, 0 to 100
    bleu: float  # 0 to 100
    copied_chrf: float  # of the source as it stands: what a model has to be better than
    signature: str  # of sacrebleu, for chrF++


def continuations(
    model: Any, tokenizer: Any, lines: Sequence[str], max_length: int, seed: int = 0
) -> list[str]:
    """Return what a model writes after the first words of each line, without them."""
    found = []
    for number, line in enumerate(lines):
        prompt = " ".join(line.split()[:PROMPT_WORDS])
        text = _written(model, tokenizer, prompt, max_length, seed=seed + number)
        found.append(text)
    return found


def translations(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],  # of source and target; the first SHOTS are examples
    max_length: int,
) -> list[str]:
    """Return a translation of each source after the first SHOTS.

    Raises:
        CorpusError: there are no more pairs than examples.
    """
    if len(pairs) <= SHOTS:
        raise CorpusError(
            f"{len(pairs)} pairs are too few: {SHOTS} of them are the examples",
            "give more pairs",
        )
    shots = "".join(f"{source}{EQUALS}{target}\n" for source, target in pairs[:SHOTS])
    return [
        _written(model, tokenizer, f"{shots}{source}{EQUALS.rstrip()}", max_length)
        for source, _ in pairs[SHOTS:]
    ]


@torch.no_grad()
def _written(
    model: Any, tokenizer: Any, prompt: str, max_length: int, seed: int | None = None
) -> str:
    """Return what follows a prompt, up to the end token or the end of its line."""
    framing = framing_of(tokenizer)
    device = next(model.parameters()).device
    room = max(1, max_length - CONTINUED_TOKENS - len(framing.begin))
    own = tokenizer(prompt, add_special_tokens=False)["input_ids"][-room:]
    tokens = torch.tensor([[*framing.begin, *own]], device=device)
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    written: list[int] = []
    past = None
    model.eval()
    while len(written) < min(CONTINUED_TOKENS, max_length - 1):
        out = model(input_ids=tokens, past_key_values=past, use_cache=True)
        past = out.past_key_values
        token = _chosen(out.logits[0, -1].float().cpu(), generator)
        if token == framing.end:
            break
        written.append(token)
        tokens = torch.tensor([[token]], device=device)
        if "\n" in tokenizer.decode(written[-1:]):
            break
    text = tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]
    return " ".join(text.split())


def _chosen(logits: torch.Tensor, generator: torch.Generator | None) -> int:
    if generator is None:
        return int(logits.argmax())
    shares, order = torch.softmax(logits, 0).sort(descending=True)
    before = shares.cumsum(0) - shares
    shares = torch.where(before < NUCLEUS, shares, torch.zeros_like(shares))
    return int(order[torch.multinomial(shares, 1, generator=generator)])


def translation_score(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> TranslationScore:
    """Return chrF++ and BLEU of translations, by sacrebleu, without a network.

    Raises:
        ModelError: sacrebleu is not installed.
        CorpusError: there are not as many translations as references.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise ModelError(
            "chrF++ and BLEU need sacrebleu, which is not installed", "pip install 'boli[proof]'"
        ) from None
    if len(hypotheses) != len(references) or not references:
        raise CorpusError(
            f"there are {len(hypotheses)} translations of {len(references)} sentences",
            "give one translation for each, in their order",
        )
    chrf = CHRF(word_order=2)
    scored = chrf.corpus_score(list(hypotheses), [list(references)])
    signature = str(chrf.get_signature())
    copied = chrf.corpus_score(list(sources), [list(references)])
    # 13a leaves Devanagari words whole, and splits Latin punctuation alone.
    bleu = BLEU(tokenize="13a", effective_order=False).corpus_score(
        list(hypotheses), [list(references)]
    )
    return TranslationScore(
        len(references), float(scored.score), float(bleu.score), float(copied.score), signature
    )
