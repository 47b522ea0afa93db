from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from boli.errors import PlanError
from boli.plan import Plan
from boli.plan_file import load_plan, plan_from_tables
from boli.plan_rounds import CodecPlan, OneWayPlan

PLANS = sorted((Path(__file__).parents[2] / "plans").glob("*.toml"))
PlanFile = Callable[..., Path]
PlanOf = Callable[..., Plan]


def problem_of(path: Path, *overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        load_plan(path, overrides)
    return str(caught.value)


def test_there_are_plans_to_load() -> None:
    names = {"first.toml", "real.toml", "thin.toml", "village.toml", "district.toml"}
    assert names <= {path.name for path in PLANS}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_shipped_plan_loads_and_survives_its_own_json(path: Path) -> None:
    plan = load_plan(path)
    again = plan_from_tables(json.loads(plan.model_dump_json()))
    assert again == plan
    assert again.digest == plan.digest


# --- what is wrong is named


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("rond.total=3", "rond", "rounds"),
        ("rounds.totl=3", "rounds.totl", "total"),
        ("rounds.outer.momentm=0.5", "rounds.outer.momentm", "momentum"),
        ("model.base.micro.hiden_size=64", "model.base.micro.hiden_size", "hidden_size"),
        ("corpus.held_out.tst_percent=3", "corpus.held_out.tst_percent", "test_percent"),
        ("site.gaya.txt='a.txt'", "site.gaya.txt", "text"),
        ("site.gaya.text=[{pth = 'a.txt'}]", "site.gaya.text.0.pth", "path"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known(
    tiny_plan_file: PlanFile, tmp_path: Path, override: str, key: str, nearest: str
) -> None:
    problem = problem_of(tiny_plan_file(tmp_path), override)
    assert f"{key}: unknown key; did you mean '{nearest}'?" in problem


def test_unknown_key_like_no_other_lists_the_known_ones(
    tiny_plan_file: PlanFile, tmp_path: Path
) -> None:
    problem = problem_of(tiny_plan_file(tmp_path), "engine.zzzz=1")
    assert "engine.zzzz: unknown key; known keys: name, threads_per_site" in problem


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("rounds.total=0", "rounds.total = 0: "),
        ("rounds.total=soon", "rounds.total = 'soon': "),
        ("rounds.mode=later", "rounds.mode = 'later': "),
        ("model.adapter.rank=1025", "model.adapter.rank = 1025: "),
        ("model.adapter.targets=3", "model.adapter.targets = 3: "),
        ("model.local_steps.learning_rate=nan", "model.local_steps.learning_rate = nan: "),
        ("model.local_steps.beta1=1.0", "model.local_steps.beta1 = 1.0: "),
        ("corpus.held_out.test_percent=41", "corpus.held_out.test_percent = 41: "),
        ("site.gaya.language=Magahi", "site.gaya.language = 'Magahi': "),
        ("site.gaya.slowdown=0.5", "site.gaya.slowdown = 0.5: "),
        ("name='Not A Name'", "name = 'Not A Name': "),
        ("rounds=3", "rounds = 3: "),
    ],
)
def test_wrong_value_is_shown_with_its_key(
    tiny_plan_file: PlanFile, tmp_path: Path, override: str, shown: str
) -> None:
    path = tiny_plan_file(tmp_path)
    problem = problem_of(path, override)
    assert f"\n  {shown}" in problem
    assert problem.startswith(f"{path} is not valid")


def test_every_problem_is_told_at_once(tiny_plan_file: PlanFile, tmp_path: Path) -> None:
    problem = problem_of(
        tiny_plan_file(tmp_path), "rounds.total=0", "codec.dtype=fp8", "site.arrah.x=1"
    )
    assert "rounds.total = 0" in problem
    assert "codec.dtype = 'fp8'" in problem
    assert "site.arrah.x: unknown key" in problem


@pytest.mark.parametrize("section", ["model", "site", "name"])
def test_missing_part_is_named(tiny_plan_file: PlanFile, tmp_path: Path, section: str) -> None:
    path = tiny_plan_file(tmp_path, **{section: None})
    assert f"\n  {section}: is missing; add it" in problem_of(path)


