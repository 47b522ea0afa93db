"""What a site's people allow: files, plans, orders, bytes a day."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quadratic import LAYOUT, QuadraticWork

from boli.durable import Generations
from boli.errors import PUBLIC_WORDS, LimitError, NotAcceptedError
from boli.plan import LocalStepsPlan, Plan
from boli.plan_file import load_plan
from boli.rounds.transport import Stop
from boli.rounds.update import Difference, Order, UpdateHeader
from boli.site.answers import Answers
from boli.site.kit import Kit, SiteFolder, kit_of
from boli.site.limits import (
    TEMPLATE,
    Limits,
    OrderCheck,
    SentBytes,
    matches,
    read_limits,
    site_limits,
    tokens_behind,
    write_template,
)
from boli.site.node import Node

PLANS = Path(__file__).resolve().parents[3] / "plans"
TUTORIAL = Path(__file__).resolve().parents[3] / "docs" / "tutorials" / "three-machines.md"


# --- the file


def test_template_says_what_holds_without_it(tmp_path: Path) -> None:
    assert site_limits(tmp_path) == Limits()
    write_template(tmp_path / "limits.toml")
    written = (tmp_path / "limits.toml").read_text()
    assert written == TEMPLATE
    assert read_limits(tmp_path / "limits.toml") == Limits()
    shown = [line.removeprefix("# ") for line in TEMPLATE.splitlines() if " = " in line]
    tables = tomllib.loads("\n".join(shown))
    assert tables.keys() == Limits.model_fields.keys()
    assert Limits.model_validate(tables) == Limits()


def test_file_of_the_sites_people_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("min_tokens = 9000\n")
    write_template(tmp_path / "limits.toml")
    assert site_limits(tmp_path).min_tokens == 9000
    assert (tmp_path / "limits.toml").read_text() == "min_tokens = 9000\n"
    with pytest.raises(LimitError, match="cannot read"):
        site_limits(tmp_path, tmp_path / "other.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min_token = 1", "did you mean 'min_tokens'"),
        ("nonsense = 1", "nonsense: unknown limit"),
        ('min_tokens = "1"', "min_tokens = '1'"),
        ("min_tokens = true", "min_tokens = True"),
        ("min_tokens = 0", "greater than or equal to 1"),
        ("max_order_hours = nan", "max_order_hours"),
        ('adapters = ["lora", "everything"]', "adapters.1 = 'everything'"),
        ('bases = ["abc"]', "bases.0 = 'abc'"),
        ("require_masked_sums = 1", "require_masked_sums = 1"),
        ("[limits]\nmin_tokens = 1", "limits: unknown limit"),
        ("min_tokens 1", "is not TOML"),
    ],
)
def test_file_that_says_no_limit_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text(text)
    with pytest.raises(LimitError) as caught:
        site_limits(tmp_path)
    assert words in caught.value.problem
    assert caught.value.exit_code == 22


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(LimitError, match="is not TOML"):
        site_limits(tmp_path)


# --- which files


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a.txt", "*.txt", True),
        ("x/a.txt", "*.txt", False),
        ("a.txt", "**/*.txt", True),
        ("x/y/a.txt", "**/*.txt", True),
        ("x/y/a.txt", "x/**", True),
        ("x/a.txt", "x/*/a.txt", False),
        ("a.txt", "**", True),
        ("a.TXT", "**/*.txt", False),
        ("x/a.txt", "?/a.txt", True),
        ("public/a.txt", "public/**/*.txt", True),
        ("private/a.txt", "public/**/*.txt", False),
        ("a.txt/b", "**/*.txt", False),
    ],
)
def test_pattern_of_files(path: str, pattern: str, expected: bool) -> None:
    assert matches(tuple(path.split("/")), pattern) is expected


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as sites have them: text, a preparation, secrets, and links."""
    root = tmp_path / "data"
    for name in (
        "bho.txt",
        "patients.csv",
        ".secret.txt",
        ".git/notes.txt",
        "source.toml",
        "archive/one.txt",
        "archive/dropped/old.txt",
        "archive/Dropped/old.txt",
        "clean/preparation.json",
        "clean/examples.html",
        "clean/records/0.parquet",
        "clean/dropped/0.parquet",
        "clean/parts/3/records/0.parquet",
        "loose/0.parquet",
        "loose/clean/dropped/1.parquet",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text")
    (tmp_path / "outside.txt").write_text("text")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("text")
    (root / "link-out.txt").symlink_to(tmp_path / "outside.txt")
    (root / "folder-out").symlink_to(tmp_path / "elsewhere")
    (root / "link-in.txt").symlink_to(root / "bho.txt")
    (root / "link-hidden.txt").symlink_to(root / ".secret.txt")
    (root / "link-dropped").symlink_to(root / "clean" / "dropped")
    (root / "mixed").mkdir()
    (root / "mixed" / "0.parquet").symlink_to(root / "clean" / "dropped" / "0.parquet")
    (root / "records-of-others").symlink_to(root / "clean")
    return root


def sources(**values: Any) -> Any:
    plan = {
        "name": "p",
        "model": {"base": {"path": "x", "language": "hin"}},
        "site": [{"name": "gaya", "language": "mag", "text": [values]}],
    }
    return Plan.model_validate(plan).site[0].text


ALLOWED = ("bho.txt", "archive/one.txt", "clean", "clean/records/0.parquet", "link-in.txt", "loose")
ALLOWED += ("records-of-others", "not-there.txt", "./bho.txt", "")
DENIED = (
    "patients.csv",
    ".secret.txt",
    ".git/notes.txt",
    "source.toml",
    "archive/dropped/old.txt",
    "archive/Dropped/old.txt",
    "clean/dropped",
    "clean/dropped/0.parquet",
    "clean/examples.html",
    "clean/preparation.json",
    "clean/parts/3",
    "clean/parts/3/records/0.parquet",
    "loose/clean/dropped",
    "link-out.txt",
    "folder-out/a.txt",
    "link-hidden.txt",
    "link-dropped",
    "link-dropped/0.parquet",
    "mixed",
    "mixed/0.parquet",
    "records-of-others/dropped",
    "../outside.txt",
    "/etc/passwd",
    "clean/records/../dropped/0.parquet",
    "a\0.txt",
)


@pytest.mark.parametrize("path", ALLOWED)
def test_text_that_the_people_allow_may_be_named(data: Path, path: str) -> None:
    Limits().check_text(data, sources(path=path))


@pytest.mark.parametrize("path", DENIED)
@pytest.mark.parametrize("key", ["path", "held_out_by"])
@pytest.mark.parametrize("patterns", [Limits().text, ("**",)], ids=["usual", "all"])
def test_text_that_they_do_not_allow_is_refused(
    data: Path, path: str, key: str, patterns: tuple[str, ...]
) -> None:
    limits = Limits(text=patterns)
    if patterns == ("**",) and path == "patients.csv":
        return  # which it is
    named = {"path": "bho.txt"} | {key: path}
    with pytest.raises(LimitError):
        limits.check_text(data, sources(**named))


def test_folder_is_not_read_below_its_own_files(data: Path) -> None:
    """Arrow reads folders in a folder too, whatever they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from boli.corpus.sources import read_split

    pq.write_table(pa.table({"text": [f"kept {i}" for i in range(99)]}), data / "loose/0.parquet")
    hidden = data / "loose/clean/dropped/1.parquet"
    pq.write_table(pa.table({"text": [f"dropped {i}" for i in range(99)]}), hidden)
    plan = load_plan(PLANS / "first.toml").model_copy(
        update={
            "corpus": load_plan(PLANS / "first.toml").corpus.model_copy(update={"root": str(data)})
        }
    )
    split = read_split(plan, sources(path="loose"), "mag")["mag"]
    lines = [*split.train, *split.tuning, *split.test]
    assert len(lines) == 99
    assert not any("dropped" in line for line in lines)


def test_only_the_text_of_records_is_trained_on(data: Path) -> None:
    limits = Limits()
    limits.check_text(data, sources(path="clean", column="text"))
    limits.check_text(data, sources(path="loose", column="body"))
    for path in ("clean", "clean/records", "clean/records/0.parquet", "records-of-others"):
        with pytest.raises(LimitError, match="column"):
            limits.check_text(data, sources(path=path, column="uri"))


# --- plans


LORA = "model.adapter.kind=lora"


def shipped(*settings: str) -> Plan:
    return load_plan(PLANS / "first.toml", settings)


def test_ordinary_plans_are_within_the_usual_limits() -> None:
    code = TUTORIAL.read_text(encoding="utf-8").split("cat > villages.toml <<'END'\n")[1]
    tables = tomllib.loads(code.split("\nEND\n")[0])
    ours = [load_plan(path) for path in sorted(PLANS.glob("*.toml"))]
    for plan in (*ours, Plan.model_validate(tables)):
        Limits().check_plan(plan)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        (["model.adapter.kind=full", "rounds.local_steps=15"], "min_tokens_full"),
        (["rounds.local_steps=1"], "min_tokens"),
        (["model.local_steps.batch_sequences=1"], "min_tokens"),
        (["model.local_steps.sequence_length=8"], "min_tokens"),
        (["evaluation.max_lines=1"], "min_judged_lines"),
        (["rounds.local_steps=1000000000"], "max_local_steps"),
        (["model.local_steps.batch_sequences=60000"], "max_batch_tokens"),
        (["rounds.mode=asynchronous", "rounds.speed_aware=true"], "min_tokens"),
        (
            ["rounds.mode=asynchronous", "rounds.speed_aware=true", "rounds.local_steps=5000"],
            "max_local_steps",
        ),
    ],
)
def test_plan_beyond_the_limits_is_refused_with_what_to_change(
    settings: list[str], limit: str
) -> None:
    with pytest.raises(LimitError, match=limit) as caught:
        Limits().check_plan(shipped(*settings))
    assert caught.value.hint


def test_update_of_every_weight_needs_more_text() -> None:
    with pytest.raises(LimitError, match="min_tokens_full = 16384"):
        Noted(plan=shipped()).check.begin(asked(local_steps=8), 0)
    Noted(Limits(max_bytes_a_day=9), shipped(LORA)).check.begin(asked(local_steps=8), 0)
    Noted(Limits(min_tokens_full=1), shipped()).check.begin(asked(local_steps=8), 0)
    # The larger of the two holds.
    assert Limits(min_tokens=99, min_tokens_full=1).least_tokens("full") == 99


def test_speed_aware_plan_that_bounds_its_orders_is_allowed() -> None:
    aware = ["rounds.mode=asynchronous", "rounds.speed_aware=true"]
    Limits().check_plan(shipped(*aware, "rounds.min_local_steps=24"))


def test_site_may_keep_to_itself_what_ngrams_of_its_text_need() -> None:
    keeping = Limits(tell_ngram=False)
    with pytest.raises(LimitError, match="tell_ngram = false"):
        keeping.check_plan(shipped())
    keeping.check_plan(shipped("evaluation.ngram=false"))


def test_site_may_keep_to_itself_whether_differences_are_noise(tmp_path: Path) -> None:
    told = Difference(language="bho", a="model", b="base", documents=9, low=-0.5, high=-0.25)
    for number, tells in enumerate((True, False)):
        line = Line(asked(local_steps=0, evaluate=("test",)))
        folder = tmp_path / str(number)
        one = node(line, folder, in_test(Limits(tell_intervals=tells), folder))
        perform = one.work.perform
        one.work.perform = lambda *of, perform=perform: replace(  # type: ignore[method-assign]
            perform(*of), differences=(told,)
        )
        one.run()
        assert line.sent[0].differences == ((told,) if tells else ())
        assert line.sent[0].judgements


def test_masked_sums_that_are_required_refuse_every_plan() -> None:
    with pytest.raises(LimitError, match="require_masked_sums"):
        Limits(require_masked_sums=True).check_plan(shipped())


def test_base_is_checked_by_digest_and_by_room() -> None:
    Limits().check_base("a" * 64, 1000)
    Limits(bases=("a" * 64,)).check_base("a" * 64, 1000)
    for limits, digest, num_bytes in (
        (Limits(bases=("a" * 64,)), "b" * 64, 0),
        (Limits(bases=("a" * 64,)), "", 0),
        (Limits(max_base_bytes=999), "a" * 64, 1000),
    ):
        with pytest.raises(LimitError):
            limits.check_base(digest, num_bytes)


def test_each_limit_has_words_of_its_own_at_the_coordinator() -> None:
    """What travels is the limit's name: neither its value nor what was asked."""
    for name in Limits.model_fields.keys() - {"tell_intervals"}:  # that refuses nothing
        assert "limits." + name.replace("_", "-") in PUBLIC_WORDS
    assert NotAcceptedError("").code in PUBLIC_WORDS
    with pytest.raises(LimitError) as caught:
        Limits(adapters=("lora",)).check_plan(shipped("model.adapter.kind=full"))
    assert caught.value.code == "limits.adapters"


# --- how much text is behind an update


def test_steps_count_by_their_share_in_the_update() -> None:
    plan = LocalStepsPlan(batch_sequences=2, sequence_length=10)
    assert tokens_behind(plan, np.ones(5)).tolist() == pytest.approx([20, 40, 60, 80, 100])
    assert tokens_behind(plan, np.array([1.0, 0, 0, 0]))[-1] == pytest.approx(20)
    assert tokens_behind(plan, np.array([1e-3, 1e-3, 1e-3, 1.0]))[-1] < 20.2
    assert tokens_behind(plan, np.zeros(3)).tolist() == [0, 0, 0]


def asked(**values: Any) -> Order:
    facts = {
        "order": "run-gaya-1",
        "site": "gaya",
        "sequence": 1,
        "base_version": 0,
        "layout": LAYOUT.digest,
        "local_steps": 16,
        "position": 0.5,
        "position_step": 0.001,
    }
    return Order.model_validate(facts | values)


class Noted:
    """Where refusals go in a test."""

    def __init__(
        self, limits: Limits | None = None, plan: Plan | None = None, **values: Any
    ) -> None:
        self.refused: list[tuple[str, LimitError]] = []
        self.now = 0.0
        sent = values.pop("sent", None) or SentBytes(Path("/nonexistent"), 0)
        self.check = OrderCheck(
            limits or Limits(),
            plan or shipped(LORA),
            sent,
            lambda order, error: self.refused.append((order.order, error)),
            clock=lambda: self.now,
            **values,
        )


@pytest.mark.parametrize(
    "order",
    [
        pytest.param({"local_steps": 10**9}, id="no end"),
        pytest.param({"local_steps": 1}, id="one step"),
        pytest.param({"local_steps": 3}, id="few steps"),
        pytest.param({"position_step": 1.0}, id="one step that moves, by a rate that ends"),
        pytest.param({"position": -1.0}, id="a rate below zero"),
        pytest.param({"position": 1.5}, id="past the end"),
    ],
)
def test_order_beyond_the_limits_is_refused_and_noted(order: dict[str, Any]) -> None:
    plan = shipped(
        LORA, "model.local_steps.schedule=linear", "model.local_steps.final_learning_rate=0"
    )
    noted = Noted(plan=plan)
    with pytest.raises(LimitError) as caught:
        noted.check.begin(asked(**order), 1000)
    assert noted.refused == [("run-gaya-1", caught.value)]


def test_ordinary_order_is_not(tmp_path: Path) -> None:
    noted = Noted()
    noted.check.begin(asked(), 1000)
    noted.check.begin(asked(local_steps=0), 0)
    assert not noted.refused


def test_answer_that_turns_out_larger_than_a_day_is_not_kept(tmp_path: Path) -> None:
    noted = in_test(Limits(min_tokens=8, max_bytes_a_day=LAYOUT.size * 4 + 20), tmp_path)
    line = Line(asked())
    one = node(line, tmp_path, noted)
    with pytest.raises(LimitError, match="max_bytes_a_day"):
        one.run()
    assert not line.sent
    assert one.store.load() is None
    assert len(noted.refused) == 1


def test_endless_made_up_text_is_not_made() -> None:
    Limits().check_text(Path(), sources(starter="mag", lines=50_000))
    with pytest.raises(LimitError, match="made-up"):
        Limits().check_text(Path(), sources(starter="mag", lines=10**12))


def test_update_larger_than_a_day_is_not_begun() -> None:
    noted = Noted(Limits(max_bytes_a_day=999))
    with pytest.raises(LimitError, match="max_bytes_a_day"):
        noted.check.begin(asked(), 1000)


# --- a node


class Line:
    """A NodeLink that hands out instructions; `during` comes after the first local step."""

    def __init__(self, *instructions: Any, during: Any = None) -> None:
        self.waiting, self.during = [*instructions, Stop()], during
        self.sent: list[UpdateHeader] = []
        self.measured: list[Any] = []
        self.idle: list[Callable[[], None]] = []  # what happens while nothing comes

    def join(self, joined: Any) -> None:
        pass

    def receive(self, timeout_seconds: float | None) -> Any:
        if timeout_seconds == 0:
            found, self.during = self.during, None
            return found
        if timeout_seconds is not None and self.idle:
            self.idle.pop(0)()
            return None
        return self.waiting.pop(0)

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        self.sent.append(header)

    def measure(self, values: Any) -> None:
        self.measured.append(dict(values))


TINY = (
    "model.local_steps.batch_sequences=1",
    "model.local_steps.sequence_length=8",
    "rounds.total=1000",
)


def node(line: Line, folder: Path, noted: Noted) -> Node:
    store = Generations(folder / "store")
    return Node("gaya", line, QuadraticWork("gaya"), store, LAYOUT.digest, check=noted.check)


def in_test(limits: Limits, folder: Path, **values: Any) -> Noted:
    sent = SentBytes(folder / "sent", limits.max_bytes_a_day, values.pop("today", lambda: 1))
    return Noted(limits, shipped(*TINY, LORA), sent=sent, **values)


def test_attempt_that_is_cut_short_is_not_cut_below_the_text_that_an_update_needs(
    tmp_path: Path,
) -> None:
    """Else one order of many steps, and the same cut to one, would give a single step away."""
    shorter = asked(local_steps=1, attempt=1, at_most=16)
    free = Line(asked(), during=shorter)
    node(free, tmp_path / "free", in_test(Limits(min_tokens=8), tmp_path / "free")).run()
    assert free.sent[0].local_steps == 1  # the control: so it was
    line = Line(asked(), during=shorter)
    node(line, tmp_path, in_test(Limits(min_tokens=80), tmp_path)).run()
    assert 10 <= line.sent[0].local_steps <= 11  # by how far the rates differ
    assert line.sent[0].attempt == 1


def test_loss_of_a_few_tokens_is_not_told_while_training(tmp_path: Path) -> None:
    line = Line(asked())
    node(line, tmp_path, in_test(Limits(min_tokens=64), tmp_path)).run()
    told = [one["loss"] for one in line.measured if "loss" in one]
    control = Line(asked())
    node(control, tmp_path / "free", in_test(Limits(min_tokens=8), tmp_path / "free")).run()
    single = [one["loss"] for one in control.measured]
    assert told
    assert not set(told) & set(single)
    assert told[-1] == pytest.approx(np.mean(_losses(tmp_path)[8:16]))


def _losses(folder: Path) -> list[float]:
    """Return the loss of each local step of the order, as the work itself has it."""
    losses: list[float] = []
    work = QuadraticWork("gaya")

    def after(_done: int, loss: float, _rate: float) -> bool:
        losses.append(loss)
        return True

    work.perform(asked(), work.first, work.first, lambda: 16, after)
    return losses


def test_order_that_takes_its_hours_stops_at_a_step_and_is_answered(tmp_path: Path) -> None:
    noted = in_test(Limits(min_tokens=32, max_order_hours=1.0), tmp_path)
    ticking(noted, seconds_a_look=600)
    line = Line(asked())
    node(line, tmp_path, noted).run()
    assert 4 <= line.sent[0].local_steps < 16
    assert not noted.refused


def test_order_that_takes_its_hours_over_too_few_steps_is_refused_whole(tmp_path: Path) -> None:
    noted = in_test(Limits(min_tokens=64, max_order_hours=1.0), tmp_path)
    ticking(noted, seconds_a_look=1800)
    line = Line(asked())
    one = node(line, tmp_path, noted)
    with pytest.raises(LimitError, match="max_order_hours"):
        one.run()
    assert not line.sent
    assert len(noted.refused) == 1
    assert one.store.load() is None  # nothing of it is kept


def ticking(noted: Noted, seconds_a_look: float) -> None:
    """Let the clock go on whenever it is looked at."""

    def clock() -> float:
        noted.now += seconds_a_look
        return noted.now

    noted.check.clock = clock


def test_rogue_order_leaves_nothing_behind(tmp_path: Path) -> None:
    noted = in_test(Limits(min_tokens=8), tmp_path)
    line = Line(asked(local_steps=10**9, at_most=10**9))
    one = node(line, tmp_path, noted)
    with pytest.raises(LimitError, match="max_local_steps"):
        one.run()
    assert not line.sent
    assert not line.measured
    assert one.store.load() is None


# --- bytes a day


def test_answer_beyond_the_days_bytes_waits_until_the_next(tmp_path: Path) -> None:
    day, said = [1], list[str]()
    limits = Limits(min_tokens=8, max_bytes_a_day=500)
    noted = in_test(limits, tmp_path, today=lambda: day[0], say=said.append)
    line = Line(asked(), asked(order="run-gaya-2", sequence=2))
    looks: list[int] = []
    line.idle = [
        lambda: looks.append(len(line.sent)),
        lambda: (looks.append(len(line.sent)), day.__setitem__(0, 2))[0],
        lambda: looks.append(len(line.sent)),
    ]
    node(line, tmp_path, noted).run()
    assert [header.sequence for header in line.sent] == [1, 2]
    assert looks[:2] == [1, 1]
    assert len(said) == 1
    assert "until the next day" in said[0]


def test_clock_that_is_set_back_gives_no_new_day(tmp_path: Path) -> None:
    day = [10]
    sent = SentBytes(tmp_path / "sent", 100, lambda: day[0])
    assert sent.take(80)
    assert not sent.take(30)
    for earlier in (9, 0, 10):
        day[0] = earlier
        assert not SentBytes(tmp_path / "sent", 100, lambda: day[0]).take(30)
    day[0] = 11
    assert sent.take(100)
    assert not sent.take(1)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"day": "x", "bytes": 0}', "\0"])
