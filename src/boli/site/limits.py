"""What a site's people allow a coordinator to ask for, in a file that they own: limits.toml.

A plan is checked before anything is fetched, and each order before any work; whatever the
limits do not allow is refused, and both sides note it. The limits stop a coordinator from
reading text out of an update that was computed from a few tokens; they do not hide what an
update of many tokens tells. Only masked sums and differential privacy can do that.

Source: Boenisch et al. 2021, When the Curious Abandon Honesty, https://arxiv.org/abs/2112.02918;
Gupta et al. 2022, Recovering Private Text in Federated Learning of Language Models,
https://arxiv.org/abs/2205.08514.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boli.corpus.consent import MANIFEST
from boli.corpus.listing import MARKER
from boli.corpus.pieces import Floors
from boli.corpus.record import DROPPED, RECORDS
from boli.corpus.sources import text_files
from boli.durable import locked, write_file
from boli.errors import LimitError
from boli.evaluation.units import size
from boli.plan import LocalStepsPlan, Plan, TextSource
from boli.rounds.update import Order

FILE = "limits.toml"
DAY_SECONDS = 86_400
MOST_STARTER_LINES = 100_000  # it is made before anybody is asked
TEMPLATE = """\
# What this site lets a coordinator ask for. It belongs to the site's people; boli only reads it.
# A line without # in front changes a limit. What is shown is what holds without it.

# What may be trained: "lora", "frozen_a", "core", "full". An update of "full" has a row for each
# token of the vocabulary, and the rows that change name the tokens that occur in the text.
# adapters = ["lora", "frozen_a", "core", "full"]

# Tokens that an update is computed from, at least. From a handful of them the text can be read.
# min_tokens = 4096

# The same for an adapter of kind "full"; the larger of the two holds. From many tokens such an
# update names a good part of the vocabulary, without order, which says little of any sentence.
# min_tokens_full = 16384

# Held-out lines that are judged together, at least: the loss of one line says much about it.
# min_judged_lines = 10

# true: the bits that n-grams of the site's text, and the compressor PPMd after it, need for the
# lines to judge may be told, two sums for each language and part, once, and once more together
# with the last version. false: no plan with evaluation.ngram is accepted.
# tell_ngram = true

# true: with the last version, whether it differs from the base and from n-grams by more than noise
# may be told: the number of documents to judge, and the two ends of an interval over them. Of fewer
# than 6 documents there are no ends. false: it is left out.
# tell_intervals = true

# The most that an order may ask for: local steps, tokens a step, and hours.
# max_local_steps = 10_000
# max_batch_tokens = 131_072
# max_order_hours = 24.0

# Bytes of updates that leave in a day (UTC). What is above waits until the next day.
# max_bytes_a_day = 2_000_000_000

# Bytes that all bases together may take in the state folder.
# max_base_bytes = 50_000_000_000

# Files below the data folder that a plan may name; ** stands for any folders. Never: hidden files,
# source.toml, folders called "dropped", what boli prepare wrote besides records, and whatever a
# link leads to outside of the data folder.
# text = ["**/*.txt", "**/*.tsv", "**/*.jsonl", "**/*.parquet"]

# Bases that may be trained, by their SHA-256 as boli join shows it. None named: any that you
# accept.
# bases = []

# Before a run, a coordinator may ask for counts of pieces of words, to make a tokenizer of those
# of all sites, or to cut one to them: never a line, and only what many lines of several documents
# hold. false: none leave. Of the two numbers here and those of the plan the larger ones hold.
# pieces = true
# pieces_least_lines = 10
# pieces_least_documents = 3

