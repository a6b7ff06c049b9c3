"""The learning-rate range test: the steps of a run, with a rate that grows until the loss diverges.

The loop, the rows of each step, their layout and the optimizer are those of `train`; only the rate is another. Nothing
of it is a run: no checkpoint, no validation, no verdict, and the run folder is left alone. What comes of it stands
beside the run folder, in ``<output_dir>-lr-range``, and is replaced by the next test.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RecipeError, RunError, TrainError
from tunesmith.model.weights.device import tf32
from tunesmith.planning import advice
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.schedules import rate_text
from tunesmith.recipe.settings import Recipe
from tunesmith.runs import curves
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Advance, Listener, Silent
from tunesmith.runs.rate_curve import Point, RateCurve, growing_rate, has_diverged, judge
from tunesmith.training.attach import Ready, load, optimizer_of
from tunesmith.training.loop import Hooks, Step, StepResult, train
from tunesmith.training.references import with_references
from tunesmith.training.rehearsal import memory_faults, rehearse
from tunesmith.training.setup import Prepared, prepare
from tunesmith.training.step_rows import Steps, order_of

STEPS, LEAST_STEPS = 60, 20  # of a test, where they are not given
PASSES = 3  # over few rows at most, as long as those are steps enough: a row seen again is partly known
FEWEST = 10  # that may be asked for
SCHEMA = 1
JSON, PICTURE = "lr-range.json", "lr-range.svg"


@dataclass(frozen=True, slots=True)
class RangeResult:
    """What came of a test, and where it stands.

    ``facts`` are what it was made with; ``passes`` how often it went through the rows.
    """

    folder: Path
    curve: RateCurve
    facts: dict[str, Any]
    passes: float
    seconds: float

    @property
    def suggestion(self) -> float | None:
        """The learning rate, None where the curve does not tell one."""
        return self.curve.suggestion

    @property
    def line(self) -> str | None:
        """The override of the recipe that says so."""
        return None if self.suggestion is None else f"training.learning_rate={rate_text(self.suggestion)}"

    def to_json(self) -> dict[str, Any]:
        """All of it, as lr-range.json has it."""
        facts = {**self.facts, "passes": self.passes, "line": self.line}
        return {"schema": SCHEMA, **facts, **self.curve.to_json(), "seconds": self.seconds}


def lr_range(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    lr_min: float | None = None,
    lr_max: float | None = None,
    steps: int | None = None,
    listener: Listener | None = None,
) -> RangeResult:
    """Trains with a growing learning rate, writes what was seen, and says which rate it suggests.

    Args:
        recipe: a YAML file, a mapping of the recipe's shape, or a Recipe.
        overrides: ``section.key=value`` on top of it.
        lr_min, lr_max: the first and the last rate; five powers of ten around what is usual for the method.
        steps: 60, and fewer (20 at least) where these are more than three passes over the rows.
        listener: hears what goes on; nobody by default.

    Raises:
        TunesmithError: one of the family in ``tunesmith.errors``.
    """
    listener = listener or Silent()
    loaded = read_recipe(recipe, overrides)
    for note in loaded.notes.values():
        listener.say(note)
    asked = loaded.recipe
    low, high = _bounds(asked, lr_min, lr_max)
    if steps is not None and steps < FEWEST:
        raise RecipeError(f"A range test has {FEWEST} steps at least", where="lr_steps", why=f"Found {steps}.")
    begin = time.perf_counter()
    prepared = replace(prepare(asked, listener), task=None, selecting=None)
    torch.set_num_threads(int(prepared.recipe.training.threads))
    count = steps or _steps(prepared)
    folder = result_folder(asked)
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as scratch:
        ready = load(prepared, None, listener)
        training = ready.recipe.training
        of_run = _steps_that_fit(prepared, ready, count, listener)
        _make(folder)
        with tf32(training.tf32), memory_faults():
            of_run, _, _ = with_references(Path(scratch), ready, of_run, None, None, listener)
            curve, passes = _grow(ready, of_run, low, high, listener)
    facts = {
        "method": asked.method.name,
        "objective": asked.objective.name,
        "optim": training.optim,
        "batch_size": training.batch_size,
        "seed": training.seed,
        "lr_min": low,
        "lr_max": high,
        "steps": count,
    }
    result = RangeResult(folder, curve, facts, passes, round(time.perf_counter() - begin, 1))
    written = Run(folder)
    written.write_json(JSON, result.to_json())
    written.write_text(PICTURE, curves.rate_svg(curve, title=f"{asked.method.name}, {training.optim}"))
    return result


def result_folder(recipe: Recipe) -> Path:
    """Beside the run folder, which thereby stays free for the run."""
    run = Path(recipe.output_dir)
    if run.name in ("", ".."):
        run = run.resolve()
    return run.with_name(f"{run.name}-lr-range")


def _bounds(recipe: Recipe, lr_min: float | None, lr_max: float | None) -> tuple[float, float]:
    usual = advice.rate_range(recipe.method.name, recipe.training.optim)
    low, high = (known if given is None else given for given, known in zip((lr_min, lr_max), usual, strict=True))
    if not 0 < low < high < float("inf"):
        raise RecipeError(
            "A range test goes from a lower to a higher rate, above 0",
            where="lr_min, lr_max",
            why=f"Found {low:g} and {high:g}; left out, they are {usual[0]:g} and {usual[1]:g} for this recipe.",
        )
    return low, high


def _steps(prepared: Prepared) -> int:
    """Enough to see something, but few passes over few rows."""
    an_epoch = order_of(prepared.recipe, prepared.corpus).steps_in(0)
    return min(STEPS, max(LEAST_STEPS, PASSES * an_epoch))


def _steps_that_fit(prepared: Prepared, ready: Ready, count: int, listener: Listener) -> Steps:
    """The first ``count`` steps of a run, once the heaviest of them was seen to fit into memory."""
    recipe = ready.recipe.with_values(training={"max_steps": count})
    steps = Steps(recipe, prepared.corpus)
    batches = (batch for window in steps.order.windows() for batch in steps.lay_out(window.rows))
    rehearsal = rehearse(
        ready.model,
        batches,
        objective=steps.objective,
        plan=prepared.plan,
        device=recipe.model.device,
        where=recipe.model.path,
    )
    listener.say(str(rehearsal))
    return steps


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            "The range test has no place to write to",
            where=str(folder),
            why=error.strerror,
            remedy="Name another output_dir: the test writes beside it.",
        ) from error


class _Seen:
    """What the steps have shown so far, passed on as progress."""

    def __init__(self, advance: Advance) -> None:
        self.points: list[Point] = []
        self.passes = 0.0
        self._advance, self._tokens, self._seconds = advance, 0, 0.0

    def on_step(self, result: StepResult) -> None:
        """Adds a step."""
        self.points.append(Point(result.step, result.learning_rate, result.loss, result.gradient_norm))
        self.passes = round(result.epoch, 4)
        self._tokens, self._seconds = self._tokens + result.tokens, self._seconds + result.seconds
        facts = {"loss": f"{result.loss:.4f}", "lr": f"{result.learning_rate:.2e}"}
        facts |= {"grad norm": f"{result.gradient_norm:.3g}", "tokens/s": f"{self._tokens / self._seconds:.0f}"}
        self._advance(result.step, facts)

    def until_diverged(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps that still show something."""
        return takewhile(lambda _: not has_diverged([point.loss for point in self.points]), steps)


def _grow(ready: Ready, steps: Steps, low: float, high: float, listener: Listener) -> tuple[RateCurve, float]:
    """Takes the steps, until the loss has diverged. Returns the curve, and the passes over the rows."""
    total, settings = steps.order.total_steps, ready.recipe.training
    rate = growing_rate(low, high, total)
    finite = True
    with listener.task("learning-rate range", total) as advance:
        seen = _Seen(advance)
        try:
            train(
                ready.model,
                seen.until_diverged(steps.after(0)),
                objective=steps.objective,
                optimizer=optimizer_of(ready),
                rate=rate,
                max_grad_norm=settings.max_grad_norm,
                seed=settings.seed,
                hooks=Hooks(seen.on_step),
            )
        except TrainError:  # the loop's own, before what is not finite reaches the weights: here a finding
            if not seen.points:  # no rate has had a part in that
                raise
            finite = False
    taken = len(seen.points)
    if not finite:
        return judge(seen.points, steps=total, ended="not finite", end_rate=rate(taken + 1)), seen.passes
    return judge(seen.points, steps=total, ended="diverged" if taken < total else None), seen.passes
