"""Losses and gradients of TRL's DPOTrainer, ORPOTrainer and KTOTrainer on a tiny model and fixed rows.

They are what tests/training/objectives/test_preference.py holds ours to. To make them anew, from the repository's root:

    python -m tests.goldens.preferences > tests/goldens/preferences.json

Nothing is random: weights and rows come from numpy's generators, which keep their numbers from release to release.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

LENGTHS = [(24, 7, 12), (5, 20, 3), (40, 9, 9), (18, 1, 30), (24, 6, 5)]  # tokens: prompt, chosen, rejected
LABELS = [True, False, True, True, False]
VOCABULARY = 96
STEPS, IN_TURN = 50, (slice(0, 3), slice(3, 5))  # of a training: steps, and the pairs that they see


def examples(*, one_token_prompts: bool = False) -> list[dict[str, Any]]:
    """Prompt, chosen and rejected ids, and whether the chosen one is desirable where it stands alone."""
    random = np.random.default_rng(7)

    def draw(count: int) -> list[int]:
        return random.integers(3, VOCABULARY, count).tolist()

    return [
        {
            "prompt_ids": draw(1 if one_token_prompts else prompt),
            "chosen_ids": draw(chosen),
            "rejected_ids": draw(rejected),
            "label": label,
        }
        for (prompt, chosen, rejected), label in zip(LENGTHS, LABELS, strict=True)
    ]


def model(*, seed: int, moved: float = 0.0) -> Any:
    """A tiny Llama whose weights are drawn by a seed, and moved from there by another draw."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).float()
    random, away = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = random.normal(0, 0.2, parameter.shape) + moved * away.normal(0, 0.2, parameter.shape)
            parameter.copy_(torch.from_numpy(drawn + ("norm" in name)))
    return made


def policy() -> Any:
    """The model that trains."""
    return model(seed=1, moved=0.3)


def reference() -> Any:
    """The model that it began as."""
    return model(seed=1)


def described(loss: torch.Tensor, trained: Any, **facts: Any) -> dict[str, Any]:
    """The loss, and of each gradient its norm and its product with a fixed direction."""
    trained.zero_grad()
    loss.backward()
    random, found = np.random.default_rng(3), {}
    for name, parameter in trained.named_parameters():
        gradient = parameter.grad.double().numpy()
        found[name] = [float(np.linalg.norm(gradient)), float((gradient * random.normal(size=gradient.shape)).sum())]
    return {"loss": float(loss.detach()), "gradients": found, **facts}


def _arguments(kind: Any, folder: str, **settings: Any) -> Any:
    return kind(
        output_dir=folder, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=len(LENGTHS), remove_unused_columns=False, **settings,
    )  # fmt: skip


def _tokenizer(folder: str) -> Any:
    from tests.conftest import build_tokenizer
    from transformers import AutoTokenizer

    build_tokenizer(Path(folder))
    return AutoTokenizer.from_pretrained(folder)


