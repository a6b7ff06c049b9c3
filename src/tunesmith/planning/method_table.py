"""Which method fits, what it takes, and which one to begin with: computed from a config, a workload and a device.

Memory is ``budget.predict``, the same prediction by which a run chooses its micro-batch. Time is floating-point
operations over what the device reaches of its peak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.methods.stored_quantization import over_stored, stored_bits, why_not
from tunesmith.planning import budget
from tunesmith.planning.advice import to_install
from tunesmith.planning.budget import MEASURED_SHARE, SHARE, Peak, Plan, gigabytes
from tunesmith.planning.devices import DEVICES, Device
from tunesmith.planning.shape_from_model import ModelCounter, NotUnderstood, recipe_config
from tunesmith.planning.step_shape import CountedModel, StepBytes
from tunesmith.planning.step_time import epoch_seconds, time_in_words
from tunesmith.planning.workload import Workload
from tunesmith.recipe.methods import (
    FULL_ROWS,
    METHOD_SETTINGS,
    REWRITES_BASE,
    AdapterSettings,
    MethodSettings,
    method_label,
)
from tunesmith.recipe.settings import Recipe, TrainingSettings
from tunesmith.runs.notebook import html_table, paragraph

COMPARED = ("full", "lora", "qlora")
COMFORTABLE = 0.5  # of the device's memory: what full fine-tuning may need to be recommended


@dataclass(frozen=True, slots=True)
class Line:
    """One method of the table.

    ``recipe``: whether its settings are the recipe's own. ``budget`` and ``checkpointing`` are what suits it best, or
    what needs the least if it does not fit; ``why`` says why it does not. ``compared``: bytes of its peak at the
    micro-batch and checkpointing of `Planned.at`; 0 if it is not known.
    """

    method: str
    recipe: bool
    trainable: int
    share: float
    memory: Peak
    fits: bool
    budget: int
    tokens: int
    checkpointing: bool
    seconds: float
    why: str
    compared: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; bytes and seconds."""
        memory = {**asdict(self.memory), "total": self.memory.training}
        return {**asdict(self), "judging": memory.pop("judging"), "memory": memory}


@dataclass(frozen=True, slots=True)
class Compared:
    """The micro-batch, in tokens, and the checkpointing at which all methods are compared."""

    tokens: int
    checkpointing: bool


@dataclass(frozen=True, slots=True)
class Planned:
    """The table and the recommendation with its reason, for a model of so many parameters."""

    device: Device
    workload: Workload
    parameters: int
    lines: list[Line]
    recommended: str | None
    reason: str
    at: Compared | None = None

    def __str__(self) -> str:
        return "\n".join([*(": ".join((line.method, _in_words(line))) for line in self.lines), self.reason])

    def _repr_html_(self) -> str:
        header = ("method", "trains", "memory", "fits", "micro-batch", "epoch")
        rows = (
            (
                line.method, f"{line.share:.2%}", gigabytes(line.memory.training), "yes" if line.fits else "no",
                f"{line.budget:,} tokens", time_in_words(line.seconds),
            )
            if line.tokens
            else (line.method, None, None, "no", None, line.why)
            for line in self.lines
        )  # fmt: skip
        return html_table(header, rows) + paragraph(self.reason)


def _in_words(line: Line) -> str:
    if not line.tokens:
        return line.why
    fits = "fits" if line.fits else "does not fit"
    return f"trains {line.share:.2%}, {gigabytes(line.memory.training)}, {fits}, {time_in_words(line.seconds)} an epoch"


