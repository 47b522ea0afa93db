"""What happens once, before the first round: text read, base built and judged, version 0 laid out.

What was prepared is kept in run.json, so that every resume goes on with the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boli.corpus.sources import Split, judged_lines, read_split
from boli.durable import write_file
from boli.errors import CorpusError, RunError
from boli.journal import Evaluated, Event, Journal, PiecesMissed, PiecesTaken, RunStarted
from boli.model.layout import Layout
from boli.plan import Plan, available_cores
from boli.pool.pins import pins_of
from boli.rounds.pieces import Gathered, read_gathered
from boli.rounds.transport import Measurement
from boli.rounds.update import ServerState, SiteProgress


@dataclass(frozen=True)
class Stage:
    """A step of preparation, for whoever watches."""

    name: str
    done: int = 0
    total: int = 0
    loss: float | None = None


Observer = Callable[[Event | Measurement | Stage], None]


def ignore(_: object) -> None:
    """Watch nothing."""


def read_json(path: Path) -> Any:
    """Read a file of a run's folder.

    Raises:
        RunError: it is not there, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"cannot read {path}: {error.strerror}", "boli runs lists the runs that there are"
        ) from None
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}", "start a new run") from None


@dataclass(frozen=True)
class Prepared:
    """What run.json holds: made once, the same at every resume."""

    run: str
    base: str  # folder or hub id
    layout: list[Any]  # description at full rank
    site_layouts: dict[str, list[Any]]
    threads: int  # of a node: another number would give other bits
    base_before: dict[str, float] = field(default_factory=dict)  # bits, bytes
    pools: list[dict[str, Any]] = field(default_factory=list)  # versions whose copies are read
    asks: str = ""  # "pieces": of sites, before there is a base


def check_text(plan: Plan, *, sites: bool = True) -> dict[str, dict[str, Split]]:
    """Read text once, so that what is wrong shows before anything is built.

    Without `sites` only the base's own: the sites' text is elsewhere.

    Raises:
        CorpusError: a text is missing, empty, not UTF-8, or leaves nothing held out.
    """
    splits = {}
    if sites:
        splits = {site.name: read_split(plan, site.text, site.language) for site in plan.site}
    if plan.model.base.text:
        splits[""] = read_split(plan, plan.model.base.text, plan.model.base.language)
    return splits


def pieces_folder(run: Path) -> Path:
    """Return where what sites sent of their pieces lies in a run's folder."""
    return run / "pieces"


def gathered_pieces(run: Path, plan: Plan) -> Gathered | None:
    """Return what the sites of a run sent of their pieces; None while some are to be asked.

    Raises:
        CorpusError: a file was altered since.
        RunError: a file is missing.
    """
    if not plan.asks_pieces:
        return Gathered()
    return read_gathered(pieces_folder(run), plan.model.base.pieces.most_pieces)


def prepare_base(
    plan: Plan,
    observe: Observer = ignore,
    counts: Sequence[Mapping[str, int]] = (),  # of pieces of words, by site
) -> str:
    """Return the folder or hub id of the plan's base: built, converted or cut if it has to be.

    Without counts the tokenizer of a micro-LLM is made from its own text alone, and a vocabulary
    is cut by what is counted in text that is here.

    Raises:
        ModelError: the base cannot be converted or cut, or the cut does not fit a site's text.
    """
    base = plan.model.base
    if base.path is not None:
        return _prepare_real(plan, base.path, observe, counts)
    from boli.model.base import build_micro

    assert base.micro is not None
    text = read_split(plan, base.text, base.language)[base.language]

    def progress(step: int, of: int, loss: float) -> None:
        observe(Stage("pre-training the base", step, of, loss))

    return str(build_micro(base.micro, text.train, progress, counts).resolve())


def _prepare_real(
    plan: Plan, origin: str, observe: Observer, counts: Sequence[Mapping[str, int]]
) -> str:
    from boli.model.base import check_origin
    from boli.pretrained import find_gguf, folder_of

    check_origin(origin)
    file = find_gguf(origin)
    if file is not None:
        from boli.model.gguf import build_from_gguf

        observe(Stage("converting the base"))
        origin = str(build_from_gguf(file).resolve())
    if plan.model.base.vocabulary.cut == "none":
        return origin
    from boli.model.tokenizer import tokens_of
    from boli.model.vocabulary import build_cut, merged_counts, piece_counts
    from boli.pretrained import load_tokenizer

    folder = folder_of(origin)
    whole = load_tokenizer(str(folder))
    if not counts:
        observe(Stage("counting the pieces of the sites' words"))
        counts = _counts_here(plan)
    texts = _texts_here(plan)
    # The base's own text is nobody's secret.
    own = [line for split in texts.get("", {}).values() for line in split.train]
    observe(Stage("cutting the vocabulary of the base"))
    kept = merged_counts([tokens_of(whole, counts), piece_counts(whole, own)])
    cut = build_cut(folder, kept)
    check_cut(plan, whole, load_tokenizer(str(cut)), texts)
    return str(cut.resolve())


def _texts_here(plan: Plan) -> dict[str, dict[str, Split]]:
    """Return the text of all sites and the base, or the base's alone: the sites' may be elsewhere.

    Raises:
        CorpusError: the base's text is missing, empty or too short.
    """
    try:
        return check_text(plan)
    except CorpusError:
        return check_text(plan, sites=False)


