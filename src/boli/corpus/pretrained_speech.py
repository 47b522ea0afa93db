"""Speech models that others trained, from a folder: faster-whisper, and those of transformers.

Nothing is fetched, no code from a folder runs, and pickled weights are refused.

Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision,
    https://arxiv.org/abs/2212.04356 (Whisper)
Source: Pratap et al. 2023, Scaling Speech Technology to 1,000+ Languages,
    https://arxiv.org/abs/2305.13516 (MMS: an adapter for each language)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boli.corpus.audio import RATE_HZ, Floats
from boli.corpus.recognizer import Heard
from boli.errors import ModelError
from boli.pretrained import load_model, load_part

if TYPE_CHECKING:
    from boli.corpus.speech import Transcriber

# ISO 639-3 → the codes of Whisper; a language that is not here is left to it to guess.
WHISPER_CODES = {
    **{"asm": "as", "ben": "bn", "eng": "en", "guj": "gu", "hin": "hi", "kan": "kn", "mal": "ml"},
    **{"mar": "mr", "nep": "ne", "npi": "ne", "pan": "pa", "san": "sa", "sin": "si", "snd": "sd"},
    **{"tam": "ta", "tel": "te", "urd": "ur"},
}
MOST_TOKENS = 220  # of a segment, for Whisper


class FasterWhisper:
    """Whisper in CTranslate2's format, on the CPU."""

    def __init__(self, model: Any, language: str | None) -> None:
        self.model = model
        self.language = language

    @classmethod
    def open(cls, folder: Path, language: str) -> FasterWhisper:
        """Load a folder with model.bin, config.json and tokenizer.json.

        Raises:
            ModelError: faster-whisper is not installed, or cannot load the folder.
        """
        try:
            from faster_whisper import WhisperModel
        except (ImportError, OSError) as error:
            raise ModelError(
                f"{folder} needs faster-whisper: {error}", "pip install 'boli[whisper]'"
            ) from None
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(  # it would be fetched
                f"{folder} has no tokenizer.json", "copy it from the model that was converted"
            )
        try:
            model = WhisperModel(
                str(folder), device="cpu", compute_type="default", local_files_only=True
            )
            known = model.supported_languages
        except Exception as error:  # they have no common kind
            raise _not_loaded(folder, error) from None
        code = WHISPER_CODES.get(language)
        return cls(model, code if code in known else None)

    def transcribe(self, samples: Floats) -> Heard:
        """Return the text of (n,) samples at 16 kHz."""
        found, _ = self.model.transcribe(
            samples,
            language=self.language,
            condition_on_previous_text=False,
            temperature=0.0,  # above it text would differ from run to run
            without_timestamps=True,
            max_new_tokens=MOST_TOKENS,
        )
        parts = [(part.text.strip(), part.avg_logprob, part.end - part.start) for part in found]
        text = " ".join(text for text, _, _ in parts if text)
        seconds = sum(length for _, _, length in parts)
        if not text or seconds <= 0:
            return Heard(text, 0.0)
        mean = sum(chance * length for _, chance, length in parts) / seconds
        return Heard(text, min(1.0, math.exp(mean)))


class TransformersWhisper:
    """Any sequence-to-sequence model for speech recognition of transformers."""

    def __init__(self, model: Any, processor: Any, language: str | None) -> None:
        self.model = model
        self.processor = processor
        self.language = language

    def transcribe(self, samples: Floats) -> Heard:
        """Return the text of (n,) samples at 16 kHz."""
        import torch

        given = self.processor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        name = self.model.main_input_name
        options: dict[str, Any] = {}
        if self.language:
            options = {"language": self.language, "task": "transcribe"}
        room = getattr(self.model.config, "max_target_positions", None) or 2 * MOST_TOKENS
        with torch.inference_mode():
            made = self.model.generate(
                given[name],
                max_new_tokens=min(MOST_TOKENS, room // 2),
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
            scores = self.model.compute_transition_scores(
                made.sequences, made.scores, normalize_logits=True
            )
        text = str(self.processor.batch_decode(made.sequences, skip_special_tokens=True)[0])
        finite = scores[torch.isfinite(scores)]
        sure = float(finite.mean().exp()) if finite.numel() else 0.0
        return Heard(" ".join(text.split()), min(1.0, sure))


class TransformersCtc:
    """Any CTC model for speech recognition of transformers: wav2vec2, HuBERT, MMS."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    def transcribe(self, samples: Floats) -> Heard:
        """Return the text of (n,) samples at 16 kHz."""
        import numpy as np
        import torch

        least = 1600  # samples; the convolutions need some
        if samples.size < least:
            samples = np.pad(samples, (0, least - samples.size))
        given = self.processor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            steps = self.model(**given).logits[0].log_softmax(-1)
        chances, best = steps.max(-1)
        text = " ".join(str(self.processor.batch_decode(best[None])[0]).split())
        voiced = chances[best != self.processor.tokenizer.pad_token_id]
        return Heard(text, float(voiced.mean().exp()) if text and voiced.numel() else 0.0)


def open_transformers(folder: Path, language: str, facts: Mapping[str, Any]) -> Transcriber:
    """Load a folder of transformers; `facts` are its config.json.

    Raises:
        ModelError: its weights are pickled, it recognizes no speech, or it cannot be loaded.
    """
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise ModelError(
            f"{folder} has pickled weights, {pickled[0]}, which can run code when they are read"
            if pickled
            else f"{folder} has no weights",
            "save the model again with save_pretrained(..., safe_serialization=True)",
        )
    from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor
    from transformers.models.auto import modeling_auto as known_models
    from transformers.utils import logging

    kind = facts.get("model_type")
    by_ctc = kind in known_models.MODEL_FOR_CTC_MAPPING_NAMES
    if not by_ctc and kind not in known_models.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        raise ModelError(
            f"{folder} holds a model of type {kind!r}, which recognizes no speech",
            "give a Whisper, wav2vec2, HuBERT or MMS model",
        )
    loader = AutoModelForCTC if by_ctc else AutoModelForSpeechSeq2Seq
    logging.disable_progress_bar()
    try:
        processor = load_part(AutoProcessor, folder)
        model = load_model(loader, folder).eval()
    except ModelError:
        raise
    except Exception as error:  # they have no common kind
        raise _not_loaded(folder, error) from None
    if by_ctc:
        _speak(model, processor, folder, language)
        return TransformersCtc(model, processor)
    known = getattr(model.generation_config, "lang_to_id", None) or {}
    code = WHISPER_CODES.get(language)
    return TransformersWhisper(model, processor, code if f"<|{code}|>" in known else None)


def _speak(model: Any, processor: Any, folder: Path, language: str) -> None:
    """Give a model of many languages (MMS) the adapter of this one."""
    if not getattr(model.config, "adapter_attn_dim", None):
        return
    if not (folder / f"adapter.{language}.safetensors").is_file():
        there = sorted(path.name.split(".")[1] for path in folder.glob("adapter.*.safetensors"))
        raise ModelError(
            f"{folder} has no adapter.{language}.safetensors; it has {', '.join(there) or 'none'}",
            "copy the adapter of the language into the folder, or choose another language",
        )
    try:
        processor.tokenizer.set_target_lang(language)
        model.load_adapter(language, local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise _not_loaded(folder, error) from None


def _not_loaded(folder: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    return ModelError(
        f"cannot load the speech model in {folder}: {type(error).__name__}: {reason}",
        "copy the whole folder again; nothing is fetched from a network",
    )
