"""What a run folder holds: the one list of its files, by which starting over knows what is the run's own."""

from __future__ import annotations

from pathlib import Path

from tunesmith.runs.locks import stand_in
from tunesmith.runs.manifest import MANIFEST
from tunesmith.runs.whole_files import names_beside

LOCK = ".lock"
KEEPING = ".keeping"  # held while `eval` or `compare` adds its result, also beside a training
OF_LOCK = tuple(name for lock in (LOCK, KEEPING) for name in (lock, stand_in(Path(lock)).name))
EVALUATIONS = "evaluations.jsonl"
BENCHMARKS = "benchmarks.jsonl"  # results of `eval --tasks`
ANSWERS = "evaluation_samples.jsonl"  # of the newest evaluation
PROBE = "probe.jsonl"
REPORT, CARD = "report.html", "model_card.md"  # known by their own marks, so one that the user edited is the user's
COMPARISONS = "comparisons.jsonl"  # what `compare` measured with this run as the first
STATUS = "status.json"
RECIPE = "recipe.yaml"
FUNCTIONS = "functions"  # a copy of the files that the functions of the recipe come from
SET_ASIDE = "set_aside"  # checkpoints that are not used
DATABASE = tuple(f"mlflow.db{end}" for end in ("", "-journal", "-wal", "-shm"))  # which MLflow changes in place
WRITTEN_WHOLE = (
    RECIPE, "environment.json", "data.json", "findings.json", "template.json", "memory.json", "rejected.jsonl",
    "ledger.json", "fingerprint.json", "metrics.jsonl", "samples.jsonl", "samples_during.jsonl", "verdict.json", STATUS,
    ANSWERS, PROBE, MANIFEST,
)  # fmt: skip
LATER = (EVALUATIONS, BENCHMARKS, COMPARISONS)
"""Results that `eval` and `compare` add to a run. The training and its verdict do not depend on them."""
HALF_WRITTEN = (*WRITTEN_WHOLE, *LATER, REPORT, CARD, *DATABASE)
"""Files that a killed process may leave under another name: written anew, or copied to part them from hard links."""
_MORE = ("reference.npz", "start")  # written whole, too, though not by this name alone
_STEPS = tuple(f"step-{'[0-9]' * digits}" for digits in (6, 7))
OWN = (
    *OF_LOCK, *LATER, "tensorboard", "wandb", "mlflow", "mlflow.db*", SET_ASIDE,
    *(f"{FUNCTIONS}/**/*{ending}" for ending in (".py", ".so", ".pyd")),
    *(each for name in (*WRITTEN_WHOLE, *_MORE) for each in (name, *names_beside(name))),
    *(each for name in (*LATER, REPORT, CARD, *DATABASE) for each in names_beside(name)),
    f"checkpoints/{MANIFEST}", *(f"checkpoints/{each}" for step in _STEPS for each in (step, *names_beside(step))),
)  # fmt: skip
"""Patterns of what a run writes into its folder (see ``outputs.strangers``). Starting over removes it."""
