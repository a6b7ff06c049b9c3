"""The learning-rate range test: the steps of a run, with a rate that grows until the loss diverges.

The loop, the rows of each step, their layout and the optimizer are those of `train`; only the rate differs. The test
is not a run: it makes no checkpoint, no validation and no verdict, and it leaves the run folder alone. Its result is in
``<output_dir>-lr-range``, and the next test replaces it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import NotFiniteError, RecipeError, RunError
from tunesmith.evaluation.metrics.answers import check_functions
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.model.weights.device import tf32
from tunesmith.planning import advice
from tunesmith.recipe.file import LoadedRecipe, read_recipe
from tunesmith.recipe.schedules import rate_text
from tunesmith.recipe.settings import Recipe
from tunesmith.runs import curves
from tunesmith.runs.consent import Consent, stored_in
from tunesmith.runs.disk import disk_errors
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.notebook import paragraph, picture_html
from tunesmith.runs.outputs import check_file, note_as_written, refuse_strangers, write_output
from tunesmith.runs.plain_files import read_plain
from tunesmith.runs.progress import Listener
from tunesmith.runs.rate_curve import Ended, Point, RateCurve, growing_rate, has_diverged, rate_curve
from tunesmith.runs.surroundings import library_call
from tunesmith.runs.temporary import temporary_folder
from tunesmith.training.attach import Ready, load_for_training, optimizer_of
from tunesmith.training.loop import Hooks, StepResult, train_steps
from tunesmith.training.references import with_references
from tunesmith.training.rehearsal import memory_faults, rehearse
from tunesmith.training.setup import Prepared, prepare_training
from tunesmith.training.step_rows import Steps, order_of
from tunesmith.workflows.given_data import with_files

STEPS, LEAST_STEPS = 60, 20  # of a test, where they are not given
MOST_PASSES = 3  # over few rows, if those are steps enough: the model partly knows a row that it saw before
FEWEST = 10  # steps that may be asked for
SCHEMA_VERSION = 2
JSON, PICTURE = "lr-range.json", "lr-range.svg"


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The result of a test and its folder.

    ``settings`` are those of the test, and ``passes`` is how often it went through the rows.
    """

    folder: Path
    curve: RateCurve
    settings: dict[str, Any]
    passes: float
    seconds: float

    @property
    def suggestion(self) -> float | None:
        """The learning rate to start with, None if the loss does not fall."""
        return self.curve.suggestion

    @property
    def line(self) -> str | None:
        """The override of the recipe that sets it."""
        return None if self.suggestion is None else f"training.learning_rate={rate_text(self.suggestion)}"

    def __str__(self) -> str:
        return f"{self.curve.reason}\nTo use it: {self.line}" if self.line else self.curve.reason

    def _repr_html_(self) -> str:
        picture = curves.rate_svg(self.curve, title=f"{self.settings['method']}, {self.settings['optim']}")
        return picture_html(picture) + "".join(map(paragraph, str(self).splitlines()))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as lr-range.json has them."""
        settings = {**self.settings, "passes": self.passes, "line": self.line}
        return {"schema": SCHEMA_VERSION, **settings, **self.curve.to_json(), "seconds": self.seconds}


@library_call()
def lr_range(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    lr_min: float | None = None,
    lr_max: float | None = None,
    steps: int | None = None,
    trust_remote_code: bool = False,
    allow_functions: bool = False,
    progress: bool = True,
    listener: Listener | None = None,
) -> RangeResult:
    """Trains with a growing learning rate, writes the losses, and suggests a rate to start with.

    Args:
        recipe: a YAML file, a mapping of the recipe's shape, or a Recipe.
        overrides: ``section.key=value`` on top of it.
        lr_min, lr_max: the first and the last rate; by default five powers of ten around the method's usual rate.
        steps: by default 60, and fewer (at least 20) if these are more than three passes over the rows.
        trust_remote_code: run code that comes with the model, also where a stored recipe asks for it.
        allow_functions: run the functions that a stored recipe names.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.

    Raises:
        TunesmithError: one of the family in ``tunesmith.errors``.
    """
    consent, listener = Consent(trust_remote_code, allow_functions), heard_by(listener, progress)
    with with_files(recipe) as (source, _):
        loaded = read_recipe(source, overrides)
        return _tested(loaded, stored_in(recipe), consent, lr_min, lr_max, steps, listener)


def _tested(
    loaded: LoadedRecipe,
    stored: Path | None,
    consent: Consent,
    lr_min: float | None,
    lr_max: float | None,
    steps: int | None,
    listener: Listener,
) -> RangeResult:
    """The test of a recipe; ``stored``: the run whose own recipe it is."""
    for note in loaded.notes.values():
        listener.say(note)
    asked = consent.given(loaded, stored)
    low, high = _bounds(asked, lr_min, lr_max)
    if steps is not None and steps < FEWEST:
        raise RecipeError(f"A range test has {FEWEST} steps at least", where="lr_steps", why=f"Found {steps}.")
    folder = result_folder(asked)
    _check_files(folder)
    begin = time.perf_counter()
    with functions_allowed(consent.of_recipe(loaded, stored)):
        check_functions(asked.evaluation)
        prepared = replace(prepare_training(asked, listener), task=None, selecting=None)
    torch.set_num_threads(int(prepared.recipe.training.threads))
    count = steps or _steps(prepared)
    with temporary_folder("tunesmith-") as scratch:
        ready = load_for_training(prepared, None, listener)
        training = ready.recipe.training
        of_run = _steps_that_fit(prepared, ready, count, listener)
        _make(folder)
        _check_files(folder)
        with tf32(training.tf32), memory_faults():
            of_run, _, _ = with_references(scratch, ready, of_run, None, None, listener)
            curve, passes = _grow(ready, of_run, low, high, listener)
    settings = {
        "method": asked.method.name,
        "objective": asked.objective.name,
        "optim": training.optim,
        "batch_size": training.batch_size,
        "seed": training.seed,
        "lr_min": low,
        "lr_max": high,
        "steps": count,
    }
    result = RangeResult(folder, curve, settings, passes, round(time.perf_counter() - begin, 1))
    with disk_errors(folder, RunError):
        write_output(folder / JSON, _text(result.to_json()))
        write_output(folder / PICTURE, _picture(curve, settings))
    return result


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _picture(curve: RateCurve, settings: Mapping[str, Any]) -> str:
    return curves.rate_svg(curve, title=f"{settings['method']}, {settings['optim']}")


def result_folder(recipe: Recipe) -> Path:
    """The folder of the result, beside the run folder."""
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
    """The default number of steps: few passes over few rows."""
    an_epoch = order_of(prepared.recipe, prepared.corpus).steps_in(0)
    return min(STEPS, max(LEAST_STEPS, MOST_PASSES * an_epoch))


def _steps_that_fit(prepared: Prepared, ready: Ready, count: int, listener: Listener) -> Steps:
    """The first ``count`` steps of a run. Measures that the heaviest of them fits into memory."""
    recipe = ready.recipe.with_values(training={"max_steps": count})
    steps = Steps(recipe, prepared.corpus)
    batches = (batch for window in steps.order.windows() for batch in steps.lay_out(window.rows))
    path = recipe.model.path
    rehearsal = rehearse(ready.model, batches, objective=steps.objective, plan=prepared.plan, where=path)
    listener.say(str(rehearsal))
    return steps


def _make(folder: Path) -> None:
    if not (folder / JSON).is_file():  # else it is the result of an earlier test
        refuse_strangers(folder, (), kind=RunError, flag="output_dir; the test writes beside it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            "The range test cannot write its result",
            where=str(folder),
            why=error.strerror,
            remedy="Name another output_dir; the test writes beside it.",
        ) from error


def _check_files(folder: Path) -> None:
    """Raises RunError where a file of the result would replace one of somebody else, or one that was changed."""
    if not folder.is_dir():
        return
    for file in _of_earlier(folder):
        note_as_written(file)
    for name in (JSON, PICTURE):
        check_file(folder / name, overwrite=True, kind=RunError, flag="output_dir (the test writes beside it)")


def _of_earlier(folder: Path) -> list[Path]:
    """The files of a result that an earlier version did not note: the points in it give all of them again."""
    file, picture = folder / JSON, folder / PICTURE
    try:
        text = read_plain(file).decode()
        told = json.loads(text)
        points = [
            Point(each["step"], each["learning_rate"], each["loss"], each["grad_norm"]) for each in told["points"]
        ]
        curve = rate_curve(points, steps=told["steps"], ended=told["ended"])
        if _text({**told, **curve.to_json()}) != text:
            return []
        same = picture.is_file() and read_plain(picture).decode() == _picture(curve, told)
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return []  # it is no result, or it was changed
    return [file, picture] if same else [file]


def _grow(ready: Ready, steps: Steps, low: float, high: float, listener: Listener) -> tuple[RateCurve, float]:
    """Takes the steps until the loss has diverged. Returns the curve, and the passes over the rows."""
    total, settings = steps.order.total_steps, ready.recipe.training
    results: list[StepResult] = []
    ended: Ended | None = None
    with listener.task("learning-rate range", total) as advance:

        def on_step(result: StepResult) -> None:
            results.append(result)
            speed = sum(each.tokens for each in results) / sum(each.seconds for each in results)
            shown = {"loss": f"{result.loss:.4f}", "lr": f"{result.learning_rate:.2e}"}
            advance(result.step, {**shown, "grad norm": f"{result.gradient_norm:.3g}", "tokens/s": f"{speed:.0f}"})

        try:
            train_steps(
                ready.model,
                takewhile(lambda _: not has_diverged([each.loss for each in results]), steps.after(0)),
                objective=steps.objective,
                optimizer=optimizer_of(ready),
                rate=growing_rate(low, high, total),
                max_grad_norm=settings.max_grad_norm,
                seed=settings.seed,
                hooks=Hooks(on_step),
            )
        except (
            NotFiniteError
        ):  # the loop refuses what is not finite before it reaches the weights: here it is a finding
            if not results:  # no rate was used yet, so the model or the rows are at fault
                raise
            ended = "not finite"
    if ended is None and len(results) < total:
        ended = "diverged"
    points = [Point(each.step, each.learning_rate, each.loss, each.gradient_norm) for each in results]
    return rate_curve(points, steps=total, ended=ended), round(results[-1].epoch, 4)
