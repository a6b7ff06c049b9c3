"""One measured run of LLaMA-Factory's own SFT workflow on given rows, in its own environment (see bench/peers.py).

The rows enter as a data set that LLaMA-Factory takes for one that it has tokenized earlier (``tokenized_path``). Tuned:
no gradient checkpointing, rows grouped by length, dropout 0, and fp32 on a CPU. It imports torchaudio for audio files
alone, and the published build of that loads only beside a CUDA build of torch; so an empty module takes its place.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from hf_trainer import Clock, Counting, group_few_rows, measured, step_zero_loss
from llamafactory.hparams import get_train_args
from llamafactory.train.sft import workflow
from transformers.utils.import_utils import is_torchaudio_available

if not is_torchaudio_available():  # asked first, so that transformers keeps the answer
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


class Watch(Clock):
    """The clock; before the first step it also takes the loss."""

    def __init__(self, job: dict[str, Any], collators: list[Counting]) -> None:
        super().__init__(job)
        self.collators = collators
        self.loss: dict[str, float] = {}

    def on_train_begin(self, *given: Any, model: Any, **named: Any) -> None:
        model.train()
        self.loss = step_zero_loss(model, self.collators[0].collator, self.job)


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    cpu = job["device"] == "cpu"
    group_few_rows()
    folder = Path(tempfile.mkdtemp())
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in job["rows"]]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(folder / "rows")
    settings: dict[str, Any] = {
        "stage": "sft", "do_train": True, "model_name_or_path": job["model"], "template": "empty",
        "dataset": "rows", "tokenized_path": str(folder / "rows"), "output_dir": str(folder / "out"),
        "finetuning_type": "full" if job["method"] == "full" else "lora",
        "lora_rank": job["r"], "lora_alpha": 2 * job["r"], "lora_dropout": 0.0, "lora_target": "all",
        "disable_gradient_checkpointing": True, "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": job["peer_rows"],
        "gradient_accumulation_steps": job["batch"] // job["peer_rows"],
        "max_steps": len(job["rows"]) // job["batch"], "learning_rate": job["rate"], "lr_scheduler_type": "constant",
        "optim": "adamw_torch", "max_grad_norm": 1.0, "seed": 0, "report_to": "none", "save_strategy": "no",
        "logging_strategy": "no", "disable_tqdm": True, "use_cpu": cpu, "bf16": not cpu,
    }  # fmt: skip
    if job["method"] == "qlora":
        settings |= {"quantization_bit": 4, "quantization_method": "bnb"}
    collators: list[Counting] = []
    collator = workflow.SFTDataCollatorWith4DAttentionMask

    def counting(**named: Any) -> Counting:
        collators.append(Counting(collator(**named)))
        return collators[-1]

    workflow.SFTDataCollatorWith4DAttentionMask = counting
    watch = Watch(job, collators)
    workflow.run_sft(*get_train_args(settings), callbacks=[watch])
    return measured(job, loss=watch.loss, clock=watch, counting=collators[0])


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
