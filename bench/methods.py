"""The methods side by side: memory, speed and quality, each a whole run judged on the same held-out rows of Banking77.

    python bench/methods.py                          every method, once; about 40 minutes on two free cores
    python bench/methods.py --methods lora qlora     some of them

Every run is a process of its own: `tunesmith.train` on the same training rows (so many of each of the 77 intents), with
one instruction, and on the same held-out rows of the test set. Learning rates are those that `init` writes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tunesmith.cli.terminal.tables import table
from tunesmith.planning import advice, budget
from tunesmith.planning.model_size import model_size

HERE = Path(__file__).resolve().parent
INSTRUCTION = "Name the intent of this message to a bank. Answer with the intent alone, in snake_case."
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "freeze, 2 layers": {"name": "freeze", "trainable_layers": 2},
    "lora": {"name": "lora"},
    "lora, r = 64": {"name": "lora", "r": 64, "lora_alpha": 128},
    "dora": {"name": "lora", "use_dora": True},
    "lora on int8": {"name": "lora", "load_in_8bit": True},
    "qlora": {"name": "qlora"},
}
PANELS = (
    ("peak_gb", "peak memory of the process, GB", "{:.2f}"),
    ("tokens_per_second", "tokens of rows a second", "{:.0f}"),
    ("exact_match", "exact match on held-out rows", "{:.3f}"),
)


def write_rows(path: Path, source: Path, *, of_each: int | None, most: int | None) -> int:
    """Rows of a Banking77 file drawn by a fixed seed: so many of each intent, and so many at most; returns how many."""
    with source.open(encoding="utf-8", newline="") as lines:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(lines)]
    random.Random("bench/methods").shuffle(rows)
    taken: dict[str, int] = defaultdict(int)
    chosen = []
    for text, intent in rows:
        taken[intent] += 1
        if of_each is None or taken[intent] <= of_each:
            chosen.append((text, intent))
    chosen = chosen[:most]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "category"))
        writer.writerows(chosen)
    return len(chosen)


def recipe_for(method: dict[str, Any], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The run of a method; what is not said here is the default."""
    return {
        "model": arguments.model,
        "data": {
            "train": str(folder / "train.csv"),
            "eval": str(folder / "test.csv"),
            "columns": {"input": "text", "output": "category"},
            "instruction": INSTRUCTION,
        },
        "method": method,
        "training": {
            "learning_rate": learning_rate(method["name"], arguments.model),
            "num_train_epochs": arguments.epochs,
            "warmup_steps": 0.1,
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "threads": arguments.threads,
            "report_to": "none",
        },
        "evaluation": {"metrics": ["exact_match", "loss"], "max_new_tokens": 24, "samples": 0},
        "output_dir": str(folder / "run"),
    }


def learning_rate(method: str, model: str) -> float:
    """That which `init` writes for this model."""
    return advice.learning_rate(method, "sft", model_size(model).parameters).value


def figures(run: dict[str, Any]) -> dict[str, Any]:
    """What is told of a run."""
    exact = run["metrics"]["exact_match"]
    return {
        "trainable": run["trainable"],
        "peak_gb": run["peak_bytes"] / 1e9,
        "tokens_per_second": run["tokens"] / run["training_seconds"],
        "exact_match": exact["tuned"],
        "interval": [exact["base"] + edge for edge in exact["interval"]],
        "base": exact["base"],
        "loss": run["metrics"]["loss"]["tuned"],
        "minutes": run["seconds"] / 60,
    }


def table_of(found: dict[str, dict[str, Any]]) -> str:
    """One line for each method."""
    header = ["method", "trains", "peak GB", "tokens/s", "minutes", "loss", "exact match", "95% interval"]
    lines = [
        [
            name, f"{of['trainable']:,}", f"{of['peak_gb']:.2f}", f"{of['tokens_per_second']:.0f}",
            f"{of['minutes']:.1f}", f"{of['loss']:.3f}", f"{of['exact_match']:.3f}",
            "{:.3f} to {:.3f}".format(*of["interval"]),
        ]
        for name, of in found.items()
    ]  # fmt: skip
    return "\n".join(table(header, lines, right=range(1, len(header))))


