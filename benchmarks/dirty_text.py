"""What the rules for text quality keep and drop, on dirty, on clean and on planted text.

dirty        the raw blog, advertisements by SMS, interface messages and template sentences through
             strip_markup, normalize, clean_lines and judge: documents and lines by reason
clean        the same on clean text: `tuned_on` was looked at when thresholds were set, `held_out`
             was not. False drops leave out "too short", which is true of a line of one word
planted      faults put into clean lines by a seed; caught is dropped, or cut out so that exactly
             the clean text is left
other_language  clean text in a dialect that is taken for Hindi, with an identifier trained on the
             ILI text, adapted to the set (which takes 40 lines), and where both agree
hindi_in_awa interface messages called Awadhi that are plain Hindi, against silver labels, and
             against Hindi sentences put among those that are Awadhi
speed        seconds for a document of 600 characters, one core

The limits for Sanskrit, Marathi and Nepali were added when a first run had dropped a third of the
Sanskrit of FLORES-200; their values were read off the UDHR, which therefore stands in `tuned_on`.

Silver labels: function words that a person listed and that word counts of others confirm (twenty
times as frequent in the one language as in the other, in wordfreq). Any Awadhi one makes a message
Awadhi, two Hindi ones and no Awadhi one make it Hindi, the rest has no label. The identifier learnt
from other text, but from function words too, and half of the Awadhi words are in the rule's own
list: the two are not independent. That list came after a first run had taken 29 % of FLORES Awadhi
for Hindi; its words were read off other text.

Only counts are written, no text of a record.

python benchmarks/dirty_text.py DATA [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from boli.corpus.language import Answer, Identifier
from boli.corpus.language_training import train
from boli.corpus.lines import clean_lines
from boli.corpus.markup import strip_markup
from boli.corpus.normalize import normalize
from boli.corpus.quality import RULES, agreed, judge
from boli.corpus.sources import read_labeled
from dirty_faults import PLANTS

HERE = Path(__file__).parent
SEED = 14
MESSAGES = {"awa": "Deva", "bho": "Deva", "mai": "Deva", "gom": "Deva", "sat": "Olck"}
MESSAGES |= {"tcy": "Knda", "gnome_mai": "Deva", "gnome_sat": "Olck"}
TUNED_ON = {  # file, column, script
    "mag_kmi": ("mono/mag_kmi.txt", 0, "Deva"),
    "bho_news": ("mono/bho_news_jnu.txt", 0, "Deva"),
    "awa_verse": ("mono/awa_ramcharitmanas.txt", 0, "Deva"),
    "seed_bho": ("parallel/nllb_seed/seed.bho", 0, "Deva"),
    "seed_hne": ("parallel/nllb_seed/seed.hne", 0, "Deva"),
    "seed_mag": ("parallel/nllb_seed/seed.mag", 0, "Deva"),
    "kangri_hin": ("parallel/kangri/train.xnr-hin.tsv", 1, "Deva"),
    "kangri_xnr": ("parallel/kangri/train.xnr-hin.tsv", 0, "Deva"),
    "loresmt2019_train_bho": ("parallel/loresmt2019/train.eng-bho.tsv", 1, "Deva"),
    "ntrex_hin": ("parallel/ntrex/newstest2019.hin", 0, "Deva"),
    "ntrex_kan": ("parallel/ntrex/newstest2019.kan", 0, "Knda"),
    "ntrex_eng": ("parallel/ntrex/newstest2019.eng", 0, "Latn"),
    "ili_dev": ("ili2018/dev.tsv", 0, "Deva"),
    **{f"udhr_{n}": (f"udhr/{n}.txt", 0, "Deva") for n in ("mar", "npi", "san")},
}
FLORES_LANGUAGES = "awa bho eng hin hne kan kas mag mai mar npi san sat"
FLORES = "parallel/flores200_devtest_001-300/devtest."
HELD_OUT = {
    "loresmt2019_dev_bho": ("parallel/loresmt2019/dev.eng-bho.tsv", 1, "Deva"),
    "loresmt2020_dev_hin": ("parallel/loresmt2020/dev.hin-bho-mag.tsv", 0, "Deva"),
    "loresmt2020_dev_bho": ("parallel/loresmt2020/dev.hin-bho-mag.tsv", 1, "Deva"),
    "loresmt2020_dev_mag": ("parallel/loresmt2020/dev.hin-bho-mag.tsv", 2, "Deva"),
    "tatoeba_awa": ("parallel/tatoeba/test.awa-eng.tsv", 0, "Deva"),
    "sat_flores200_dev": ("mono/sat_flores200_dev.txt", 0, "Olck"),
    **{f"udhr_{n}": (f"udhr/{n}.txt", 0, "Deva") for n in ("bho", "hin", "mag", "mai")},
    "udhr_kan": ("udhr/kan.txt", 0, "Knda"),
    **{
        f"flores200_{n}": (
            FLORES + n,
            0,
            {"sat": "Olck", "kan": "Knda", "eng": "Latn"}.get(n, "Deva"),
        )
        for n in FLORES_LANGUAGES.split()
    },
}
HINDI = (
    "है हैं था थे थी की को में नहीं और इस इसे करें किया गया गयी गई होगा सकते सकता लिए कोई जाता करना करने होने"
)
AWADHI = (
    "कय कै मा कइ नाहीं नाही नाई नाइ अउर औ इ यहि अहै बा अहय हय करा जाय जाई ताईं खर्तिन भय गा गै दीन कीन "
    "कउनो कवनो तव जवन आपकय एकरे यक अहीं अहैं होइ वय केहू कौनो पे काहे सकत होय मँ म हुअत होत करै करय देय "
    "जात बाय करैं बनावा हटावा रहै"
)


def read(path: Path, column: int = 0) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.split("\t")[column] for line in lines if line.strip()]


def messages(data: Path, name: str) -> list[str]:
    plain = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
    found = read(data / f"i18n/{name}.tsv", 2)
    return [re.sub(r"\\[nt\\]", lambda match: plain[match[0]], text) for text in found]


def cleaned(text: str, script: str) -> tuple[str, dict[str, int], str]:
    """Return what is left of a text, the lines dropped, and why all of it is."""
    left = clean_lines(normalize(strip_markup(text)), script=script)
    return left.text, left.dropped, left.reason


def judged(texts: Sequence[str], script: str, language: str = "und") -> dict[str, Any]:
    reasons, lines = Counter[str](), Counter[str]()
    changed = 0
    for text in texts:
        left, dropped, reason = cleaned(text, script)
        lines.update(dropped)
        changed += left != normalize(text)
        reasons[reason or judge(left, language=language, script=script).reason or "kept"] += 1
    short, kept = reasons["too short"], reasons["kept"]
    return {
        "texts": len(texts),
        "kept": round(kept / len(texts), 4),
        "too_short": round(short / len(texts), 4),
        "dropped_otherwise": round((len(texts) - kept - short) / len(texts), 4),
        "by_reason": dict(reasons.most_common()),
        "lines_dropped": dict(lines.most_common()),
        "changed_by_strip_or_lines": round(changed / len(texts), 4),
    }


def dirty(data: Path) -> dict[str, Any]:
    blog = (data / "dirty/magahi_blog_raw.jsonl").read_text("utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in blog]
    found = {"magahi_blog": judged(documents, "Deva")}
    before = sum("mso-" in text for text in documents)
    after = sum("mso-" in strip_markup(text) for text in documents)
    found["magahi_blog"] |= {"style_sheets_before": before, "style_sheets_after": after}
    sms = read(data / "dirty/india_sms_promotional.txt")
    found["sms_as_latin"] = judged(sms, "Latn")
    found["sms_in_a_devanagari_corpus"] = judged(sms, "Deva")
    found["sat_hembram"] = judged(read(data / "mono/sat_hembram.txt"), "Olck")
    for name, script in MESSAGES.items():
        found[f"i18n_{name}"] = judged(messages(data, name), script, _language(name))
    return found


def _language(name: str) -> str:
    """Return the language in the name of a set, such as mar of udhr_mar."""
    parts = [
        part for part in name.split("_") if len(part) == 3 and part not in ("dev", "ili", "kmi")
    ]
    return parts[-1] if parts else "und"


def clean(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part, sets in (("tuned_on", TUNED_ON), ("held_out", HELD_OUT)):
        rows = {
            name: judged(read(data / file, column), script, _language(name))
            for name, (file, column, script) in sets.items()
        }
        total = sum(row["texts"] for row in rows.values())
        false = Counter[str]()
        for row in rows.values():
            false.update(
                {k: v for k, v in row["by_reason"].items() if k not in ("kept", "too short")}
            )
        found[part] = {
            "texts": total,
            "false_drops": round(sum(false.values()) / total, 5),
            "false_drops_by_reason": dict(false.most_common()),
            "most_in_one_set": max((row["dropped_otherwise"], name) for name, row in rows.items()),
            "sets": rows,
        }
    return found


def planted(data: Path) -> dict[str, Any]:
    lines = [
        line
        for name in ("bho", "hin", "mag", "mai")
        for line in map(normalize, read(data / f"{FLORES}{name}"))
        if len(line.split()) >= 8
    ]
    kept = [line for line in lines if judge(line, language="und", script="Deva").keep]
    found: dict[str, Any] = {"lines": len(kept), "from": "FLORES-200 devtest bho hin mag mai"}
    for kind, plant in {**PLANTS, "kruti_dev_in_a_latin_corpus": PLANTS["kruti_dev"]}.items():
        script = "Latn" if "latin_corpus" in kind else "Deva"
        rng, outcomes, reasons = random.Random(SEED), Counter[str](), Counter[str]()
        for line in kept:
            left, _, reason = cleaned(plant(line, rng), script)
            reason = reason or judge(left, language="und", script=script).reason
            same = left.split() == line.split()
            outcomes["dropped" if reason else "cut_out" if same else "missed"] += 1
            reasons[reason] += bool(reason)
        found[kind] = {
            "caught": round(1 - outcomes["missed"] / len(kept), 4),
            **dict(outcomes),
            "reasons": dict(reasons.most_common(3)),
        }
    return found


def counts_of(path: Path) -> dict[str, int]:
    return {
        word: int(n) for word, n in (line.split("\t") for line in path.read_text().splitlines())
    }


def silver_labels(data: Path, texts: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    hin, awa = (counts_of(data / f"wordfreq/{name}.tsv") for name in ("hin", "awa"))
    ours = {w for w in map(normalize, HINDI.split()) if hin.get(w, 0) >= 20 * awa.get(w, 0)}
    theirs = {w for w in map(normalize, AWADHI.split()) if awa.get(w, 0) >= 20 * hin.get(w, 0)}
    labels = []
    for text in texts:
        words = re.findall("[\u0900-\u0963\u0970-\u097f]+", text)
        hindi = sum(word in ours for word in words) >= 2
        labels.append("awa" if theirs.intersection(words) else "hin" if hindi else "")
    attested = sum(w in awa for w in theirs)
    sizes = {"hindi": len(ours), "awadhi": len(theirs), "awadhi_in_wordfreq": attested}
    return labels, sizes


def flags(
    texts: Sequence[str], answers: Sequence[Answer], identifier: Identifier, language: str = "awa"
) -> list[bool]:
    return [
        judge(
            text, language=language, script="Deva", answer=answer, labels=identifier.labels
        ).reason
        == "other language"
        for text, answer in zip(texts, answers, strict=True)
    ]


def agreement(flagged: Sequence[bool], labels: Sequence[str]) -> dict[str, Any]:
    pairs = Counter(zip(flagged, labels, strict=True))
    right, wrong, missed = pairs[True, "hin"], pairs[True, "awa"], pairs[False, "hin"]
    return {
        "flagged": sum(flagged),
        "flagged_without_label": pairs[True, ""],
        "precision": round(right / max(1, right + wrong), 4),
        "recall": round(right / max(1, right + missed), 4),
        "awadhi_flagged": round(wrong / max(1, wrong + pairs[False, "awa"]), 4),
    }


def answers_of(texts: Sequence[str], identifier: Identifier) -> dict[str, list[Answer]]:
    trained = identifier.identify(texts)
    adapted = identifier.adapted(texts).identify(texts)
    both = list(map(agreed, trained, adapted))
    return {"trained": trained, "adapted": adapted, "agreed": both}


def other_language(data: Path, identifier: Identifier) -> dict[str, Any]:
    """Return what share of clean text in a dialect the rule takes for another language."""
    found: dict[str, Any] = {}
    for name, (file, column, script) in {**TUNED_ON, **HELD_OUT}.items():
        language = _language(name)
        if language not in identifier.labels or name == "mag_kmi":  # most of it is in the ILI text
            continue
        texts = [cleaned(text, script)[0] for text in read(data / file, column)]
        found[name] = {
            kind: round(sum(flags(texts, answers, identifier, language)) / len(texts), 4)
            for kind, answers in answers_of(texts, identifier).items()
        }
    return found


def hindi_in_awa(data: Path, identifier: Identifier) -> dict[str, Any]:
    texts = [left for text in messages(data, "awa") if (left := cleaned(text, "Deva")[0])]
    labels, sizes = silver_labels(data, texts)
    long = [len(text.split()) >= RULES.words_for_language for text in texts]
    found: dict[str, Any] = {
        "messages": len(texts),
        "of_four_words_or_more": sum(long),
        "function_words": sizes,
        "silver": dict(Counter(label or "none" for label in labels)),
    }
    for kind, answers in answers_of(texts, identifier).items():
        flagged = flags(texts, answers, identifier)
        called = [a.best == "hin" for a in answers]
        found[kind] = agreement(flagged, labels) | {
            "flagged_of_four_words_or_more": round(sum(flagged) / sum(long), 4),
            "best_label_hindi": round(sum(called) / len(texts), 4),
        }
    awadhi = [text for text, label in zip(texts, labels, strict=True) if label == "awa"]
    hindi = [
        normalize(line)
        for line in read(data / "parallel/loresmt2020/dev.hin-bho-mag.tsv", 0)
        + read(data / "parallel/ntrex/newstest2019.hin")
        if 4 <= len(line.split()) <= 15
    ]
    hindi = random.Random(SEED).sample(hindi, len(awadhi) // 3)
    mixed = awadhi + hindi
    truth = ["awa"] * len(awadhi) + ["hin"] * len(hindi)
    found["planted_hindi"] = {"awadhi": len(awadhi), "hindi": len(hindi)} | {
        kind: agreement(flags(mixed, answers, identifier), truth)
        for kind, answers in answers_of(mixed, identifier).items()
    }
    return found


def speed(data: Path) -> dict[str, Any]:
    lines = read(data / "parallel/ntrex/newstest2019.hin")
    news = [" ".join(lines[first : first + 6])[:600] for first in range(0, len(lines), 6)]
    news = [text for text in news if len(text) >= 580]
    steps: dict[str, Callable[[str], Any]] = {
        "strip_markup": strip_markup,
        "normalize": normalize,
        "clean_lines": lambda text: clean_lines(text, script="Deva"),
        "judge": lambda text: judge(text, language="hin", script="Deva"),
        "clean_lines_of_four_lines": lambda text: clean_lines(text, script="Deva"),
    }
    found: dict[str, Any] = {"documents": len(news), "characters": sum(map(len, news)) // len(news)}
    for name, step in steps.items():
        texts = [t.replace("। ", "।\n", 3) for t in news] if "four" in name else news
        seconds = []
        for _ in range(5):
            started = time.process_time()
            for text in texts:
                step(text)
            seconds.append(time.process_time() - started)
        found[f"{name}_microseconds"] = round(min(seconds) / len(texts) * 1e6, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of real text")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "dirty_text.json")
    options = parser.parse_args()
    identifier = train(read_labeled(options.data / "ili2018/dev.tsv"))
    found = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "dirty": dirty(options.data),
        "clean": clean(options.data),
        "planted": planted(options.data),
        "hindi_in_awa": hindi_in_awa(options.data, identifier),
        "other_language_on_clean_text": other_language(options.data, identifier),
        "speed": speed(options.data),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
