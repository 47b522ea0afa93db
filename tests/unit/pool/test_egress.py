from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pool_records import record, send

import boli
from boli.corpus.consent import Terms
from boli.corpus.record import Record
from boli.errors import PoolError, StorageError
from boli.pool import egress
from boli.pool.delta import ConflictError
from boli.pool.egress import NOT_AS_NOTED, NOTED_BEFORE, judged, why_stay
from boli.pool.egress_log import EgressLog, read_log
from boli.pool.table import Pool

TODAY = date(2026, 6, 1)
SOURCE = Path(boli.__file__).parent


def test_what_may_go_goes(pool: Pool, log: EgressLog) -> None:
    sent = send(pool, "arrah", [record(1), record(2)], log)
    assert (sent.added, sent.there, sent.stayed) == ([record(1).id, record(2).id], [], {})
    again = send(pool, "arrah", [record(1), record(2)], log)
    assert (again.added, len(again.there)) == ([], 2)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"purposes": ()}, "no consent to training"),
        ({"purposes": ("evaluation", "publication")}, "no consent to training"),
        ({"expires": date(2026, 5, 31)}, "consent has expired"),
        ({"licence": ""}, "no licence is named"),
        ({"licence": "Proprietary"}, "the pool does not take Proprietary"),
        ({"licence": "cc-by-4.0"}, "the pool does not take cc-by-4.0"),
        ({"residency": "premises"}, "it may not leave the premises"),
        ({"residency": "state", "region": "IN-UP"}, "it may not leave its state"),
        ({"residency": "state", "region": "IN"}, "it may not leave its state"),
        ({"residency": "state", "region": ""}, "it may not leave its state"),
        ({"residency": "country", "region": "NP"}, "it may not leave its country"),
        ({"residency": "country", "region": ""}, "it may not leave its country"),
        ({"residency": "ANY"}, "its residency is unknown"),
        ({"residency": ""}, "its residency is unknown"),
        ({"residency": None}, "its residency is unknown"),
        ({"region": "Bihar"}, "its region is not in form"),
        ({"language": "../x"}, "its language is not in form"),
        ({"language": "bho\n"}, "its language is not in form"),
        ({"script": "deva"}, "its script is not in form"),
        ({"id": "../../etc/passwd"}, "its id is not in form"),
        ({"id": "A" * 32}, "its id is not in form"),
        ({"content_hash": "0" * 64}, "its text is not what was prepared"),
        ({"content_hash": None}, "its content hash is not in form"),
        ({"text": ""}, "its text is empty or too long"),
        ({"text": "a" * (1 << 21)}, "its text is empty or too long"),
    ],
)
def test_what_may_not_go_stays(pool: Pool, values: dict[str, Any], reason: str) -> None:
    assert why_stay(record(1, **values), pool.description, TODAY) == reason


@pytest.mark.parametrize(
    "values",
    [
        {"expires": TODAY},
        {"residency": "any", "region": ""},
        {"residency": "country", "region": "IN-UP"},
        {"residency": "country", "region": "IN"},
        {"purposes": ("publication", "training")},
    ],
)
def test_what_may_just_go_goes(pool: Pool, values: dict[str, Any]) -> None:
    assert why_stay(record(1, **values), pool.description, TODAY) == ""


def test_every_record_is_asked_at_the_exit_itself(pool: Pool, log: EgressLog) -> None:
    records = [record(n, purposes=() if n % 2 else ("training",)) for n in range(10)]
    sent = send(pool, "arrah", records, log)
    assert sent.added == [record(n).id for n in range(0, 10, 2)]
    assert set(sent.stayed.values()) == {"no consent to training"}
    assert pool.records.to_pyarrow_table().num_rows == 5


OPEN = Terms(("training",), None, "CC-BY-4.0", "any", "IN-BR", "now@example.org")


@pytest.mark.parametrize(
    ("noted", "now", "reason"),
    [
        ({}, OPEN, ""),
        ({}, "its source is gone", "its source is gone"),
        ({}, replace(OPEN, purposes=()), "no consent to training"),
        ({}, replace(OPEN, expires=date(2026, 5, 31)), "consent has expired"),
        ({}, replace(OPEN, licence=""), "no licence is named"),
        ({}, replace(OPEN, licence="MIT"), NOT_AS_NOTED),
        ({}, replace(OPEN, region="IN-UP"), NOT_AS_NOTED),
        ({}, replace(OPEN, residency="premises"), "it may not leave the premises"),
        ({"purposes": ()}, OPEN, f"no consent to training{NOTED_BEFORE}"),
        ({"purposes": ()}, Terms(), "no consent to training"),
        ({"purposes": ()}, "its source is gone", "no consent to training"),
        ({"expires": date(2026, 5, 31)}, OPEN, f"consent has expired{NOTED_BEFORE}"),
        ({"residency": "premises"}, OPEN, f"it may not leave the premises{NOTED_BEFORE}"),
        ({"licence": ""}, OPEN, f"no licence is named{NOTED_BEFORE}"),
        ({"content_hash": "0" * 64}, OPEN, "its text is not what was prepared"),
    ],
)
def test_both_what_was_noted_and_what_stands_now_are_asked(
    pool: Pool, noted: dict[str, Any], now: Terms | str, reason: str
) -> None:
    found, why = judged(record(1, **noted), now, pool.description, TODAY)
    assert why == reason
    if not reason:  # and it goes under the stricter terms, to those who ask the present contact
        assert (found.residency, found.contact) == ("state", "now@example.org")


