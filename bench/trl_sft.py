"""One measured run of TRL's SFTTrainer on given rows, in TRL's own environment (see bench/peers.py).

``tuned`` is what an experienced user would set on this machine: no gradient checkpointing, rows grouped by length, no
padding to multiples. Otherwise everything is as TRL installs it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from memory import peak_bytes
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begin)


class Counting:
    """The trainer's collator, which notes what is in each batch that it makes: its sampler decides which rows meet."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.tokens: list[int] = []
        self.supervised: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.collator(rows)
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        self.supervised.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    cpu = job["device"] == "cpu"
    tuned = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"} if job["tuned"] else {}
    dtype = torch.float32 if cpu else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=job["batch"],
        max_steps=len(job["rows"]) // job["batch"],
        learning_rate=job["rate"], lr_scheduler_type="constant", max_length=None, report_to="none", save_strategy="no",
        use_cpu=cpu, bf16=not cpu, disable_tqdm=True, logging_strategy="no", optim="adamw_torch", seed=0,
        dataset_kwargs={"skip_prepare_dataset": True}, **tuned,
    )  # fmt: skip
    adapter = LoraConfig(r=job["r"], lora_alpha=2 * job["r"], target_modules="all-linear", task_type="CAUSAL_LM")
    clock = Clock()
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(job["rows"]), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=adapter if job["method"] == "lora" else None,
    )  # fmt: skip
    first = trainer.data_collator(job["rows"][: job["batch"]])
    with torch.no_grad():
        trainer.model.eval()
        batch = {name: part.to(trainer.model.device) for name, part in first.items()}
        labels = batch.pop("labels")
        logits = trainer.model(**batch).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        ).item()
        del logits
    trainer.data_collator = counting = Counting(trainer.data_collator)
    trainer.train()
    timed = clock.seconds[1:]
    return {
        "step_zero_loss": loss,
        "supervised": sum(counting.supervised[: len(clock.seconds)]),
        "seconds": timed,
        "tokens": counting.tokens[1 : len(clock.seconds)],
        "supervised_tokens": counting.supervised[1 : len(clock.seconds)],
        "peak_bytes": peak_bytes(job["device"]),
        "versions": {name: __import__(name).__version__ for name in ("torch", "transformers", "peft", "trl")},
    }


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
