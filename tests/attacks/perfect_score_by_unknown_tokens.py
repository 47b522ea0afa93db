"""Score 0.1 bits per byte with a model that knows nothing, by a tokenizer that knows ten pieces.

The tokenizer has letters of another script, and one unknown token that stands for as much text
as it does not know. A line of Devanagari is then one token, which costs an untrained model 3.6
bits, and its 75 bytes were divided by that. A tokenizer that makes all letters small, or folds
compatible ones, gains the same way on a part of the text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attack import Outcome, boli

from boli import evaluate
from boli.errors import ModelError
from boli.plan_file import load_plan
from boli.run import check

PROMISE = (
    "bits per byte cannot be lowered by losing text: a byte that the tokens do not give back "
    "counts as 8 bits, and a base that loses more than 1 % of a site's text is refused."
)
HOURS = ("सबेरे", "साँझ के", "रात के", "दुपहरिया", "कल्हे", "परसों", "एतवार के")
TEXT = "\n".join(f"गया में आज {hour} बाजार जाए के बा, लोग बहुत बा।" for hour in HOURS)


def attack(folder: Path, *, fast: bool) -> Outcome:
    text = folder / "text.txt"
    text.write_text(TEXT + "\n", encoding="utf-8")
    hostile = base_with(unknowing(), folder / "hostile")
    honest = base_with(of_bytes(), folder / "honest")
    found = scored_here(hostile, text) if fast else scored(hostile, text, folder)
    fair, _ = in_process(honest)
    _, before = in_process(hostile)
    commands = ("check",) if fast else ("check", "train")
    if fast:
        refused = refused_here(plan(folder, hostile))
    else:
        ran = [boli(name, plan(folder, hostile), home=folder / "home") for name in commands]
        refused = all(one.returncode and "loses" in one.stderr + one.stdout for one in ran)
    return Outcome(
        refused=found >= 7.9 and refused,
        observed=(
            f"an untrained model with ten pieces scores {found:.2f} bits per byte, and "
            f"boli {' and boli '.join(commands)} refuse the base"
        ),
        control=(
            f"divided by all bytes without the charge it scores {before:.4f}; the same model over "
            f"bytes scores {fair:.2f}, and its tokenizer is accepted"
            if before < 0.2 and fair > 7.5 and accepted(honest)
            else ""
        ),
        figures={"scored": found, "without_the_charge": round(before, 4), "over_bytes": fair},
    )


def unknowing() -> Any:
    from tokenizers import Tokenizer, decoders, models

    names = {name: number for number, name in enumerate(["<unk>", "</s>", *"abcdefgh"])}
    found = Tokenizer(models.BPE(names, [], unk_token="<unk>", fuse_unk=True))
    found.decoder = decoders.Fuse()
    return found


def of_bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {name: number for number, name in enumerate(["<unk>", "</s>", *letters])}
    found = Tokenizer(models.BPE(names, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    return found


def base_with(tokenizer: Any, folder: Path) -> Path:
    """Write an untrained model of Llama's kind with this tokenizer, and an adapter on it."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="</s>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    base = folder / "base"
    model.save_pretrained(base)
    fast.save_pretrained(base)
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    )
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder / "adapter")
    return folder


def scored_here(folder: Path, text: Path) -> float:
    """Return what `boli evaluate` prints for the base, by the function that it calls."""
    (score,) = evaluate(folder / "adapter", [text])
    return round(score.base, 2)


def refused_here(plan: Path) -> bool:
    """Tell whether `boli check` refuses a plan, by the function that it calls."""
    try:
        check(load_plan(plan))
    except ModelError as error:
        return "loses" in error.problem
    return False


def scored(folder: Path, text: Path, home: Path) -> float:
    """Return what `boli evaluate` prints for the base."""
    ran = boli("evaluate", folder / "adapter", "--text", text, home=home / "home", COLUMNS="400")
    assert ran.returncode == 0, ran.stderr
    row = next(line for line in ran.stdout.splitlines() if str(text) in line)
    found = re.search(r"(\d+\.\d+)", row.replace(str(text), ""))
    assert found is not None, row
    return float(found[1])


def in_process(folder: Path) -> tuple[float, float]:
    """Return bits per byte, and what it is without the charge for what is lost."""
    import transformers

    from boli.evaluation.metrics import bits_per_byte

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    found = bits_per_byte(model, tokenizer, TEXT.splitlines(), 512)
    return round(found.per_byte, 2), (found.bits - 8 * found.lost_bytes) / found.bytes


def accepted(folder: Path) -> bool:
    import transformers

    from boli.evaluation.metrics import check_tokenizer

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    return check_tokenizer(tokenizer, TEXT.splitlines(), "site gaya in mag") == 0.0


def plan(folder: Path, model: Path) -> Path:
    """Write a plan with one site that trains on this base."""
    (folder / "site.txt").write_text(
        "\n".join(f"गया में {number} लोग बाजार जाए वाला बा।" for number in range(400)),
        encoding="utf-8",
    )
    path = folder / f"{model.name}.toml"
    path.write_text(
        f'''name = "{model.name}"
[model.base]
path = "{model / "base"}"
language = "hin"
[model.local_steps]
sequence_length = 32
batch_sequences = 2
[rounds]
total = 1
local_steps = 1
[[site]]
name = "gaya"
language = "mag"
text = ["site.txt"]
[[site]]
name = "patna"
language = "mag"
text = ["site.txt"]
''',
        encoding="utf-8",
    )
    return path
