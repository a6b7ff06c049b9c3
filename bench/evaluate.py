"""How fast a run is judged, beside plain transformers: the same rows, the same greedy answers, in turn in one process.

    python bench/evaluate.py --quick     three short parts in under 12 minutes on 2 cores
    python bench/evaluate.py             the same on more rows, after more training
    python bench/evaluate.py --run RUN   judge an existing run on Banking77 instead of training one

    banking tuned, banking base   loss and exact match of Banking77, by a tuned model and by the base
    demo                          loss and JSON metrics of the demo's rows, by both models
    labels, labels base           the likeliest of all 77 labels behind each message, by a tuned model and by the base
    label probabilities           the probability of each of the 77 labels, by the tuned model

Plain transformers is what one would write: the model of the hub with its PEFT adapter, sdpa, rows sorted by length and
padded in batches of 16, one loop for the loss and ``generate`` for the answers; labels one by one, in padded batches.
Every part runs in the order A B B A. Figures are ratios within one run: plain seconds over ours. ``differ`` counts
answers that are not the same tokens: plain batches round differently, ours are those of each row alone. ``settled``
counts answers that were left unfinished, because exact match had lost them (``evaluation.whole_answers: 100``, the
default, answers a hundred rows to their end); they are compared as far as they go. ``tokens`` are those that went
through the layers, filling included: their ratio is the figure of two programs that compute a token equally fast. For
labels, ``differ`` counts messages with another likeliest label, ``largest_difference`` is that of the log-probabilities
that ours computes to their end, and ``probabilities_differ`` the largest one between their softmaxes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import tunesmith  # it says how OpenMP waits, which torch reads at its import

# isort: split
import numpy as np
import torch
import workloads
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.deploy.tuned import Tuned
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.task import make_task, task_batches
from tunesmith.model.generate import Generation
from tunesmith.model.label_logprobs import label_logprobs
from tunesmith.model.label_rounds import LabelLogprobs
from tunesmith.model.label_tree import Wanted
from tunesmith.planning.budget import micro_batch_tokens
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Silent
from tunesmith.workflows.demo.story import ROWS

BATCH, LABEL_BATCH = 16, 32
TARGETS = {"banking tuned": 6.0, "banking base": 2.5, "demo tuned": 4.0, "demo base": 4.0, "labels": 20.0}
LABEL_PARTS: dict[str, tuple[str, Wanted]] = {
    "labels": ("tuned", "likeliest"),
    "labels base": ("base", "likeliest"),
    "label probabilities": ("tuned", "probabilities"),
}
PARTS = [*TARGETS, *(name for name in LABEL_PARTS if name not in TARGETS)]
Turns = list[dict[str, str]]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {"threads": arguments.threads, "quick": arguments.quick, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in _measured(arguments, Path(folder)):
            report["parts"][name] = part
            _show(name, part)
    if arguments.save is not None:
        arguments.save.write_text(json.dumps(report, indent=1), encoding="utf-8")


def _measured(arguments: argparse.Namespace, place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of each part that is asked for."""
    asked = arguments.parts or PARTS
    # 1. Banking77: its held rows by both models, and the likelihoods of its labels.
    if any(not name.startswith("demo") for name in asked):
        _, items = workloads.BUILDERS["a"](arguments.data, random.Random("bench/evaluate"))
        held, rest = items[: arguments.rows], items[arguments.rows :]
        tuned = tunesmith.load(arguments.run or _trained(arguments, rest, place / "banking"), progress=False)
        plain = _Plain(tuned)
        limits = {"metrics": ["exact_match"], "max_new_tokens": arguments.new_tokens}
        for name in ("tuned", "base"):
            if f"banking {name}" in asked:
                yield f"banking {name}", _judged(tuned, plain, name, held, limits)
        labels = sorted({turns[-1]["content"] for turns in items})[:77]
        for part, (name, wanted) in LABEL_PARTS.items():
            if part in asked:
                yield part, _labelled(tuned, plain, name, wanted, held[: arguments.label_rows], labels)
    # 2. The demo's rows by both models.
    if any(name.startswith("demo") for name in asked):
        rows, own = (
            [_demo_turns(line) for line in ROWS.joinpath(name).read_text("utf-8").splitlines()]
            for name in ("test.jsonl", "train.jsonl")
        )
        tuned = tunesmith.load(_trained(arguments, own, place / "demo"), progress=False)
        plain = _Plain(tuned)
        limits = {"metrics": ["json_exact", "json_fields", "json_valid"], "max_new_tokens": 64, "batch_size": 100}
        for name in ("tuned", "base"):
            if f"demo {name}" in asked:
                yield f"demo {name}", _judged(tuned, plain, name, rows[: arguments.demo_rows], limits)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows and steps")
    parser.add_argument("--run", help="an existing run on Banking77")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the base of the runs that are trained")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TUNESMITH_BENCH_DATA", "data")))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, help="rows of Banking77 to judge")
    parser.add_argument("--label-rows", type=int, help="rows whose labels are scored")
    parser.add_argument("--demo-rows", type=int, help="rows of the demo to judge")
    parser.add_argument("--steps", type=int, help="training steps of 16 rows")
    parser.add_argument("--new-tokens", type=int, default=32, help="limit on an answer to a Banking77 row")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these parts")
    parser.add_argument("--save", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    usual = {"rows": (48, 400), "label_rows": (3, 20), "demo_rows": (32, 100), "steps": (40, 200)}
    for name, (quick, whole) in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else whole)
    return arguments


