"""Everything that a report shows of a run, read from its folder and held against its shapes. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.later_results import later_results
from tunesmith.runs.overview import Summary, summary
from tunesmith.runs.plain_files import read_plain
from tunesmith.runs.samples import SAMPLES
from tunesmith.runs.start_folder import recipe_of
from tunesmith.runs.stored_facts import environment_of, languages_of, ledger_of, sources_of
from tunesmith.runs.stored_shapes import (
    answer_lines,
    metric_lines,
    status_of,
    verdict_of,
)
from tunesmith.safe_text import without_secrets


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as its folder tells it. ``metrics`` are the lines of metrics.jsonl, ``samples`` those of samples.jsonl.

    ``damaged`` names files of later results that cannot be shown.
    """

    run: Run
    summary: Summary
    status: dict[str, Any]
    recipe: Recipe
    recipe_text: str
    verdict: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    ledger: dict[str, Any] | None
    languages: list[str]
    sources: list[dict[str, Any]]
    environment: dict[str, Any] | None
    damaged: dict[str, str]

    @property
    def judged(self) -> dict[str, Any] | None:
        """The verdict if it compares two models by some metric."""
        return self.verdict if self.verdict is not None and self.verdict["metrics"] else None

    @property
    def place(self) -> str:
        """The folder of the run, seen from the folder that it was started in where it is below that."""
        folder, started_in = self.run.folder.resolve(), self.status.get("started_in")
        inside = started_in is not None and Path(started_in) in folder.parents
        return os.path.relpath(folder, started_in) if inside else self.recipe.output_dir


def run_facts(run: Run) -> RunFacts:
    """Reads them. Raises RunError if there is no run, or a file of it that its training wrote cannot be shown."""
    recipe, later = recipe_of(run), later_results(run)
    text = read_plain(run.folder / "recipe.yaml").decode(errors="replace")
    return RunFacts(
        run=run,
        summary=summary(run),
        status=status_of(run),
        recipe=recipe,
        recipe_text=without_secrets(text),
        verdict=verdict_of(run),
        metrics=metric_lines(run),
        samples=answer_lines(run, SAMPLES),
        evaluations=later.evaluations,
        benchmarks=later.benchmarks,
        ledger=ledger_of(run),
        languages=languages_of(run),
        sources=sources_of(run),
        environment=environment_of(run),
        damaged=later.damaged,
    )