def _counts_here(plan: Plan) -> list[Mapping[str, int]]:
    """Return what sites whose text is here would send of their words.

    Raises:
        CorpusError: a text is missing, empty or too short.
    """
    from boli.corpus.pieces import count_pieces
    from boli.corpus.sources import read_documents
    from boli.site.pieces import floors_of

    floors = floors_of(plan.model.base.pieces)
    return [
        count_pieces(read_documents(plan, site.text, site.language), floors) for site in plan.site
    ]


def check_cut(
    plan: Plan, whole: Any, cut: Any, texts: Mapping[str, Mapping[str, Split]]
) -> dict[str, float]:  # site to the share of tokens that its text takes more
    """Hold the sites' text that is here against a vocabulary that was cut.

    Raises:
        ModelError: it takes many more tokens than before.
    """
    from boli.evaluation.metrics import LINES_LOOKED_AT
    from boli.model.vocabulary import check_fit

    longer = {}
    for site, splits in texts.items():
        lines = [
            line for split in splits.values() for line in (*split.train, *split.tuning, *split.test)
        ]
        lines = lines[:: max(1, -(-len(lines) // LINES_LOOKED_AT))]
        if site:
            most = plan.model.base.vocabulary.most_longer
            longer[site] = check_fit(whole, cut, lines, f"site {site}", most)
    return longer


def cut_notes(plan: Plan, folder: Path) -> list[str]:
    """Say what was cut of the vocabulary of a base that `prepare_base` prepared."""
    if plan.model.base.vocabulary.cut == "none":
        return []
    about = read_json(folder / "boli.json")["vocabulary"]
    return [f"the vocabulary of the base is cut to {about['pieces']:,} of {about['of']:,} pieces"]


def open_base(plan: Plan, origin: str, observe: Observer) -> Any:
    """Load the base at `origin` as the plan's adapter and local steps need it."""
    from boli.model.base import best_device, load_base

    observe(Stage("loading the base"))
    model = plan.model
    return load_base(origin, model.base, model.local_steps, model.adapter.kind, best_device())


def prepare(
    folder: Path, plan: Plan, journal: Journal, observe: Observer, version: str
) -> tuple[Prepared, ServerState | None]:
    """Lay out the adapter and note how good the base is; once for every run.

    The state is version 0 where this call laid it out, and None otherwise. The base is
    let go again: the nodes need the memory. `version` is boli's own, for the journal.
    """
    from boli.model.adapter import adapter_layout
    from boli.model.base import check_length

    run, path = folder.name, folder / "run.json"
    if path.exists():
        return Prepared(**read_json(path)), None
    gathered = gathered_pieces(folder, plan) or Gathered()
    origin = prepare_base(plan, observe, list(gathered.counts.values()))
    base = open_base(plan, origin, observe)
    check_length(base, plan.model.local_steps)
    adapter = plan.model.adapter
    layout = adapter_layout(base.model, adapter)
    by_site = {
        site.name: adapter_layout(base.model, adapter, site.rank).describe() for site in plan.site
    }
    observe(Stage("judging the base"))
    judged = judge_base(plan, base)
    threads = plan.threads_per_site(available_cores())
    pools = pins_of(_texts(plan))
    prepared = Prepared(run, origin, layout.describe(), by_site, threads, judged, pools)
    languages = {site.name: site.language for site in plan.site}
    journal.append(RunStarted(run, plan.digest, version, layout.digest, layout.size, languages))
    for site, sent in gathered.sent.items():
        journal.append(PiecesTaken(site, sent.num_pieces, sent.bytes, sent.digest))
    for site, reason in gathered.without.items():
        journal.append(PiecesMissed(site, reason))
    note_base(plan, journal, 0, judged)
    journal.seal(run, 0, -1)
    write_file(path, json.dumps(vars(prepared)).encode())
    return prepared, _version_0(run, plan, layout, base)


def _texts(plan: Plan) -> list[Path]:
    """Return the files that the plan names; those of sites elsewhere are not here."""
    sources = [*plan.model.base.text, *(source for site in plan.site for source in site.text)]
    return [plan.resolve(source.path) for source in sources if source.path is not None]


def first_state(run: str, plan: Plan, prepared: Prepared, observe: Observer) -> ServerState:
    """Return version 0 of a run that was stopped before its first checkpoint."""
    base = open_base(plan, prepared.base, observe)
    return _version_0(run, plan, Layout.from_description(prepared.layout), base)


def _version_0(run: str, plan: Plan, layout: Layout, base: Any) -> ServerState:
    from boli.model.adapter import initial_vector

    theta = initial_vector(base.model, plan.model.adapter)
    sites = {site.name: SiteProgress(rank=site.rank) for site in plan.site}
    return ServerState(run=run, layout=layout.digest, theta=theta, sites=sites)


def judge_base(plan: Plan, base: Any) -> dict[str, float]:
    """Return bits and bytes of the base language's own test part; empty where it has no text."""
    from boli.evaluation.metrics import bits_per_byte

    section = plan.model.base
    if not section.text:
        return {}
    lines = read_split(plan, section.text, section.language)[section.language].test
    lines = judged_lines(lines, plan.evaluation.max_lines)
    found = bits_per_byte(base.model, base.tokenizer, lines, base.max_length)
    return {"bits": found.bits, "bytes": found.bytes}


def note_base(plan: Plan, journal: Journal, version: int, found: dict[str, float]) -> None:
    """Journal what `judge_base` found, if anything."""
    if found:
        language = plan.model.base.language
        journal.append(Evaluated("", language, "test", version, found["bits"], int(found["bytes"])))