# true: only updates that are hidden in a sum over several sites may leave. This version of boli
# cannot do that yet, and so refuses every plan.
# require_masked_sums = false
"""


class Limits(BaseModel):
    """The limits of one site; the values here hold where its file names no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    adapters: Annotated[
        tuple[Literal["lora", "frozen_a", "core", "full"], ...], Field(strict=False)
    ] = ("lora", "frozen_a", "core", "full")
    min_tokens: int = Field(4096, ge=1)
    min_tokens_full: int = Field(16_384, ge=1)
    min_judged_lines: int = Field(10, ge=1)
    tell_ngram: bool = True
    tell_intervals: bool = True
    max_local_steps: int = Field(10_000, ge=1)
    max_batch_tokens: int = Field(131_072, ge=1)
    max_order_hours: float = Field(24.0, gt=0, allow_inf_nan=False)
    max_bytes_a_day: int = Field(2_000_000_000, ge=0)
    max_base_bytes: int = Field(50_000_000_000, ge=0)
    text: Annotated[tuple[str, ...], Field(strict=False)] = (
        "**/*.txt",
        "**/*.tsv",
        "**/*.jsonl",
        "**/*.parquet",
    )
    bases: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(strict=False)
    ] = ()
    pieces: bool = True
    pieces_least_lines: int = Field(10, ge=1)
    pieces_least_documents: int = Field(3, ge=1)
    require_masked_sums: bool = False

    @property
    def digest(self) -> str:
        """Hash of all limits: what was refused under some is looked at again under others."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def least_tokens(self, kind: str) -> int:
        """Return the tokens that an update of this kind of adapter is computed from, at least."""
        return max(self.min_tokens, self.min_tokens_full) if kind == "full" else self.min_tokens

    @property
    def floors(self) -> Floors:
        """What a piece of a word needs here to leave, whatever a plan says."""
        most_pieces = 1 << 31  # the plan says how many
        return Floors(self.pieces_least_lines, self.pieces_least_documents, most_pieces)

    def check_pieces(self) -> None:
        """Refuse to send counts of pieces of words, where the site's people said so.

        Raises:
            LimitError: they did.
        """
        if not self.pieces:
            raise _beyond(
                "the coordinator asks for counts of pieces of words",
                "pieces = false",
                'set model.base.micro.tokenizer = "base", or model.base.vocabulary.cut = "none", '
                "in the plan",
            )

    def check_plan(self, plan: Plan) -> None:
        """Refuse a plan that trains, sends or judges what the site does not allow.

        Raises:
            LimitError: it does.
        """
        if self.require_masked_sums:
            raise _beyond(
                "updates would not be hidden in a sum over several sites",
                "require_masked_sums = true",
                "set it to false, or wait for a version of boli that has masked sums",
            )
        kind = plan.model.adapter.kind
        if kind not in self.adapters:
            allowed = ", ".join(self.adapters) or "none"
            raise _beyond(
                f"the plan trains an adapter of kind {kind}",
                f"adapters = {allowed}",
                f"set model.adapter.kind in the plan to one of: {allowed}",
            )
        if plan.evaluation.max_lines < self.min_judged_lines:
            raise _beyond(
                f"the plan judges at most {plan.evaluation.max_lines} lines",
                f"min_judged_lines = {self.min_judged_lines}",
                f"raise evaluation.max_lines in the plan to {self.min_judged_lines}",
            )
        if plan.evaluation.ngram and not self.tell_ngram:
            raise _beyond(
                "the plan asks what n-grams of the text need for the lines to judge",
                "tell_ngram = false",
                "set evaluation.ngram = false in the plan",
            )
        self._check_orders(plan)

    def _check_orders(self, plan: Plan) -> None:
        """Refuse a plan whose ordinary orders would be refused one by one."""
        rounds, steps = plan.rounds, plan.model.local_steps
        asked, most = rounds.local_steps, rounds.local_steps
        if rounds.speed_aware:
            asked, most = max(rounds.min_local_steps, asked // 8), 4 * asked
        self.check_size(steps, most)
        # Where rates rise and fall most: in the first round and in the last.
        for version in {0, rounds.total - 1}:
            weights = rates(steps, version / rounds.total, 1 / (rounds.total * asked), asked)
            tokens = tokens_behind(steps, weights)[-1]
            if tokens < self.least_tokens(plan.model.adapter.kind):
                raise self._too_few(
                    tokens,
                    plan,
                    "the plan's orders compute an update",
                    "raise rounds.local_steps (or, in a speed-aware plan, rounds.min_local_steps), "
                    "model.local_steps.batch_sequences or its sequence_length in the plan",
                )

    def check_size(self, steps: LocalStepsPlan, local_steps: int) -> None:
        """Refuse more work than the site allows.

        Raises:
            LimitError: it is more.
        """
        if local_steps > self.max_local_steps:
            raise _beyond(
                f"an order asks for {local_steps} local steps",
                f"max_local_steps = {self.max_local_steps}",
                "lower rounds.local_steps in the plan",
            )
        tokens = steps.batch_sequences * steps.sequence_length
        if tokens > self.max_batch_tokens:
            raise _beyond(
                f"the plan asks for steps of {tokens} tokens",
                f"max_batch_tokens = {self.max_batch_tokens}",
                "lower model.local_steps.batch_sequences in the plan",
            )

    def _too_few(self, tokens: float, plan: Plan, what: str, hint: str) -> LimitError:
        least = self.least_tokens(plan.model.adapter.kind)
        key = "min_tokens" if least == self.min_tokens else "min_tokens_full"
        return _beyond(f"{what} from {tokens:.0f} tokens", f"{key} = {least}", hint)

    def check_text(self, data: Path, sources: tuple[TextSource, ...]) -> None:
        """Refuse text that the site's people did not allow, or that lies outside of their folder.

        Raises:
            LimitError: the plan names such text.
        """
        if sum(source.lines or 0 for source in sources if source.starter) > MOST_STARTER_LINES:
            raise LimitError(
                "the plan asks for very much made-up text",
                f"ask for at most {MOST_STARTER_LINES} lines of starter text",
                "limits.text",
            )
        for source in sources:
            for path in (source.path, source.held_out_by):
                if path is not None:  # an empty one is the data folder itself
                    self._check_path(data, path)
            folder = None if source.path is None else data / source.path
            if folder is not None and source.column not in (None, "text") and _is_prepared(folder):
                raise LimitError(
                    f"the plan asks for column {source.column!r} of records in {source.path!r}",
                    "of what boli prepare wrote only the text is trained on: remove column",
                    "limits.text",
                )

    def _check_path(self, data: Path, path: str) -> None:
        named = PurePosixPath(path)
        if named.is_absolute() or ".." in named.parts or "\0" in path:
            raise LimitError(
                f"the plan asks for {path!r}, which is outside of the data folder",
                "name text in the plan relative to the site's data folder",
                "site.outside",
            )
        root = data.resolve()
        for file in text_files(data / path):
            for place in (_below(file, data), _below(file.resolve(), root)):
                reason = (
                    "it leads out of the data folder" if place is None else _denied(root, place)
                )
                if (
                    place is not None
                    and not reason
                    and not any(matches(place.parts, pattern) for pattern in self.text)
                ):
                    reason = "no pattern of text in limits.toml matches it"
                if reason:
                    raise LimitError(
                        f"the plan asks for {path!r}, which this site does not allow: {reason}",
                        f"name another file in the plan, or change text in the site's {FILE}",
                        "limits.text",
                    )

    def check_base(self, digest: str, num_bytes: int) -> None:
        """Refuse a base that is not one of the site's, or too large; before it is fetched.

        Those of other runs are counted when room is made for it.

        Raises:
            LimitError: it is.
        """
        if self.bases and digest not in self.bases:
            raise _beyond(
                f"the base is {digest or 'not named by a digest'}",
                f"bases = {', '.join(self.bases)}",
                "use one of these, or name it in the site's limits.toml",
            )
        if num_bytes > self.max_base_bytes:
            raise _beyond(
                f"the base takes {size(num_bytes)}",
                f"max_base_bytes = {self.max_base_bytes}",
                "use a smaller base",
            )


def _beyond(what: str, limit: str, hint: str) -> LimitError:
    code = "limits." + limit.partition(" ")[0].replace("_", "-")
    return LimitError(f"{what}, and this site's limits have {limit}", hint, code)


def read_limits(path: Path) -> Limits:
    """Read a limits.toml.

    Raises:
        LimitError: it cannot be read, or says what no limit is.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LimitError(
            f"cannot read {path}: {error.strerror}",
            "give the site's limits.toml; boli join writes a first one into the state folder",
        ) from None
    except ValueError as error:  # also of bytes that are no UTF-8
        raise LimitError(f"{path} is not TOML: {error}", "mend that line") from None
    try:
        return Limits.model_validate(tables)
    except ValidationError as error:
        problems = "; ".join(_wrong(detail) for detail in error.errors()[:8])
        hint = f"known limits: {', '.join(Limits.model_fields)}"
        raise LimitError(f"{path} is not valid: {problems}", hint) from None


