"""A site's work on its own text: local steps and judging, on one loaded base."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from numpy.typing import NDArray

from boli.corpus.sources import Split, read_split, share_of
from boli.errors import DivergedError
from boli.evaluation.metrics import (
    Bits,
    Scored,
    bytes_of,
    check_tokenizer,
    fit_expert,
    score_lines,
)
from boli.model.adapter import adapter_layout, attach
from boli.model.base import Base, best_device, check_length, load_base
from boli.model.framing import framing_of
from boli.model.group import share_out
from boli.model.layout import Layout, Vector
from boli.model.local_steps import LocalSteps, OwnGradient, PackedText, token_lines
from boli.plan import Plan, SitePlan
from boli.rounds.update import Copy, Difference, Judgement, Order, Part
from boli.site.copies import copies_of
from boli.site.crew import Crew
from boli.site.judging import Floats, Rivals
from boli.site.node import Done

WORST_BITS = 1000.0  # a byte, of text to which a version gives no finite probability
MOST_COMPARED = 8  # versions that are told of beside n-grams and the base: a run needs 3 at most

Judged = dict[tuple[str, Part], Scored | None]  # by language and part; None: it diverged


class TrainingWork:
    """Local steps over a site's training lines, and bits per byte of its held-out ones."""

    def __init__(
        self,
        plan: Plan,
        site: SitePlan,
        base: Base,
        splits: dict[str, Split],
        copies: Sequence[Copy] = (),  # of pools, that the text lies in
        crew: Crew | None = None,
        num_sites: int = 0,  # of the run; 0: those that the plan names
    ) -> None:
        self.rank = site.rank
        self.rivals = Rivals(splits, plan.evaluation.max_lines)
        self._tells_ngram = plan.evaluation.ngram
        self._untouched: dict[str, Floats] = {}  # by language, bits of test lines under the base
        self._compared_before = 0  # versions
        self.base, self.splits, self._crew = base, splits, crew
        self.full_layout = adapter_layout(base.model, plan.model.adapter)
        own = own_gradient(plan, site, base, best_device() if crew is None else crew.device)
        self.adapter = own.adapter
        self.layout: Layout = self.adapter.layout
        self.first = self.adapter.read()
        self.copies = copies
        self.num_lines: Mapping[str, Mapping[str, int]] = {
            language: split.counts for language, split in splits.items()
        }
        for language, split in splits.items():
            whose = f"site {site.name} in {language}"
            check_tokenizer(base.tokenizer, [*split.train, *split.tuning, *split.test], whose)
        lines = [line for split in splits.values() for line in split.train]
        steps = plan.model.local_steps
        if plan.codec.name == "dgc":  # so that the mean of N sites' steps is clipped at clip_norm
            clip_norm = steps.clip_norm / math.sqrt(num_sites or len(plan.site))
            steps = steps.model_copy(update={"clip_norm": clip_norm})
        length = steps.sequence_length
        seed = int(share_of(f"{plan.rounds.seed}/{site.name}") * 1e9)
        tokens = list(token_lines(base.tokenizer, lines))
        text = PackedText(tokens, length, seed, ignored=framing_of(base.tokenizer).ignored)
        if crew is not None:
            crew.ready(own)
        own_tokens = plan.model.adapter.own_tokens
        self.steps = LocalSteps(base.model, self.adapter, text, steps, crew or own, own_tokens)

    @property
    def text_tokens(self) -> int:
        """Tokens that one pass over the training lines takes."""
        text = self.steps.text
        return text.per_pass * text.sequence_length

    def perform(
        self,
        order: Order,
        theta: Vector,
        start: Vector,
        steps_wanted: Callable[[], int],
        after_step: Callable[[int, float, float], bool],
    ) -> Done | None:
        """Judge the version if asked, then train."""
        # What is judged first is the base unchanged, which every adapter begins as.
        self.adapter.load(self.first if order.first else theta)
        started = time.perf_counter()
        judged: Judged = {
            (language, part): self.score(language, part)
            for part in order.evaluate
            for language in self.splits
        }
        judgements = tuple(self._judgement(*key, scored) for key, scored in judged.items())
        beside, compressed = self._beside_base(judged) if order.first else ((), ())
        last = not order.first and not order.local_steps
        mixed, differences = self._beside_last(judged) if last else ((), ())
        evaluate_seconds = time.perf_counter() - started
        if not order.local_steps:
            return Done(
                None,
                evaluate_seconds=evaluate_seconds,
                judgements=judgements,
                six_gram=beside,
                ppmd=compressed,
                mixed=mixed,
                differences=differences,
            )
        self.adapter.load(start)
        begun = time.perf_counter()
        plan = self.steps.plan
        tokens_a_step = plan.batch_sequences * plan.sequence_length

        def report(done: int, loss: float) -> bool:
            rate = done * tokens_a_step / (time.perf_counter() - begun)
            return after_step(done, loss, rate)

        steps = self.steps.run(steps_wanted, order.position, order.position_step, report)
        if steps is None:
            return None
        return Done(
            start - self.adapter.read(),
            steps.count,
            steps.tokens,
            steps.loss,
            steps.seconds,
            evaluate_seconds,
            judgements,
            beside,
            compressed,
        )

    def score(self, language: str, part: Part) -> Scored | None:
        """Return what the loaded model says of a part; None: it gives nothing finite."""
        base, lines = self.base, self.rivals.lines(language, part)
        with nullcontext() if self._crew is None else self._crew.watched():
            try:
                return score_lines(base.model, base.tokenizer, lines, base.max_length)
            except DivergedError:
                return None

    def _judgement(self, language: str, part: Part, scored: Scored | None) -> Judgement:
        if scored is not None:
            found = scored.line_bits().total
        else:
            # A ruined version gives no number. That is a judgment, not a failure of the site.
            num_bytes = bytes_of(self.rivals.lines(language, part))
            found = Bits(WORST_BITS * num_bytes, num_bytes)
        return Judgement(language=language, part=part, bits=found.bits, bytes=found.bytes)

    def _beside_base(self, judged: Judged) -> tuple[tuple[Judgement, ...], tuple[Judgement, ...]]:
        """Return what a 6-gram and PPMd on the training lines need for the same lines.

        Only two sums of each part leave; the counts are text, and never do.
        """
        for (language, part), scored in judged.items():
            if part == "test" and scored is not None:
                self._untouched[language] = scored.line_bits().bits
        if not self._tells_ngram:
            return (), ()
        rivals, compressed = self.rivals, []
        beside = [
            rivals.judgement(language, part, rivals.six_gram(language, part))
            for language, part in judged
        ]
        for language, part in judged:
            bits = rivals.ppmd(language) if part == "test" else None
            if bits is not None:
                compressed.append(rivals.judgement(language, part, bits))
        return tuple(beside), tuple(compressed)

    def _beside_last(self, judged: Judged) -> tuple[tuple[Judgement, ...], tuple[Difference, ...]]:
        """Return what the version and token n-grams together need, and which differences are noise.

        Only the test part is told of, and few versions: a coordinator that made up many could read
        counts, or documents, out of the sums and intervals.
        """
        mixed: list[Judgement] = []
        differences: list[Difference] = []
        if self._compared_before >= MOST_COMPARED:
            return (), ()
        self._compared_before += 1
        for language in self.splits:
            tuning, test = (judged.get((language, part)) for part in ("tuning", "test"))
            if test is None:
                continue
            rows = {"model": test.line_bits().bits, "base": self._base_bits(language)}
            if self._tells_ngram:
                rows["six_gram"] = self.rivals.six_gram(language, "test")
                rows["ppmd"] = self.rivals.ppmd(language)
            if self._tells_ngram and tuning is not None:
                rows["mixed"] = together = self.mixed_bits(language, tuning, test)
                mixed.append(self.rivals.judgement(language, "test", together))
            differences += self.rivals.differences(language, rows)
        return tuple(mixed), tuple(differences)

    def mixed_bits(self, language: str, tuning: Scored, test: Scored) -> Floats:
        """Return the bits of each test line, with weights fitted on the tuning part."""
        base = self.base
        expert = fit_expert(base.model, base.tokenizer, self.splits[language].train, tuning)
        return test.line_bits(expert).bits

    def _base_bits(self, language: str) -> Floats | None:
        """Return the bits of each test line under the untouched base; None: it gives none."""
        if language not in self._untouched:  # this node did not live yet when it was asked
            self.adapter.load(self.first)  # every order loads what it needs
            scored = self.score(language, "test")
            if scored is None:
                return None
            self._untouched[language] = scored.line_bits().bits
        return self._untouched[language]

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return moments and cursor."""
        return self.steps.arrays(), self.steps.facts()

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Go back to earlier moments and cursor."""
        self.steps.restore(arrays, facts)

    def close(self) -> None:
        """End the site's further processes; they would hold their GPUs until this one ends."""
        if self._crew is not None:
            self._crew.close()


