"""`plan`: what each method would need, before any weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tunesmith.cli.options import AsJson, Overrides, TrustRemoteCode
from tunesmith.cli.terminal.console import Terminal
from tunesmith.cli.terminal.session import session
from tunesmith.cli.terminal.tables import table
from tunesmith.errors import RecipeError
from tunesmith.planning.memory import GIB
from tunesmith.recipe.paths import local

if TYPE_CHECKING:
    from tunesmith.planning.method_table import Line, Planned
    from tunesmith.recipe.settings import Recipe
    from tunesmith.runs.consent import Consent
    from tunesmith.workflows.trial import Comparison


PARTS = ("weights", "gradients", "optimizer", "activations", "logits")
COUNTED = "built on torch's meta device"

PlanRecipe = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="The recipe (YAML). Not needed with --model, --rows and --length."),
]


def plan(
    recipe: PlanRecipe = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Hub id, folder, config.json or bundled name.",
            show_default="the recipe's",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="cpu, cuda, or a device by name, such as h100, a100-80, l4 or rtx4090.",
            show_default="the recipe's, else this machine's",
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, metavar="N", help="Rows of an epoch, instead of the recipe's data.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=2, metavar="N", help="Tokens in each of those rows.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Count tokens and shared prefixes with the model's tokenizer. Takes seconds."),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Run real steps of each method that fits, and compare with the prediction."),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show what full fine-tuning, LoRA and QLoRA would need, and which one to begin with.

    For each method: trainable parameters, memory by what holds it, time per epoch, whether it fits, and the micro-batch
    and checkpointing that suit it. The model is built from its config.json; no weights are loaded, nothing is trained.
    """
    if (rows is None) != (length is None):
        raise typer.BadParameter("--rows and --length go together", param_hint="--rows")
    if exact and rows is not None:
        raise typer.BadParameter("--exact counts the recipe's rows, which --rows replaces", param_hint="--exact")
    with session(as_json) as terminal:
        from tunesmith.runs.consent import Consent

        consent = Consent(trust_remote_code)
        asked = _asked(recipe, overrides or [], model, terminal, made=rows is not None, consent=consent)
        # Only now: it imports torch, which takes seconds that a mistake in the recipe need not wait for.
        from tunesmith.workflows.plan import plan_recipe

        made = plan_recipe(asked, device=device, rows=rows, length=length, exact=exact or measure, listener=terminal)
        planned = made.planned
        _show(planned, terminal, named=recipe is not None)
        found: list[Comparison] = []
        if measure:
            found = _measured(made.recipe, made.config, made.folder, planned, device, length, terminal)
            for line in _measured_table(found, terminal.columns):
                terminal.write(line)
        terminal.write(planned.reason)
        terminal.result(_as_json(planned, found))


def _asked(
    recipe: str | None, overrides: list[str], model: str | None, terminal: Terminal, *, made: bool, consent: Consent
) -> Recipe:
    """The recipe, or one made from --model. A first argument of the form KEY=VALUE is an override, not a recipe."""
    from tunesmith.recipe.file import read_recipe
    from tunesmith.runs.consent import stored_in

    if recipe is not None and "=" in recipe and not os.path.exists(local(recipe)):
        recipe, overrides = None, [recipe, *overrides]
    if recipe is not None:
        loaded = read_recipe(recipe, [*overrides, *([f"model.path={model}"] if model else [])])
        for note in loaded.notes.values():
            terminal.say(note)
        return consent.given(loaded, stored_in(recipe))
    if model is None or not made:
        raise RecipeError(
            "There is nothing to plan",
            remedy="Name a recipe, or give --model with --rows and --length.",
        )
    plain: dict[str, Any] = {"model": {"path": model}, "data": {"train": "rows"}, "output_dir": "plan"}
    return consent.given(read_recipe(plain, overrides), None)


def _measured(
    recipe: Recipe, config: Mapping[str, Any], folder: Path | None, planned: Planned, device: str | None,
    length: int | None, terminal: Terminal,
) -> list[Comparison]:  # fmt: skip
    """Measures each method that fits, one after the other. Raises RecipeError for a device that is not here."""
    from tunesmith.planning.devices import DEVICES
    from tunesmith.workflows.trial import at_measure, compare_prediction, run_trial

    if device is not None and device.lower() in DEVICES:
        raise RecipeError(
            "Steps can be measured on this machine only",
            where=f"--device {device}",
            remedy="Leave out --measure, or --device.",
        )
    found = []
    for line in planned.lines:
        if line.fits:
            terminal.note(f"measuring {line.method} ...")
            steps = at_measure(line, recipe, planned.device)
            trial = run_trial(steps, length=length)
            found.append(compare_prediction(config, steps, planned.device, trial, folder=folder))
    return found