def plan_methods(
    recipe: Recipe, config: Mapping[str, Any], workload: Workload, device: Device, *, folder: Path | None = None
) -> Planned:
    """Plans full, lora and qlora, and the recipe's own method if it is another one.

    A method that the recipe names has the recipe's settings.

    Args:
        recipe: its model's device and dtype may be ``auto``.
        config: of the model, as config.json has it.
        folder: the model's, if there is one.

    Raises:
        NotUnderstood: no model can be built from the config.
    """
    recipe = as_started(recipe)
    recipe = recipe.model_copy(update={"method": over_stored(recipe.method, config, where=recipe.model.path)[0]})
    model = ModelCounter(recipe_config(recipe, config, folder), folder)
    lines, parameters, bits = [], 0, stored_bits(config)
    shapes: dict[str, StepBytes] = {}
    for settings, own in methods_to_plan(recipe):
        asked = with_method(recipe, settings, device)
        try:
            if bits is not None and method_label(settings) != ("qlora" if bits == 4 else "lora-int8"):
                raise ModelError(why_not(method_label(settings), bits))
            counted = model.count(asked)
        except NotUnderstood:
            raise
        except ModelError as error:
            if own:
                raise
            lines.append(_impossible(method_label(settings), error))
            continue
        parameters = counted.parameters
        lines.append(_line(counted, asked, workload, device, own=own))
        shapes[lines[-1].method] = counted.shape
    at, lines = _compare(lines, shapes, workload, device)
    if bits is not None and any(line.fits for line in lines):
        recommended, reason = _over_stored(next(line for line in lines if line.fits), bits, device)
        return Planned(device, workload, parameters, lines, recommended, reason, at)
    recommended, reason = recommend(lines, workload, device, lambda: _smallest_device(recipe, model, workload.longest))
    return Planned(device, workload, parameters, lines, recommended, reason, at)


def _compare(
    lines: list[Line], shapes: Mapping[str, StepBytes], workload: Workload, device: Device
) -> tuple[Compared | None, list[Line]]:
    """The lines with their peaks at one micro-batch: the smallest of the methods that fit, or of all."""
    known = [line for line in lines if line.tokens]
    fitting = [line for line in known if line.fits] or known
    if not known:
        return None, lines
    at = Compared(min(line.tokens for line in fitting), any(line.checkpointing for line in fitting))

    def peak(line: Line) -> int:
        shape = shapes[line.method]
        plan = Plan(shape, at.tokens, at.tokens, at.checkpointing and shape.recomputes, device.memory)
        return plan.peak_of_many_steps(typical_row(workload.computed, workload.pairs)).training

    return at, [replace(line, compared=peak(line)) if line.tokens else line for line in lines]


def methods_to_plan(recipe: Recipe) -> list[tuple[MethodSettings, bool]]:
    """The settings of each method to compare, and whether they are the recipe's.

    lora and qlora share the settings of an adapter that the recipe gives.
    """
    own = recipe.method
    shared = {}
    if isinstance(own, AdapterSettings):
        shared = {name: getattr(own, name) for name in AdapterSettings.model_fields if name in own.model_fields_set}
    methods = []
    for name in COMPARED:
        if method_label(own) == name:
            methods.append((own, True))
        else:
            methods.append((METHOD_SETTINGS[name](**_fitting(shared, name)), False))
    return methods if method_label(own) in COMPARED else [*methods, (own, True)]


