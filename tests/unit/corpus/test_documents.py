"""Files of every kind become documents, and what cannot be read says why."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import lzma
import os
import resource
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boli.corpus import streams
from boli.corpus.documents import (
    LONGEST_BYTES,
    READ_REASONS,
    Document,
    Item,
    Reading,
    Unreadable,
    read_file,
)
from boli.corpus.listing import MARKER, list_files, open_plain
from boli.errors import CorpusError

LINE = "आज बाजार में बहुत भीड़ बा"


def read(path: Path, **reading: str) -> list[Item]:
    items = []
    for file in list_files([path]):
        items += list(read_file(file, Reading(**reading)))  # type: ignore[arg-type]
    return items


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, Document)]


def faults(items: list[Item]) -> list[tuple[str, str]]:
    found = [(item.source, item.reason) for item in items if isinstance(item, Unreadable)]
    assert all(reason in READ_REASONS for _, reason in found)
    return found


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_lines_are_documents_where_no_line_is_empty(tmp_path: Path) -> None:
    items = read(write(tmp_path / "a.txt", f"{LINE}\n{LINE} 2\r\n{LINE} 3"))
    assert [item.source for item in items] == ["a.txt#1", "a.txt#2", "a.txt#3"]
    assert texts(items) == [LINE, f"{LINE} 2", f"{LINE} 3"]


def test_paragraphs_are_documents_where_some_line_is_empty(tmp_path: Path) -> None:
    items = read(write(tmp_path / "a.txt", f"\n{LINE}\n{LINE}\n \n\n{LINE}\n"))
    assert [item.source for item in items] == ["a.txt#2", "a.txt#6"]
    assert texts(items) == [f"{LINE}\n{LINE}", LINE]


@pytest.mark.parametrize(("unit", "number"), [("line", 3), ("paragraph", 2), ("document", 1)])
def test_the_unit_can_be_chosen(tmp_path: Path, unit: str, number: int) -> None:
    path = write(tmp_path / "a.txt", f"{LINE}\n{LINE}\n\n{LINE}\n")
    assert len(texts(read(path, unit=unit))) == number


def test_tables_give_the_column_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", f"key\ttext\nx\t{LINE}\ny\nz\t\n")
    assert texts(read(path, column="text")) == [LINE]
    assert faults(read(path, column="2")) == [("a.tsv#3", "no text")]
    assert texts(read(path)) == [LINE]  # "text" is what is looked for
    write(path, f"{LINE}\tx\n{LINE}\ty\n")
    assert texts(read(path)) == [LINE, LINE]
    write(path, f"key\ttext\nx\t{LINE}\n")
    assert faults(read(path, column="other")) == [("a.tsv", "no text")]


def test_json_lines_give_the_text_of_objects(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": LINE}),
        '{"text": 3}',
        "[1]",
        "{",
        "",
        "[" * 100_000,
        '{"text": "\\ud800"}',
        json.dumps({"text": f"{LINE}\0"}),
        json.dumps({"text": f"{LINE}\n{LINE}"}),
    ]
    items = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert texts(items) == [LINE, f"{LINE}\n{LINE}"]
    assert [item.source for item in items][-1] == "a.jsonl#9"
    assert faults(items) == [
        ("a.jsonl#2", "no text"),
        ("a.jsonl#3", "no text"),
        ("a.jsonl#4", "unreadable"),
        ("a.jsonl#6", "unreadable"),
        ("a.jsonl#7", "broken encoding"),
        ("a.jsonl#8", "binary data"),
    ]


def test_parquet_gives_its_text_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [LINE, None, "b"], "n": [1, 2, 3]}), path)
    assert texts(read(path)) == [LINE, "b"]
    assert faults(read(path, column="body")) == [("a.parquet", "no text")]
    assert faults(read(path, column="n")) == [("a.parquet", "no text")]
    bad = pa.array([b"a", b"\xff", LINE.encode()], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), path)
    assert texts(read(path)) == ["a", LINE]
    assert faults(read(path)) == [("a.parquet#2", "broken encoding")]
    write(tmp_path / "a.parquet", path.read_bytes()[:-9])
    assert faults(read(path)) == [("a.parquet", "unreadable")]


def test_pages_and_recordings_are_left_to_the_workers(tmp_path: Path) -> None:
    write(tmp_path / "s" / "a.html", "<p>x")
    write(tmp_path / "s" / "b.WAV", "RIFF")
    items = read(tmp_path / "s")
    assert [(item.kind, item.text) for item in items if isinstance(item, Document)] == [
        ("html", str(tmp_path / "s" / "a.html")),
        ("recording", str(tmp_path / "s" / "b.WAV")),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    text = ("\ufeff" if encoding == "utf-16-be" else "") + f"{LINE}\n" * 40_000
    assert texts(read(write(tmp_path / "a.txt", text.encode(encoding)))) == [LINE] * 40_000


def test_mixed_encodings_cost_the_lines_that_are_not_utf8(tmp_path: Path) -> None:
    data = f"{LINE}\n".encode() + "café\n".encode("latin-1") + LINE.encode()
    items = read(write(tmp_path / "a.txt", data))
    assert texts(items) == [LINE, LINE]
    assert faults(items) == [("a.txt#2", "broken encoding")]


def test_binary_data_is_not_taken_for_text(tmp_path: Path) -> None:
    write(tmp_path / "s" / "a.txt", bytes(range(256)) * 100)
    write(tmp_path / "s" / "b.txt", f"{LINE}\n".encode() * 9000 + b"\0\1\n" + LINE.encode())
    write(tmp_path / "s" / "c.exe", "MZ")
    items = read(tmp_path / "s")
    assert faults(items) == [
        ("s/a.txt", "binary data"),
        ("s/b.txt#9001", "binary data"),
        ("s/c.exe", "unknown kind of file"),
    ]
    assert len(texts(items)) == 9001


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_are_unpacked(tmp_path: Path, pack: object) -> None:
    suffix = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[pack]  # type: ignore[index]
    packed = pack(f"{LINE}\n{LINE}".encode())  # type: ignore[operator]
    assert texts(read(write(tmp_path / f"a.txt.{suffix}", packed))) == [LINE, LINE]
    write(tmp_path / f"a.txt.{suffix}", packed[:-6])
    assert faults(read(tmp_path / f"a.txt.{suffix}")) == [(f"a.txt.{suffix}", "unreadable")]


def test_an_endless_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_UNPACKED_BYTES", 1 << 20)
    bomb = gzip.compress(b"a b c d e\n" * 5_000_000)
    items = read(write(tmp_path / "a.txt.gz", bomb), unit="document")
    assert faults(items)[-1] == ("a.txt.gz", "unreadable")
    assert sum(map(len, texts(items))) < 300 * len(bomb)


def test_zips_are_read_member_by_member(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/../../x.txt", LINE)
        archive.writestr("c.zip", b"PK")
        archive.writestr("d.txt", "\0")
        archive.writestr("e.tsv", f"{LINE}\tx")
    items = read(path)
    assert texts(items) == [LINE, LINE]
    assert faults(items) == [
        ("a.zip/c.zip", "unknown kind of file"),
        ("a.zip/d.txt", "binary data"),
    ]
    write(path, path.read_bytes()[:60])
    assert faults(read(path)) == [("a.zip", "unreadable")]


def test_a_line_without_an_end_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(f"{LINE}\n".encode())
        file.seek(300 << 20, os.SEEK_CUR)  # a hole of zeros, after the head
        file.write(b"x\n" + LINE.encode())
    with path.open("r+b") as file:
        file.seek(0)
        file.write(b"a" * streams.HEAD_BYTES)
    tracemalloc.start()
    try:
        items = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert texts(items) == [LINE]
    assert faults(items) == [("a.txt#1", "too long")]
    assert peak < 5 * LONGEST_BYTES


def test_a_long_file_as_one_document_is_cut_at_a_line(tmp_path: Path) -> None:
    lines = [f"{LINE} {number}" for number in range(120_000)]
    items = read(write(tmp_path / "a.txt", "\n".join(lines)), unit="document")
    assert len(items) > 1
    assert "\n".join(texts(items)) == "\n".join(lines)
    number = texts(items)[0].count("\n") + 2
    assert items[1].source == f"a.txt#{number}"


def test_names_are_told_in_one_printable_line(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in (b"a\xff.txt", b"b\nc#1.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(LINE)
    assert [item.source for item in read(folder)] == ["s/a\\xff.txt#1", "s/b%0Ac%231.txt#1"]


def test_a_small_file_that_says_much_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    value = pa.array(["x" * 3_000_000]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000), value.dictionary)
    pq.write_table(pa.table({"text": column}), path)
    assert path.stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    peak = 0
    for _ in read_file(list_files([path])[0], Reading()):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 50 << 20


def test_what_was_prepared_before_is_not_read_again(tmp_path: Path) -> None:
    """Its records would come back without what their own sources said."""
    write(tmp_path / "s" / "a.txt", LINE)
    write(tmp_path / "s" / "clean" / MARKER, "{}")
    write(tmp_path / "s" / "clean" / "b.txt", LINE)
    assert [file.name for file in list_files([tmp_path / "s"])] == ["s/a.txt"]
    path = tmp_path / "part.parquet"
    columns = {name: ["x"] for name in ("text", "content_hash", "residency", "purposes")}
    pq.write_table(pa.table(columns), path)
    assert faults(read(path)) == [("part.parquet", "records")]


def test_members_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b.txt", LINE)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("b.txt", LINE)
    sources = [item.source for item in read(path)]
    assert sources == ["a.zip/b.txt#1", "a.zip/b.txt~2#1"]


def test_lines_of_old_macs_are_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", f"{LINE}\r{LINE}\r".encode())
    assert texts(read(path)) == [LINE, LINE]


def test_links_are_told_and_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "s" / "a.txt", LINE)
    write(tmp_path / "t" / "b.txt", f"{LINE} outside")
    for name, target in (
        ("folder", tmp_path / "t"),
        ("outside.txt", tmp_path / "t" / "b.txt"),
        ("chain.txt", tmp_path / "s" / "outside.txt"),
        ("up.txt", Path("../t/b.txt")),
        ("inside.txt", Path("a.txt")),
        ("nowhere.txt", tmp_path / "nowhere"),
        ("device.txt", Path("/dev/zero")),
    ):
        (tmp_path / "s" / name).symlink_to(target)
    items = read(tmp_path / "s")
    assert texts(items) == [LINE]  # once: what lies in the source is read where it lies
    assert {reason for _, reason in faults(items)} == {"link"}
    assert len(items) == 8


def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "s" / "a.txt", LINE)
    (tmp_path / "here").symlink_to(tmp_path / "s")
    (file,) = list_files([tmp_path / "here"])
    assert (file.path, file.root) == (tmp_path / "s" / "a.txt", tmp_path / "s")
    assert texts(read(tmp_path / "here")) == [LINE]


def test_a_link_that_is_put_in_place_of_a_listed_file_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "s" / "deep" / "a.txt", LINE)
    other = write(tmp_path / "t" / "a.txt", f"{LINE} outside")
    (file,) = list_files([tmp_path / "s"])
    path.rename(tmp_path / "moved.txt")
    path.symlink_to(other)
    assert faults(list(read_file(file, Reading()))) == [("s/deep/a.txt", "link")]
    path.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(other.parent)
    assert faults(list(read_file(file, Reading()))) == [("s/deep/a.txt", "unreadable")]
    path.parent.unlink()
    write(path, LINE)
    assert texts(list(read_file(file, Reading()))) == [LINE]


def test_a_link_that_comes_while_a_file_is_opened_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is a link when the file is opened, and a folder again when it is looked at."""
    path = write(tmp_path / "s" / "deep" / "a.txt", LINE)
    secret = write(tmp_path / "t" / "a.txt", f"{LINE} outside")
    real = os.open

    def swapped(name: Path, flags: int, *more: int) -> int:
        if name != path:
            return real(name, flags, *more)
        path.parent.rename(tmp_path / "aside")
        path.parent.symlink_to(secret.parent)
        descriptor = real(name, flags, *more)
        path.parent.unlink()
        (tmp_path / "aside").rename(path.parent)
        return descriptor

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(OSError, match="a link leads there"):
        open_plain(path)
    monkeypatch.undo()
    with open_plain(path) as file:
        assert file.read().decode() == LINE


