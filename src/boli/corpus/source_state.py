"""What the sources of prepared records allow now, by the files that lie there at this moment.

A file stands where it was prepared: a plain file in its own place, in folders that are no links.
The source.toml that governs it is the nearest one, from its folder up to the source that was
named, and none above. The one that governed it at preparation has to be there still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from boli.corpus.consent import MANIFEST, Consent, Terms, parse_manifest
from boli.corpus.listing import SourceFile, open_plain, why_elsewhere
from boli.errors import CorpusError

LARGEST_MANIFEST_BYTES = 1 << 16
Governing = Mapping[str, Mapping[str, str]]  # root → folder → folder of its source.toml, or ""

UNKNOWN = "nothing is known of its source"
NAMED_ALONE = "its source is a file that was named by itself, and no source.toml counts for that"
NOT_NOTED = "it is not noted which source.toml it was prepared under"
MANIFEST_GONE = "the source.toml that it was prepared under is gone"


def read_consent(folder: Path) -> Consent | None:
    """Return what source.toml of a folder says; None where there is no such file.

    Raises:
        CorpusError: it is a link, cannot be read, or says what it may not.
    """
    path = folder / MANIFEST
    try:
        with open_plain(path) as file:
            data = file.read(LARGEST_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(
            f"cannot read {path}: {error.strerror}", f"put a plain file {MANIFEST} there"
        ) from None
    if len(data) > LARGEST_MANIFEST_BYTES:
        raise CorpusError(
            f"{path} is longer than {LARGEST_MANIFEST_BYTES} bytes", "leave out what is no manifest"
        )
    return parse_manifest(data, path)


class SourceState:
    """The state of some sources; each file is looked up once, so make a new one for a new look."""

    def __init__(
        self,
        file_of: Callable[[str], SourceFile | None],  # by a record's source
        governed: Governing | None = None,  # at preparation; None: nothing is asked of that
    ) -> None:
        self._file_of = file_of
        self._governed = governed
        self._manifests: dict[Path, Consent | None] = {}
        self._terms: dict[str, Terms | str] = {}

    def terms_of(self, source: str) -> Terms | str:
        """Return what a record's source allows now; a sentence where that is not known."""
        file = self._file_of(source)
        if file is None:
            return UNKNOWN
        if file.name not in self._terms:
            try:
                self._terms[file.name] = self._look(file)
            except CorpusError as error:
                self._terms[file.name] = error.problem
        return self._terms[file.name]

    def governing(self, files: Iterable[SourceFile]) -> dict[str, dict[str, str]]:
        """Return which source.toml governs each folder of some files.

        Raises:
            CorpusError: one cannot be read, or says what it may not.
        """
        found: dict[str, dict[str, str]] = {}
        for file in files:
            of_root = found.setdefault(str(file.root), {})
            folder = file.path.parent
            if str(folder) not in of_root:
                nearest = self.nearest(file.root, folder)
                of_root[str(folder)] = str(nearest or "")
        return found

    def nearest(self, root: Path, folder: Path) -> Path | None:
        """Return the nearest folder with a source.toml, from a folder up to a root.

        Raises:
            CorpusError: that one cannot be read, or says what it may not.
        """
        for place in (folder, *folder.parents):
            if not place.is_relative_to(root):
                return None
            if self._manifest(place) is not None:
                return place
        return None

    def _manifest(self, folder: Path) -> Consent | None:
        if folder not in self._manifests:
            self._manifests[folder] = read_consent(folder)
        return self._manifests[folder]

    def _look(self, file: SourceFile) -> Terms | str:
        if file.path == file.root:
            return NAMED_ALONE
        if why := why_elsewhere(file.path):
            return f"its source file does not lie where it was prepared: {why}"
        nearest = self.nearest(file.root, file.path.parent)
        if self._governed is not None:
            noted = self._governed.get(str(file.root), {}).get(str(file.path.parent))
            if noted is None:
                return NOT_NOTED
            # A nearer one may have been put there meanwhile, and counts; it replaces none.
            if noted and self._manifest(Path(noted)) is None:
                return MANIFEST_GONE
        consent = self._manifest(nearest) if nearest is not None else None
        return consent.terms() if consent is not None else Terms()
