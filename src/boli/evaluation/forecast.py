"""What a plan will do, before it does it: sizes, bytes a round, memory, and time.

Time is measured, not guessed: a model of the plan's shape with random weights
takes a few steps here. One too large for that is estimated from the rate of a
matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boli.codec.codec import HEADER_BYTES, codec_for
from boli.corpus.sources import Split, judged_documents
from boli.errors import ModelError
from boli.evaluation.paired import ENOUGH_DOCUMENTS
from boli.model.layout import Layout
from boli.plan import AdapterPlan, LocalStepsPlan, Plan, SitePlan, available_cores
from boli.plan_rounds import OneWayPlan
from boli.pretrained import load_config, load_tokenizer

MESSAGE_BYTES = 150  # of facts around a payload: 130 up, 170 down, measured
PROCESS_BYTES = 450_000_000  # Python, torch and transformers before any model
START_SECONDS = 8.0  # of a node, on an idle core
LARGEST_TRIED = 100_000_000  # parameters of a model that is tried out
PRODUCT_SHARE = 0.4  # of the rate of a matrix product that training reaches
BYTES_A_TOKEN = 6.5  # where there is no tokenizer yet: Devanagari, pieces of a sister language
LINES_COUNTED = 1000  # of a language, for its bytes a token
MANY_PASSES = 12  # above which every small model that was tried learns lines by heart


@dataclass(frozen=True)
class SiteForecast:
    """What one site holds and sends."""

    name: str
    languages: Mapping[str, Mapping[str, int]]  # to part to lines
    num_entries: int  # m, what it trains
    bytes_up: int  # a round
    bytes_down: int  # a round
    memory_bytes: int
    passes: float  # over its text, in the whole run
    link_seconds: float | None  # a round, on the line that the plan gives it


@dataclass(frozen=True)
class Forecast:
    """What a plan will do."""

    base_parameters: int
    base_cached: bool  # nothing is left to pre-train or download
    num_entries: int  # d
    num_segments: int
    sites: tuple[SiteForecast, ...]
    rounds: int
    tokens: int  # of the whole run, all sites
    pretrain_seconds: float
    train_seconds: float
    notes: tuple[str, ...]

    @property
    def run_bytes(self) -> int:
        """Bytes up and down of the whole run, all sites."""
        a_round = sum(site.bytes_up + site.bytes_down for site in self.sites)
        return self.rounds * a_round


def forecast(plan: Plan, splits: Mapping[str, Mapping[str, Split]]) -> Forecast:
    """Return what a plan will do on this machine.

    Raises:
        ModelError: the base is not there, or its tokenizer loses text of a site.
    """
    from boli.model.adapter import adapter_layout

    model, cached = _empty_model(plan, splits)
    parameters = sum(p.numel() for p in model.parameters())
    adapter = plan.model.adapter
    layouts = {site.name: adapter_layout(model, adapter, site.rank) for site in plan.site}
    layout = adapter_layout(model, adapter)
    base_bytes, step_bytes = _memory(plan, model, parameters)
    tokenizer = _tokenizer(plan, splits)
    sites = tuple(
        _site(
            plan,
            site,
            layouts[site.name],
            splits[site.name],
            base_bytes,
            step_bytes + 4 * _of_muon(plan, model, layouts[site.name]),
            tokenizer,
        )
        for site in plan.site
    )
    steps = plan.model.local_steps
    num_updates = plan.rounds.total * plan.buffer_size
    pretrain, train = _seconds(plan, model, parameters, cached)
    return Forecast(
        base_parameters=parameters,
        base_cached=cached,
        num_entries=layout.size,
        num_segments=len(layout.segments),
        sites=sites,
        rounds=plan.rounds.total,
        tokens=num_updates
        * plan.rounds.local_steps
        * steps.batch_sequences
        * steps.sequence_length,
        pretrain_seconds=pretrain,
        train_seconds=train,
        notes=(*_notes(plan, splits), *_notes_on_passes(plan, sites), *_lost(plan, splits)),
    )


def _empty_model(plan: Plan, splits: Mapping[str, Mapping[str, Split]]) -> tuple[Any, bool]:
    """Return the base without memory for its weights, and whether it is at hand."""
    import torch
    import transformers

    from boli.model.base import home, micro_config, micro_digest

    base = plan.model.base
    if base.micro is not None:
        lines = splits[""][base.language].train
        place = home() / "bases" / micro_digest(base.micro, lines) / "config.json"
        cached = place.is_file() and not plan.asks_pieces  # their digest is in its name
        config = micro_config(base.micro)
    else:
        assert base.path is not None
        try:
            config = load_config(base.path)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"there is no base model at {base.path}",
                "model.base.path needs a folder with config.json, or a hub id",
            ) from error
        cached = Path(base.path).is_dir()
        longest = int(getattr(config, "max_position_embeddings", None) or 2048)
        if plan.model.local_steps.sequence_length > longest:
            raise ModelError(
                f"model.local_steps.sequence_length {plan.model.local_steps.sequence_length} is "
                f"above the {longest} tokens that {base.path} can read",
                "lower it",
            )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config), cached


def _memory(plan: Plan, model: Any, parameters: int) -> tuple[int, int]:
    """Return the bytes of a base while it is loaded, and of a base with a step upon it.

    Each but for the vectors of the adapter. What a file holds in half precision is there twice
    while it is read.
    """
    from boli.evaluation.metrics import TOKENS_AT_ONCE
    from boli.model.base import best_device
    from boli.model.memory import PASSING_SHARE, head_bytes, needs_of

    base, steps = plan.model.base, plan.model.local_steps
    needs = needs_of(model, steps, 4, best_device())
    held = int(parameters * (0.6 if base.quantize == "4bit" else 4))
    on_disk = _weights_bytes(base.path) or 2 * parameters  # most of a hub's are in 16 bits
    trained = needs.sequences * steps.sequence_length
    logits = max(
        head_bytes(model, trained, plan.model.adapter.kind == "full"),
        head_bytes(model, TOKENS_AT_ONCE, False),
    )
    passing = int(PASSING_SHARE * held)
    return held + on_disk, held + passing + needs.activation_bytes + logits


def _weights_bytes(origin: str | None) -> int:
    if origin is None:
        return 0
    return sum(path.stat().st_size for path in Path(origin).glob("*.safetensors"))


def _tokenizer(plan: Plan, splits: Mapping[str, Mapping[str, Split]]) -> Any:
    """Return the tokenizer of the base; None where it is still to be made, or cannot be loaded."""
    from boli.model.base import home, micro_digest

    base = plan.model.base
    origin = base.path
    if base.micro is not None:
        built = home() / "bases" / micro_digest(base.micro, splits[""][base.language].train)
        origin = str(built) if (built / "tokenizer.json").is_file() else base.micro.tokenizer_folder
    try:
        return None if origin is None else load_tokenizer(origin)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError):
        return None  # `_lost` says why


def _tokens_of(splits: Mapping[str, Split], tokenizer: Any) -> float:
    """Return about how many tokens one pass over a site's training lines takes."""
    total = 0.0
    for split in splits.values():
        num_bytes = sum(len(line.encode()) + 1 for line in split.train)
        lines = split.train[:: max(1, len(split.train) // LINES_COUNTED)]
        a_token = BYTES_A_TOKEN
        if tokenizer is not None and lines:
            rows = tokenizer(lines, add_special_tokens=False)["input_ids"]
            a_token = sum(len(line.encode()) + 1 for line in lines) / sum(len(r) + 1 for r in rows)
        total += num_bytes / a_token
    return max(1.0, total)


def _site(
    plan: Plan,
    site: SitePlan,
    layout: Layout,
    splits: Mapping[str, Split],
    base_bytes: int,  # while it is loaded
    step_bytes: int,  # of it and a step
    tokenizer: Any,
) -> SiteForecast:
    steps = plan.model.local_steps
    tokens = steps.batch_sequences * steps.sequence_length
    frame = HEADER_BYTES + MESSAGE_BYTES
    up = frame + _expected(plan.codec, layout.size, plan.rounds.total)
    down = frame + _expected(plan.codec.down, layout.size, plan.rounds.total)
    # Vectors: trained, gradient, two moments, version, pseudo-gradient, payload.
    memory = PROCESS_BYTES + max(base_bytes, step_bytes + 7 * 4 * layout.size)
    orders = plan.rounds.total * plan.buffer_size / len(plan.site)
    return SiteForecast(
        site.name,
        {language: split.counts for language, split in splits.items()},
        layout.size,
        up,
        down,
        int(memory),
        orders * plan.rounds.local_steps * tokens / _tokens_of(splits, tokenizer),
        None if site.link_mbits is None else (up + down) * 8 / (site.link_mbits * 1e6),
    )


def _of_muon(plan: Plan, model: Any, layout: Layout) -> int:
    """Return the entries that Muon holds besides what AdamW would: fewer moments, more in a step.

    Its step works on all matrices of one shape together, in four arrays of their size.
    """
    from boli.model.optimizers import hidden_matrices

    if plan.model.local_steps.optimizer != "muon":
        return 0
    of_shape: dict[tuple[int, ...], int] = {}
    for segment in hidden_matrices(model, layout):
        of_shape[segment.shape] = of_shape.get(segment.shape, 0) + segment.size
    return 4 * max(of_shape.values(), default=0) - sum(of_shape.values())


def _expected(plan: OneWayPlan, length: int, rounds: int) -> int:
    """Return the payload bytes of a round, as a mean over all of them."""
    codec = codec_for(plan)
    return sum(codec.expected_bytes(length, version) for version in range(rounds)) // rounds


def _seconds(plan: Plan, model: Any, parameters: int, cached: bool) -> tuple[float, float]:
    cores = available_cores()
    threads = plan.threads_per_site(cores)
    crowding = max(1.0, len(plan.site) * threads / cores)
    steps = plan.model.local_steps
    a_step = _step_seconds(model.config, parameters, plan.model.adapter, steps, threads)
    slowest = max(site.slowdown for site in plan.site)
    wait = slowest if plan.rounds.mode == "synchronous" else 1.0
    rounds = plan.rounds.total * plan.buffer_size / len(plan.site)
    judged = (2 + plan.rounds.total / plan.evaluation.every_rounds) * plan.evaluation.max_lines
    lines_a_step = max(1.0, steps.batch_sequences * steps.sequence_length / 60)
    work = rounds * plan.rounds.local_steps * wait + judged / lines_a_step / 2
    starting = START_SECONDS * max(1.0, len(plan.site) / cores)
    pretrain = 0.0
    micro = plan.model.base.micro
    if micro is not None and not cached:
        settings = LocalStepsPlan(
            batch_sequences=micro.batch_sequences,
            sequence_length=micro.sequence_length,
            optimizer=micro.optimizer,
        )
        whole = AdapterPlan(kind="full")
        pretrain = micro.steps * _step_seconds(model.config, parameters, whole, settings, cores)
    return pretrain, starting + work * crowding * a_step


def _step_seconds(
    config: Any, parameters: int, adapter: AdapterPlan, plan: LocalStepsPlan, threads: int
) -> float:
    """Return the seconds of one local step of a model of this shape on so many threads."""
    import torch
    import transformers

    from boli.model.adapter import attach
    from boli.model.base import best_device
    from boli.model.local_steps import LocalSteps, PackedText

    device = best_device()
    tokens = plan.batch_sequences * plan.sequence_length
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if parameters > LARGEST_TRIED:
            operations = (6 if adapter.kind == "full" else 4) * parameters * tokens
            return operations / (PRODUCT_SHARE * _product_rate(device))
        model = transformers.AutoModelForCausalLM.from_config(config).to(device)
        attached = attach(model, adapter)
        text = PackedText(
            [np.arange(tokens * 4, dtype=np.uint32) % config.vocab_size], plan.sequence_length, 0
        )
        settings = plan.model_copy(update={"compile": "off"})
        steps = LocalSteps(model, attached, text, settings)
        steps.run(lambda: 2, 0.5, 0.0)
        taken = steps.run(lambda: 6, 0.5, 0.0)
        assert taken is not None
        return taken.seconds / taken.count
    finally:
        torch.set_num_threads(before)


def _product_rate(device: Any) -> float:
    """Return operations per second of a large matrix product."""
    import torch

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.ones(2048, 2048, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        best = min(best, time.perf_counter() - started)
    return float(2 * 2048**3 / best)


def _notes(plan: Plan, splits: Mapping[str, Mapping[str, Split]]) -> list[str]:
    """Say what a careful reader of the plan would ask about."""
    notes = []
    if plan.model.adapter.kind == "lora" and len(plan.site) > 1:
        notes.append(
            "averaging A and B apart is not averaging their product; frozen_a and core are exact"
        )
    if plan.model.base.language in plan.languages:
        notes.append(f"the base language {plan.model.base.language} is also a site's language")
    notes += _notes_on_documents(plan, splits)
    if plan.evaluation.every_rounds >= plan.rounds.total:
        notes.append(
            "only the last version is judged, so no earlier one can be exported in its place: "
            f"evaluation.every_rounds {plan.evaluation.every_rounds} is not below rounds.total "
            f"{plan.rounds.total}"
        )
    if not plan.model.base.text:
        notes.append("model.base.text is empty: forgetting of the base language is not judged")
    return [*notes, *_notes_on_one_site(plan)]


def _notes_on_documents(plan: Plan, splits: Mapping[str, Mapping[str, Split]]) -> Iterator[str]:
    """Say where a test part is too small, or too little is known of it, to tell what is noise."""
    few, unnamed = [], []
    for site in plan.site:
        for language, split in splits[site.name].items():
            named = judged_documents(split, "test", plan.evaluation.max_lines)
            number = len(split.test if named is None else set(named))
            if named is None:
                unnamed.append(f"{site.name} ({language})")
            if number < ENOUGH_DOCUMENTS:
                unit = ("line" if named is None else "document") + "s" * (number != 1)
                few.append(f"{site.name} {number} {unit} of {language}")
    if few:
        yield (
            f"test parts are small ({', '.join(few)}; {ENOUGH_DOCUMENTS} documents are enough): "
            "differences of a few percent will not show; raise corpus.held_out.test_percent, "
            f"{plan.corpus.held_out.test_percent:g} now, or name more text"
        )
    if unnamed:
        yield (
            f"nothing says which lines of {', '.join(unnamed)} belong to one document, so the "
            "report cannot say what is noise: name a file with the document of each line as "
            "held_out_by, or prepare the text with boli prepare"
        )


def _notes_on_passes(plan: Plan, sites: Sequence[SiteForecast]) -> Iterator[str]:
    """Say where a site's text is read so often that the model learns it by heart."""
    steps = plan.model.local_steps
    often = [site for site in sites if site.passes > MANY_PASSES]
    if often and not steps.dropout:
        most = max(often, key=lambda site: site.passes)
        yield (
            f"the text of site {most.name} is read {most.passes:.0f} times: the tuning text will "
            "show where that is too often, and the best version is exported; lower rounds.total "
            "or rounds.local_steps, or set model.local_steps.dropout = 0.1"
        )


def _notes_on_one_site(plan: Plan) -> Iterator[str]:
    """Say what one site that works against the others could still do."""
    rounds, num_sites = plan.rounds, len(plan.site)
    if num_sites == 2:
        yield (
            "of 2 sites nobody can tell which one is wrong: none is suspended for its updates, and "
            "either can keep a better version from being exported"
        )
    if num_sites > 2 and plan.codec.name in ("sparse", "dgc"):
        yield (
            f'under codec "{plan.codec.name}" each site sends its own entries: a site can train a '
            "backdoor into entries that no other site sends, and no bound excludes that"
        )
    if rounds.norm_multiple is not None and rounds.norm_multiple >= max(1, num_sites - 1) > 1:
        yield (
            f"rounds.norm_multiple {rounds.norm_multiple:g} lets one of {num_sites} sites outweigh "
            f"all others: set it below {num_sites - 1}, or leave it out"
        )
    if rounds.mode == "asynchronous" and rounds.most_share is None:
        if plan.buffer_size >= num_sites > 1:
            yield (
                f"rounds.buffer_size {plan.buffer_size} of {num_sites} sites waits for the slowest "
                "site at every version: lower it, or let a version hold more updates of one site "
                "by rounds.most_share"
            )
    elif rounds.mode == "asynchronous" and (rounds.most_share or 0) >= 1:
        yield "rounds.most_share 1 lets a site that answers at once make every version alone"


def _lost(plan: Plan, splits: Mapping[str, Mapping[str, Split]]) -> list[str]:
    """Say how much of the sites' text the base's tokenizer loses.

    Raises:
        ModelError: it is too much, or the tokenizer cannot be loaded.
    """
    from boli.evaluation.metrics import check_tokenizer

    origin = plan.model.base.path
    if origin is None:  # ours works on bytes
        return []
    try:
        tokenizer = load_tokenizer(origin)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"cannot load the tokenizer of {origin}: {type(error).__name__}",
            "model.base.path needs a folder with a tokenizer, or a hub id",
        ) from error
    notes = []
    for site in plan.site:
        for language, split in splits[site.name].items():
            lines = [*split.train, *split.tuning, *split.test]
            share = check_tokenizer(tokenizer, lines, f"site {site.name} in {language}")
            if share:
                notes.append(
                    f"{share:.2%} of the bytes of site {site.name} in {language} are not in the "
                    "tokenizer's alphabet: counted at 8 bits each"
                )
    return notes
