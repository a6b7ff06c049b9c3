"""TRL's SFTTrainer and a loop that judges what it made, on given rows, in its own environment (see bench/whole.py)."""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from hf_trainer import group_few_rows  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

BATCH = 16


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the first line on, and exact match of base and tuned model."""
    torch.set_num_threads(job["threads"])
    group_few_rows()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=job["peer_rows"],
        max_steps=len(job["rows"]) // job["batch"], learning_rate=job["rate"], lr_scheduler_type="constant",
        max_length=None, report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
        logging_strategy="no", optim="adamw_torch", seed=0, dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False, train_sampling_strategy="group_by_length",
    )  # fmt: skip
    adapter = LoraConfig(r=job["r"], lora_alpha=2 * job["r"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(job["rows"]), processing_class=tokenizer,
        peft_config=adapter,
    )  # fmt: skip
    trainer.train()
    trained, tuned = time.perf_counter() - BEGAN, trainer.model.eval()
    found = {"tuned": judged(tuned, tokenizer, job)}
    with tuned.disable_adapter():
        found["base"] = judged(tuned, tokenizer, job)
    return {
        "seconds": time.perf_counter() - BEGAN, "trained": trained, "rows": len(job["held_rows"]),
        "base": found["base"][1], "tuned": found["tuned"][1], "loss": found["tuned"][0],
    }  # fmt: skip


@torch.no_grad()
def judged(model: Any, tokenizer: Any, job: dict[str, Any]) -> tuple[float, float]:
    """The loss of a supervised token, and exact match."""
    total = count = right = 0.0
    rows = job["held_rows"]
    for own in batches(rows, lambda row: len(row["input_ids"])):
        ids, mask = padded([row["input_ids"] for row in own], left=False)
        labels, _ = padded([row["labels"] for row in own], left=False, filling=-100)
        logits, target = model(input_ids=ids, attention_mask=mask).logits[:, :-1], labels[:, 1:]
        total += torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), target.reshape(-1), ignore_index=-100, reduction="sum"
        ).item()
        count += int((target != -100).sum())
    asked = []
    for row, turns in zip(rows, job["held"], strict=True):
        length = next(place for place, label in enumerate(row["labels"]) if label != -100)
        asked.append((row["input_ids"][:length], turns[-1]["content"]))
    for own in batches(asked, lambda pair: len(pair[0])):
        ids, mask = padded([prompt for prompt, _ in own], left=True)
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=job["new_tokens"], do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        answers = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        right += sum(answer.strip() == truth.strip() for answer, (_, truth) in zip(answers, own, strict=True))
    return total / count, right / len(rows)


def batches(items: Sequence[Any], length: Any) -> Iterator[list[Any]]:
    """Sorted by length, the longest first."""
    order = sorted(items, key=length, reverse=True)
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def padded(rows: Sequence[list[int]], *, left: bool, filling: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both int64 [rows, longest]."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), filling)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(len(row))
        ids[line, place], mask[line, place] = torch.tensor(row), 1
    return ids, mask


if __name__ == "__main__":
    measured = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(measured), encoding="utf-8")