def _wrong(detail: Any) -> str:
    key = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Limits.model_fields, n=1, cutoff=0.5)
        return f"{key}: unknown limit" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{key} = {detail['input']!r}: {detail['msg']}"


def write_template(path: Path) -> None:
    """Write a first limits.toml for a site's people, unless there is one.

    Raises:
        StorageError: it cannot be written.
    """
    if not path.exists():
        write_file(path, TEMPLATE.encode(), private=True)


def site_limits(state: Path, given: Path | None = None) -> Limits:
    """Return a site's limits: of the file that was given, or of the one in its state folder.

    Where there is none in the state folder the usual limits hold.

    Raises:
        LimitError: the file cannot be read, or is not valid.
    """
    path = given or state / FILE
    return Limits() if given is None and not path.exists() else read_limits(path)


# Which files


def _below(path: Path, root: Path) -> PurePosixPath | None:
    return PurePosixPath(path.relative_to(root)) if path.is_relative_to(root) else None


def _denied(root: Path, place: PurePosixPath) -> str:
    """Say why a file below the data folder is never trained on, whatever the patterns say."""
    if any(part.startswith(".") for part in place.parts):
        return "it is hidden"
    if place.name.casefold() == MANIFEST:
        return f"{MANIFEST} is not text"
    if any(part.casefold() == DROPPED for part in place.parts[:-1]):
        return f"it lies in a folder called {DROPPED}"
    for depth in range(len(place.parts)):
        above = root.joinpath(*place.parts[:depth])
        if (above / MARKER).exists() and place.parts[depth] != RECORDS:
            return "boli prepare wrote it, and it is no record"
    return ""


