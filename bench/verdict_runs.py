"""Is the verdict right about real runs? Tiny models are trained on tasks whose truth is known, and judged on few rows.

    python bench/verdict_runs.py --pairs 2 --json /tmp/pairs.json      # that it works, in a few minutes
    python bench/verdict_runs.py --rivals                              # 210 null pairs and 210 with an effect
    python bench/verdict_runs.py --kept pairs                          # keeps what it measured, or judges kept pairs

A parent model of each task knows it half. Pairs of base and tuned model come from it by real runs:

    zero       the parent, and a run whose learning rate moves no weight
    seeds      two runs on the same rows with other seeds
    shuffled   the parent, and a run whose answers are those of other rows
    effect     the parent, and a short run on more rows

Both models of a pair answer a population of rows, and their difference over all of it is the truth. A verdict sees few
rows, drawn from it. A false "better" is a "better" of a pair whose truth is not above 0. Every second pair has groups
of four rows that ask the same in other words. ``--rivals`` gives the same draws to Soup's `ship` rule and to
FineTuneCheck, in an environment of their own (bench/requirements-verdict.txt). ``--kept FOLDER`` writes what both
models of a pair got on each row, and trains no pair that is there already: a run that was stopped goes on, and a change
of the statistics is judged on the same pairs in a few minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import environments
import numpy as np
import verdict

import tunesmith
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.deploy.tuned import Tuned
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics.answers import METRICS
from tunesmith.evaluation.metrics.base import AnswerRows, RowScores, RowStatistics, Scores
from tunesmith.evaluation.task import make_task, task_batches
from tunesmith.evaluation.wording import lower_is_better
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Silent
from tunesmith.runs.whole_files import whole_file

SIZES = (40, 120, 400)  # rows that a verdict sees
TOGETHER = 4  # rows of a group
POPULATION = 800  # rows
KINDS = {"zero": 10, "seeds": 30, "shuffled": 30, "effect": 70}  # pairs of each task
CLASSES = ("refund", "delivery", "payment", "account", "product")
Row = tuple[str, str]  # prompt and answer
Draw = Callable[[random.Random], list[Row]]  # rows that ask the same


@dataclass(frozen=True)
class Kind:
    """A task: how a group of its rows is made, what is measured, and how far the parent is trained on it."""

    draw: Draw
    metrics: list[str]
    rows: int
    epochs: int


def labels(source: random.Random) -> list[Row]:
    """A message of seven words, most of them of one class; one label of ten is wrong."""
    kind = source.randrange(len(CLASSES))
    words = [f"{CLASSES[kind][:3]}{source.randrange(8)}" for _ in range(3)]
    words += [f"{source.choice(CLASSES)[:3]}{source.randrange(8)}" for _ in range(4)]
    answer = source.choice(CLASSES) if source.random() < 0.1 else CLASSES[kind]
    return [(" ".join(source.sample(words, len(words))), answer) for _ in range(TOGETHER)]


def fields(source: random.Random) -> list[Row]:
    """An order in words, as JSON."""
    size, colour = source.choice(["big", "small", "tiny"]), source.choice(["red", "blue", "green"])
    thing, count = source.choice(["cup", "plate", "bowl"]), source.randrange(2, 9)
    answer = json.dumps({"thing": thing, "size": size, "colour": colour, "count": count})
    parts = [f"size {size}", f"colour {colour}", f"thing {thing}", f"count {count}"]
    return [("; ".join(source.sample(parts, 4)), answer) for _ in range(TOGETHER)]


def words(source: random.Random) -> list[Row]:
    """A sentence of five words in another vocabulary, word by word; one word of twelve is wrong."""
    chosen = [source.randrange(30) for _ in range(5)]
    rows = []
    for _ in range(TOGETHER):
        order = source.sample(chosen, 5)
        meant = [source.randrange(30) if source.random() < 1 / 12 else (7 * word) % 30 for word in order]
        rows.append((" ".join(f"w{word}" for word in order), " ".join(f"v{word}" for word in meant)))
    return rows


TASKS = {
    "labels": Kind(labels, ["exact_match", "accuracy", "macro_f1"], 300, 2),
    "fields": Kind(
        fields,
        ["json_valid", "json_exact", "json_fields", "json_field_f1", "number_match", "edit_similarity"],
        1600,
        10,
    ),
    "words": Kind(words, ["exact_match", "bleu", "chrf", "rouge1", "rougeL", "edit_similarity"], 1600, 12),
}


class Task:
    """The files, the parent and the population of one task.

    Args:
        name: in TASKS.
        folder: of everything that is written.
        scale: of the rows of the population; below 1 to see that it works.
    """

    def __init__(self, name: str, folder: Path, scale: float) -> None:
        self.name, self.kind, self.folder = name, TASKS[name], folder / name
        self.folder.mkdir()
        source = random.Random(name)
        groups = [self.kind.draw(source) for _ in range(int(POPULATION * scale))]
        self.grouped = [row for group in groups[: len(groups) // TOGETHER] for row in group]
        self.single = [group[0] for group in groups]
        self.fresh = [self.kind.draw(source)[0] for _ in range(4000)]  # to train on
        _base_model(self.folder / "random", [" ".join(row) for row in self.fresh])
        self.parent = self._export(self.run(self.fresh[: self.kind.rows], self.folder / "random", seed=0, parent=True))

    def run(self, rows: Sequence[Row], model: Path, *, seed: int, parent: bool = False, **training: Any) -> Path:
        """A run on these rows. Its place has a number of its own."""
        place = self.folder / f"run-{len(list(self.folder.glob('run-*.jsonl')))}"
        lines = [
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
            for prompt, answer in rows
        ]
        data = place.with_suffix(".jsonl")
        data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        usual = {
            "learning_rate": 3e-3 if parent else 3e-4,
            "num_train_epochs": self.kind.epochs if parent else 1,
            "batch_size": 16,
            "seed": seed,
            "eval_strategy": "no",
            "save_strategy": "no",
        }
        recipe = {
            "model": str(model),
            "data": {"train": str(data), "eval": 0},
            "method": "full",
            "training": usual | training,
            "output_dir": str(place),
        }
        return Path(tunesmith.train(recipe, progress=False).run)

    def _export(self, run: Path) -> Path:
        tunesmith.merge(str(run), str(self.folder / "parent"), progress=False)
        return self.folder / "parent"

    def pair(self, kind: str, number: int) -> tuple[Path, Path]:
        """Base and tuned model of one pair."""
        source = random.Random(f"{self.name} {kind} {number}")
        rows = source.sample(self.fresh[self.kind.rows :], 160)
        if kind == "zero":
            return self.parent, self.run(rows[:16], self.parent, seed=number, learning_rate=1e-30)
        if kind == "seeds":
            runs = [self.run(rows, self.parent, seed=2 * number + more, learning_rate=1e-3) for more in (0, 1)]
            return runs[0], runs[1]
        if kind == "shuffled":
            answers = [answer for _, answer in rows]
            source.shuffle(answers)
            rows = [(prompt, answer) for (prompt, _), answer in zip(rows, answers, strict=True)]
            return self.parent, self.run(rows, self.parent, seed=number)
        return self.parent, self.run(rows, self.parent, seed=number, learning_rate=source.choice([5e-4, 1e-3, 2e-3]))

    def scores(self, model: Path, *, grouped: bool) -> dict[str, Scores]:
        """Every metric on the population."""
        tuned = tunesmith.load(str(model), progress=False)
        rows = self.grouped if grouped else self.single
        groups = [number // (TOGETHER if grouped else 1) for number in range(len(rows))]
        return measured(tuned, rows, groups, self.kind.metrics)


class Pairs:
    """The pairs of one task: kept ones, or made ones, which are then kept if there is a folder for them."""

    def __init__(self, name: str, folder: Path, scale: float, kept: Path | None) -> None:
        self.name, self.scale, self.kept = name, scale, kept
        self._folder = folder
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _task(self) -> Task:
        return Task(self.name, self._folder, self.scale)

    @cached_property
    def _parents(self) -> dict[bool, dict[str, Scores]]:
        found = {grouped: self._task.scores(self._task.parent, grouped=grouped) for grouped in (False, True)}
        known = {metric: round(scores.value, 3) for metric, scores in found[False].items()}
        print(f"{self.name}: the parent has {known}", flush=True)
        return found

    def pair(self, kind: str, number: int) -> dict[str, np.ndarray]:
        """What both models of a pair got on each row of the population, by metric."""
        file = None if self.kept is None else self.kept / f"{self.name}-{kind}-{number}-scale-{self.scale:g}.npz"
        if file is not None and file.exists():
            with np.load(file) as kept:
                return dict(kept)
        grouped = number % 2 == 1
        base, tuned = self._task.pair(kind, number)
        own = base == self._task.parent
        before = self._parents[grouped] if own else self._task.scores(base, grouped=grouped)
        found = statistics(before, self._task.scores(tuned, grouped=grouped), TOGETHER if grouped else 1)
        if file is not None:
            with whole_file(file) as writer:
                np.savez_compressed(writer, **found)
        return found


def measured(tuned: Tuned, rows: Sequence[Row], groups: Sequence[int], metrics: Sequence[str]) -> dict[str, Scores]:
    """Scores of one model by metric."""
    settings = EvaluationSettings.model_validate({"metrics": list(metrics), "max_new_tokens": 48, "batch_size": 64})
    examples = [
        Example((Message("user", prompt), Message("assistant", answer)), f"rows:{number}")
        for number, (prompt, answer) in enumerate(rows, start=1)
    ]
    encoded = [row for number, example in enumerate(examples) for row in tuned.template.encode(example, number)]
    task = make_task(encoded, groups, tokenizer=tuned.tokenizer, stop_ids=tuned.stop_ids, settings=settings)
    judge = Judge(task, task_batches(task, budget=4096, layout="tree"), tuned.tokenizer, tuned.stop_ids, settings)
    return judge.measure(tuned.model, "model", listener=Silent()).scores


def statistics(base: dict[str, Scores], tuned: dict[str, Scores], together: int) -> dict[str, np.ndarray]:
    """What both models of a pair got on each row, by metric: float64 [2, groups, rows of a group, k]."""
    pairs = {name: np.stack([before.statistics, tuned[name].statistics]) for name, before in base.items()}
    return {name: pair.reshape(2, -1, together, pair.shape[-1]) for name, pair in pairs.items()}


def populations(pair: Mapping[str, np.ndarray]) -> Iterator[verdict.Population]:
    """The populations of a pair by metric. ``perplexity`` is that of its loss, as in a verdict."""
    row = AnswerRows(['{"a": 1}'], ['{"a": 1}'], [""])  # of any row: how a metric makes its value of sums
    for name, (base, tuned) in pair.items():
        settings = EvaluationSettings()
        scores = METRICS[name](settings).scores(row) if name in METRICS else None
        if name == "perplexity":
            yield verdict.Population(name, *pair["loss"])
        elif isinstance(scores, RowStatistics):
            yield verdict.Population(name, base, tuned, scores.of_sums, scores.extremes_of)
        else:
            yield verdict.Population(name, base, tuned)


def judged(population: verdict.Population, rows: int, kind: str, seed: int) -> dict[str, Any]:
    """What a verdict on so many rows says, what is true, and the row scores that rivals get."""
    together = population.base.shape[1]
    numbers = np.random.default_rng([list(KINDS).index(kind), seed, rows])
    base, tuned = population.draw(rows // together, 0.0, numbers)
    found = verdict.of_pair(population.name, base, tuned, resamples=1000, seed=seed)
    truth = population.truth(0.0)
    gain = -truth if lower_is_better(population.name) else truth
    low, high = found["interval"]
    pair = None
    bounded = isinstance(base, RowScores) and not lower_is_better(population.name)
    if bounded and max(base.of_rows.max(), tuned.of_rows.max()) <= 1:
        pair = {"base": base.of_rows.tolist(), "tuned": tuned.of_rows.tolist()}
    return {
        "metric": population.name, "rows": rows, "grouped": together > 1, "gain": gain, "says": found["verdict"],
        "covered": bool(low - 1e-12 <= truth <= high + 1e-12), "pair": pair,
    }  # fmt: skip


def rivals(lines: Sequence[dict[str, Any]]) -> None:
    """Adds what the rivals say to every line whose metric they can take."""
    asked = [line for line in lines if line["pair"] is not None]
    given = "".join(json.dumps(line["pair"]) + "\n" for line in asked)
    command = [environments.python("verdict"), Path(__file__).with_name("verdict_rivals.py")]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    for line, answer in zip(asked, done.stdout.splitlines(), strict=True):
        line["rivals"] = json.loads(answer)


def summary(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A table by kind of metric, and one line a judge."""
    yield (
        "| metric | null: pairs judged | false better | false worse | coverage | pairs that differ | their coverage | "
        "effect: pairs judged | found |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in sorted({line["metric"] for line in lines}):
        own = [line for line in lines if line["metric"] == name]
        null = [line for line in own if line["kind"] != "effect"]
        better = [line for line in own if line["kind"] == "effect" and line["gain"] > 0]
        differ = [line for line in own if line["gain"]]
        yield (
            f"| {name} | {len(null)} | {_rate(null, lambda line: line['says'] == 'better' and line['gain'] <= 0)} | "
            f"{_rate(null, lambda line: line['says'] == 'worse' and line['gain'] >= 0)} | "
            f"{_rate(own, lambda line: line['covered'])} | {len(differ)} | "
            f"{_rate(differ, lambda line: line['covered'])} | {len(better)} | "
            f"{_rate(better, lambda line: line['says'] == 'better')} |"
        )
    asked = [line for line in lines if "rivals" in line]
    if asked:
        yield ""
        yield "| judge | false better, of pairs that are not better | found, of pairs with an effect |"
        yield "|---|---|---|"
        wrong = [line for line in asked if line["gain"] <= 0]
        right = [line for line in asked if line["kind"] == "effect" and line["gain"] > 0]
        says: dict[str, Callable[[dict[str, Any]], bool]] = {
            "Tunesmith": lambda line: line["says"] == "better",
            "Soup, ship": lambda line: line["rivals"]["soup"],
            "FineTuneCheck, good or excellent": lambda line: line["rivals"]["finetunecheck"],
            "FineTuneCheck, interval above 0": lambda line: line["rivals"]["finetunecheck_interval"],
        }
        for name, of in says.items():
            yield f"| {name} | {_rate(wrong, of)} of {len(wrong)} | {_rate(right, of)} of {len(right)} |"


def _rate(lines: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], bool]) -> str:
    return f"{sum(map(of, lines)) / len(lines):.1%}" if lines else "-"