def test_count_that_cannot_be_read_lets_nothing_leave_today(tmp_path: Path, content: str) -> None:
    day = [10]
    sent = SentBytes(tmp_path / "sent", 100, lambda: day[0])
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "day.json").write_text(content)
    assert not sent.take(1)
    day[0] = 11
    assert sent.take(100)


# --- what the people are asked


@pytest.fixture
def kit(tiny_plan: Callable[..., Plan], tmp_path: Path) -> Kit:
    return bare_kit(tiny_plan(tmp_path))


def bare_kit(plan: Plan) -> Kit:
    return Kit(run="run", plan=json.loads(plan.model_dump_json())).for_site("gaya")


def place(tmp_path: Path, **limits: Any) -> SiteFolder:
    allowed = Limits(**{"min_tokens": 1, "min_judged_lines": 1} | limits)
    return SiteFolder("gaya", tmp_path, tmp_path / "state", None, allowed)


class People:
    """Answer what a test says, and remember what they were shown."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.shown: list[tuple[str, LimitError | None]] = []

    def __call__(self, words: str, refusal: LimitError | None) -> bool:
        self.shown.append((words, refusal))
        return self.answers.pop(0)


def test_people_are_asked_once_for_a_plan_and_again_when_it_changes(
    kit: Kit, tmp_path: Path
) -> None:
    people = People(True, True)
    for _ in range(3):
        place(tmp_path).admit(kit, people)
    assert len(people.shown) == 1
    changed = kit.model_copy(update={"plan": {**kit.plan, "name": "other"}})
    place(tmp_path).admit(changed, people)
    assert len(people.shown) == 2
    with pytest.raises(IndexError):  # another run of the same plan is asked about, too
        place(tmp_path).admit(kit.model_copy(update={"run": "run-2"}), people)


def test_people_who_decline_are_asked_again_and_nothing_is_fetched(
    kit: Kit, tmp_path: Path
) -> None:
    people = People(False, True)
    with pytest.raises(NotAcceptedError):
        place(tmp_path).admit(kit, people)
    assert not (tmp_path / "state" / "bases").exists()
    place(tmp_path).admit(kit, people)


def test_what_people_are_shown_says_what_leaves_and_quotes_what_others_wrote(
    tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    evil = "bho\x1b[2J\u202e.txt"
    plan = tiny_plan(tmp_path)
    (tmp_path / evil).write_bytes((tmp_path / "mag.txt").read_bytes())
    site = plan.site[1].model_copy(update={"text": sources(path=evil)})
    plan = plan.model_copy(update={"site": (plan.site[0], site)})
    people = People(True)
    place(tmp_path).admit(bare_kit(plan), people)
    words = " ".join(people.shown[0][0].split())
    for part in ("run run of plan tiny, over 2 sites", "kind lora of rank 4", "mag:", "a day"):
        assert part in words
    assert "\x1b" not in words
    assert "\u202e" not in words


def test_run_of_which_an_order_was_refused_is_not_served_until_the_people_say_so(
    kit: Kit, tmp_path: Path
) -> None:
    people = People(True, False, True)
    folder = place(tmp_path)
    folder.admit(kit, people)
    error = LimitError("too many steps", "ask for fewer", "limits.max-local-steps")
    folder.answers.refuse(kit.run, kit.digest, folder.limits.digest, "run-gaya-1", error)
    with pytest.raises(NotAcceptedError):
        folder.admit(kit, people)
    refusal = people.shown[-1][1]
    assert refusal is not None
    assert (refusal.problem, refusal.code) == ("too many steps", "limits.max-local-steps")
    with pytest.raises(LimitError, match="too many steps"):
        folder.open_node(kit, Line())  # also where nobody was asked
    place(tmp_path, max_local_steps=99).admit(kit, People())  # other limits: looked at again
    folder.admit(kit, people)
    folder.admit(kit, people)


def test_answers_survive_a_power_cut_in_the_middle_of_a_line(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "answers.jsonl")
    answers.accept("run", "digest")
    with answers.path.open("ab") as file:
        file.write(b'{"answer": "refu')
    answers.accept("run-2", "digest")
    assert answers.is_accepted("run", "digest")
    assert answers.is_accepted("run-2", "digest")
    assert not answers.is_accepted("run-3", "digest")
    assert answers.path.stat().st_mode & 0o077 == 0


def test_site_with_too_little_text_is_refused(
    tiny_plan: Callable[..., Plan], tmp_path: Path, micro_base: Path
) -> None:
    plan = tiny_plan(tmp_path, evaluation={"max_lines": 1000})
    kit = kit_of("run", plan, micro_base).for_site("gaya")

    def open_under(**limits: int) -> Node:
        allowed = Limits(**{"min_tokens": 1, "min_judged_lines": 1} | limits)
        folder = SiteFolder("gaya", tmp_path, tmp_path / "state", micro_base, allowed)
        return folder.open_node(kit, Line())

    open_under().work.close()  # the control
    with pytest.raises(LimitError, match=r"lines of mag would be judged.*min_judged_lines = 900"):
        open_under(min_judged_lines=900)
    noted = Noted(Limits(min_tokens=500))
    noted.check.check_work(500, {})
    with pytest.raises(LimitError, match=r"499 tokens.*min_tokens = 500"):
        noted.check.check_work(499, {})
