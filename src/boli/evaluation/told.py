"""What a run's journal tells, with every fact counted once; the later of two tellings holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from boli.journal import (
    DifferenceJudged,
    Entry,
    Evaluated,
    MixedEvaluated,
    OrderSent,
    PpmdEvaluated,
    RoundStepped,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    SiteBenched,
    SiteForgiven,
    SiteJoined,
    SixGramEvaluated,
    UpdateAccepted,
    UpdateRejected,
    UpdateWeighed,
    VersionExported,
    VersionJudged,
    VersionRestored,
)

SLACK_SECONDS = 1.0  # by which the journal's clock and a site's may disagree


@dataclass
class Lane:
    """What one site did when; its durations are laid out backwards from the journal's times."""

    spans: list[dict[str, Any]] = field(default_factory=list)
    joined: float = 0.0  # seconds from the first event, as all times here
    until: float = 0.0  # end of the last span
    training: bool = False  # an order to train is open
    judging: tuple[float, int] | None = None  # an open order only to judge: when sent, version
    placed: set[tuple[str, float]] = field(default_factory=set)

    def work(self, now: float, update: UpdateAccepted) -> None:
        """Lay out one answer; what is told or sent a second time was made earlier."""
        self.training = False
        identity = (update.order, update.work_seconds)
        begun = now - update.work_seconds
        if identity in self.placed or begun < self.joined - SLACK_SECONDS:
            return
        self.placed.add(identity)
        version = update.base_version
        self._add("idle", begun - update.idle_seconds, begun, version)
        self._add("evaluate", begun, begun + update.evaluate_seconds, version)
        self._add("train", now - update.train_seconds, now, version)

    def judge(self, now: float, version: int) -> None:
        """Lay out an order only to judge: the journal has its times, but no durations."""
        if self.judging is None or self.judging[1] != version:
            return
        sent = max(self.judging[0], self.joined)
        if not self.training:  # otherwise it was at work that was then given up
            self._add("idle", max(self.until, self.joined), sent, version)
        self._add("evaluate", sent, now, version)
        self.judging, self.training = None, False

    def _add(self, kind: str, start: float, end: float, version: int) -> None:
        start, end = round(max(start, self.until), 3), round(end, 3)
        if end > start:
            self.spans.append({"start": start, "end": end, "kind": kind, "version": version})
            self.until = end


