"""What `eval` and `compare` added to a run after its training. A damaged file of them hides nothing else of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RunError
from tunesmith.runs.folder import Run
from tunesmith.runs.run_files import BENCHMARKS, COMPARISONS, EVALUATIONS
from tunesmith.runs.stored_comparisons import comparison_lines
from tunesmith.runs.stored_shapes import benchmark_lines, evaluation_lines


@dataclass(frozen=True, slots=True)
class LaterResults:
    """The lines of each file, oldest first. ``damaged`` has the files that cannot be shown, with the reason."""

    evaluations: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    damaged: dict[str, str]


def later_results(run: Run) -> LaterResults:
    """Reads them. A file that is damaged has no lines here."""
    found: dict[str, list[dict[str, Any]]] = {}
    damaged: dict[str, str] = {}
    readers = ((EVALUATIONS, evaluation_lines), (BENCHMARKS, benchmark_lines), (COMPARISONS, comparison_lines))
    for name, read in readers:
        try:
            found[name] = read(run)
        except RunError as error:
            found[name] = []
            damaged[name] = f"is not shown ({(error.why or error.what).rstrip('.')})"
    return LaterResults(found[EVALUATIONS], found[BENCHMARKS], found[COMPARISONS], damaged)
