"""What is done to one document, step by step: a clean record, or a reason why there is none.

The steps of all documents of a batch are taken together, so that the language identifier and the
fingerprints have many texts at a time, and so that the seconds of each step can be told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from boli.corpus import pii, quality
from boli.corpus.consent import Terms
from boli.corpus.documents import Document
from boli.corpus.drafts import Draft, look, traits_now, without
from boli.corpus.facts import Facts
from boli.corpus.lines import clean_lines
from boli.corpus.listing import open_plain
from boli.corpus.markup import strip_markup
from boli.corpus.normalize import normalize_all
from boli.corpus.record import Dropped, Record, content_hash, record_id
from boli.corpus.shape import main_script
from boli.corpus.signatures import fingerprints
from boli.corpus.traits import MARKUP
from boli.errors import BoliError, CorpusError

if TYPE_CHECKING:
    from boli.corpus.language import Identifier
    from boli.corpus.scoring import Scorer
    from boli.corpus.speech import Transcriber
    from boli.corpus.voice import Activity

EXCERPT_CHARACTERS = 300
STRETCH_SECONDS = 60.0  # of a recording, in one record
FAILED = "could not be cleaned"
NOTHING_ALLOWED = asdict(Terms())

Result = TypeVar("Result")

Step = Callable[[Draft], None]
Watch = Callable[[str, Sequence[Draft]], None]  # name of a step that was taken, and on what


@dataclass(frozen=True)
class Settings:
    """What the people of a site chose. Travels to the workers as JSON."""

    language: str  # ISO 639-3, that the sources are said to be in
    script: str = ""  # ISO 15924, that it is written in; empty: any
    identifier: str = ""  # file of `boli language train`
    recognizer: str = ""  # file of `boli speech train`, or folder of an ASR model
    scorer: str = ""  # folder of a causal language model
    most_bits: float | None = None  # per byte, under that model; None: only told
    roots: tuple[str, ...] = ("",)  # root_key of each source


class Further(NamedTuple):
    """What is known of a record until the end of the preparation."""

    form: bytes  # hash of its normal form
    label: str  # what the identifier calls it


class Cleaner:
    """Takes documents to records; the same document always to the same record."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def identifier(self) -> Identifier | None:
        """The language identifier, read when it is first needed."""
        from boli.corpus.language_file import load_identifier

        path = self.settings.identifier
        return load_identifier(Path(path)) if path else None

    @cached_property
    def recognizer(self) -> Transcriber:
        """What makes text of recordings."""
        from boli.corpus.speech import open_transcriber

        return open_transcriber(Path(self.settings.recognizer), self.settings.language)

    @cached_property
    def scorer(self) -> Scorer | None:
        """The language model that texts are scored with."""
        from boli.corpus.scoring import open_scorer

        return open_scorer(Path(self.settings.scorer)) if self.settings.scorer else None

    @cached_property
    def rules(self) -> quality.Rules:
        """The rules of quality, with what was chosen."""
        return quality.Rules(most_bits_per_byte=self.settings.most_bits)

    @cached_property
    def activity(self) -> Activity:
        """What finds voices in recordings."""
        from boli.corpus.voice import open_activity

        return open_activity()

    def check(self) -> None:
        """Read the models that are named, so that a bad one is told of before anything starts.

        Raises:
            CorpusError: one cannot be read, or does not know the language.
        """
        if self.identifier is not None and self.settings.language not in self.identifier.labels:
            raise CorpusError(
                f"{self.settings.identifier} does not know {self.settings.language}: it knows "
                f"{', '.join(self.identifier.labels)}",
                "train one that does, with boli language train, or leave it out",
            )
        if self.settings.scorer:
            self.scorer  # noqa: B018
        if self.settings.recognizer:
            self.recognizer, self.activity  # noqa: B018

    def clean(
        self,
        documents: Sequence[Document],
        roots: Sequence[int],
        watch: Watch | None = None,
    ) -> tuple[list[Record], list[Further], list[Dropped], Facts]:
        """Return records and what else is known of each, what was dropped, and numbers."""
        facts = Facts()
        drafts = self._step("reading", facts, lambda: list(self._drafts(documents, roots)))
        facts.documents = len(drafts)
        facts.characters = sum(len(draft.found) for draft in drafts)
        steps: tuple[tuple[str, Callable[[Sequence[Draft]], None]], ...] = (
            ("markup", self._markup),
            ("normalizing", self._normalize),
            ("lines", partial(self._lines, facts)),
            ("personal data", self._personal),
            ("language", self._languages),
            ("score", self._scores),
            ("quality", self._each(self._judge)),
        )
        for name, step in steps:
            going = [draft for draft in drafts if not draft.reason]
            self._step(name, facts, partial(step, going))
            if watch is not None:
                watch(name, going)
        kept = [draft for draft in drafts if not draft.reason]
        prints = self._step("fingerprints", facts, partial(self._fingerprints, kept))
        records = [
            self._record(draft, signature)
            for draft, (_, signature) in zip(kept, prints, strict=True)
        ]
        dropped = [self._dropped(draft) for draft in drafts if draft.reason]
        facts.dropped.update(row.reason for row in dropped)
        further = [
            Further(form, draft.answer.label if draft.answer else "")
            for draft, (form, _) in zip(kept, prints, strict=True)
        ]
        return records, further, dropped, facts

    def _step(self, name: str, facts: Facts, step: Callable[[], Result]) -> Result:
        begun = time.perf_counter_ns()
        result = step()
        facts.nanoseconds[name] += time.perf_counter_ns() - begun
        return result

    def _each(self, step: Step) -> Callable[[Sequence[Draft]], None]:
        """Take a step on each draft; what breaks it costs that document, and no other."""

        def taken(drafts: Sequence[Draft]) -> None:
            for draft in drafts:
                try:
                    step(draft)
                except Exception as error:  # whatever a hostile text may set off
                    draft.drop(FAILED, type(error).__name__)

        return taken

    def _drafts(self, documents: Sequence[Document], roots: Sequence[int]) -> Iterator[Draft]:
        for document, root in zip(documents, roots, strict=True):
            if document.kind == "text":
                yield Draft(document.source, document.text, document.text, root)
                continue
            name = document.source.rpartition("#")[0]
            if document.kind == "recording" and not self.settings.recognizer:
                draft = Draft(document.source, "", "", root)
                draft.drop("recording", "there is no recognizer: see --speech")
                yield draft
                continue
            texts = self._page if document.kind == "html" else self._recording
            try:
                for place, text in texts(Path(document.text)):
                    yield Draft(f"{name}#{place}", text, text, root)
            except (BoliError, OSError, ValueError) as error:
                draft = Draft(document.source, "", "", root)
                draft.drop("unreadable", getattr(error, "problem", type(error).__name__))
                yield draft

    def _page(self, path: Path) -> Iterator[tuple[str, str]]:
        from boli.corpus.pages import html_to_text

        with open_plain(path) as file:
            page = file.read()
        yield "1", html_to_text(page)

    def _recording(self, path: Path) -> Iterator[tuple[str, str]]:
        """Yield what is said in each stretch, called by its seconds."""
        from boli.corpus.speech import transcribe_file

        open_plain(path).close()  # what decodes it would follow a link
        said: list[str] = []
        begin = end = 0.0
        for segment in transcribe_file(path, self.recognizer, self.activity):
            if said and segment.end_seconds - begin > STRETCH_SECONDS:
                yield f"t={begin:.1f},{end:.1f}", " ".join(said)
                said.clear()
            begin, end = (begin if said else segment.start_seconds), segment.end_seconds
            if segment.text:
                said.append(segment.text)
        if said:
            yield f"t={begin:.1f},{end:.1f}", " ".join(said)

    def _markup(self, drafts: Sequence[Draft]) -> None:
        suspects = [
            draft
            for draft, trait in zip(drafts, traits_now(drafts), strict=True)
            # Of three lines or more, which may have been wrapped, there are few.
            if trait & MARKUP or draft.text.count("\n") > 1
        ]
        self._each(self._strip)(suspects)

    def _strip(self, draft: Draft) -> None:
        draft.text = strip_markup(draft.text)

    def _normalize(self, drafts: Sequence[Draft]) -> None:
        try:
            self._normalize_all(drafts)
        except Exception:  # whatever a hostile text may set off: which one is it?
            self._each(lambda draft: self._normalize_all([draft]))(drafts)

    def _normalize_all(self, drafts: Sequence[Draft]) -> None:
        known = np.array(traits_now(drafts), np.uint8)
        texts, traits = normalize_all([d.text for d in drafts], self.settings.language, known)
        for draft, text, trait in zip(drafts, texts, traits.tolist(), strict=True):
            draft.text = draft.looked_at = text
            draft.traits = trait

    def _lines(self, facts: Facts, drafts: Sequence[Draft]) -> None:
        look(drafts, [draft.text for draft in drafts])

        def clean(draft: Draft) -> None:
            cleaned = clean_lines(draft.text, script=self.settings.script, shape=draft.shape)
            if cleaned.dropped:
                facts.lines.update(cleaned.dropped)
                draft.text = cleaned.text
            if cleaned.reason:
                draft.drop(cleaned.reason, "no line is left")

        self._each(clean)(drafts)

    def _languages(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            draft.script = main_script(draft.bare, draft.shape)
        if self.identifier is not None:
            answers = self.identifier.identify([" ".join(d.bare.split("\n")) for d in drafts])
            for draft, answer in zip(drafts, answers, strict=True):
                draft.answer = answer

    def _scores(self, drafts: Sequence[Draft]) -> None:
        if self.scorer is not None:
            scores = self.scorer([draft.bare for draft in drafts])
            for draft, score in zip(drafts, scores, strict=True):
                draft.score = score

    def _judge(self, draft: Draft) -> None:
        verdict = quality.judge(
            draft.bare,
            language=self.settings.language,
            script=self.settings.script or draft.script,
            answer=draft.answer,
            labels=self.identifier.labels if self.identifier is not None else (),
            score=draft.score,
            rules=self.rules,
            shape=draft.shape,
        )
        if verdict.reason:
            draft.drop(verdict.reason, verdict.detail)

    def _personal(self, drafts: Sequence[Draft]) -> None:
        changed = [draft for draft in drafts if draft.bare != draft.text]
        look(changed, [draft.text for draft in changed])
        suspects = [
            draft
            for draft, trait in zip(drafts, traits_now(drafts), strict=True)
            if pii.may_find(trait, draft.shape.digits)
        ]
        self._each(self._replace)(suspects)
        look(suspects, [draft.bare for draft in suspects])

    def _replace(self, draft: Draft) -> None:
        replaced = pii.replace(draft.text, traits=draft.traits)
        draft.bare = without(draft.text, replaced.spans)
        draft.text = replaced.text
        draft.personal = {kind: number for kind, number in replaced.counts.items() if kind != "URL"}

    def _fingerprints(self, drafts: Sequence[Draft]) -> list[tuple[bytes, bytes]]:
        return fingerprints([draft.text for draft in drafts], traits=traits_now(drafts))

    def _record(self, draft: Draft, signature: bytes) -> Record:
        """Return the record, with nothing allowed: what its source says is put in at the end."""
        answer = draft.answer
        own = answer is not None and answer.label == self.settings.language
        return Record(
            id=self._id(draft),
            language=self.settings.language,
            confidence=answer.confidence if answer is not None and own else 0.0,
            script=draft.script,
            text=draft.text,
            source=draft.source,
            **NOTHING_ALLOWED,
            quality=draft.score,
            personal=json.dumps(draft.personal, sort_keys=True) if draft.personal else "{}",
            content_hash=content_hash(draft.text),
            signature=signature,
        )

    def _id(self, draft: Draft) -> str:
        return record_id(draft.source, self.settings.roots[draft.root])

    def _dropped(self, draft: Draft) -> Dropped:
        excerpt = draft.found[:EXCERPT_CHARACTERS]
        return Dropped(self._id(draft), draft.source, draft.reason, draft.detail, excerpt)