@dataclass
class Told:
    """What a journal tells up to a line: a later line holds against an earlier one."""

    lanes: dict[str, Lane]  # by site
    plan: str | None = None  # digest
    boli: str | None = None
    first: float | None = None  # Unix time
    now: float = 0.0  # seconds from the first event
    finished: RunFinished | None = None
    failure: str | None = None  # why it ended, until it went on
    rounds: dict[int, tuple[float, RoundStepped]] = field(default_factory=dict)  # by version
    answers: dict[tuple[str, str], UpdateAccepted | UpdateRejected] = field(default_factory=dict)
    judged: dict[tuple[str, str, str, int], Evaluated] = field(default_factory=dict)
    six_gram: dict[tuple[str, str, str], SixGramEvaluated] = field(default_factory=dict)
    ppmd: dict[tuple[str, str, str], PpmdEvaluated] = field(default_factory=dict)
    mixed: dict[tuple[str, str, str, int], MixedEvaluated] = field(default_factory=dict)
    differences: dict[tuple[str, str, str, str, int], DifferenceJudged] = field(
        default_factory=dict
    )  # by site, language, a, b, version
    num_lines: dict[str, Any] = field(default_factory=dict)
    bytes_down: Counter[tuple[str, int]] = field(default_factory=Counter)  # by site, version
    benched: dict[str, str] = field(default_factory=dict)
    weighed: dict[tuple[int, str, int], UpdateWeighed] = field(default_factory=dict)
    judged_versions: dict[int, VersionJudged] = field(default_factory=dict)  # by version
    restored: dict[int, VersionRestored] = field(default_factory=dict)  # by the new version
    exported: VersionExported | None = None
    restarts: dict[tuple[str, int], int] = field(default_factory=dict)  # by site and resumes
    told_at: dict[tuple[str, str], int] = field(default_factory=dict)  # line of each answer
    line: int = 0  # the one that is being taken in
    stops: list[dict[str, Any]] = field(default_factory=list)

    @property
    def updates(self) -> list[UpdateAccepted]:
        """The accepted updates."""
        return [answer for answer in self.answers.values() if isinstance(answer, UpdateAccepted)]

    @property
    def version(self) -> int:
        """The last version made."""
        return max(self.rounds, default=0)

    @property
    def resumed(self) -> list[dict[str, Any]]:
        """The stops after which the run went on."""
        return [stop for stop in self.stops if stop["resumed"] is not None]

    @property
    def seconds(self) -> float:
        """Time from the first event to the last, without the time between stop and resume."""
        stopped: float = sum(stop["resumed"] - stop["stopped"] for stop in self.resumed)
        return self.now - stopped

    @property
    def preparation_seconds(self) -> float | None:
        """What the process that finished the run took before its first event."""
        if self.finished is None:
            return None
        begun: float = self.resumed[-1]["resumed"] if self.resumed else 0.0
        return max(0.0, self.finished.seconds - (self.now - begun))

    def tell(self, entry: Entry) -> None:
        """Take in one line."""
        if self.first is None or isinstance(entry.event, RunStarted):
            self.first, self.now = entry.time, 0.0  # a second start: the first came to nothing
        self.line = entry.seq
        before, self.now = self.now, max(self.now, entry.time - self.first)
        match entry.event:
            case RunStarted() as event:
                self.plan, self.boli = event.plan, event.boli
            case RunResumed() as event:
                self.failure = None
                self._resume(before, event)
            case RunInterrupted():
                self._stop(self.now, asked=True)
            case RunFailed(problem):
                self._stop(self.now, asked=False)
                self.failure = problem
            case RunFinished() as event:
                self.finished = event
            case RoundStepped() as event:
                self.rounds[event.version] = (self.now, event)
            case SiteBenched(site, reason):
                self.benched[site] = reason
            case UpdateWeighed() as event:
                self.weighed[event.version, event.site, event.sequence] = event
            case VersionJudged() as event:
                self.judged_versions[event.version] = event
            case VersionRestored() as event:
                self.restored[event.version] = event
            case VersionExported() as event:
                self.exported = event
            case SiteForgiven(site):
                self.benched.pop(site, None)
            case event:
                self._tell_of_site(event)

    def _tell_of_site(self, event: Any) -> None:
        lane = self.lanes.get(getattr(event, "site", ""), Lane())
        match event:
            case SiteJoined(site, num_lines, restarts):
                lane.joined = self.now
                self.num_lines[site] = num_lines
                self.restarts[site, len(self.stops)] = restarts
            case OrderSent():
                self.bytes_down[event.site, event.base_version] += event.bytes_down
                if event.local_steps:
                    lane.training = True
                else:
                    lane.judging = (self.now, event.base_version)
            case UpdateAccepted():
                self.answers[event.site, event.order] = event
                self.told_at[event.site, event.order] = self.line
                lane.work(self.now, event)
            case UpdateRejected():
                # What is not even an update names no order, and each one counts.
                self.answers[event.site, event.order or f"#{len(self.answers)}"] = event
                lane.training, lane.until = False, self.now  # was at work, for how long is not told
            case Evaluated(site, language, part, version):
                self.judged[site, language, part, version] = event
                lane.judge(self.now, version)
            case SixGramEvaluated(site, language, part):
                self.six_gram[site, language, part] = event
            case PpmdEvaluated(site, language, part):
                self.ppmd[site, language, part] = event
            case MixedEvaluated(site, language, part, version):
                self.mixed[site, language, part, version] = event
            case DifferenceJudged(site, language, version):
                self.differences[site, language, event.a, event.b, version] = event

    def _stop(self, at: float, *, asked: bool) -> None:
        stop = {"stopped": at, "resumed": None, "asked": asked, "version": self.version}
        self.stops.append({**stop, "corrupt": []})

    def _resume(self, before: float, event: RunResumed) -> None:
        """Forget what the checkpoint does not remember: it is done, and told, once more."""
        if not self.stops or self.stops[-1]["resumed"] is not None:
            self._stop(before, asked=False)
        last = event.version
        self.stops[-1] |= {"resumed": self.now, "version": last, "corrupt": event.corrupt}
        self.finished = self.exported = None
        self.rounds = {key: value for key, value in self.rounds.items() if key <= last}
        self.weighed = {key: value for key, value in self.weighed.items() if key[0] <= last}
        self.judged_versions = {
            key: value for key, value in self.judged_versions.items() if key <= last
        }
        self.restored = {key: value for key, value in self.restored.items() if key <= last}
        self.judged = {key: value for key, value in self.judged.items() if key[3] <= last}
        self.mixed = {key: value for key, value in self.mixed.items() if key[3] <= last}
        self.differences = {key: value for key, value in self.differences.items() if key[4] <= last}
        for key, answer in list(self.answers.items()):
            if isinstance(answer, UpdateAccepted) and self.told_at[key] >= event.since:
                del self.answers[key]


def made(update: UpdateAccepted) -> int:
    """Return the version that an update went into."""
    return update.base_version + update.staleness + 1