def plot(found: dict[str, dict[str, Any]], title: str) -> str:
    """Three panels of bars, a bar for each method; the third with its interval. SVG."""
    row, left, width, gap = 20, 120, 200, 60
    height = 70 + row * len(found)
    drawn = [f'<text x="10" y="22" font-size="14">{escape(title)}</text>']
    for line, name in enumerate(found):
        drawn.append(f'<text x="{left - 8}" y="{66 + row * line}" text-anchor="end">{escape(name)}</text>')
    for panel, (key, heading, form) in enumerate(PANELS):
        x = left + panel * (width + gap)
        highest = max(of[key] for of in found.values()) or 1.0
        if key == "exact_match":
            highest = 1.0
        drawn.append(f'<text x="{x}" y="44" font-weight="bold">{escape(heading)}</text>')
        for line, of in enumerate(found.values()):
            y, long = 56 + row * line, width * of[key] / highest
            drawn.append(f'<rect x="{x}" y="{y}" width="{long:.1f}" height="13" fill="#1f6feb"/>')
            end = long
            if key == "exact_match":
                low, high = (x + width * min(1.0, max(0.0, edge)) for edge in of["interval"])
                drawn.append(
                    f'<path d="M{low:.1f} {y + 6.5}H{high:.1f}M{low:.1f} {y + 3}v7M{high:.1f} {y + 3}v7" '
                    'stroke="#1c1f23" fill="none"/>'
                )
                end = max(long, high - x)
            drawn.append(f'<text x="{x + end + 5:.1f}" y="{y + 11}">{form.format(of[key])}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + 3 * (width + gap)}" height="{height}" '
        'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def main() -> None:
    import process
    import roofline

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = os.environ.get("TUNESMITH_BENCH_DATA", str(HERE.parents[1] / "shared" / "data"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--of-each", type=int, default=15, help="training rows of each intent")
    parser.add_argument("--held-out", type=int, default=300, help="rows of the test set that judge")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--threads", type=int, default=budget.threads())
    parser.add_argument("--limit", type=float, default=1800, help="seconds of a run, after which it is left out")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of banking77/train.csv and test.csv")
    parser.add_argument("--out", type=Path, help="the report as JSON, its plot beside it as SVG")
    arguments = parser.parse_args()
    runs: dict[str, dict[str, Any]] = {}
    sgemm = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        banking = arguments.data / "banking77"
        rows = write_rows(folder / "train.csv", banking / "train.csv", of_each=arguments.of_each, most=None)
        held_out = write_rows(folder / "test.csv", banking / "test.csv", of_each=None, most=arguments.held_out)
        title = f"Banking77, {rows:,} rows, {arguments.epochs:g} epochs, {arguments.model}"
        print(f"{title}; judged on {held_out} rows", flush=True)
        for name in arguments.methods:
            sgemm.append(roofline.sgemm("cpu"))
            job = {"threads": arguments.threads, "recipe": recipe_for(METHODS[name], arguments, folder)}
            begin = time.perf_counter()
            try:
                runs[name] = process.run(Path(sys.executable), HERE / "finetuned.py", job, limit=arguments.limit)
            except process.Failed as error:
                print(f"  {name}: left out, {error}", flush=True)
                continue
            print(f"  {name}: {time.perf_counter() - begin:.0f} s", flush=True)
            found = {each: figures(run) for each, run in runs.items()}
            if arguments.out:
                _save(arguments, title, found, runs, sgemm)
    print(table_of(found) if runs else "no run came to its end")


def _save(
    arguments: argparse.Namespace, title: str, found: dict[str, Any], runs: dict[str, Any], sgemm: list[float]
) -> None:
    report = {
        "title": title,
        "when": time.strftime("%Y-%m-%d"),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": arguments.threads},
        "settings": {"of_each": arguments.of_each, "held_out": arguments.held_out, "epochs": arguments.epochs},
        "rates": {name: learning_rate(METHODS[name]["name"], arguments.model) for name in found},
        "sgemm": sgemm,
        "figures": found,
        "runs": runs,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".svg").write_text(plot(found, title), encoding="utf-8")


if __name__ == "__main__":
    main()