def _demo_turns(line: str) -> Turns:
    row = json.loads(line)
    asked = f"{row['instruction']}\n\n{row['input']}"
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]


def _trained(arguments: argparse.Namespace, items: Sequence[Turns], folder: Path) -> Path:
    """A run on these rows, without a verdict."""
    data = folder.with_suffix(".jsonl")
    count = min(len(items), 16 * arguments.steps)
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in items[:count]), encoding="utf-8")
    recipe = {
        "model": arguments.model,
        "data": {"train": str(data), "eval": 0},
        "method": {"name": "lora", "r": 16, "lora_alpha": 32},
        "training": {"learning_rate": 1e-3, "num_train_epochs": 1, "batch_size": 16, "eval_strategy": "no"},
        "output_dir": str(folder),
    }
    return Path(tunesmith.train(recipe, progress=False).run)


class _Plain:
    """The same weights as transformers and PEFT load them."""

    def __init__(self, tuned: Tuned) -> None:
        base = AutoModelForCausalLM.from_pretrained(tuned.folder, dtype=torch.float32, attn_implementation="sdpa")
        assert tuned.target.checkpoint is not None
        self.model = PeftModel.from_pretrained(base, str(tuned.target.checkpoint)).eval()
        self.stop_ids = list(tuned.stop_ids)

    def named(self, name: str) -> Any:
        """A context in which the model is the tuned one, or the base."""
        return nullcontext() if name == "tuned" else self.model.disable_adapter()

    @torch.no_grad()
    def loss(self, rows: Sequence[Any]) -> float:
        total = count = 0.0
        for own in _batches(rows, lambda row: len(row.ids), BATCH):
            ids, mask = _padded([row.ids.tolist() for row in own], left=False)
            labels, _ = _padded([[*_labels(row)] for row in own], left=False, filling=-100)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            target = labels[:, 1:]
            total += torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), target.reshape(-1), ignore_index=-100, reduction="sum"
            ).item()
            count += int((target != -100).sum())
        return total / count

    @torch.no_grad()
    def answers(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        made: dict[int, list[int]] = {}
        for own in _batches(range(len(prompts)), lambda number: len(prompts[number]), BATCH):
            ids, mask = _padded([prompts[number] for number in own], left=True)
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False,
                eos_token_id=self.stop_ids, pad_token_id=self.stop_ids[0],
            )  # fmt: skip
            for number, row in zip(own, output[:, ids.shape[1] :].tolist(), strict=True):
                end = next((index for index, token in enumerate(row) if token in self.stop_ids), len(row))
                made[number] = row[:end]
        return [made[number] for number in range(len(prompts))]

    @torch.no_grad()
    def labels(self, prompts: Sequence[list[int]], labels: Sequence[list[int]]) -> list[list[float]]:
        found = []
        for prompt in prompts:
            own: dict[int, float] = {}
            for numbers in _batches(range(len(labels)), lambda number: len(labels[number]), LABEL_BATCH):
                ids, mask = _padded([prompt + labels[number] for number in numbers], left=False)
                logprobs = self.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
                for line, number in enumerate(numbers):
                    places = range(len(prompt), len(prompt) + len(labels[number]))
                    own[number] = sum(logprobs[line, place - 1, ids[line, place]].item() for place in places)
            found.append([own[number] for number in range(len(labels))])
        return found


def _labels(row: Any) -> list[int]:
    return [int(token) if learned else -100 for token, learned in zip(row.ids, row.supervised, strict=True)]


def _batches(items: Sequence[Any], length: Callable[[Any], int], size: int) -> Iterator[list[Any]]:
    order = sorted(items, key=length, reverse=True)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(rows: Sequence[list[int]], *, left: bool, filling: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), filling)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(len(row))
        ids[line, place], mask[line, place] = torch.tensor(row), 1
    return ids, mask


