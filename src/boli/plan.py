"""The plan: one TOML file that says what to train, where, and how it is judged.

Section names are package names. Unknown keys are refused. The rules that span
several keys stand at the end of each section, and say what to change.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from boli.plan_rounds import CodecPlan, RoundsPlan, Section

LANGUAGE = r"^[a-z]{3}$"
NAME = r"^[a-z0-9][a-z0-9-]{0,30}$"
TOKENIZERS = ("auto", "sites", "base")  # made for the plan, from whose words
OF_LOW_RANK = {"kind", "rank", "alpha", "targets"}  # who names one of these has chosen an adapter


def available_cores() -> int:
    """Return how many cores this process may use, which in a container is not what there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class TextSource(Section):
    """Where lines of text come from: a file below `corpus.root`, or made-up starter text."""

    path: str | None = None
    starter: str | None = Field(None, pattern=LANGUAGE)
    lines: int | None = Field(None, ge=1)  # take the first so many
    format: Literal["auto", "txt", "tsv", "jsonl", "parquet"] = "auto"
    column: int | str | None = None  # tsv: number from 1; jsonl, parquet: name
    language: str | None = Field(None, pattern=LANGUAGE)  # where it is not the site's own
    held_out_by: str | None = None  # line-aligned file whose lines are hashed instead

    @model_validator(mode="before")
    @classmethod
    def _from_plain_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.starter is None):
            raise ValueError("needs either path or starter, and not both")
        if isinstance(self.column, int) and self.column < 1:
            raise ValueError("column counts from 1")
        return self


class HeldOutPlan(Section):
    """Which lines no site trains on: decided by a hash of the text, so without a list."""

    test_percent: float = Field(5.0, gt=0, le=40)  # judged before and after, never tuned on
    tuning_percent: float = Field(5.0, gt=0, le=40)  # judged every few rounds


class CorpusPlan(Section):
    root: str = "."  # relative paths of text start here; itself relative to the plan file
    held_out: HeldOutPlan = HeldOutPlan()


class MicroPlan(Section):
    """A micro-LLM of the Llama architecture, pre-trained by the plan itself."""

    vocabulary_size: int = Field(4096, ge=300, le=200_000)
    hidden_size: int = Field(128, ge=16)
    num_layers: int = Field(4, ge=1)
    num_heads: int = Field(4, ge=1)
    intermediate_size: int = Field(384, ge=16)
    max_length: int = Field(512, ge=16)  # tokens
    steps: int = Field(1000, ge=1)
    batch_sequences: int = Field(8, ge=1)
    sequence_length: int = Field(128, ge=8)
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = Field(3e-3, gt=0)  # of AdamW
    muon_learning_rate: float = Field(0.02, gt=0)
    seed: int = 0
    # auto: of the sites, where embeddings are trained; a piece that the base's own text never
    # has would otherwise keep a random one. Or a folder that has a tokenizer.
    tokenizer: str = "auto"

    @property
    def tokenizer_folder(self) -> str | None:
        """Folder of the tokenizer, where the plan names one."""
        return None if self.tokenizer in TOKENIZERS else self.tokenizer

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of "
                f"num_heads {self.num_heads}"
            )
        if self.sequence_length > self.max_length:
            raise ValueError(
                f"sequence_length {self.sequence_length} is above max_length {self.max_length}"
            )
        return self


class VocabularyPlan(Section):
    """Which pieces of the base's vocabulary are kept."""

    cut: Literal["none", "sites"] = "none"  # sites: those in the sites' words and the base's text
    most_longer: float = Field(0.05, ge=0)  # share of tokens that a site's text may take more


class PiecesPlan(Section):
    """What a piece of a word needs to leave a site, where sites make or cut a tokenizer."""

    least_lines: int = Field(10, ge=1)  # that hold it
    least_documents: int = Field(3, ge=1)
    most_pieces: int = Field(20_000, ge=1, le=100_000)  # of one site


class BasePlan(Section):
    """The frozen base: a folder or hub id of transformers, a GGUF file, or a micro-LLM to build."""

    path: str | None = None
    micro: MicroPlan | None = None
    language: str = Field(pattern=LANGUAGE)
    text: tuple[TextSource, ...] = ()
    quantize: Literal["none", "4bit"] = "none"
    vocabulary: VocabularyPlan = VocabularyPlan()
    pieces: PiecesPlan = PiecesPlan()

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.micro is None):
            raise ValueError("needs either path or a [model.base.micro] table, and not both")
        if self.micro is not None and not self.text:
            raise ValueError("a micro-LLM needs text to be pre-trained on: set model.base.text")
        if self.micro is not None and self.quantize != "none":
            raise ValueError('a micro-LLM is small already: set quantize = "none"')
        if self.micro is not None and self.vocabulary.cut != "none":
            raise ValueError(
                'a micro-LLM\'s vocabulary is its own already: set vocabulary.cut = "none"'
            )
        return self


class AdapterPlan(Section):
    """What is trained: `lora`, `frozen_a` (only B), `core` (only the r×r core), or `full`."""

    kind: Literal["lora", "frozen_a", "core", "full"] = "lora"
    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # or ends of module names
    seed: int = 0
    # full: a site trains the rows of its own text's tokens alone, and a row is averaged over
    # the sites that do.
    own_tokens: bool = True