def test_what_stands_now_is_asked_again_with_every_attempt(
    pool: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consent is taken back while the first attempt comes second to another writer."""
    asked: list[int] = []
    real = Pool.write

    def terms_now(records: Sequence[Record]) -> list[Terms | str]:
        asked.append(len(records))
        return [OPEN if len(asked) == 1 else "taken back"] * len(records)

    def second(self: Pool, *given: Any) -> int:
        monkeypatch.setattr(Pool, "write", real)
        raise ConflictError("another came first", "try again")

    monkeypatch.setattr(Pool, "write", second)
    sent = egress.send(pool, "arrah", [record(1)], log, terms_now)
    assert asked == [1, 1]
    assert (sent.added, sent.stayed) == ([], {record(1).id: "taken back"})


def test_a_record_that_lies_blank_goes_nowhere(pool: Pool) -> None:
    blank = replace(record(1), **{field.name: None for field in fields(Record)})
    assert why_stay(blank, pool.description, TODAY)


def test_an_id_that_is_there_twice_stays(pool: Pool, log: EgressLog) -> None:
    sent = send(pool, "arrah", [record(1), record(1, text="other"), record(2)], log)
    assert sent.added == [record(2).id]
    assert sent.stayed == {record(1).id: "its id is there twice"}


def test_an_intent_is_on_the_disk_before_anything_goes(
    pool: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> int:
        lines = list(read_log(log.folder))
        assert [line["event"] for line in lines] == ["intent"]
        assert lines[0]["records"] == [[record(1).id, record(1).content_hash]]
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        send(pool, "arrah", [record(1)], log)


def test_nothing_goes_where_the_log_cannot_be_written(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        send(pool, "arrah", [record(1)], EgressLog(tmp_path / "file"))
    pool.refresh()
    assert pool.records.to_pyarrow_table().num_rows == 0


def test_log_tells_what_came_of_it_and_holds_no_text(
    pool: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failed = Pool.write, []

    def first_fails(self: Pool, site: str, records: Any) -> int:
        if not failed:
            failed.append(True)
            raise ConflictError("another")
        return whole(self, site, records)

    monkeypatch.setattr(Pool, "write", first_fails)
    send(pool, "arrah", [record(1)], log)
    lines = list(read_log(log.folder))
    assert [line["event"] for line in lines] == ["intent", "failed", "intent", "done"]
    assert [line.get("of") for line in lines] == [None, 0, None, 2]
    assert record(1).text[:6] not in log.path.read_text()
    assert record(1).contact not in log.path.read_text()


@pytest.mark.parametrize("site", ["", "../x", "a/b", "A", "a\0", "é", "a" * 32, "a\n", "-a"])
def test_what_is_no_name_of_a_site_shares_nothing(pool: Pool, log: EgressLog, site: str) -> None:
    with pytest.raises(PoolError, match="cannot be the name of a site"):
        send(pool, site, [record(1)], log)
    assert not log.path.exists()


def test_an_erase_that_was_left_unfinished_keeps_writers_out(
    pool: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boli.pool.ledger
    from boli.pool.mark import begin

    monkeypatch.setattr(boli.pool.ledger, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(boli.pool.ledger.retrying, "__defaults__", (0.2,))
    begin(pool, False)
    with pytest.raises(PoolError, match="an erase has been under way"):
        send(pool, "arrah", [record(1)], log)


def calls(path: Path) -> set[str]:
    """Return the names of all functions and methods that a module calls or names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
    return found


def modules_with(*names: str) -> list[str]:
    return sorted(
        str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if calls(path) & set(names)
    )


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def writers(root: Path) -> list[str]:
    """Return the modules that call `write` of something that may be a pool."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "write"
        and "pool" in (ast.unparse(node.func.value), str(path.parent.name))
        and "file" not in ast.unparse(node.func.value)
        and "os" not in ast.unparse(node.func.value)
    )


def test_text_leaves_by_one_way_only() -> None:
    # Delta tables can be written by these alone, and only delta.py loads the library.
    assert modules_with("write_deltalake", "merge") == ["pool/ledger.py", "pool/table.py"]
    with_delta = [path for path in SOURCE.rglob("*.py") if "deltalake" in imports(path)]
    assert {path.name for path in with_delta} == {"delta.py", "table.py"}
    # Pool.write is the one function there that takes text, and egress.py alone calls it.
    assert writers(SOURCE) == ["pool/egress.py"]
    assert modules_with("rows_of") == ["pool/table.py"]
    # The ledger's own rows and the card hold no record.
    for name in ("ledger.py", "card.py", "figures.py"):
        assert not calls(SOURCE / "pool" / name) & {"Record", "read_records", "text_of"}
    # What else reaches the network knows nothing of records.
    for path in SOURCE.rglob("*.py"):
        if imports(path) & {"socket", "nats", "flwr", "urllib", "http", "requests"}:
            assert not calls(path) & {"Record", "read_records"}, path


def test_control_a_second_way_out_is_found(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "egress.py").write_text("pool.write(site, going)")
    (tmp_path / "pool" / "sneaky.py").write_text("opened.write('arrah', records)")
    (tmp_path / "cli.py").write_text("def f(pool, records):\n    pool.write('arrah', records)")
    assert writers(tmp_path) == ["cli.py", "pool/egress.py", "pool/sneaky.py"]
