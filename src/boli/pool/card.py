"""What a pool says of itself to people and programs: README.md, and croissant.json.

Counts alone: no text, no name of a site, no address of a person.

Source: MLCommons Croissant 1.0. https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

from boli.plan import LANGUAGE
from boli.pool.description import LICENCE
from boli.pool.figures import Figures, figures
from boli.pool.ledger import steady
from boli.pool.table import RECORDS, Pool, row_schema

CARD, CROISSANT = "README.md", "croissant.json"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
TYPES = {
    "string": "sc:Text",
    "int32": "sc:Integer",
    "float": "sc:Float",
    "date32[day]": "sc:Date",
    "timestamp[us, tz=UTC]": "sc:DateTime",
    "list<element: string>": "sc:Text",
    "list<item: string>": "sc:Text",
    "binary": "sc:Text",
}
MEANINGS = {
    "key": "hash of site and id; one for each row",
    "site": "who shared it",
    "site_key": "hash of site",
    "characters": "of the text",
    "shared": "when it came in",
    "id": "of the place in its source; 32 hex digits",
    "language": "ISO 639-3, und where unsure",
    "confidence": "of the language, 0 to 1",
    "script": "ISO 15924",
    "text": "clean text, personal data replaced",
    "source": "place in the site's archive",
    "purposes": "that were consented to",
    "expires": "last day of the consent",
    "licence": "SPDX",
    "residency": "how far it may travel: premises, state, country, any",
    "region": "ISO 3166, where the source is",
    "contact": "whom to ask, or to tell that a record has to go",
    "quality": "bits per byte under a small language model; fewer is better",
    "personal": "JSON, kind of personal data to how often it was replaced",
    "content_hash": "SHA-256 of the text",
    "signature": "sketch of character runs, 256 little-endian uint16",
    "pipeline": "version of the cleaning",
}


def write_card(pool: Pool) -> None:
    """Write both files anew, as the pool is now.

    Raises:
        PoolError: the pool cannot be reached.
        StorageError: the disk refuses.
    """
    found = steady(pool, lambda: figures(pool, duplicates=False))
    pool.address.put(CROISSANT, json.dumps(croissant(pool, found), indent=2).encode())
    pool.address.put(CARD, card(pool, found).encode())


def _licences(pool: Pool, found: Figures) -> list[str]:
    there = sorted(name for name in found.by["licence"] if re.fullmatch(LICENCE, name))
    return there or list(pool.description.licences)


def _languages(found: Figures) -> list[str]:
    return sorted(name for name in found.by["language"] if re.fullmatch(LANGUAGE, name))


def _says(pool: Pool, found: Figures) -> str:
    return (
        f"{found.rows} records of clean text in {len(found.by['language'])} languages from "
        f"{len(found.by['site'])} sites, pooled with boli; its disks are in "
        f"{pool.description.region}"
    )


def croissant(pool: Pool, found: Figures) -> dict[str, Any]:
    """Return the pool's metadata as Croissant 1.0."""
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": pool.description.name,
        "description": _says(pool, found),
        "url": pool.address.url
        if pool.address.folder is None
        else f"urn:uuid:{UUID(pool.description.id)}",
        "license": [f"https://spdx.org/licenses/{name}.html" for name in _licences(pool, found)],
        "version": f"1.0.{found.version}",
        "isLiveDataset": True,
        "datePublished": pool.description.created,
        "inLanguage": _languages(found),
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "parquet",
                "name": "parquet",
                "description": "Parts of a Delta table: its log says which of them are current",
                "encodingFormat": "application/x-parquet",
                # To Croissant's readers * goes over folders: the log has Parquet files too.
                "includes": f"{RECORDS}/part-*.parquet",
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "records",
                "name": "records",
                "key": {"@id": "records/key"},
                "field": [_field(column.name, str(column.type)) for column in row_schema()],
            }
        ],
    }


def _field(name: str, kind: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"records/{name}",
        "name": name,
        "description": MEANINGS[name],
        "dataType": TYPES[kind],
        "source": {"fileSet": {"@id": "parquet"}, "extract": {"column": name}},
    }
    return told | {"repeated": True} if kind.startswith("list") else told


def card(pool: Pool, found: Figures) -> str:
    """Return the pool's dataset card, with a head that model hubs read."""
    licences = _licences(pool, found)
    head = {
        "pretty_name": pool.description.name,
        "language": _languages(found),
        "license": licences[0].lower() if len(licences) == 1 else "other",
        "task_categories": ["text-generation"],
        "tags": ["boli", "croissant"],
    }
    if len(licences) > 1:
        head["license_name"] = ", ".join(licences)
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    tables = [_table(name, found) for name in ("language", "script", "licence", "residency")]
    return "\n".join(
        [
            "---",
            *lines,
            "---",
            f"# {pool.description.name}",
            "",
            f"{_says(pool, found)}. Version {found.version}, {found.characters} characters.",
            "",
            "Every record was consented to for training, names its licence, and says how far",
            "it may travel. Read it through its Delta log (`boli pool get`, or any Delta reader):",
            "files of older versions lie beside the current ones until the next erase.",
            "",
            *(line for table in tables for line in table),
            f"Erased so far: {found.erased} records.",
            "",
        ]
    )


def _table(name: str, found: Figures) -> list[str]:
    rows = [f"| {value} | {number} | {size} |" for value, (number, size) in found.by[name].items()]
    return [f"| {name} | records | characters |", "|---|---|---|", *rows, ""]