class LocalStepsPlan(Section):
    """The inner loop at a site: an optimizer on packed sequences."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for matrices of hidden layers
    batch_sequences: int = Field(8, ge=1, le=65_536)
    sequence_length: int = Field(128, ge=8, le=1 << 20)  # tokens
    learning_rate: float = Field(1e-3, gt=0)  # of AdamW
    muon_learning_rate: float = Field(0.02, gt=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, le=0.9)  # fraction of the run
    final_learning_rate: float = Field(0.1, ge=0, le=1)  # fraction of learning_rate
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    dropout: float = Field(0.0, ge=0, le=0.9)  # of embeddings, and of what each block adds
    keep_moments: bool = True  # the optimizer's moments stay at the site from order to order
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    micro_sequences: int = Field(0, ge=0, le=65_536)  # of a batch, at a time; 0: by their memory
    checkpointing: Literal["auto", "on", "off"] = "auto"  # compute layers again on the way back

    def rate_at(self, position: float) -> float:
        """Return the learning rate at a position of the run, 0 to 1."""
        if position < self.warmup:
            return self.learning_rate * (position + 0.01 * self.warmup) / (1.01 * self.warmup)
        done = min(1.0, (position - self.warmup) / max(1e-9, 1 - self.warmup))
        floor = self.final_learning_rate
        match self.schedule:
            case "constant":
                return self.learning_rate
            case "linear":
                return self.learning_rate * (1 - (1 - floor) * done)
            case "cosine":
                fallen = (1 + math.cos(math.pi * done)) / 2
                return self.learning_rate * (floor + (1 - floor) * fallen)


class ModelPlan(Section):
    base: BasePlan
    adapter: AdapterPlan = AdapterPlan()
    local_steps: LocalStepsPlan = LocalStepsPlan()

    @model_validator(mode="before")
    @classmethod
    def _every_weight_of_a_micro_llm(cls, value: Any) -> Any:
        """Let all of a micro-LLM be trained, where the plan says nothing of an adapter.

        It is so small that a LoRA holds it back, and its embedding has seen one language.
        """
        if not isinstance(value, dict):
            return value
        base, adapter = value.get("base"), value.get("adapter", {})
        micro = base.get("micro") if isinstance(base, dict) else getattr(base, "micro", None)
        if micro is not None and isinstance(adapter, dict) and not set(adapter) & OF_LOW_RANK:
            return value | {"adapter": {**adapter, "kind": "full"}}
        return value


class EnginePlan(Section):
    name: Literal["local"] = "local"
    threads_per_site: int = Field(0, ge=0)  # 0: the cores are shared out


class EvaluationPlan(Section):
    every_rounds: int = Field(5, ge=1)
    max_lines: int = Field(400, ge=1)  # per language and part; the first in hash order
    ngram: bool = True  # sites tell what n-grams of their text need for the same lines


class SitePlan(Section):
    name: str = Field(pattern=NAME)
    language: str = Field(pattern=LANGUAGE)
    text: tuple[TextSource, ...] = Field(min_length=1)
    rank: int | None = Field(None, ge=1)  # trains the first so many components
    processes: int = Field(1, ge=1, le=64)  # of its node, one a GPU; each takes part of a batch
    sharding: Literal["none", "fsdp", "zero"] = "none"  # of the frozen base, over the processes
    slowdown: float = Field(1.0, ge=1, le=100)  # behave like a machine so many times slower
    link_mbits: float | None = Field(None, gt=0)  # of its line, megabits a second each way


class Plan(Section):
    """Everything that a run is asked to do; equal plans have equal digests."""

    name: str = Field(pattern=NAME)
    corpus: CorpusPlan = CorpusPlan()
    model: ModelPlan
    rounds: RoundsPlan = RoundsPlan()
    codec: CodecPlan = CodecPlan()
    engine: EnginePlan = EnginePlan()
    evaluation: EvaluationPlan = EvaluationPlan()
    site: tuple[SitePlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sites_fit(self) -> Self:
        names = [site.name for site in self.site]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"site {name!r} is there twice; give each site its own name")
        adapter, micro = self.model.adapter, self.model.base.micro
        for site in self.site:
            if site.rank is not None and adapter.kind == "full":
                raise ValueError(
                    f"site {site.name!r} sets a rank, but model.adapter.kind is 'full'; "
                    "remove the rank, or choose lora, frozen_a or core"
                )
            if site.rank is not None and site.rank > adapter.rank:
                raise ValueError(
                    f"site {site.name!r} has rank {site.rank}, above model.adapter.rank "
                    f"{adapter.rank}; lower it, or raise the adapter's"
                )
            self._check_processes(site)
        length = self.model.local_steps.sequence_length
        if micro is not None and length > micro.max_length:
            raise ValueError(
                f"model.local_steps.sequence_length {length} is above "
                f"model.base.micro.max_length {micro.max_length}; lower it"
            )
        if adapter.kind == "full" and self.model.base.quantize != "none":
            raise ValueError(
                "the weights of a 4-bit base cannot be trained: set model.adapter.kind to lora, "
                'or model.base.quantize = "none"'
            )
        if self.model.local_steps.optimizer == "muon" and adapter.kind == "core":
            raise ValueError(
                "the core of kind core is r coordinates by r, not a matrix of a layer: set "
                'model.local_steps.optimizer = "adamw", or model.adapter.kind to lora or full'
            )
        if self.codec.name == "dgc":
            self._check_dgc()
        if self.codec.least_density is not None and not self.rounds.speed_aware:
            raise ValueError(
                "codec.least_density follows the measured lines: set rounds.speed_aware = true, "
                "or remove it"
            )
        if self.codec.name == "public" and self.rounds.mode != "synchronous":
            raise ValueError(
                "sites that share a support train from one version, and asynchronous ones do not: "
                'set rounds.mode = "synchronous", or codec.name = "sparse"'
            )
        self._check_robust()
        if (self.rounds.buffer_size or 1) > 4 * len(names):
            raise ValueError(
                f"rounds.buffer_size {self.rounds.buffer_size} is more than 4 updates from each "
                f"of {len(names)} sites; lower it"
            )
        return self

    def _check_processes(self, site: SitePlan) -> None:
        sequences = self.model.local_steps.batch_sequences
        if site.processes > sequences:
            raise ValueError(
                f"site {site.name!r} has {site.processes} processes for batches of {sequences} "
                "sequences; lower its processes, or raise model.local_steps.batch_sequences"
            )
        if site.sharding == "none":
            return
        if site.processes == 1:
            raise ValueError(
                f"site {site.name!r} has one process, which has nobody to share the base with: "
                'raise its processes, or set its sharding = "none"'
            )
        if self.model.adapter.kind == "full" or self.model.base.quantize != "none":
            raise ValueError(
                f"site {site.name!r} shards its base, which has to be frozen and not quantized: "
                'set its sharding = "none", or choose an adapter of lora, frozen_a or core on '
                'model.base.quantize = "none"'
            )

    def _check_robust(self) -> None:
        rule = self.rounds.robust
        if rule == "none":
            return
        if len(self.site) < 3:
            raise ValueError(
                f'rounds.robust = "{rule}" needs 3 sites: of {len(self.site)} no rule can tell '
                'which one is wrong; set rounds.robust = "none"'
            )
        if rule == "centered_clipping":
            return
        if self.codec.name in ("sparse", "dgc"):
            raise ValueError(
                f'rounds.robust = "{rule}" with codec "{self.codec.name}" gives almost nothing but '
                "zeros, without any attack: each site sends its own entries, and most sites send "
                'none of an entry; set codec.name = "public" or "dense", or '
                'rounds.robust = "none" or "centered_clipping"'
            )
        if self.buffer_size < 3:
            raise ValueError(
                f'rounds.robust = "{rule}" needs 3 updates in a round, and rounds.buffer_size is '
                f"{self.buffer_size}; raise it"
            )

    def _check_dgc(self) -> None:
        if self.model.local_steps.optimizer == "muon":
            raise ValueError(
                "dgc adds up steps that are linear in the gradient, and Muon's are not: set "
                'model.local_steps.optimizer = "adamw", or codec.name = "sparse"'
            )
        if self.rounds.mode != "synchronous" or self.rounds.local_steps != 1:
            raise ValueError(
                "dgc exchanges every single step, and together: set rounds.local_steps = 1 and "
                'rounds.mode = "synchronous"; codec "sparse" is for more steps a round'
            )
        if self.model.local_steps.beta1:
            raise ValueError(
                "dgc keeps the momentum itself, in codec.momentum: set model.local_steps.beta1 = 0"
            )

    @property
    def digest(self) -> str:
        """Hash of the whole plan."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def asks_pieces(self) -> bool:
        """Tell whether the sites are asked for counts of pieces before the base is made."""
        micro = self.model.base.micro
        if micro is None:
            return self.model.base.vocabulary.cut == "sites"
        if micro.tokenizer not in ("auto", "sites"):
            return False
        return micro.tokenizer == "sites" or self.model.adapter.kind == "full"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that sites hold, in the order in which the plan names them."""
        found = {
            source.language or site.language: None for site in self.site for source in site.text
        }
        return tuple(found)

    @property
    def buffer_size(self) -> int:
        """Updates that make a round: all sites, or about half of them when asynchronous."""
        if self.rounds.mode == "synchronous":
            return len(self.site)
        return self.rounds.buffer_size or (len(self.site) + 1) // 2

    @property
    def max_staleness(self) -> int:
        """Rounds by which an update may lag behind; 0 when synchronous."""
        if self.rounds.mode == "synchronous":
            return 0
        return 10 if self.rounds.max_staleness is None else self.rounds.max_staleness

    def threads_per_site(self, cores: int) -> int:
        """Share out this machine's cores so that sites do not fight; at least one each."""
        return self.engine.threads_per_site or max(1, cores // len(self.site))

    def resolve(self, path: str) -> Path:
        """Return where a text path of the plan points to."""
        return Path(self.corpus.root) / path
