"""Losses of transformers' Trainer and TRL's SFTTrainer over 50 steps of full, lora and qlora on a tiny model.

They are what tests/training/test_parity.py holds ours to. To make them anew, from the repository's root:

    python -m tests.goldens.supervised > tests/goldens/supervised.json

Weights and rows come from numpy's generators, which keep their numbers from release to release. PEFT draws the adapters
with torch's, so a digest of what it drew is kept beside the losses.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from tunesmith.data.batches.order import Order

Kind = Literal["trainer", "sft"]
METHODS, OPTIMIZERS, KINDS = ("full", "lora", "qlora"), ("sgd", "adamw_torch"), ("trainer", "sft")
ROWS, STEPS, SEED = 26, 50, 0
# Rows of a forward pass, and passes of a step; the last step of an epoch has 2 rows.
PASSES = {"full": (8, 1), "lora": (2, 3), "qlora": (4, 2)}
RATES = {
    ("full", "sgd"): 0.1, ("lora", "sgd"): 0.4, ("qlora", "sgd"): 0.4,
    ("full", "adamw_torch"): 2e-3, ("lora", "adamw_torch"): 1e-2, ("qlora", "adamw_torch"): 1e-2,
}  # fmt: skip
DECAY = {"sgd": 0.0, "adamw_torch": 0.01}
SCHEDULE: dict[str, Any] = {"lr_scheduler_type": "cosine", "warmup_steps": 5, "max_grad_norm": 1.5}
ADAPTER: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate")

WORDS = [
    "red", "green", "blue", "black", "white", "brown", "pink", "stone", "river", "cloud", "seven", "eleven",
    "Paris", "Lyon", "INV-2024", "EUR",
]  # fmt: skip
OPENINGS = (
    "Translate the words of the note into the language of the clerk, and leave every number as it is.",
    "Translate the words of the note into French.",
    "Say which of the things in the list are of one colour, then how many there are:",
)


def rows() -> list[dict[str, str]]:
    """Prompts that begin alike, some of them for longer than others, and answers of one to fourteen words."""
    random = np.random.default_rng(11)

    def words(most: int) -> str:
        return " ".join(random.choice(WORDS, random.integers(1, most)).tolist())

    made = []
    for number in range(ROWS):
        list_of_all = f" {' '.join(WORDS[:10])}" if number % 4 == 0 else ""
        prompt = f"{OPENINGS[number % 3]}{list_of_all} {words(7)}"
        made.append({"prompt": prompt, "completion": words(15)})
    return made


def make(folder: Path) -> None:
    """The model, its tokenizer and ``rows.jsonl``."""
    from tests.conftest import build_tokenizer
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    build_tokenizer(folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            tie_word_embeddings=True,
        )
    ).float()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random.normal(0, 0.1, parameter.shape) + ("norm" in name)))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))


def encoded(tokenizer: Any) -> list[dict[str, list[int]]]:
    """Ids by the tokenizer's own template; the answer and the token that ends it are labels."""

    def ids(turns: list[dict[str, str]], *, asks: bool) -> list[int]:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    made = []
    for row in rows():
        asked = {"role": "user", "content": row["prompt"]}
        own = ids([asked, {"role": "assistant", "content": row["completion"]}], asks=False)
        start = len(ids([asked], asks=True))
        end = len(own) - own[::-1].index(tokenizer.eos_token_id)
        labels = [-100] * start + own[start:end] + [-100] * (len(own) - end)
        made.append({"input_ids": own, "labels": labels})
    return made


def epochs(method: str) -> list[list[int]]:
    """Row numbers of every pass that the steps take."""
    size = int(np.prod(PASSES[method]))
    order = Order(np.ones(ROWS), batch_size=size, epochs=1, max_steps=STEPS, seed=SEED)
    return [order.epoch_rows(number).tolist() for number in range(-(-STEPS // order.steps_in(0)))]


class InOrder(torch.utils.data.Sampler[int]):
    """Each pass over the data takes the rows of the next epoch."""

    def __init__(self, orders: list[list[int]]) -> None:
        self.orders, self.passes = orders, 0

    def __len__(self) -> int:
        return len(self.orders[0])

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(self.orders[self.passes - 1])


def collate(examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([example[name] + [value] * (longest - len(example[name])) for example in examples])

    lengths = torch.tensor([[len(example["input_ids"])] for example in examples])
    mask = (torch.arange(longest)[None] < lengths).long()
    return {"input_ids": padded("input_ids", 2), "labels": padded("labels", -100), "attention_mask": mask}


def model_of(folder: Path, method: str) -> Any:
    """What trains; adapters are drawn from the seed alone."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized: dict[str, Any] = {}
    if method == "qlora":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        quantized = {"quantization_config": config, "device_map": {"": "cpu"}}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **quantized)
    for layer in model.modules():
        cast(
            "Any", layer
        ).support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16 on the CPUs that can
    if method == "full":
        return model
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **ADAPTER))


def digest(model: Any) -> str:
    """Of all that trains, values and shapes, in the model's order."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            found.update(str(tuple(parameter.shape)).encode())
            found.update(parameter.detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()


def run(
    kind: Kind, folder: Path, method: str, optim: str, *, half: bool = False, model: Any = None
) -> dict[str, list[float]]:
    """Loss and gradient norm of each step.

    Args:
        half: leaves qlora's adapters in bfloat16, to which SFTTrainer turns them whatever the rest computes in. Else
            they are put back into float32.
        model: with its adapter attached; ``model_of`` where it is left out.
    """
    from transformers import AutoTokenizer, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = model_of(folder, method) if model is None else model
    given = {name: own.detach().clone() for name, own in model.named_parameters() if own.requires_grad}
    size, passes = PASSES[method]
    settings = {
        "output_dir": str(folder / "trainer"), "use_cpu": True, "bf16": False, "report_to": "none",
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False,
        "remove_unused_columns": False, "dataloader_pin_memory": False, "max_steps": STEPS, "seed": SEED,
        "per_device_train_batch_size": size, "gradient_accumulation_steps": passes, "optim": optim,
        "learning_rate": RATES[method, optim], "weight_decay": DECAY[optim], **SCHEDULE,
    }  # fmt: skip
    examples: Any = encoded(tokenizer)
    sampler = InOrder(epochs(method))
    trainer: Any
    if kind == "trainer":
        trainer = Trainer(model, TrainingArguments(**settings), data_collator=collate, train_dataset=examples)
    else:
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        trainer = SFTTrainer(
            model,
            SFTConfig(**settings, max_length=None),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
        )
        for name, own in model.named_parameters():
            if name in given and not half:
                own.data = given[name]
    trainer._get_train_sampler = lambda *_: sampler
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == STEPS
    return {name: [float(f"{line[name]:.9g}") for line in lines] for name in ("loss", "grad_norm")}


def main() -> None:
    """Prints every golden as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        found: dict[str, Any] = {
            "versions": {package: version(package) for package in VERSIONS},
            "digests": {method: digest(model_of(folder, method)) for method in METHODS},
            "epochs": {method: epochs(method) for method in METHODS},
        }
        for method in METHODS:
            for optim in OPTIMIZERS:
                for kind in KINDS:
                    found[f"{kind} {method} {optim}"] = run(cast("Any", kind), folder, method, optim)
        found["sft qlora adamw_torch bfloat16"] = run("sft", folder, "qlora", "adamw_torch", half=True)
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