def _fitting(shared: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of an adapter that the method has a use for."""
    if name == "full":
        return {}
    init = shared.get("init_lora_weights")
    packed = name == "qlora" and isinstance(init, str) and init.startswith(REWRITES_BASE)
    return {key: value for key, value in shared.items() if not (packed and key == "init_lora_weights")}


def with_method(recipe: Recipe, method: MethodSettings, device: Device) -> Recipe:
    """The recipe with another method, resolved for the device."""
    return resolved(recipe.model_copy(update={"method": method}), device)


def resolved(recipe: Recipe, device: Device) -> Recipe:
    """The recipe with the device, its dtype and the threads filled in."""
    dtype = device.dtype if recipe.model.dtype == "auto" else recipe.model.dtype
    threads = budget.threads() if recipe.training.threads == "auto" else recipe.training.threads
    return recipe.with_values(model={"device": device.kind, "dtype": dtype}, training={"threads": threads})


def as_started(recipe: Recipe) -> Recipe:
    """The recipe with the settings of the adapter that it continues from, if it does."""
    method = recipe.method
    if not isinstance(method, AdapterSettings) or method.adapter_name_or_path is None:
        return recipe
    from tunesmith.methods.continued_adapter import find_start, started

    folder = find_start(method.adapter_name_or_path)
    return recipe.model_copy(update={"method": started(method, folder, path=str(folder))})


def _line(counted: CountedModel, recipe: Recipe, workload: Workload, device: Device, *, own: bool) -> Line:
    why = ""
    try:
        chosen = budget.choose(
            counted.shape,
            recipe.training,
            longest=workload.longest,
            memory=device.memory,
            where=recipe.model.path,
            steps=workload.steps,
        )
    except ModelError as error:
        chosen, why = _smallest(counted.shape, recipe.training, workload.longest, device.memory), error.why or ""
    memory = chosen.peak_of_many_steps(typical_row(workload.computed, workload.pairs))
    fits = not why and memory.total <= MEASURED_SHARE * device.memory
    if not fits:
        why = f"needs {gigabytes(memory.total)}, and {gigabytes(int(SHARE * device.memory))} may be used"
    return Line(
        method=counted.shape.method,
        recipe=own,
        trainable=counted.trainable,
        share=counted.trainable / counted.parameters,
        memory=memory,
        fits=fits,
        budget=chosen.budget,
        tokens=chosen.tokens,
        checkpointing=chosen.checkpointing,
        seconds=epoch_seconds(counted, chosen, recipe, workload, device),
        why=why,
    )


def _impossible(method: str, error: TunesmithError) -> Line:
    nothing = Peak(0, 0, 0, 0, 0, 0, 0)
    return Line(method, False, 0, 0.0, nothing, False, 0, 0, False, 0.0, error.why or error.what)


def _smallest(shape: StepBytes, settings: TrainingSettings, longest: int, memory: int) -> Plan:
    """The plan that needs the least memory of those that the recipe allows."""
    asked = settings.gradient_checkpointing
    checkpointing = shape.recomputes if asked == "auto" else bool(asked)
    budget = longest if settings.micro_batch_tokens == "auto" else int(settings.micro_batch_tokens)
    tokens = min(max(budget, longest), settings.batch_size * longest)
    return Plan(shape, budget, tokens, checkpointing, memory)


def typical_row(computed: int, pairs: int) -> float:
    """Tokens of a row, from the pairs of tokens that see each other."""
    return max(2 * pairs / max(computed, 1) - 1, 1.0)


def _over_stored(line: Line, bits: int, device: Device) -> tuple[str, str]:
    """The one method for a model whose files are packed, and why."""
    return line.method, (
        f"Begin with {line.method}: the model is stored in {bits} bits, so only an adapter can train; it needs "
        f"{gigabytes(line.memory.training)} of {gigabytes(device.memory)}."
    )


def recommend(
    lines: list[Line], workload: Workload, device: Device, smallest_device: Callable[[], Device | None]
) -> tuple[str | None, str]:
    """The method to begin with and why: LoRA, unless it does not fit or there is data and room for more.

    Args:
        smallest_device: finds the smallest known device that the cheapest method fits on.
    """
    by_name = {line.method: line for line in lines}
    full, lora, qlora = (by_name[name] for name in COMPARED)
    room = gigabytes(device.memory)
    if workload.rows >= FULL_ROWS and full.fits and full.memory.training <= COMFORTABLE * device.memory:
        return "full", (
            f"Begin with full: {workload.rows:,} rows are enough for it (from {FULL_ROWS:,}), and its "
            f"{gigabytes(full.memory.training)} leave half of the {room} free; lora is the cheaper first try."
        )
    if lora.fits:
        few = f"{workload.rows:,} rows are fewer than the {FULL_ROWS:,} from which full fine-tuning pays"
        reason = few if workload.rows < FULL_ROWS else "full fine-tuning would not fit with room to spare"
        return "lora", (
            f"Begin with lora: it needs {gigabytes(lora.memory.training)} of {room}, trains {lora.share:.2%} of the "
            f"parameters, and {reason}."
        )
    if qlora.fits:
        command = to_install("qlora")
        return "qlora", (
            f"Begin with qlora: lora {lora.why}, and in 4 bits the model needs "
            f"{gigabytes(qlora.memory.training)} of {room}."
            + (f" It needs bitsandbytes, which is not installed here: {command}" if command else "")
        )
    known = smallest_device()
    where = f"; the smallest known device for qlora is {known.name}" if known else ""
    return None, f"Nothing fits on {device.name} with {room}: take a smaller model or shorter rows{where}."


def _smallest_device(recipe: Recipe, model: ModelCounter, longest: int) -> Device | None:
    """The smallest device of the table that qlora fits on."""
    settings = next(each for each, _ in methods_to_plan(recipe) if each.name == "qlora")
    for device in sorted(DEVICES.values(), key=lambda one: (one.memory, one.half)):
        asked = with_method(recipe, settings, device)
        try:
            shape = model.count(asked).shape
        except ModelError:
            return None
        smallest = _smallest(shape, asked.training, longest, device.memory)
        if smallest.peak_of_many_steps(longest).training <= SHARE * device.memory:
            return device
    return None