def test_what_was_prepared_or_dropped_is_no_source(tmp_path: Path) -> None:
    out = tmp_path / "clean"
    write(out / MARKER, "{}")
    write(out / "dropped" / "a.txt", LINE)
    for root in (out, out / "dropped", out / "dropped" / "a.txt"):
        with pytest.raises(CorpusError, match="which boli prepare wrote"):
            list_files([root])
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({n: [LINE] for n in ("reason", "excerpt", "duplicate_of")}), path)
    assert faults(read(path, column="excerpt")) == [("part.parquet", "records")]


def test_a_misspelt_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s" / "a.txt", LINE)
    write(tmp_path / "s" / "Source.TOML", "")
    with pytest.raises(CorpusError, match=r"Source\.TOML is not called source\.toml"):
        list_files([tmp_path / "s"])


def test_a_zip_with_a_manifest_inside_is_not_read(tmp_path: Path) -> None:
    """What it says would not count: the zip lies in a folder that may say something else."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("diary/b.txt", LINE)
        archive.writestr("diary/Source.toml", "")
    (item,) = read(path)
    assert isinstance(item, Unreadable)
    assert "unpack it" in item.detail


def test_a_link_in_a_zip_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd and more words")
        archive.writestr("b.txt", LINE)
    items = read(path)
    assert texts(items) == [LINE]
    assert faults(items) == [("a.zip/link.txt", "unreadable")]


def test_roots_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("x/text", "y/text"):
        write(tmp_path / name / "a.txt", LINE)
    write(tmp_path / "x" / "text" / ".hidden" / "b.txt", LINE)
    write(tmp_path / "x" / "text" / "source.toml", "")
    files = list_files([tmp_path / "x" / "text", tmp_path / "y" / "text"])
    assert [file.name for file in files] == ["text-2/a.txt", "text/a.txt"]


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nothing at"):
        list_files([tmp_path / "none"])
    with pytest.raises(CorpusError, match="no file"):
        list_files([tmp_path])


def test_what_is_no_plain_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert faults(read(tmp_path)) == [(f"{tmp_path.name}/pipe.txt", "unknown kind of file")]


# --- what small files unpack to


def many_members(path: Path, members: int, size: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(members):
            archive.writestr(f"{number:02}.txt", f"{LINE}\n".encode() + b"a" * size + b"\n")
    return path


def test_members_of_an_archive_share_one_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_UNPACKED_BYTES", 20 << 20)
    items = read(many_members(tmp_path / "a.zip", 10, 5 << 20))  # each is far below the bound
    assert len(texts(items)) == 3
    assert [reason for _, reason in faults(items)].count("unreadable") == 7
    assert [reason for _, reason in faults(items)].count("too long") == 3
    monkeypatch.setattr(streams, "MOST_UNPACKED_BYTES", 60 << 20)
    assert len(texts(read(tmp_path / "a.zip"))) == 10


def test_members_that_share_their_bytes_share_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_UNPACKED_BYTES", 4 << 20)
    path = many_members(tmp_path / "a.zip", 1, 1 << 20)
    assert texts(read(path)) == [LINE, "a" * (1 << 20)]
    with zipfile.ZipFile(path, "a") as archive:
        (entry,) = archive.infolist()
        for number in range(1, 9):  # nine names of one member
            copied = copy.copy(entry)
            copied.filename = f"{number:02}.txt"
            archive.filelist.append(copied)
        archive._didModify = True  # type: ignore[attr-defined]
    items = read(path)
    assert 2 <= len(texts(items)) <= 8  # two of a member
    assert 5 <= len(faults(items)) == [reason for _, reason in faults(items)].count("unreadable")


def test_directory_of_an_archive_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = many_members(tmp_path / "a.zip", 40, 10)
    assert len(texts(read(path))) == 80
    monkeypatch.setattr(streams, "LARGEST_DIRECTORY_BYTES", 1000)
    (fault,) = read(path)
    assert isinstance(fault, Unreadable)
    assert "directory" in fault.detail


@pytest.mark.parametrize("value", ["[]", "{}", '{"a":1}', "[1]", "1", '"ab"'])
def test_line_of_very_many_values_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    values = ",".join([value] * 500_000)[: 3 << 20]
    line = f'{{"text": "{LINE}", "x": [{values}]}}\n{{"text": "{LINE}"}}\n'
    path = write(tmp_path / "a.jsonl", line.encode())
    parsed: list[int] = []
    loads = json.loads

    def noted(text: str) -> object:
        parsed.append(len(text))
        return loads(text)

    monkeypatch.setattr("boli.corpus.documents.json.loads", noted)
    items = read(path)
    assert faults(items) == [("a.jsonl#1", "too long")]
    assert texts(items) == [LINE]
    assert max(parsed) < 1000


def test_parquet_page_that_unpacks_to_very_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [LINE] * 3}), path)
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    limits = []

    class Batches:
        def __next__(self) -> None:
            limits.append(resource.getrlimit(resource.RLIMIT_DATA))
            raise pa.ArrowMemoryError("malloc of size 629146112 failed")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: Batches())
        assert faults(read(path)) == [("a.parquet", "unreadable")]
    assert limits[0][0] != limit[0] or sys.platform != "linux"
    assert resource.getrlimit(resource.RLIMIT_DATA) == limit
    assert texts(read(path)) == [LINE] * 3