def _base_model(folder: Path, texts: Sequence[str]) -> None:
    """A random one-layer llama with a tokenizer of its own and ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], pad_token=special[2],
        unk_token=special[0],
    )  # fmt: skip
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            tie_word_embeddings=True,
        )
    )
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def main() -> None:
    """Trains and judges every pair, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, help="pairs of each task and kind, in place of 140 of each task")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows of the population")
    parser.add_argument("--kept", type=Path, help="the folder with the rows of pairs: written, and used again")
    parser.add_argument("--rivals", action="store_true", help="ask Soup and FineTuneCheck too")
    parser.add_argument("--json", type=Path, help="the file to write")
    asked = parser.parse_args()
    lines: list[dict[str, Any]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.tasks:
            pairs = Pairs(name, Path(folder), asked.scale, asked.kept)
            for kind, usual in KINDS.items():
                for number in range(asked.pairs or usual):
                    for population in populations(pairs.pair(kind, number)):
                        lines += [
                            {"task": name, "kind": kind, "number": number, **judged(population, rows, kind, number)}
                            for rows in SIZES
                        ]
                print(f"{name}, {kind}: {time.perf_counter() - began:.0f} s", flush=True)
    if asked.rivals:
        rivals(lines)
    print("\n".join(summary(lines)))
    if asked.json is not None:
        for line in lines:
            line.pop("pair")
        asked.json.write_text(json.dumps(lines, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main()
