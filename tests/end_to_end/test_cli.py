"""The command line as a user runs it: real processes, real text files, a tiny base."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from safetensors.numpy import load_file
from typer.testing import CliRunner

from boli.cli.main import app
from boli.corpus.sources import read_split
from boli.journal import RunInterrupted, read_journal
from boli.plan_file import load_plan
from boli.run import train


def boli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boli.cli.main", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "250"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def checked(plan: Path, settings: str = "") -> Result:
    """Return what `boli check` says, without a process that loads all libraries again."""
    return CliRunner().invoke(app, ["check", str(plan), *sets(settings)], env={"COLUMNS": "250"})


def sets(settings: str) -> list[str]:
    """Return the options that change the plan so."""
    return [word for setting in settings.split() for word in ("--set", setting)]


@pytest.fixture(scope="module")
def plan_file(
    tiny_plan_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return tiny_plan_file(
        tmp_path_factory.mktemp("plan"),
        rounds={"total": 3, "local_steps": 8},
        model={"local_steps": {"learning_rate": 1e-2}},
        evaluation={"every_rounds": 1, "max_lines": 20},
    )


@pytest.fixture(scope="module")
def finished(plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    runs = tmp_path_factory.mktemp("runs")
    done = boli("train", plan_file, "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert "better at the sites' languages than the base was" in done.stdout
    (folder,) = (path.parent for path in runs.glob("*/plan.json"))
    return folder


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "boli.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_rounds(runs: Path, process: subprocess.Popen[str], count: int = 1) -> Path:
    deadline = time.monotonic() + 300
    while process.poll() is None:
        for path in runs.glob("*/journal.jsonl"):
            if path.read_bytes().count(b'"round_stepped"') >= count:
                return path.parent
        assert time.monotonic() < deadline, "no round was made"
        time.sleep(0.01)
    raise AssertionError(f"ended early:\n{process.communicate()[0]}")


def test_run_leaves_every_file_and_improves_every_language(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["status"] == "finished"
    for code in ("bho", "mag"):
        language = report["languages"][code]
        assert language["after"]["test"] < language["before"]["test"]
        assert language["six_gram"]["test"] > 0
        assert language["ppmd"] > 0
        assert set(language["differences"]) == {"base", "six_gram", "ppmd", "mixed_to_six_gram"}
        assert 0 < language["mixed"] < language["after"]["test"]
    assert report["languages"]["hin"]["role"] == "base"
    assert (finished / "report.html").stat().st_size > 10_000
    assert (finished / "adapter" / "adapter_model.safetensors").exists()


def test_adapter_that_is_no_better_than_the_base_is_not_a_success(
    plan_file: Path, tmp_path: Path
) -> None:
    ruined = sets("rounds.total=1 rounds.outer.learning_rate=10000 evaluation.every_rounds=1")
    done = boli("train", plan_file, *ruined, "--runs", tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Warning: it is no better than the base" in done.stdout
    said = " ".join(done.stdout.split())
    assert "On tuning text: The model loses to a 6-gram of each site's own text by" in said
    assert " wins: " in said
    assert "The model wins" not in said
    (adapter,) = tmp_path.glob("*/adapter")
    assert "> **Warning: it is no better than the base" in (adapter / "README.md").read_text()
    exported = json.loads((adapter.parent / "report.json").read_text())["exported"]
    assert (exported["better_than_base"], exported["judges"], exported["sites"]) == (False, 2, 2)
    again = boli("train", "--resume", "latest", "--runs", tmp_path)
    assert again.returncode == 3
    assert boli("report", "latest", "--runs", tmp_path).returncode == 0


def test_adapter_says_which_version_it_is(finished: Path) -> None:
    card = (finished / "adapter" / "README.md").read_text()
    exported = json.loads((finished / "report.json").read_text())["exported"]
    assert exported["better_than_base"]
    assert f"Version {exported['made']} of 3 is exported" in card
    assert "Warning" not in card


def test_no_text_of_a_site_is_in_journal_or_report(finished: Path, plan_file: Path) -> None:
    lines = (plan_file.parent / "bho.txt").read_text(encoding="utf-8").split("\n")[:-1]
    escaped = [json.dumps(line)[1:-1] for line in lines]  # as JSON may write it
    told = ["journal.jsonl", "report.json", "report.html", "run.json", "plan.json"]
    logs = [path.relative_to(finished) for path in finished.glob("sites/*.log")]
    assert logs
    for name in [*told, *logs]:
        content = (finished / name).read_text(encoding="utf-8")
        assert not [line for line in (*lines, *escaped) if line in content]
    for path in finished.rglob("*.safetensors"):  # counts of n-grams are text
        names = load_file(path)
        assert not [name for name in names if name.startswith(("keys.", "counts."))]


def test_plain_peft_loads_the_adapter(finished: Path) -> None:
    import peft
    import torch
    import transformers

    config = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before = base(tokens).logits
        adapted = peft.PeftModel.from_pretrained(base, finished / "adapter")
        assert not torch.equal(adapted(tokens).logits, before)


def test_evaluate_agrees_with_the_report(finished: Path, plan_file: Path, tmp_path: Path) -> None:
    plan = load_plan(plan_file)
    test = read_split(plan, plan.site[0].text, "bho")["bho"].test
    (tmp_path / "held.txt").write_text("\n".join(test) + "\n", encoding="utf-8")
    other = plan_file.parent / "mag.txt"
    done = boli("evaluate", finished / "adapter", "--text", tmp_path / "held.txt", other)
    assert done.returncode == 0, done.stderr
    rows = {cells[0]: cells for cells in map(str.split, done.stdout.splitlines()) if cells}
    row = rows[str(tmp_path / "held.txt")]
    judged = json.loads((finished / "report.json").read_text())["languages"]["bho"]
    assert int(row[1]) == len(test)
    assert float(row[2]) == pytest.approx(judged["before"]["test"], abs=1e-3)
    assert float(row[3]) == pytest.approx(judged["after"]["test"], abs=1e-3)
    assert int(rows[str(other)][1]) == 160


def test_evaluate_compares_adapters_on_a_suite_and_writes_a_card(
    finished: Path, plan_file: Path, tmp_path: Path
) -> None:
    lines = (plan_file.parent / "bho.txt").read_text(encoding="utf-8").split("\n")[:40]
    (tmp_path / "bho.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    articles = "".join(f"article {k // 4}\n" for k in range(40))
    (tmp_path / "articles").write_text(articles, encoding="utf-8")
    (tmp_path / "suite.toml").write_text(
        'name = "village"\n[[test]]\nkind = "lines"\nfiles = ["bho.txt"]\n'
        'languages = ["bho"]\ndocuments = "articles"\n',
        encoding="utf-8",
    )
    copy = shutil.copytree(finished / "adapter", tmp_path / "copy")
    done = boli("evaluate", "--compare", finished / "adapter", copy, "--suite", tmp_path, "--json",
                "--card")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tests"][0]["num_documents"] == 10
    assert "village bho: the adapter is better than its base by" in told["sentences"][0]
    assert "no difference between copy and" in told["sentences"][1]
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert "model-index: " in card
    assert "is exported" in card


def test_runs_and_report_name_the_run(finished: Path) -> None:
    listed = boli("runs", "--runs", finished.parent)
    assert finished.name in listed.stdout
    assert "finished" in listed.stdout
    (finished / "report.html").unlink()
    shown = boli("report", "latest", "--runs", finished.parent)
    assert shown.returncode == 0, shown.stderr
    assert "mean of sites" in shown.stdout
    assert (finished / "report.html").exists()


def test_check_prints_sizes_bytes_memory_and_time(plan_file: Path) -> None:
    done = boli("check", plan_file)
    assert done.returncode == 0, done.stderr
    for word in ("is valid", "parameters", "entries", "up a round", "memory", "time"):
        assert word in done.stdout
    assert "on its line" not in done.stdout


def test_check_tells_what_a_sparse_codec_and_a_thin_line_make_of_a_round(plan_file: Path) -> None:
    settings = "codec.name=sparse codec.density=0.01 site.gaya.link_mbits=0.1"
    done = checked(plan_file, settings)
    assert done.exit_code == 0, done.output
    rows = {cells[0]: cells for cells in map(str.split, done.stdout.splitlines()) if cells}
    assert "on its line" in done.stdout
    assert rows["arrah"][-1] == "–"
    assert rows["gaya"][-1] in ("ms", "s")
    dense = checked(plan_file).stdout
    (before,) = (line.split() for line in dense.splitlines() if line.split()[:1] == ["gaya"])
    assert rows["gaya"][7] == "B"  # hundreds of bytes a round, where dense takes thousands
    assert before[7] == "kB"


def test_check_tells_what_a_public_support_makes_of_a_round(plan_file: Path) -> None:
    sizes = []
    for bits in (4, 8):
        settings = f"codec.name=public codec.density=0.5 codec.value_bits={bits}"
        done = checked(plan_file, settings)
        assert done.exit_code == 0, done.output
        (row,) = (line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["gaya"])
        assert row[7] == "kB"
        sizes.append(float(row[6]))
    assert 1.5 < sizes[1] / sizes[0] < 2.1


@pytest.mark.timeout(600)
def test_interrupted_run_goes_on_and_ends_with_the_same_bits(
    tiny_plan_file: Callable[..., Path], tmp_path: Path
) -> None:
    plan = tiny_plan_file(
        tmp_path, rounds={"total": 60, "local_steps": 4}, evaluation={"every_rounds": 20}
    )
    process = start("train", plan, "--runs", tmp_path / "runs")
    folder = wait_for_rounds(tmp_path / "runs", process, 5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert f"boli train --resume {folder.name}" in output
    entries = read_journal(folder / "journal.jsonl")
    assert isinstance(entries[-1].event, RunInterrupted)
    assert not list(folder.glob("adapter/*"))
    resumed = boli("train", "--resume", folder.name, "--runs", tmp_path / "runs")
    assert resumed.returncode == 0, resumed.stderr
    straight = train(load_plan(plan), runs=tmp_path / "straight")
    adapters = [one / "adapter_model.safetensors" for one in (folder / "adapter", straight.adapter)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.timeout(600)
def test_second_process_on_a_run_is_refused_and_a_strange_base_is_named(
    tiny_plan_file: Callable[..., Path], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = tiny_plan_file(tmp_path, rounds={"total": 200, "local_steps": 4})
    process = start("train", plan, "--runs", tmp_path / "runs")
    folder = wait_for_rounds(tmp_path / "runs", process)
    second = boli("train", "--resume", folder)
    assert second.returncode == 15
    assert f"is in use by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)

    prepared = json.loads((folder / "run.json").read_text())
    prepared["base"] = str(family_folder("qwen3"))
    (folder / "run.json").write_text(json.dumps(prepared))
    strange = boli("train", "--resume", folder)
    assert strange.returncode == 13, strange.stderr
    assert "do not train the same parameters: segment 'model.layers.0" in strange.stderr


def write_bad(folder: Path, kind: str) -> None:
    path = folder / "bho.txt"
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            path.write_text(" \n\n")
        case "not UTF-8":
            path.write_bytes("नमस्ते दुनिया\n".encode("utf-16"))
        case "binary":
            path.write_bytes(b"abc\0def\n" * 20)
        case "nothing held out":
            path.write_text("एक वाक्य\nदूसर वाक्य\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "there is no text at"),
        ("empty", "holds no text"),
        ("not UTF-8", "is not UTF-8"),
        ("binary", "holds binary data"),
        ("nothing held out", "has no held-out"),
    ],
)
def test_bad_text_is_named_before_anything_is_built(
    kind: str, words: str, tiny_plan_file: Callable[..., Path], tmp_path: Path
) -> None:
    plan = tiny_plan_file(tmp_path)
    write_bad(tmp_path, kind)
    done = boli("train", plan, "--runs", tmp_path / "runs")
    assert done.returncode == 11
    assert words in done.stderr
    assert "bho" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("rounds.totl=3", 10, "did you mean 'total'"),
        ("rounds.total=0", 10, "rounds.total = 0"),
        ("nonsense", 10, "is not section.key=value"),
        ("site.nobody.rank=2", 10, "there is no site.nobody"),
    ],
)
def test_bad_plan_names_key_and_value(
    setting: str, code: int, words: str, plan_file: Path, tmp_path: Path
) -> None:
    done = boli("train", plan_file, "--set", setting, "--runs", tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_unknown_base_folder_is_named(tiny_plan_file: Callable[..., Path], tmp_path: Path) -> None:
    plan = tiny_plan_file(tmp_path, model={"base": {"micro": None, "path": "./nowhere"}})
    done = boli("train", plan, "--runs", tmp_path / "runs")
    assert done.returncode == 12
    assert "there is no base model at" in done.stderr
    assert "nowhere" in done.stderr


def test_missing_plan_and_run_are_named(tmp_path: Path) -> None:
    assert "there is no plan at" in boli("train", tmp_path / "x.toml").stderr
    done = boli("train", "--resume", "x", "--runs", tmp_path)
    assert done.returncode == 19
    assert "there is no run 'x'" in done.stderr


@pytest.mark.root
@pytest.mark.timeout(600)
def test_full_disk_ends_clearly_and_the_run_goes_on_with_space(
    tiny_plan_file: Callable[..., Path], tiny_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    plan = tiny_plan_file(tmp_path, rounds={"total": 30, "local_steps": 2})
    disk = tiny_disk(300)
    done = boli("train", plan, "--runs", disk)
    assert done.returncode in (15, 18), done.stdout
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    again = boli("train", "--resume", "latest", "--runs", disk)
    assert again.returncode == 0, again.stderr


def test_notebook_needs_fewer_than_ten_lines(plan_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(
        "import sys, boli\n"
        "plan = boli.load_plan(sys.argv[1], ['rounds.total=1'])\n"
        "run = boli.train(plan, runs=sys.argv[2])\n"
        "report = run.report()\n"
        "print(report['languages']['bho'])\n"
        "print(boli.evaluate(run.adapter, [sys.argv[3]])[0].adapted)\n"
    )
    text = plan_file.parent / "bho.txt"
    command = [sys.executable, str(script), str(plan_file), str(tmp_path / "runs"), str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0


OTHER_SETTINGS = {
    "core": """
        model.adapter.kind=core site.gaya.rank=2 codec.dtype=fp16
        rounds.outer.name=adam rounds.outer.learning_rate=0.05""",
    "full": """
        model.adapter.kind=full rounds.mode=asynchronous rounds.buffer_size=1
        rounds.outer.name=delayed_nesterov rounds.outer.learning_rate=0.5""",
    "frozen_a": """
        model.adapter.kind=frozen_a rounds.mode=asynchronous rounds.speed_aware=true
        codec.name=sparse codec.density=0.3 codec.least_density=0.1
        rounds.deadline_seconds=0.5 site.gaya.slowdown=2""",
    "sparse": """
        codec.name=sparse codec.density=0.2 codec.warmup=[0.5] codec.downlink.name=sparse
        codec.downlink.density=0.3 codec.downlink.value_bits=4 site.gaya.rank=2""",
    "dgc": """
        codec.name=dgc codec.density=0.05 codec.warmup=[0.25] codec.warmup_rounds=5
        rounds.local_steps=1 rounds.total=30 model.local_steps.beta1=0
        codec.downlink.name=sparse codec.downlink.density=0.2""",
    "public": """
        codec.name=public codec.density=0.4 codec.value_bits=4 codec.train_from_residual=true
        rounds.total=4 site.gaya.rank=2""",
    "bf16": """
        model.local_steps.precision=bf16 rounds.outer.name=nesterov rounds.total=4""",
}
ALWAYS = ("sparse",)  # the others take 20 s each, and their parts have tests of their own


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=[] if name in ALWAYS else [pytest.mark.slow])
        for name, settings in OTHER_SETTINGS.items()
    ],
)
def test_other_settings_train_too_and_their_adapter_is_what_was_judged(
    plan_file: Path, tmp_path: Path, settings: str
) -> None:
    done = boli("train", plan_file, "--runs", tmp_path, *sets(settings))
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (path.parent for path in tmp_path.glob("*/plan.json"))
    report = json.loads((run / "report.json").read_text())
    assert report["status"] == "finished"
    assert report["mean"]["after"] < report["mean"]["before"]
    plan = load_plan(plan_file)
    test = read_split(plan, plan.site[0].text, "bho")["bho"].test[: plan.evaluation.max_lines]
    (tmp_path / "held.txt").write_text("\n".join(test) + "\n", encoding="utf-8")
    judged = boli("evaluate", run / "adapter", "--text", tmp_path / "held.txt")
    assert judged.returncode == 0, judged.stderr
    row = next(line.split() for line in judged.stdout.splitlines() if "held.txt" in line)
    assert float(row[3]) == pytest.approx(report["languages"]["bho"]["after"]["test"], abs=0.02)


def test_site_trains_its_own_adapter_on_and_learns_whether_that_helps(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    arguments = ["personalize", finished.name, "--site", "arrah", "--runs", str(finished.parent)]
    done = CliRunner().invoke(app, [*arguments, "--passes", "20"])
    assert done.exit_code == 0, done.output
    own = finished / "personal" / "arrah"
    assert f"adapter  {own}" in done.output
    assert "6-gram of the same text" in done.output
    assert "nothing says which lines belong to one document" in done.output  # of plain text
    assert "share it as you would share the text" in (own / "README.md").read_text()
    # Nothing of the run is touched, and what was written is an adapter like any other.
    assert before == {path: path.read_bytes() for path in before}
    text = finished.parent / "held-out.txt"
    plan = load_plan(next(finished.parent.parent.glob("plan*/tiny.toml")))
    split = read_split(plan, plan.site[0].text, "bho")["bho"]
    text.write_text("\n".join(split.test), encoding="utf-8")
    judged = CliRunner().invoke(app, ["evaluate", str(own), "--text", str(text), "--json"])
    run = CliRunner().invoke(
        app, ["evaluate", str(finished / "adapter"), "--text", str(text), "--json"]
    )
    mine, theirs = (json.loads(each.output)["tests"][0] for each in (judged, run))
    assert mine["adapted"] < theirs["adapted"]
    assert mine["base"] == pytest.approx(theirs["base"])


def test_personalize_says_which_sites_there_are_and_that_a_run_must_be_finished(
    finished: Path, tmp_path: Path
) -> None:
    def said(run: Path, site: str) -> str:
        arguments = ["personalize", str(run), "--site", site]
        done = subprocess.run(
            [sys.executable, "-m", "boli.cli.main", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode > 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "its sites are: arrah, gaya" in said(finished, "nowhere")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(finished / "plan.json", unfinished)
    assert "is not finished" in said(unfinished, "arrah")