def site_base(plan: Plan, site: SitePlan, origin: str, device: torch.device) -> Base:
    """Load the base as one process of a site needs it.

    Raises:
        ModelError: it cannot be loaded.
    """
    model = plan.model
    # What may not fit on one device goes there in parts.
    placed = site.sharding == "none"
    return load_base(origin, model.base, model.local_steps, model.adapter.kind, device, placed)


def own_gradient(plan: Plan, site: SitePlan, base: Base, device: torch.device) -> OwnGradient:
    """Attach the adapter, and share the base out where the plan says so."""
    steps = plan.model.local_steps
    adapter = attach(base.model, plan.model.adapter, site.rank, device)
    if site.sharding != "none":
        share_out(base.model, site.sharding, device)
        # A layer is gathered by all at once: each has to pass it as often as the others.
        update: dict[str, Any] = {"micro_sequences": steps.batch_sequences}
        if steps.compile == "auto":  # graphs would end at every layer that is gathered
            update["compile"] = "off"
        steps = steps.model_copy(update=update)
    return OwnGradient(base.model, adapter, steps, framing_of(base.tokenizer).ignored)


def open_work(plan: Plan, site: SitePlan, origin: str, num_sites: int = 0) -> TrainingWork:
    """Load a base and a site's text, and put the two together.

    Raises:
        CorpusError: the text is missing, empty or too short.
        ModelError: the base cannot be loaded.
        SiteError: a further process of the site cannot do its part, or a pool.json was altered.
    """
    copies = copies_of(plan, site)
    splits = read_split(plan, site.text, site.language)
    crew = Crew(plan, site, origin) if site.processes > 1 else None
    try:
        device = best_device() if crew is None else crew.start()
        base = site_base(plan, site, origin, device)
        check_length(base, plan.model.local_steps)
        return TrainingWork(plan, site, base, splits, copies, crew, num_sites)
    except BaseException:
        if crew is not None:
            crew.close()
        raise
