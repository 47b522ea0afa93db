"""A site's work on its own text: local steps and judging, on one loaded base."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from boli.corpus.sources import Split, read_split, share_of
from boli.evaluation.metrics import bits_per_byte
from boli.model.adapter import adapter_layout, attach
from boli.model.base import Base, best_device, load_base
from boli.model.layout import Layout, Vector
from boli.model.local_steps import LocalSteps, PackedText, token_lines
from boli.plan import Plan, SitePlan
from boli.rounds.update import Judgement, Order
from boli.site.node import Done


class TrainingWork:
    """Local steps over a site's training lines, and bits per byte of its held-out ones."""

    def __init__(self, plan: Plan, site: SitePlan, base: Base, splits: dict[str, Split]) -> None:
        self.rank = site.rank
        self._max_lines = plan.evaluation.max_lines
        self._base, self._splits = base, splits
        self.full_layout = adapter_layout(base.model, plan.model.adapter)
        self.adapter = attach(base.model, plan.model.adapter, site.rank)
        self.layout: Layout = self.adapter.layout
        self.first = self.adapter.read()
        self.num_lines: Mapping[str, Mapping[str, int]] = {
            language: split.counts for language, split in splits.items()
        }
        lines = [line for split in splits.values() for line in split.train]
        steps = plan.model.local_steps
        if plan.codec.name == "dgc":  # so that the mean of N sites' steps is clipped at clip_norm
            clip_norm = steps.clip_norm / math.sqrt(len(plan.site))
            steps = steps.model_copy(update={"clip_norm": clip_norm})
        length = steps.sequence_length
        seed = int(share_of(f"{plan.rounds.seed}/{site.name}") * 1e9)
        text = PackedText(list(token_lines(base.tokenizer, lines)), length, seed)
        self.steps = LocalSteps(base.model, self.adapter, text, steps)

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
        judgements = tuple(
            self._judge(language, part) for part in order.evaluate for language in self._splits
        )
        evaluate_seconds = time.perf_counter() - started
        if not order.local_steps:
            return Done(None, evaluate_seconds=evaluate_seconds, judgements=judgements)
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
        )

    def _judge(self, language: str, part: Any) -> Judgement:
        lines = sorted(self._splits[language].part(part), key=share_of)[: self._max_lines]
        found = bits_per_byte(self._base.model, self._base.tokenizer, lines, self._base.max_length)
        return Judgement(language=language, part=part, bits=found.bits, bytes=found.bytes)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return moments and cursor."""
        return self.steps.arrays(), self.steps.facts()

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Go back to earlier moments and cursor."""
        self.steps.restore(arrays, facts)


def open_work(plan: Plan, site: SitePlan, origin: str) -> TrainingWork:
    """Load a base and a site's text, and put the two together.

    Raises:
        CorpusError: the text is missing, empty or too short.
        ModelError: the base cannot be loaded.
    """
    splits = read_split(plan, site.text, site.language)
    base = load_base(
        origin, plan.model.base, plan.model.local_steps, plan.model.adapter.kind, best_device()
    )
    return TrainingWork(plan, site, base, splits)