def _is_prepared(path: Path) -> bool:
    """Tell whether a path of text is, or lies in, what boli prepare wrote."""
    real = path.resolve()
    return any((place / MARKER).exists() for place in (real, *real.parents[:2]))


def matches(parts: tuple[str, ...], pattern: str) -> bool:
    """Tell whether a path matches a pattern of names, of which ** stands for any folders."""

    @cache
    def rest(at: int, of: int) -> bool:
        if of == len(wanted):
            return at == len(parts)
        if wanted[of] == "**":
            return any(rest(i, of + 1) for i in range(at, len(parts) + 1))
        return (
            at < len(parts) and fnmatch.fnmatchcase(parts[at], wanted[of]) and rest(at + 1, of + 1)
        )

    wanted = pattern.split("/")
    return rest(0, 0)


# How much text is behind an update


def rates(steps: LocalStepsPlan, position: float, position_step: float, num: int) -> Any:
    """Return the learning rates of an order's local steps, (num,) float64."""
    return np.array([steps.rate_at(position + i * position_step) for i in range(num)])


def tokens_behind(
    steps: LocalStepsPlan,
    weights: Any,  # (n,) learning rates
) -> Any:
    """Return how many tokens an update is computed from in effect, after each step.

    A coordinator chooses the learning rates too: a thousand steps of which one alone moves
    anything tell as much as that one. So steps count by their share in the whole,
    (sum of rates)² ÷ sum of squared rates, which is their number where all are equal.
    """
    total, squares = np.cumsum(weights), np.cumsum(np.square(weights))
    effective = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
    return effective * steps.batch_sequences * steps.sequence_length