def _show(planned: Planned, terminal: Terminal, *, named: bool) -> None:
    """Writes the table. ``named``: there is a recipe, and its own line is marked."""
    from tunesmith.planning.advice import in_short
    from tunesmith.planning.budget import gigabytes

    device, unit = planned.device, _unit([size for line in planned.lines if line.tokens for size in _parts(line)])
    terminal.write(f"{in_short(planned.parameters)} parameters ({COUNTED}); {device.name}: {gigabytes(device.memory)}")
    terminal.write(f"an epoch: {planned.workload.basis}")
    peak = f"peak {unit.name}"
    header = ("method", "trains", "of all", *PARTS, "rest", peak, "fits", "tokens", "checkpointing", "epoch")
    rows = [_row(line, unit, named=named) for line in planned.lines]
    note = _comparison(planned, unit)
    for line in table(header, rows, right=range(1, len(header) - 4), width=terminal.columns):
        terminal.write(line)
    if note is not None:
        terminal.write(note)


def _parts(line: Line) -> list[int]:
    """Bytes of what depends on the model and its rows."""
    return [getattr(line.memory, part) for part in PARTS]


class _Unit(NamedTuple):
    """In which all sizes of a table are written, so that they can be compared."""

    size: int
    name: str

    def of(self, size: int, digits: int = 1) -> str:
        return f"{size / self.size:,.{digits}f}"


def _unit(sizes: Sequence[int]) -> _Unit:
    """The unit for the largest size: that of a tiny model would be 0.0 GB, and so would all others."""
    from tunesmith.planning.budget import unit_for

    return _Unit(*unit_for(max(sizes, default=GIB)))


def _comparison(planned: Planned, unit: _Unit) -> str | None:
    """The peaks at one micro-batch, if the table has them at several."""
    known = [line for line in planned.lines if line.tokens]
    if planned.at is None or len({(line.tokens, line.checkpointing) for line in known}) == 1:
        return None
    peaks = ", ".join(f"{line.method} {unit.of(line.compared)}" for line in known)
    way = "with" if planned.at.checkpointing else "without"
    return f"peak {unit.name} at the same micro-batch, {planned.at.tokens:,} tokens {way} checkpointing: {peaks}"


def _row(line: Line, unit: _Unit, *, named: bool) -> tuple[Any, ...]:
    from tunesmith.planning.advice import in_short
    from tunesmith.planning.step_time import time_in_words

    name = f"{line.method} (recipe)" if line.recipe and named else line.method
    if not line.tokens:
        return (name, *(None for _ in range(3 + len(PARTS) + 1)), "no", None, None, line.why)
    memory = line.memory
    sizes = [unit.of(size) for size in _parts(line)]
    fits = "yes" if line.fits else "no"
    checkpointing = "yes" if line.checkpointing else "no"
    return (
        name, in_short(line.trainable), f"{line.share:.2%}", *sizes, unit.of(memory.libraries),
        unit.of(memory.training), fits, f"{line.budget:,}", checkpointing, time_in_words(line.seconds),
    )  # fmt: skip


def _measured_table(found: list[Comparison], width: int) -> list[str]:
    from tunesmith.planning.step_time import time_in_words

    unit = _unit([each.predicted_bytes for each in found])
    header = (
        "measured", "tokens", f"{unit.name} predicted", "measured", "error", "step predicted", "measured", "error",
    )  # fmt: skip
    rows = [
        (
            each.method, f"{each.tokens:,}", unit.of(each.predicted_bytes, 2), unit.of(each.measured_bytes, 2),
            f"{each.memory_error:+.0%}", time_in_words(each.predicted_seconds),
            time_in_words(each.measured_seconds), f"{each.time_error:+.0%}",
        )
        for each in found
    ]  # fmt: skip
    if not rows:
        return ["Nothing fits, so nothing was measured."]
    return table(header, rows, right=range(1, len(header)), width=width)


def _as_json(planned: Planned, found: list[Comparison]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "device": {
            "name": planned.device.name, "memory": planned.device.memory, "fp32": planned.device.fp32,
            "half": planned.device.half,
        },
        "parameters": planned.parameters,
        "counted": COUNTED,
        "workload": {
            name: getattr(planned.workload, name)
            for name in ("rows", "longest", "tokens", "computed", "logits", "basis")
        },
        "at": planned.at and asdict(planned.at),
        "methods": [line.to_json() for line in planned.lines],
        "recommended": planned.recommended,
        "reason": planned.reason,
        "measured": [asdict(each) for each in found],
    }  # fmt: skip