def _judged(tuned: Tuned, plain: _Plain, name: str, items: Sequence[Turns], limits: dict[str, Any]) -> dict[str, Any]:
    """Loss and answers of one model on some rows, by both, twice."""
    settings = EvaluationSettings.model_validate({"batch_size": BATCH, **limits})
    examples = [
        Example(tuple(Message(turn["role"], turn["content"]) for turn in turns), f"rows:{number}")
        for number, turns in enumerate(items, start=1)
    ]
    rows = [row for number, example in enumerate(examples) for row in tuned.template.encode(example, number)]
    task = make_task(rows, range(len(rows)), tokenizer=tuned.tokenizer, stop_ids=tuned.stop_ids, settings=settings)
    budget = micro_batch_tokens(str(tuned.device), max(len(row.ids) for row in rows))
    prompts = [question.prompt for question in task.questions]

    def ours() -> tuple[float, list[Generation]]:
        judge = Judge(task, task_batches(task, budget=budget, layout="tree"), tuned.tokenizer, tuned.stop_ids, settings)
        with _own_model(tuned, name) as model:
            found = judge.measure(model, name, listener=Silent())
        return found.scores["loss"].value, found.answers

    def theirs() -> tuple[float, list[list[int]]]:
        with plain.named(name):
            return plain.loss(task.rows), plain.answers(prompts, settings.max_new_tokens)

    figures, (own, other) = _in_turn(ours, theirs, tuned, plain)
    return {
        **figures,
        "rows": len(prompts),
        "differ": sum(_differ(one, two) for one, two in zip(own[1], other[1], strict=True)),
        "settled": sum(answer.settled for answer in own[1]),
        "loss": [own[0], other[0]],
    }


def _differ(answer: Generation, plain: list[int]) -> bool:
    """An answer that was left unfinished, because its rest cannot change the score, is compared as far as it goes."""
    return list(answer.tokens) != (plain[: len(answer.tokens)] if answer.settled else plain)


def _labelled(
    tuned: Tuned, plain: _Plain, name: str, wanted: Wanted, items: Sequence[Turns], names: Sequence[str]
) -> dict[str, Any]:
    """The likeliest label behind some prompts, or the probabilities of all, by one model. Plain computes all labels."""
    stop = tuned.stop_ids[0]
    labels = [[*tuned.tokenizer.encode(label, add_special_tokens=False), stop] for label in names]
    prompts = [
        tuned.template.prompt_ids([Message(turn["role"], turn["content"]) for turn in turns[:-1]]) for turns in items
    ]

    def ours() -> LabelLogprobs:
        with _own_model(tuned, name) as model:
            return label_logprobs(model, prompts, labels, wanted=wanted)

    def theirs() -> np.ndarray:
        with plain.named(name):
            return np.array(plain.labels(prompts, labels))

    figures, (found, expected) = _in_turn(ours, theirs, tuned, plain)
    own, other = (np.exp(values - values.max(1, keepdims=True)) for values in (found.values, expected))
    shares = np.abs(own / own.sum(1, keepdims=True) - other / other.sum(1, keepdims=True))
    return {
        **figures,
        "rows": len(prompts),
        "labels": len(labels),
        "followed": float(found.followed.sum(1).mean()),
        "differ": int((found.values.argmax(1) != expected.argmax(1)).sum()),
        "largest_difference": float(np.abs(found.values - expected)[found.followed].max()),
        **({"probabilities_differ": float(shares.max())} if wanted == "probabilities" else {}),
    }


def _own_model(tuned: Tuned, name: str) -> AbstractContextManager[Any]:
    """A context in which our model is the tuned one, or the base."""
    base, _ = tuned.reference()
    return nullcontext(tuned.model) if name == "tuned" or base is None else base


def _in_turn(
    ours: Callable[[], Any], theirs: Callable[[], Any], tuned: Tuned, plain: _Plain
) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Seconds of both in the order A B B A, the tokens of the last of each, and what it gave."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    tokens: dict[str, int] = {}
    gave: dict[str, Any] = {}
    turns = (("ours", ours, tuned.model), ("plain", theirs, plain.model))
    for name, call, model in (*turns, *reversed(turns)):
        with _tokens_counted(model) as counted:
            began = time.perf_counter()
            gave[name] = call()
            seconds[name].append(time.perf_counter() - began)
        tokens[name] = sum(counted)
    ratio = statistics.mean(seconds["plain"]) / statistics.mean(seconds["ours"])
    return {"seconds": seconds, "ratio": ratio, "tokens": tokens}, (gave["ours"], gave["plain"])


@contextmanager
def _tokens_counted(model: Any) -> Iterator[list[int]]:
    """The tokens of each pass that begins inside."""
    counted: list[int] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda module, given, made: counted.append(given[0].numel()))
    try:
        yield counted
    finally:
        hook.remove()


def _show(name: str, part: dict[str, Any]) -> None:
    ours, theirs = (statistics.mean(part["seconds"][who]) for who in ("ours", "plain"))
    rest = {key: value for key, value in part.items() if key not in ("seconds", "ratio")}
    target = f" (target {TARGETS[name]:g})" if name in TARGETS else ""
    print(
        f"{name}: ours {ours:.2f} s, plain {theirs:.2f} s, {part['ratio']:.1f} times{target} {rest}",
        flush=True,
    )


if __name__ == "__main__":
    main()
