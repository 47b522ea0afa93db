"""datatrove's filters and MinHash over the documents of prepare.py, fitted to Hindi.

Its defaults drop every Hindi document (English stop words) and compare texts without their vowel
signs, so both are set: stop words of Hindi, and norm_unicode_diacritics off. "tuned" also
shortens shingles and takes more buckets, for near duplicates with a tenth of the words changed.
Needs: pip install --no-deps indic-nlp-library

Run by prepare.py: prepare_peer.py DOCUMENTS OUT {default,tuned} WORKERS
"""

from __future__ import annotations

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.text import TextNormConfig

LANGUAGE = "hin_Deva"
STOP_WORDS = ["है", "हैं", "का", "की", "के", "में", "से", "को", "और", "ने", "पर", "था"]
CONFIGS = {"default": (5, 14, 8), "tuned": (2, 25, 5)}  # words, buckets, hashes of each


def main() -> None:
    documents, out, name, workers = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    words, buckets, hashes = CONFIGS[name]
    config = MinhashConfig(
        n_grams=words,
        num_buckets=buckets,
        hashes_per_bucket=hashes,
        norm_config=TextNormConfig(norm_unicode_diacritics=False),
    )
    tasks = len(list(Path(documents).glob("*.jsonl")))
    clean, signatures = str(out / "clean"), str(out / "signatures")
    found, removed = str(out / "buckets"), str(out / "remove")

    def stage(pipeline: list[object], tasks: int, label: str) -> None:
        logs = str(out / "logs" / label)
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=logs).run()

    filters = [
        GopherRepetitionFilter(language=LANGUAGE),
        GopherQualityFilter(
            min_doc_words=3,
            min_avg_word_length=2,
            stop_words=STOP_WORDS,
            language=LANGUAGE,
        ),
    ]
    reader = JsonlReader(documents)
    stage([reader, *filters, JsonlWriter(clean, compression=None)], tasks, "filters")
    reader = JsonlReader(clean)
    stage([reader, MinhashDedupSignature(signatures, config, language=LANGUAGE)], tasks, "sign")
    stage([MinhashDedupBuckets(signatures, found, config=config)], buckets, "buckets")
    stage([MinhashDedupCluster(found, removed, config=config)], 1, "cluster")
    writer = JsonlWriter(str(out / "kept"), compression=None)
    stage([reader, MinhashDedupFilter(removed), writer], tasks, "drop")


if __name__ == "__main__":
    main()