@dataclass(frozen=True)
class SentBytes:
    """How many bytes of updates have left on a day, kept in a folder.

    A clock that is set back does not begin a new day: what was sent then counts until the
    clock is past the latest day that it ever showed.
    """

    folder: Path
    most: int  # a day
    today: Callable[[], int] = lambda: int(time.time() // DAY_SECONDS)  # days since 1970, UTC

    def _counted(self, today: int) -> tuple[int, int]:
        """Return the day that counts, and the bytes that left on it."""
        path = self.folder / "day.json"
        try:
            found = json.loads(path.read_text())
            day, sent = int(found["day"]), int(found["bytes"])
        except FileNotFoundError:
            return today, 0
        except (OSError, ValueError, KeyError, TypeError):
            return today, self.most  # unknown means no, until tomorrow
        return (day, max(0, sent)) if day >= today else (today, 0)

    def take(self, num_bytes: int) -> bool:
        """Count bytes that are about to leave; False, and nothing counted, where they may not.

        Raises:
            StorageError: the count cannot be kept.
        """
        with locked(self.folder, "the count of bytes sent", 10.0):  # of all runs of the site
            day, sent = self._counted(self.today())
            may_leave = sent + num_bytes <= self.most
            self._keep(day, sent + num_bytes if may_leave else sent)
            return may_leave

    def _keep(self, day: int, sent: int) -> None:
        content = json.dumps({"day": day, "bytes": sent}).encode()
        write_file(self.folder / "day.json", content, private=True)


@dataclass
class OrderCheck:
    """Holds the orders of one run against a site's limits, and its answers against its day."""

    limits: Limits
    plan: Plan
    sent: SentBytes
    refuse: Callable[[Order, LimitError], None]  # note it, so that it outlives this process
    say: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    _enough: Any = field(default_factory=lambda: np.zeros(1, bool))  # after so many steps
    _began: float = 0.0
    _waits: bool = False

    @property
    def _least(self) -> int:
        return self.limits.least_tokens(self.plan.model.adapter.kind)

    def begin(self, order: Order, expected_bytes: int) -> None:
        """Check an order before any work.

        Raises:
            LimitError: it asks for more, or for an update from less text, than the site allows.
        """
        self._began = self.clock()
        try:
            self._check(order, expected_bytes)
        except LimitError as error:
            self.refuse(order, error)
            raise

    def _check(self, order: Order, expected_bytes: int) -> None:
        if not order.local_steps:
            return
        steps = self.plan.model.local_steps
        self.limits.check_size(steps, order.local_steps)
        if not (0 <= order.position <= 1 and 0 <= order.position_step <= 1):
            raise LimitError(
                f"the order has position {order.position} and step {order.position_step}",
                "both lie between 0 and 1",
                "limits.order",
            )
        weights = rates(steps, order.position, order.position_step, order.local_steps)
        tokens = tokens_behind(steps, weights)
        self._enough = np.concatenate([[False], tokens >= self._least])
        if not self._enough[-1]:
            raise self.limits._too_few(
                tokens[-1], self.plan, "the order computes an update", "ask for more local steps"
            )
        self._check_bytes(expected_bytes)

    def _check_bytes(self, num_bytes: int) -> None:
        if num_bytes > self.limits.max_bytes_a_day:
            raise _beyond(
                f"an update takes {size(num_bytes)}",
                f"max_bytes_a_day = {self.limits.max_bytes_a_day}",
                "choose a codec that sends less",
            )

    def end(self, order: Order, num_bytes: int) -> None:
        """Check an answer before it is kept: one larger than a day's bytes could never leave.

        Raises:
            LimitError: it is.
        """
        try:
            self._check_bytes(num_bytes)
        except LimitError as error:
            self.refuse(order, error)
            raise

    def steps_for(self, order: Order, wanted: int) -> int:
        """Return how many steps to take where fewer are wanted by now than the order asked for.

        A late order may be cut short, but not below the text that an update needs.
        """
        enough = np.flatnonzero(self._enough[wanted:])
        return wanted + int(enough[0]) if enough.size else order.local_steps

    def is_late(self, order: Order, done: int) -> bool:
        """Tell whether an order has taken its hours, and its answer is what is done by now.

        Raises:
            LimitError: it has, and what is done is too little for an answer.
        """
        if self.clock() - self._began <= self.limits.max_order_hours * 3600:
            return False
        if not self._enough[done]:
            error = _beyond(
                f"after {done} of {order.local_steps} local steps the order has taken its hours",
                f"max_order_hours = {self.limits.max_order_hours:g}",
                "ask for fewer local steps, or raise it at the site",
            )
            self.refuse(order, error)
            raise error
        return True

    def tells_loss(self, steps: int) -> bool:
        """Tell whether a mean over so many local steps may be told: that of a few is about them."""
        plan = self.plan.model.local_steps
        return steps * plan.batch_sequences * plan.sequence_length >= self._least

    def may_send(self, num_bytes: int) -> bool:
        """Tell whether an answer may leave now, and count it; False: ask again later."""
        if self.sent.take(num_bytes):
            self._waits = False
            return True
        if not self._waits:
            self._waits = True
            self.say(
                f"{size(num_bytes)} wait until the next day (UTC): max_bytes_a_day is "
                f"{size(self.limits.max_bytes_a_day)}"
            )
        return False

    def check_work(self, text_tokens: int, num_lines: Mapping[str, Mapping[str, int]]) -> None:
        """Refuse to train on, or to judge, too little text.

        Raises:
            LimitError: there is too little.
        """
        if text_tokens < self._least:
            raise self.limits._too_few(
                text_tokens,
                self.plan,
                "updates would be computed over and over",
                "name more text in the plan",
            )
        for language, parts in num_lines.items():
            for part in ("tuning", "test"):
                if parts[part] < self.limits.min_judged_lines:
                    raise _beyond(
                        f"{parts[part]} {part} lines of {language} would be judged",
                        f"min_judged_lines = {self.limits.min_judged_lines}",
                        f"raise corpus.held_out.{part}_percent in the plan, or name more text",
                    )
