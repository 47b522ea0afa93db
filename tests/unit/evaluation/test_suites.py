from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from boli.errors import CorpusError
from boli.evaluation.lm_eval import write_lm_eval
from boli.evaluation.suites import SuiteTest, read_suite


def suite(folder: Path, test: str, files: Mapping[str, str]) -> list[SuiteTest]:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    manifest = f'name = "set"\n[[test]]\n{test}\n'
    (folder / "suite.toml").write_text(manifest, encoding="utf-8")
    return read_suite(folder)


def test_flores_is_aligned_files_with_the_articles_of_its_metadata(tmp_path: Path) -> None:
    files = {
        "devtest.hin": "हिंदी एक\nहिंदी दो\n",
        "devtest.bho": "भोजपुरी  एक\nभोजपुरी दू\n",
        "metadata.tsv": "URL\tdomain\nhttps://a\tnews\nhttps://b\tnews\n",
    }
    (found,) = suite(
        tmp_path,
        'kind = "flores"\nfiles = ["devtest.hin", "devtest.bho"]\nlanguages = ["hin", "bho"]\n'
        'documents = "metadata.tsv"',
        files,
    )
    assert found == SuiteTest(
        "set hin-bho",
        "bho",
        ["भोजपुरी एक", "भोजपुरी दू"],
        ["https://a", "https://b"],
        ["हिंदी एक", "हिंदी दो"],
        "hin",
    )


def test_flores_plus_names_its_articles_itself(tmp_path: Path) -> None:
    rows = [{"text": f"वाक्य {k}", "url": f"https://{k // 2}"} for k in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    test = 'kind = "flores"\nfiles = ["bho.jsonl"]\nlanguages = ["bho"]\nmax_lines = 3'
    (found,) = suite(tmp_path, test, {"bho.jsonl": text})
    assert found.lines == ["वाक्य 0", "वाक्य 1", "वाक्य 2"]
    assert found.documents == ["https://0", "https://0", "https://1"]
    assert found.sources is None


def test_loresmt_is_a_test_for_each_target_column(tmp_path: Path) -> None:
    test = 'kind = "loresmt"\nfiles = ["dev.tsv"]\nlanguages = ["hin", "bho", "mag"]'
    found = suite(tmp_path, test, {"dev.tsv": "क\tख\tग\nच\tछ\tज\n"})
    assert [(t.name, t.lines, t.sources) for t in found] == [
        ("set hin-bho", ["ख", "छ"], ["क", "च"]),
        ("set hin-mag", ["ग", "ज"], ["क", "च"]),
    ]


def test_udhr_leaves_headings_out_and_takes_articles_for_documents(tmp_path: Path) -> None:
    text = "घोषणा\n1948\nअनुच्छेद 1\nसब लोग आजाद जनमे ला।\nअनुच्छेद २\nसबके अधिकार बा।\nऔर अधिकार।\n"
    test = 'kind = "udhr"\nfiles = ["bho.txt"]\nlanguages = ["bho"]'
    (found,) = suite(tmp_path, test, {"bho.txt": text})
    assert found.lines == ["घोषणा", "सब लोग आजाद जनमे ला।", "सबके अधिकार बा।", "और अधिकार।"]
    assert found.documents == ["section 0", "section 1", "section 2", "section 2"]


def test_ili_is_a_test_for_each_label(tmp_path: Path) -> None:
    files = {"dev.tsv": "घर बा\tBHO\nघर है\tHIN\nगइल\tBHO\n"}
    found = suite(tmp_path, 'kind = "ili"\nfiles = ["dev.tsv"]', files)
    assert [(t.language, t.lines) for t in found] == [("bho", ["घर बा", "गइल"]), ("hin", ["घर है"])]
    (only,) = suite(tmp_path, 'kind = "ili"\nfiles = ["dev.tsv"]\nlanguages = ["hin"]', files)
    assert only.language == "hin"


def test_pairs_are_two_files_or_two_columns_and_lines_are_lines(tmp_path: Path) -> None:
    test = 'kind = "pairs"\nlanguages = ["hin", "bho"]\nfiles = '
    by_column = suite(tmp_path, f'{test}["a.tsv"]', {"a.tsv": "क\tख\n"})
    by_file = suite(tmp_path, f'{test}["a", "b"]', {"a": "क\n", "b": "ख\n"})
    assert by_column == by_file
    test = 'kind = "lines"\nlanguages = ["bho"]\nfiles = ["x", "y"]\ndocuments = "d"'
    (lines,) = suite(tmp_path, test, {"x": "क\n\nख\n", "y": "ग\n", "d": "1\n1\n1\n2\n"})
    assert (lines.lines, lines.documents) == (["क", "ख", "ग"], ["1", "1", "2"])


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ('kind = "flowers"\nfiles = ["a"]', "test.0.kind"),
        ('kind = "lines"\nfiles = ["a"]\ncolour = 1', "test.0.colour"),
        ('kind = "lines"\nfiles = ["a"]', "names no languages"),
        ('kind = "lines"\nfiles = ["a"]\nlanguages = ["Bhojpuri"]', "'Bhojpuri'"),
        ('kind = "lines"\nfiles = ["none"]\nlanguages = ["bho"]', "no file"),
        ('kind = "lines"\nfiles = ["bytes"]\nlanguages = ["bho"]', "not UTF-8: byte 0xff"),
        ('kind = "lines"\nfiles = ["empty"]\nlanguages = ["bho"]', "holds no text"),
        ('kind = "lines"\nfiles = ["a"]\nlanguages = ["bho"]\ndocuments = "b"', "b has 1 lines"),
        ('kind = "pairs"\nfiles = ["a"]\nlanguages = ["bho"]', "pairs are of two languages"),
        ('kind = "pairs"\nfiles = ["a"]\nlanguages = ["hin", "bho"]', "line 1 .* has 1 columns"),
        ('kind = "pairs"\nfiles = ["a", "b"]\nlanguages = ["hin", "bho"]', "not aligned"),
        ('kind = "flores"\nfiles = ["a"]\nlanguages = ["hin", "bho"]', "names 1 files for"),
        ('kind = "flores"\nfiles = ["a.jsonl"]\nlanguages = ["bho"]', "none of FLORES"),
        ('kind = "loresmt"\nfiles = ["a"]\nlanguages = ["hin"]', "language for each column"),
        ('kind = "ili"\nfiles = ["i.tsv"]\nlanguages = ["awa"]', "no line of awa"),
        ('kind = "lines"\nfiles = [', "cannot read"),
    ],
)
def test_what_a_suite_may_not_say_is_named(tmp_path: Path, test: str, words: str) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    files = {"a": "क\nख\nग\n", "b": "क\n", "empty": "\n \n", "a.jsonl": "[]\n", "i.tsv": "क\tBHO\n"}
    with pytest.raises(CorpusError, match=words) as caught:
        suite(tmp_path, test, files)
    assert caught.value.hint


