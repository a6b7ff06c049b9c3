"""What a run folder holds: the one list of its files, by which starting over knows what is the run's own."""

from __future__ import annotations

from pathlib import Path

from tunesmith.runs.locks import stand_in
from tunesmith.runs.manifest import MANIFEST
from tunesmith.runs.whole_files import names_beside

LOCK = ".lock"
OF_LOCK = (LOCK, stand_in(Path(LOCK)).name)
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
_MORE = ("reference.npz", "start")  # written whole, too, though not by this name alone
_STEPS = tuple(f"step-{'[0-9]' * digits}" for digits in (6, 7))
OWN = (
    *OF_LOCK, EVALUATIONS, BENCHMARKS, COMPARISONS, "tensorboard", "wandb", "mlflow", "mlflow.db*", SET_ASIDE,
    f"{FUNCTIONS}/**/*.py",
    *(each for name in (*WRITTEN_WHOLE, *_MORE) for each in (name, *names_beside(name))),
    *(each for name in (REPORT, CARD) for each in names_beside(name)),
    f"checkpoints/{MANIFEST}", *(f"checkpoints/{each}" for step in _STEPS for each in (step, *names_beside(step))),
)  # fmt: skip
"""Patterns of what a run writes into its folder (see ``outputs.strangers``). Starting over removes it."""
