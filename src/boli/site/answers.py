"""What a site is asked, in words, and what it answered: plans accepted, orders refused.

One line of JSON each, in a file of the site's state. The last line about a plan decides: a plan
is accepted once, and asked about again when it changes; a run of which an order was refused is
not served again until the site's people say so, or change the limits.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boli.corpus.pieces import Floors
from boli.corpus.sources import Split
from boli.durable import append_line
from boli.errors import LimitError
from boli.evaluation.units import count, size
from boli.plan import Plan, SitePlan
from boli.site.limits import Limits

FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answers:
    """The file with a site's answers."""

    path: Path

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            content = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in content.splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # torn by a power cut
                continue
            if isinstance(found, dict):
                yield found

    def _note(self, answer: str, run: str, **facts: str) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"time": when, "answer": answer, "run": run, **facts}
        append_line(self.path, json.dumps(line, ensure_ascii=False).encode())

    def accept(self, run: str, digest: str) -> None:
        """Note that the site's people accepted a plan.

        Raises:
            StorageError: it cannot be noted.
        """
        self._note("accepted", run, plan=digest)

    def decline(self, run: str, digest: str) -> None:
        """Note that they did not; they are asked again.

        Raises:
            StorageError: it cannot be noted.
        """
        self._note("declined", run, plan=digest)

    def refuse(self, run: str, digest: str, limits: str, order: str, error: LimitError) -> None:
        """Note that an order of a run was refused, by which limits and why.

        Raises:
            StorageError: it cannot be noted.
        """
        facts = {"limits": limits, "order": order, "code": error.code}
        words = {"problem": error.problem, "hint": error.hint}
        self._note("refused", run, plan=digest, **facts, **words)

    def send_pieces(self, run: str, digest: str, number: int, size: int, sha256: str) -> None:
        """Note that counts of pieces of words are about to leave: how many, and which.

        Raises:
            StorageError: it cannot be noted.
        """
        told = {"pieces": str(number), "bytes": str(size), "sha256": sha256}
        self._note("sent", run, plan=digest, **told)

    def is_accepted(self, run: str, digest: str) -> bool:
        """Tell whether a plan was accepted, whatever came of its orders."""
        return any(
            (line.get("answer"), line.get("run"), line.get("plan")) == ("accepted", run, digest)
            for line in self._lines()
        )

    def refusal(self, run: str, digest: str, limits: str) -> LimitError | None:
        """Return why a run is not served, if an order of it was refused and nothing changed."""
        found: LimitError | None = None
        for line in self._lines():
            if (line.get("run"), line.get("plan")) != (run, digest):
                continue
            if line.get("answer") == "accepted":
                found = None
            elif line.get("answer") == "refused" and line.get("limits") == limits:
                words = (str(line.get(key, "")) for key in ("problem", "hint", "code"))
                found = LimitError(*words)
        return found


def in_words(
    run: str,
    plan: Plan,
    site: SitePlan,
    splits: Mapping[str, Split],  # of the site's text, by language
    base: str,
    num_sites: int,
    limits: Limits,
) -> str:
    """Return what a plan asks of a site, for its people to decide on."""
    adapter, steps, rounds = plan.model.adapter, plan.model.local_steps, plan.rounds
    rank = "" if adapter.kind == "full" else f" of rank {site.rank or adapter.rank}"
    speed = ", more or fewer as the site is fast or slow" if rounds.speed_aware else ""
    tokens = rounds.local_steps * steps.batch_sequences * steps.sequence_length
    # What somebody else wrote is quoted, so that it cannot pass for words of ours.
    texts = ", ".join(
        repr(source.path) if source.path else f"made-up text ({source.starter})"
        for source in site.text
    )
    lines = "; ".join(
        f"{language}: {count(len(split.train))} lines to train on, "
        f"{count(len(split.tuning) + len(split.test))} to judge"
        for language, split in splits.items()
    )
    rows = (
        "Every update has a row for each token of the vocabulary: the rows that change name the "
        "tokens that occur in your text, without their order."
        if adapter.kind == "full"
        else "An update has no row for each token of the vocabulary, but it was computed from "
        "your text: whoever studies it can make out some of what the text is about, and whether "
        "a certain sentence is likely to be in it."
    )
    beside = ", also under n-grams of the text" if plan.evaluation.ngram else ""
    if limits.tell_intervals:
        beside += ", how many documents they are and whether differences are noise"
    told = {
        "asks": f"run {run} of plan {plan.name}, over {num_sites} "
        + ("site" if num_sites == 1 else "sites"),
        "trains": f"an adapter of kind {adapter.kind}{rank}, on the base {base}",
        "on": f"{texts} ({lines})",
        "how long": f"{count(rounds.total)} rounds of {count(rounds.local_steps)} local steps"
        f"{speed}; at most {count(limits.max_order_hours)} h an order",
        "sends": f"for each order one update by codec {plan.codec.name}, computed from about "
        f"{count(tokens)} tokens (at least {count(limits.least_tokens(adapter.kind))}); its mean "
        f"loss, the bits per byte of the lines to judge{beside}, numbers of lines, speed; "
        f"at most {size(limits.max_bytes_a_day)} a day",
        "keeps back": "the text itself, and every file that is not named above",
        "tells": f"{rows} Nothing hides a single site's update from the coordinator yet.",
    }
    return _table(told)


def pieces_in_words(
    run: str,
    plan: Plan,
    site: SitePlan,
    num_sites: int,
    floors: Floors,
    pieces: Mapping[str, int],
    path: Path,  # of the file that is sent
) -> str:
    """Return what a plan asks of a site before its base is made, for its people to decide on."""
    texts = ", ".join(
        repr(source.path) if source.path else f"made-up text ({source.starter})"
        for source in site.text
    )
    told = {
        "asks": f"run {run} of plan {plan.name}, over {num_sites} "
        + ("site" if num_sites == 1 else "sites")
        + ", for words to make or cut a tokenizer by; nothing is trained yet",
        "reads": texts,
        "sends": f"once, counts of {count(len(pieces))} words and parts of words, each in at least "
        f"{count(floors.least_lines)} lines of {count(floors.least_documents)} documents; "
        f"numbers only digit by digit. They are in {path}: read it, and take out lines that "
        "should not leave",
        "keeps back": "the text itself, every rarer word, and in which order words stand",
        "tells": "the coordinator learns which words are frequent here and about how frequent, "
        "and a name that many lines of several documents hold is one of them. Nothing hides a "
        "single site's counts from the coordinator yet.",
        "then": "you are asked again before anything is trained",
    }
    return _table(told)


def _table(told: Mapping[str, str]) -> str:
    return "\n".join(
        textwrap.fill(f" {key:<11} {value}", 100, subsequent_indent=" " * 13)
        for key, value in told.items()
    )