def test_plan_without_sites_is_refused(tiny_plan_file: PlanFile, tmp_path: Path) -> None:
    assert "\n  site: " in problem_of(tiny_plan_file(tmp_path, site=[]))


@pytest.mark.parametrize("key", ["int", "a[b]"])
def test_unknown_key_that_looks_like_a_type_is_refused_too(key: str) -> None:
    with pytest.raises(PlanError, match="unknown key"):
        plan_from_tables({key: 3})


# --- rules that span several keys

SITE = {"name": "gaya", "language": "mag", "text": ["mag.txt"]}
DGC: dict[str, Any] = {"name": "dgc"}
STEP: dict[str, Any] = {"local_steps": 1}
MUON: dict[str, Any] = {"local_steps": {"optimizer": "muon"}}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"rounds": {"buffer_size": 1}}, 'buffer_size .* set mode = "asynchronous"'),
        ({"rounds": {"max_staleness": 1}}, 'max_staleness .* set mode = "asynchronous"'),
        ({"rounds": {"speed_aware": True}}, 'remove speed_aware, or set mode = "asynchronous"'),
        (
            {"rounds": {"mode": "asynchronous", "buffer_size": 9}},
            "buffer_size 9 is more than 4 updates from each of 2 sites",
        ),
        ({"rounds": {"average": 3}}, "average 3 is above total 2"),
        ({"rounds": {"outer": {"activation": 0.5, "delay": 4}}}, "activation to at most 0.25"),
        (
            {"codec": {"name": "public"}, "rounds": {"mode": "asynchronous"}},
            'set rounds.mode = "synchronous", or codec.name = "sparse"',
        ),
        ({"codec": {"downlink": {"name": "public"}}}, 'set codec.downlink.name to "sparse"'),
        ({"codec": {"name": "sparse", "warmup": [0.6]}}, "less than or equal to 0.5"),
        ({"site": [SITE, SITE]}, "site 'gaya' is there twice"),
        ({"site": [SITE | {"rank": 5}]}, "rank 5, above model.adapter.rank 4"),
        (
            {"site": [SITE | {"rank": 2}], "model": {"adapter": {"kind": "full"}}},
            "remove the rank, or choose lora, frozen_a or core",
        ),
        (
            {"model": {"local_steps": {"sequence_length": 65}}},
            "sequence_length 65 is above model.base.micro.max_length 64",
        ),
        (
            {"model": {"base": {"micro": {"sequence_length": 65}}}},
            "sequence_length 65 is above max_length 64",
        ),
        ({"model": {"base": {"micro": {"num_heads": 3}}}}, "even multiple of num_heads 3"),
        ({"model": {"base": {"micro": {"num_heads": 32}}}}, "even multiple of num_heads 32"),
        ({"model": {"base": {"path": "x"}}}, "either path or a .* not both"),
        ({"model": {"base": {"micro": None}}}, "either path or a .* not both"),
        ({"model": {"base": {"text": []}}}, "set model.base.text"),
        ({"model": {"base": {"quantize": "4bit"}}}, 'set quantize = "none"'),
        (
            {
                "model": {
                    "base": {"micro": None, "path": "x", "quantize": "4bit"},
                    "adapter": {"kind": "full"},
                }
            },
            "a 4-bit base cannot be trained",
        ),
        (
            {"site": [SITE | {"processes": 3}]},
            "'gaya' has 3 processes for batches of 2 sequences; lower its processes, or raise",
        ),
        ({"site": [SITE | {"sharding": "fsdp"}]}, "one process, .* raise its processes, or set"),
        (
            {
                "site": [SITE | {"sharding": "fsdp", "processes": 2}],
                "model": {"adapter": {"kind": "full"}},
            },
            "frozen and not quantized: .* lora, frozen_a or core",
        ),
        (
            {
                "site": [SITE | {"sharding": "fsdp", "processes": 2}],
                "model": {"base": {"micro": None, "path": "x", "quantize": "4bit"}},
            },
            'frozen and not quantized: .*model.base.quantize = "none"',
        ),
        ({"site": [SITE | {"text": [{"lines": 3}]}]}, "either path or starter, and not both"),
        (
            {"site": [SITE | {"text": [{"path": "x", "starter": "mag"}]}]},
            "either path or starter, and not both",
        ),
        ({"site": [SITE | {"text": [{"path": "x.tsv", "column": 0}]}]}, "column counts from 1"),
        ({"site": [SITE | {"text": []}]}, "site.gaya.text: .*at least 1 item"),
        ({"codec": {"warmup": [0.7]}}, "codec.warmup.*less than or equal to 0.5"),
        ({"codec": DGC, "rounds": {"local_steps": 2}}, "set rounds.local_steps = 1"),
        ({"codec": DGC, "rounds": STEP | {"mode": "asynchronous"}}, 'mode = "synchronous"'),
        ({"codec": DGC, "rounds": STEP}, "set model.local_steps.beta1 = 0"),
        ({"codec": DGC | {"train_from_residual": True}}, "remove train_from_residual"),
        ({"codec": {"least_density": 0.01}}, "bounds the density .* lower it, or remove it"),
        (
            {"codec": {"name": "sparse", "density": 0.1, "least_density": 0.2}},
            "least_density 0.2 bounds the density 0.1",
        ),
        (
            {"codec": {"name": "sparse", "least_density": 0.01}},
            "set rounds.speed_aware = true, or remove it",
        ),
        ({"codec": {"downlink": DGC}}, 'set codec.downlink.name to "sparse"'),
        ({"codec": DGC, "rounds": STEP, "model": MUON}, 'dgc .* Muon.*optimizer = "adamw"'),
        (
            {"model": MUON | {"adapter": {"kind": "core"}}},
            'the core of kind core .*optimizer = "adamw"',
        ),
        ({"model": {"local_steps": {"dropout": 1.0}}}, "dropout = 1.0: .*less than or equal"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused_with_what_to_change(
    tiny_plan_file: PlanFile, tmp_path: Path, overrides: dict[str, Any], says: str
) -> None:
    problem = problem_of(tiny_plan_file(tmp_path, **overrides))
    assert re.search(says, problem), problem


@pytest.mark.parametrize(
    "overrides",
    [
        {"site": [SITE | {"rank": 4}]},
        {"rounds": {"outer": {"activation": 0.25, "delay": 4}}},
        {"rounds": {"mode": "asynchronous", "buffer_size": 8}},
        {"model": {"local_steps": {"sequence_length": 64}}},
        {"model": {"adapter": {"kind": "full"}}},
        {"codec": DGC, "rounds": STEP, "model": {"local_steps": {"beta1": 0}}},
    ],
)
def test_values_at_the_edge_of_a_rule_are_allowed(
    tiny_plan: PlanOf, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    tiny_plan(tmp_path, **overrides)


def test_versions_travel_as_updates_do_where_nothing_else_is_said() -> None:
    assert CodecPlan(name="dense", dtype="fp16").down == OneWayPlan()
    sparse = OneWayPlan(name="sparse", density=0.1, warmup=(0.5,), residual_decay=0.9)
    for name in ("sparse", "dgc", "public"):
        given = CodecPlan(name=name, density=0.1, warmup=(0.5,), residual_decay=0.9)
        assert given.down == sparse
    other = OneWayPlan(name="sparse", density=0.2)
    assert CodecPlan(name="sparse", downlink=other).down == other


# --- --set


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("rounds.total=7", lambda plan: plan.rounds.total, 7),
        (" rounds.total = 7 ", lambda plan: plan.rounds.total, 7),
        (
            "model.local_steps.learning_rate=2e-3",
            lambda plan: plan.model.local_steps.learning_rate,
            2e-3,
        ),
        ("name=other", lambda plan: plan.name, "other"),
        ('name="other"', lambda plan: plan.name, "other"),
        (
            'model.adapter.targets=["q_proj", "v_proj"]',
            lambda plan: plan.model.adapter.targets,
            ("q_proj", "v_proj"),
        ),
        ("model.local_steps.keep_moments=false", lambda p: p.model.local_steps.keep_moments, False),
        ("rounds.outer={name = 'yogi'}", lambda plan: plan.rounds.outer.name, "yogi"),
        ("rounds.outer.name=adam", lambda plan: plan.rounds.outer.name, "adam"),
        ("engine.threads_per_site=2", lambda plan: plan.engine.threads_per_site, 2),
        ("site.gaya.rank=2", lambda plan: plan.site[1].rank, 2),
        ("site.gaya.text=['a=b.txt']", lambda plan: plan.site[1].text[0].path, "a=b.txt"),
    ],
)
def test_override_takes_values_as_in_toml(
    tiny_plan_file: PlanFile,
    tmp_path: Path,
    override: str,
    read: Callable[[Plan], Any],
    value: object,
) -> None:
    path = tiny_plan_file(tmp_path)
    assert read(load_plan(path)) != value
    assert read(load_plan(path, [override])) == value