def test_folder_without_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no suite"):
        read_suite(tmp_path)


@pytest.mark.corpora
def test_real_sets_are_read(corpora: Path, tmp_path: Path) -> None:
    manifest = f"""
        name = "real"
        [[test]]
        kind = "flores"
        files = ["{corpora}/parallel/flores200_devtest_001-300/devtest.bho"]
        languages = ["bho"]
        [[test]]
        kind = "loresmt"
        files = ["{corpora}/parallel/loresmt2020/dev.hin-bho-mag.tsv"]
        languages = ["hin", "bho", "mag"]
        [[test]]
        kind = "udhr"
        files = ["{corpora}/udhr/mai.txt"]
        languages = ["mai"]
        [[test]]
        kind = "ili"
        files = ["{corpora}/ili2018/dev.tsv"]
        [[test]]
        kind = "lines"
        files = ["{corpora}/parallel/nllb_seed/seed.bho"]
        documents = "{corpora}/parallel/nllb_seed/seed.url"
        languages = ["bho"]
    """
    (tmp_path / "suite.toml").write_text(manifest, encoding="utf-8")
    found = read_suite(tmp_path)
    assert [len(test.lines) for test in found][:3] == [300, 459, 459]
    assert {test.language for test in found[4:9]} == {"awa", "bho", "bra", "hin", "mag"}
    assert len(set(found[3].documents or ())) >= 30
    assert len(set(found[9].documents or ())) == 189


def test_lm_eval_tasks_name_their_text(tmp_path: Path) -> None:
    tests = [SuiteTest("set hin-bho", "bho", ["क", "ख"]), SuiteTest("/a/b.txt", "und", ["ग"])]
    paths = write_lm_eval(tests, tmp_path / "tasks")
    assert len({path.name for path in paths}) == 2
    for path, test in zip(paths, tests, strict=True):
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert task["output_type"] == "loglikelihood_rolling"
        rows = (path.parent / task["dataset_kwargs"]["data_files"]["test"]).read_text("utf-8")
        assert [json.loads(row)["text"] for row in rows.splitlines()] == test.lines
