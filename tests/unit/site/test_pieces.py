"""What a site does when it is asked for pieces of its words, and what its people see of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from boli.corpus.pieces import Floors, read_pieces
from boli.errors import CorpusError, LimitError, NotAcceptedError, SiteError
from boli.plan import Plan
from boli.rounds.transport import Stop
from boli.rounds.update import Order, UpdateHeader
from boli.site.kit import Kit, SiteFolder, pieces_kit, read_kit
from boli.site.limits import Limits
from boli.site.pieces import LAYOUT

ORDER = Order(
    order="r-pieces-gaya-1",
    site="gaya",
    sequence=1,
    base_version=0,
    layout=LAYOUT.digest,
    local_steps=0,
)


class Line:
    """Gives a node its instructions, and keeps what it sends."""

    def __init__(self, *instructions: Any) -> None:
        self.waiting = [*instructions, Stop()]
        self.sent: list[tuple[UpdateHeader, bytes]] = []

    def join(self, joined: Any) -> None:
        pass

    def receive(self, timeout_seconds: float | None) -> Any:
        return self.waiting.pop(0)

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        self.sent.append((header, payload))


def plan_of(**pieces: int) -> Plan:
    tables: dict[str, Any] = {
        "name": "villages",
        "model": {
            "base": {
                "language": "hin",
                "text": ["hin.txt"],
                "micro": {"tokenizer": "sites"},
                "pieces": pieces,
            }
        },
        "rounds": {"total": 5, "local_steps": 40},
        "site": [
            {"name": "gaya", "language": "mag", "text": ["mag.txt"]},
            {"name": "arrah", "language": "bho", "text": ["bho.txt"]},
        ],
    }
    return Plan.model_validate(tables)


def kit_of(**pieces: int) -> Kit:
    kit = pieces_kit("r-pieces", plan_of(**pieces)).for_site("gaya")
    return read_kit(json.dumps(kit.facts()).encode())


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    lines = [f"हम गाँव जाइब {'कखगघचछजझटठ'[i % 10]}{i // 10}" for i in range(400)]
    lines += ["राज़ " + "abcdefghij"[i % 10] * (i + 2) for i in range(12)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mag.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return SiteFolder("gaya", tmp_path / "text", tmp_path / "state", None, Limits())


def shown(site: SiteFolder, kit: Kit) -> str:
    words = []

    def accept(told: str, _: LimitError | None) -> bool:
        words.append(" ".join(told.split()))
        return True

    site.admit(kit, accept)
    return words[0] if words else ""


def test_what_is_sent_is_what_the_people_could_read(site: SiteFolder) -> None:
    kit = kit_of()
    words = shown(site, kit)
    (path,) = site.run_folder(kit).glob("*.tsv")
    assert "in at least 10 lines of 3 documents" in words
    assert path.name in words.replace(" ", "")
    written = path.read_text(encoding="utf-8")
    assert "\t गाँव\n" in written
    assert "राज़" not in written
    line = Line(ORDER)
    site.open_node(kit, line).run()
    ((header, payload),) = line.sent
    assert header.local_steps == header.tokens == 0
    pieces = read_pieces(payload, 20_000, "gaya")
    assert "".join(f"{count}\t{piece}\n" for piece, count in sorted(pieces.items())) == written
    answers = (site.state / "answers.jsonl").read_text().splitlines()
    noted = json.loads(answers[-1])
    assert (noted["answer"], noted["pieces"]) == ("sent", str(len(pieces)))
    assert noted["sha256"] == hashlib.sha256(payload).hexdigest()


def test_answer_that_was_lost_is_sent_again_as_it_was(site: SiteFolder) -> None:
    kit = kit_of()
    shown(site, kit)
    first, again = Line(ORDER), Line(ORDER)
    site.open_node(kit, first).run()
    (site.data / "mag.txt").write_text("altogether other text\n" * 900, encoding="utf-8")
    site.open_node(kit, again).run()
    assert again.sent == first.sent


def test_people_may_take_lines_out(site: SiteFolder) -> None:
    kit = kit_of()
    shown(site, kit)
    (path,) = site.run_folder(kit).glob("*.tsv")
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if "गाँव" not in line]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    line = Line(ORDER)
    site.open_node(kit, line).run()
    assert " गाँव" not in read_pieces(line.sent[0][1], 20_000, "gaya")


def test_file_that_is_spoilt_is_not_sent(site: SiteFolder) -> None:
    kit = kit_of()
    shown(site, kit)
    (path,) = site.run_folder(kit).glob("*.tsv")
    path.write_text("the secret of the village\n", encoding="utf-8")
    line = Line(ORDER)
    with pytest.raises(CorpusError, match="cannot be used"):
        site.open_node(kit, line).run()
    assert not line.sent


def test_stricter_of_plan_and_limits_holds(site: SiteFolder) -> None:
    shown(site, kit_of(least_lines=1, least_documents=1))
    assert [path.name for path in site.state.rglob("*.tsv")] == ["pieces-10-3.tsv"]
    assert Floors(1, 9, 50).stricter(Floors(4, 3, 99)) == Floors(4, 9, 50)


def test_nothing_leaves_where_the_people_say_no(site: SiteFolder) -> None:
    with pytest.raises(NotAcceptedError):
        site.admit(kit_of(), lambda _words, _refusal: False)
    closed = SiteFolder("gaya", site.data, site.state, None, Limits(pieces=False))
    with pytest.raises(LimitError, match="pieces = false") as found:
        closed.admit(kit_of(), lambda _words, _refusal: True)
    assert found.value.code == "limits.pieces"


def test_bases_that_are_named_do_not_keep_pieces_back(site: SiteFolder) -> None:
    named = SiteFolder("gaya", site.data, site.state, None, Limits(bases=("0" * 64,)))
    assert shown(named, kit_of())


def test_node_that_announced_pieces_trains_and_judges_nothing(site: SiteFolder) -> None:
    kit = kit_of()
    shown(site, kit)
    for values in ({"evaluate": ("test",)}, {"local_steps": 4000}):
        line = Line(ORDER.model_copy(update=values))
        with pytest.raises(SiteError):
            site.open_node(kit, line).run()
        assert not line.sent


def test_text_in_which_nothing_repeats_has_no_pieces(site: SiteFolder) -> None:
    with pytest.raises(SiteError, match="is in 5000 lines"):
        shown(site, kit_of(least_lines=5000))


def test_site_that_knows_no_pieces_refuses_for_lack_of_a_base(site: SiteFolder) -> None:
    older = kit_of().model_copy(update={"asks": ""})
    site.answers.accept(older.run, older.digest)
    with pytest.raises(Exception, match="names no files of a base"):
        site.open_node(older, Line())