def test_later_override_wins_and_only_the_named_site_changes(
    tiny_plan_file: PlanFile, tmp_path: Path
) -> None:
    plan = load_plan(tiny_plan_file(tmp_path), ["site.gaya.rank=1", "site.gaya.rank=3"])
    assert [site.rank for site in plan.site] == [None, 3]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rounds.total", "is not section.key=value"),
        ("", "is not section.key=value"),
        ("=3", "is not section.key=value"),
        ("rounds..total=3", "is not section.key=value"),
        (".rounds=3", "is not section.key=value"),
        ("rounds.total.x=3", "rounds.total is not a table"),
        ("rounds.total.x.y=3", "rounds.total.x is not a table|rounds.total is not a table"),
        ("site.gaya=3", "site is not a table"),
        ("site.nobody.rank=3", "there is no site.nobody\n  there are: .*arrah.*gaya"),
    ],
)
def test_override_in_a_wrong_form_says_what_is_wrong(
    tiny_plan_file: PlanFile, tmp_path: Path, override: str, says: str
) -> None:
    problem = problem_of(tiny_plan_file(tmp_path), override)
    assert repr(override) in problem
    assert re.search(says, problem), problem


# --- paths


def test_paths_in_the_file_are_relative_to_its_folder(
    tiny_plan_file: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "plans", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    path = tiny_plan_file(folder, corpus={"root": "../texts"})
    monkeypatch.chdir(elsewhere)
    plan = load_plan(path)
    assert plan.resolve("bho.txt") == tmp_path / "texts" / "bho.txt"
    assert plan.resolve("/other/bho.txt") == Path("/other/bho.txt")
    monkeypatch.chdir(tmp_path)
    assert load_plan("plans/tiny.toml").corpus.root == str(tmp_path / "texts")


def test_root_is_the_folder_of_the_plan_where_nothing_is_said(
    tiny_plan: PlanOf, tmp_path: Path
) -> None:
    assert tiny_plan(tmp_path).corpus.root == str(tmp_path)


def test_paths_in_overrides_are_relative_to_the_current_folder(
    tiny_plan_file: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plan = load_plan(tiny_plan_file(tmp_path), ["corpus.root=texts"])
    assert plan.corpus.root == str(tmp_path / "here" / "texts")


def test_path_in_an_override_with_spaces_is_relative_to_the_current_folder_too(
    tiny_plan_file: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load_plan(tiny_plan_file(tmp_path), ["corpus.root = texts"])
    assert plan.corpus.root == str(tmp_path / "texts")


def test_root_whose_name_is_a_number_is_a_folder(
    tiny_plan_file: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load_plan(tiny_plan_file(tmp_path), ["corpus.root=2024"])
    assert plan.corpus.root == str(tmp_path / "2024")


def test_tokenizer_of_a_micro_llm_is_found_from_where_it_is_named(
    tiny_plan_file: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_plan_file(tmp_path, model={"base": {"micro": {"tokenizer": "pieces"}}})
    micro = load_plan(path).model.base.micro
    assert micro is not None
    assert micro.tokenizer == str((tmp_path / "pieces").resolve())
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    micro = load_plan(path, ["model.base.micro.tokenizer=mine"]).model.base.micro
    assert micro is not None
    assert micro.tokenizer == str((tmp_path / "cwd" / "mine").resolve())


def test_base_path_is_a_folder_where_there_is_one_and_a_hub_id_elsewhere(
    tiny_plan_file: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "cwd" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")

    def base_path(path: str, *overrides: str) -> str | None:
        base = {"micro": None, "path": path}
        return load_plan(tiny_plan_file(tmp_path, model={"base": base}), overrides).model.base.path

    assert base_path("there") == str(tmp_path / "there")
    assert base_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert base_path("gpt2") == "gpt2"
    assert base_path("./gone") == str(tmp_path / "gone")
    assert base_path("a/b/c") == str(tmp_path / "a/b/c")
    assert base_path("/somewhere") == "/somewhere"
    assert base_path("~/bases") == str(Path.home() / "bases")
    assert base_path("gpt2", "model.base.path=mine") == str(tmp_path / "cwd" / "mine")
    assert base_path("there", "model.base.path=there") == "there"  # not in the current folder


# --- files


def test_missing_plan_lists_those_nearby(tiny_plan_file: PlanFile, tmp_path: Path) -> None:
    there = tiny_plan_file(tmp_path)
    problem = problem_of(tmp_path / "tinny.toml")
    assert f"there is no plan at {tmp_path / 'tinny.toml'}" in problem
    assert f"there are: {there}" in problem


def test_plan_that_is_not_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "x"\nrounds total = 3\n')
    assert re.search(r"bad\.toml is not TOML: .*line 2", problem_of(path))


def test_plan_that_is_not_utf8_or_not_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes('name = "भोजपुरी"'.encode("utf-16"))
    assert f"cannot read {path}" in problem_of(path)
    assert f"cannot read {tmp_path}" in problem_of(tmp_path)


# --- what follows from a plan


@pytest.mark.parametrize(
    ("micro", "adapter", "kind"),
    [
        (True, {}, "full"),
        (True, {"seed": 3}, "full"),
        (True, {"kind": "core"}, "core"),
        (True, {"rank": 4}, "lora"),  # whoever names a rank means an adapter that has one
        (False, {}, "lora"),
    ],
)
def test_all_weights_of_a_micro_llm_are_trained_unless_the_plan_names_an_adapter(
    tiny_plan_file: PlanFile, tmp_path: Path, micro: bool, adapter: dict[str, Any], kind: str
) -> None:
    base = {} if micro else {"base": {"micro": None, "path": "x"}}
    path = tiny_plan_file(tmp_path, model=base | {"adapter": None})
    told = [f"model.adapter.{key}={value}" for key, value in adapter.items()]
    plan = load_plan(path, told)
    assert plan.model.adapter.kind == kind
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_plan_cannot_be_changed(tiny_plan: PlanOf, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        plan.rounds.total = 9  # type: ignore[misc]


def test_equal_plans_have_equal_digests_and_any_change_another(
    tiny_plan: PlanOf, tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path)
    assert plan.digest == tiny_plan(tmp_path).digest
    others = [
        tiny_plan(tmp_path, rounds={"seed": 1}),
        tiny_plan(tmp_path, model={"adapter": {"alpha": 8.5}}),
        tiny_plan(tmp_path, site=[SITE]),
        tiny_plan(tmp_path, corpus={"held_out": {"test_percent": 10.5}}),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 5


def test_default_written_out_gives_the_same_plan(tiny_plan: PlanOf, tmp_path: Path) -> None:
    written = tiny_plan(tmp_path, rounds={"mode": "synchronous", "trim_share": 0.2})
    assert written.digest == tiny_plan(tmp_path).digest


def test_plan_without_a_bound_on_norms_survives_its_own_json(
    tiny_plan_file: PlanFile, tmp_path: Path
) -> None:
    plan = load_plan(tiny_plan_file(tmp_path), ["rounds.norm_multiple=inf"])
    assert plan_from_tables(json.loads(plan.model_dump_json())) == plan


@pytest.mark.parametrize(
    ("num_sites", "rounds", "buffer_size", "max_staleness"),
    [
        (3, {}, 3, 0),
        (3, {"mode": "asynchronous"}, 2, 10),
        (4, {"mode": "asynchronous"}, 2, 10),
        (1, {"mode": "asynchronous"}, 1, 10),
        (3, {"mode": "asynchronous", "buffer_size": 3, "max_staleness": 0}, 3, 0),
    ],
)
def test_buffer_is_all_sites_when_synchronous_and_half_of_them_elsewhere(
    tiny_plan: PlanOf,
    tmp_path: Path,
    num_sites: int,
    rounds: dict[str, Any],
    buffer_size: int,
    max_staleness: int,
) -> None:
    sites = [SITE | {"name": f"site-{number}"} for number in range(num_sites)]
    plan = tiny_plan(tmp_path, rounds=rounds, site=sites)
    assert plan.buffer_size == buffer_size
    assert plan.max_staleness == max_staleness


@pytest.mark.parametrize(
    ("tokenizer", "kind", "asks"),
    [
        ("auto", "lora", False),
        ("auto", "full", True),
        ("sites", "lora", True),
        ("base", "full", False),
    ],
)
def test_sites_are_asked_for_words_where_their_embeddings_are_trained(
    tiny_plan: PlanOf, tmp_path: Path, tokenizer: str, kind: str, asks: bool
) -> None:
    model = {"base": {"micro": {"tokenizer": tokenizer}}, "adapter": {"kind": kind}}
    assert tiny_plan(tmp_path, model=model).asks_pieces is asks


def test_languages_are_those_of_the_texts_in_the_order_of_the_plan(
    tiny_plan: PlanOf, tmp_path: Path
) -> None:
    other = {"name": "patna", "language": "mag", "text": [{"path": "x", "language": "mai"}]}
    assert tiny_plan(tmp_path, site=[other, SITE]).languages == ("mai", "mag")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rounds": {"robust": "median"}}, "needs 3 sites: of 2 no rule can tell"),
        (
            {"rounds": {"robust": "trimmed_mean"}, "codec": {"name": "sparse"}, "site": 3},
            'set codec.name = "public" or "dense"',
        ),
        (
            {"rounds": {"robust": "median", "mode": "asynchronous"}, "site": 3},
            "needs 3 updates in a round, and rounds.buffer_size is 2",
        ),
        ({"rounds": {"trim_share": 0.5}}, "trim_share"),
        ({"rounds": {"most_share": 0}}, "most_share"),
        ({"rounds": {"norm_multiple": 0}}, "norm_multiple"),
    ],
)
def test_robust_mean_that_could_not_work_is_refused(
    tiny_plan: PlanOf, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    number = changes.pop("site", 2)
    sites = [{**SITE, "name": f"site-{i}"} for i in range(number)]
    with pytest.raises(PlanError) as caught:
        tiny_plan(tmp_path, **changes, site=sites)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": {"robust": "median"}},
        {"rounds": {"robust": "trimmed_mean"}, "codec": {"name": "public"}},
        {"rounds": {"robust": "centered_clipping"}, "codec": {"name": "sparse"}},
        {"rounds": {"robust": "median", "mode": "asynchronous", "buffer_size": 3}},
        {"rounds": {"norm_multiple": "inf", "step_multiple": "inf", "most_share": 1.0}},
    ],
)
def test_robust_mean_that_works_is_taken(
    tiny_plan: PlanOf, tmp_path: Path, changes: dict[str, Any]
) -> None:
    rounds = {k: float("inf") if v == "inf" else v for k, v in changes["rounds"].items()}
    sites = [{**SITE, "name": f"site-{i}"} for i in range(3)]
    assert tiny_plan(tmp_path, **{**changes, "rounds": rounds}, site=sites).rounds
