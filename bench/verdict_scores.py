"""Writes the row scores of a real run, base and tuned, for bench.verdict.

python -m bench.verdict_scores RUN [--data FILE] --out scores.npz [KEY=VALUE of the evaluation section ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tunesmith.evaluation.held_out_recipe import typed_names
from tunesmith.evaluation.metrics.answers import check_functions
from tunesmith.evaluation.metrics.base import RowScores, Scores
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.runs.consent import Consent
from tunesmith.runs.progress import Silent
from tunesmith.workflows.judged_target import find, judged


def by_group(scores: Scores) -> np.ndarray:
    """The statistics summed by group: float64 [groups, k]."""
    if scores.groups is None:
        return scores.statistics
    names, number = np.unique(scores.groups, return_inverse=True)
    sums = np.zeros((len(names), scores.statistics.shape[1]))
    np.add.at(sums, number, scores.statistics)
    return sums


def main() -> None:
    """Measures both models of a run, and writes ``METRIC:base`` and ``METRIC:tuned``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found = find(asked.run, data=asked.data, named=asked.data or "", settings=asked.settings)
    consent, silent = Consent(allow_functions=True), Silent()
    functions = consent.functions(
        found.recipe.evaluation, typed=typed_names(asked.settings), own=Path.cwd(), run=found.run_folder
    )
    with functions_allowed(functions):
        check_functions(found.recipe.evaluation)
        ready = judged(found, listener=silent, consent=consent, allowed=())
        tuned = ready.judge.measure(ready.tuned.model, "tuned", listener=silent)
        base, _ = ready.tuned.reference()
        assert base is not None, "a model that was not tuned has no pair"
        with base as untuned:
            before = ready.judge.measure(untuned, "base", listener=silent)
    arrays = {}
    for name, scores in tuned.scores.items():
        if isinstance(scores, RowScores):
            arrays |= {f"{name}:base": by_group(before.scores[name]), f"{name}:tuned": by_group(scores)}
    np.savez_compressed(asked.out, **arrays)
    print(f"{asked.out}: {', '.join(sorted(arrays))}")


if __name__ == "__main__":
    main()