def dpo(folder: str, tokenizer: Any, *, loss_type: str, label_smoothing: float = 0.0, swapped: bool = False) -> Any:
    """With ``aot`` the loss of each pair by itself, of which the mean is taken: it is what was sigmoid's smoothing."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    trained, untuned = (reference(), policy()) if swapped else (policy(), reference())
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = DPOTrainer(
        trained,
        untuned,
        args=_arguments(DPOConfig, folder, loss_type=[loss_type], label_smoothing=label_smoothing),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    collate, pairs = DataCollatorForPreference(pad_token_id=0), examples()
    batches = [[pair] for pair in pairs] if loss_type == "aot" else [pairs]
    losses = [trainer.compute_loss(trained, collate(batch)) for batch in batches]
    return described(torch.stack(losses).mean(), trained)


def optimizer(name: str, trained: Any) -> torch.optim.Optimizer:
    """Of a training of some steps."""
    if name == "sgd":
        return torch.optim.SGD(trained.parameters(), lr=0.05)
    return torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.0)


def dpo_steps(folder: str, tokenizer: Any, name: str) -> list[float]:
    """The loss of each of STEPS steps, of the first three pairs and of the others in turn."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    trained = policy()
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = DPOTrainer(
        trained, reference(), args=_arguments(DPOConfig, folder), train_dataset=rows, processing_class=tokenizer
    )
    collate, own, losses = DataCollatorForPreference(pad_token_id=0), optimizer(name, trained), []
    for number in range(STEPS):
        loss = trainer.compute_loss(trained, collate(examples()[IN_TURN[number % 2]]))
        loss.backward()
        own.step()
        own.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def orpo(folder: str, tokenizer: Any, *, one_token_prompts: bool) -> Any:
    """TRL learns the prompt too; with prompts of one token, which nothing predicts, there is none to learn."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trained = policy()
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = ORPOTrainer(trained, args=_arguments(ORPOConfig, folder), train_dataset=rows, processing_class=tokenizer)
    pairs = examples(one_token_prompts=one_token_prompts)
    batch: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        ids = [pair["prompt_ids"] + pair[f"{side}_ids"] for pair in pairs]
        longest = max(map(len, ids))
        batch[f"{side}_input_ids"] = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        batch[f"{side}_attention_mask"] = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        batch[f"{side}_labels"] = torch.tensor(
            [
                [-100] * len(pair["prompt_ids"]) + pair[f"{side}_ids"] + [-100] * (longest - len(row))
                for row, pair in zip(ids, pairs, strict=True)
            ]
        )
    loss, _ = trainer.get_batch_loss_metrics(trained, batch)
    return described(loss, trained)


def kto(folder: str, tokenizer: Any, *, swapped: bool = False, **weights: float) -> Any:
    """The rows of KL as TRL makes them: the answers of a batch moved on by one. Unswapped, the estimate is cut at 0."""
    from datasets import Dataset
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

    trained, untuned = (reference(), policy()) if swapped else (policy(), reference())
    rows = Dataset.from_list([{"prompt": "a", "completion": "b", "label": n % 2 == 0} for n in range(len(LENGTHS))])
    trainer = KTOTrainer(
        trained, untuned, args=_arguments(KTOConfig, folder, **weights), train_dataset=rows, processing_class=tokenizer
    )
    alone = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"], "label": row["label"]}
        for row in examples()
    ]
    for number, row in enumerate(alone):
        row["KL_completion_ids"] = alone[number - 1]["completion_ids"]
    loss = trainer.compute_loss(trained, DataCollatorForUnpairedPreference(pad_token_id=0)(alone))
    return described(loss, trained, kl=trainer._metrics["train"]["kl"][-1])


def main() -> None:
    """Prints every golden as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(folder)
        found = {
            "dpo sigmoid": dpo(folder, tokenizer, loss_type="sigmoid"),
            "dpo sigmoid swapped": dpo(folder, tokenizer, loss_type="sigmoid", swapped=True),
            "dpo sigmoid 0.1": dpo(folder, tokenizer, loss_type="aot", label_smoothing=0.1),
            "dpo robust 0.1": dpo(folder, tokenizer, loss_type="robust", label_smoothing=0.1),
            "dpo hinge": dpo(folder, tokenizer, loss_type="hinge"),
            "dpo ipo": dpo(folder, tokenizer, loss_type="ipo"),
            "dpo steps sgd": dpo_steps(folder, tokenizer, "sgd"),
            "dpo steps adamw": dpo_steps(folder, tokenizer, "adamw"),
            "orpo all": orpo(folder, tokenizer, one_token_prompts=False),
            "orpo answer": orpo(folder, tokenizer, one_token_prompts=True),
            "kto": kto(folder, tokenizer),
            "kto swapped": kto(folder, tokenizer, swapped=True),
            "kto weighted": kto(folder, tokenizer, desirable_weight=1.5, undesirable_weight=0.5),
        }
    json.dump({"trl": version("trl"), "torch": version("torch"), **found}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
