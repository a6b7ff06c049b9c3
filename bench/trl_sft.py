"""One measured run of TRL's SFTTrainer on given rows, in TRL's own environment (see bench/peers.py).

``tuned`` is what an experienced user would set on this machine: no gradient checkpointing, and rows grouped by length.
Dropout is 0 and, on a CPU, everything is fp32 either way; otherwise all is as TRL installs it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from hf_trainer import Clock, Counting, group_few_rows, measured, step_zero_loss
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    cpu = job["device"] == "cpu"
    group_few_rows()
    tuned = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"} if job["tuned"] else {}
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=job["peer_rows"],
        gradient_accumulation_steps=job["batch"] // job["peer_rows"], max_steps=len(job["rows"]) // job["batch"],
        learning_rate=job["rate"], lr_scheduler_type="constant", max_length=None, report_to="none", save_strategy="no",
        use_cpu=cpu, bf16=not cpu, disable_tqdm=True, logging_strategy="no", optim="adamw_torch", seed=0,
        dataset_kwargs={"skip_prepare_dataset": True}, **tuned,
    )  # fmt: skip
    adapter = LoraConfig(r=job["r"], lora_alpha=2 * job["r"], target_modules="all-linear", task_type="CAUSAL_LM")
    clock = Clock(job)
    trainer = SFTTrainer(
        model=_model(job), args=config, train_dataset=Dataset.from_list(job["rows"]), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=None if job["method"] == "full" else adapter,
    )  # fmt: skip
    if cpu:
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # TRL makes adapters over 4-bit layers bf16, which is slow on a CPU
                parameter.data = parameter.data.float()
    trainer.model.train()
    loss = step_zero_loss(trainer.model, trainer.data_collator, job)
    trainer.data_collator = counting = Counting(trainer.data_collator)
    trainer.train()
    return measured(job, loss=loss, clock=clock, counting=counting)


def _model(job: dict[str, Any]) -> Any:
    dtype = torch.float32 if job["device"] == "cpu" else torch.bfloat16
    if job["method"] != "qlora":
        return AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=dtype, quantization_config=quantized, device_map={"": job["device"]}
    )


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
