"""Which method fits, what it takes, and which to begin with: arithmetic from a config, a workload and a device.

Memory is ``plan.predict``, the same prediction by which a run chooses its micro-batch. Time is floating-point
operations over what the device gives of its peak. Imports no torch unless a config cannot be counted without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.planning import budget as plan
from tunesmith.planning.budget import MEASURED_SHARE, SHARE, Plan, gigabytes
from tunesmith.planning.devices import DEVICES, Device
from tunesmith.planning.shape_from_config import ITEMSIZE, NotUnderstood, part_of, read_architecture, shape_from
from tunesmith.planning.step_shape import FP32, StepBytes
from tunesmith.planning.step_time import Sized, Work, epoch_seconds
from tunesmith.planning.workload import Workload
from tunesmith.recipe.methods import METHOD_SETTINGS, QUANTIZED, REWRITES_BASE, AdapterSettings, method_label
from tunesmith.recipe.settings import Recipe, TrainingSettings

COMPARED = ("full", "lora", "qlora")
MANY_ROWS = 10_000  # from which full fine-tuning is worth its cost, where it fits (Tunesmith's guide)
COMFORTABLE = 0.5  # of the device's memory: what full fine-tuning may need to be recommended
# Of the activations, what the heap of a CPU grows by after the first micro-batch: a share, and another for a row that
# fills the micro-batch, in proportion for a shorter one. Fitted to three steps each of SmolLM2-135M, 1,024 tokens in
# rows of 128, 512 and 1,024; the same steps differ by up to 9% between processes, by the state of the heap.
LATER = {"full": (0.0, 0.14), "lora": (0.16, 0.2), "qlora": (0.16, 0.2)}
LATER["lora-int8"] = LATER["qlora"]  # not fitted: weights are dequantized the same way


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes at the fullest moment of training. ``logits`` includes the working space of the passes."""

    libraries: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Line:
    """One method. ``memory`` are its parts; ``budget`` and ``checkpointing`` what suits it best, or the smallest.

    ``judging``: bytes when base and tuned model are compared. ``recipe``: whether its settings are the recipe's own.
    """

    method: str
    recipe: bool
    trainable: int
    share: float
    memory: Parts
    judging: int
    fits: bool
    budget: int
    tokens: int
    checkpointing: bool
    seconds: float
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; bytes and seconds."""
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total}}


@dataclass(frozen=True, slots=True)
class Planned:
    """The table, the recommendation with its reason, and what it rests on."""

    device: Device
    workload: Workload
    parameters: int
    counted: str
    lines: list[Line]
    recommended: str | None
    reason: str


def plan_methods(recipe: Recipe, config: Mapping[str, Any], workload: Workload, device: Device, **at: Any) -> Planned:
    """Full, lora and qlora, the recipe's own settings where they name one of them, and its own method beside them.

    Args:
        recipe: its model's device and dtype may be ``auto``.
        config: of the model, as config.json has it.
        at: ``folder``, the model's, where there is one.

    Raises:
        NotUnderstood: the config cannot be counted, with or without torch.
    """
    recipe, lines, sized = as_started(recipe), [], None
    for settings, own in methods_to_plan(recipe):
        asked = resolved(recipe.model_copy(update={"method": settings}), device)
        try:
            sized = size(config, asked, **at)
        except NotUnderstood:
            raise
        except ModelError as error:
            if own:
                raise
            lines.append(_impossible(method_label(settings), error))
            continue
        lines.append(_line(sized, asked, workload, device, own=own))
    assert sized is not None
    recommended, reason = recommend(
        lines, workload, device, lambda other: _fits_elsewhere(recipe, config, workload, other)
    )
    return Planned(device, workload, sized.parameters, sized.counted, lines, recommended, reason)


def methods_to_plan(recipe: Recipe) -> list[tuple[Any, bool]]:
    """Settings of each method to compare, and whether they are the recipe's: lora and qlora share what both have."""
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
    """Of the settings of an adapter those that the method has a use for."""
    if name == "full":
        return {}
    init = shared.get("init_lora_weights")
    packed = name == "qlora" and isinstance(init, str) and init.startswith(REWRITES_BASE)
    return {key: value for key, value in shared.items() if not (packed and key == "init_lora_weights")}


def resolved(recipe: Recipe, device: Device) -> Recipe:
    """With the device, its dtype and the threads filled in."""
    dtype = device.dtype if recipe.model.dtype == "auto" else recipe.model.dtype
    threads = plan.threads() if recipe.training.threads == "auto" else recipe.training.threads
    return recipe.with_values(model={"device": device.kind, "dtype": dtype}, training={"threads": threads})


def as_started(recipe: Recipe) -> Recipe:
    """Where it goes on from an adapter, with the settings of that one's file."""
    method = recipe.method
    if not isinstance(method, AdapterSettings) or method.adapter_name_or_path is None:
        return recipe
    from tunesmith.methods.continued_adapter import find_start, started

    folder = find_start(method.adapter_name_or_path)
    return recipe.model_copy(update={"method": started(method, folder, path=str(folder))})


def size(config: Mapping[str, Any], recipe: Recipe, *, folder: Path | None = None) -> Sized:
    """By arithmetic, or on torch's meta device where the config or a setting is beyond it.

    Raises:
        NotUnderstood: neither can.
        ModelError: the method does not fit the model.
    """
    try:
        architecture = read_architecture(config, where=recipe.model.path, added=len(recipe.model.named_tokens))
        shape = shape_from(architecture, recipe)
    except NotUnderstood as error:
        return _sized_by_torch(config, recipe, folder, error)
    text = architecture.text
    adapter = isinstance(recipe.method, AdapterSettings)
    trainable = shape.trained // (FP32 if adapter else ITEMSIZE[recipe.model.dtype])
    work = Work(
        products=architecture.products,
        trained=0 if isinstance(recipe.method, AdapterSettings) else part_of(architecture, recipe.method).products,
        head=architecture.embedding.size,
        adapters=trainable if adapter else 0,
        layers=text.layers,
        width=text.heads * text.head_size,
        packed=architecture.linear if method_label(recipe.method) in QUANTIZED else 0,
    )
    return Sized(shape, work, architecture.parameters, trainable, "config.json, by arithmetic")


def _sized_by_torch(config: Mapping[str, Any], recipe: Recipe, folder: Path | None, error: NotUnderstood) -> Sized:
    try:
        from transformers import CONFIG_MAPPING, AutoConfig

        from tunesmith.planning import shape_from_model
    except ImportError:
        raise error from None
    if folder is not None:
        code = recipe.model.trust_remote_code
        built = AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
    elif config.get("model_type") in CONFIG_MAPPING:
        built = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    else:
        raise error
    shape = shape_from_model.shape_of(built, recipe, folder or Path("nowhere"))
    counts = shape_from_model.counts_of(built, recipe)
    work = Work(
        products=counts.products,
        trained=counts.trained,
        head=counts.head,
        adapters=counts.trainable if isinstance(recipe.method, AdapterSettings) else 0,
        layers=counts.layers,
        width=counts.width,
        packed=counts.linear if method_label(recipe.method) in QUANTIZED else 0,
    )
    return Sized(shape, work, counts.parameters, counts.trainable, "built on torch's meta device")


def _line(sized: Sized, recipe: Recipe, workload: Workload, device: Device, *, own: bool) -> Line:
    why = ""
    try:
        chosen = plan.choose(
            sized.shape,
            recipe.training,
            longest=workload.longest,
            memory=device.memory,
            where=recipe.model.path,
            steps=workload.steps,
        )
    except ModelError as error:
        chosen, why = _smallest(sized.shape, recipe.training, workload.longest, device.memory), error.why or ""
    memory = parts(chosen, row=typical_row(workload.computed, workload.pairs))
    judging = chosen.peak().judging
    fits = not why and max(memory.total, judging) <= MEASURED_SHARE * device.memory
    if not fits:
        why = f"needs {gigabytes(max(memory.total, judging))}, and {gigabytes(int(SHARE * device.memory))} may be used"
    return Line(
        method=sized.shape.method,
        recipe=own,
        trainable=sized.trainable,
        share=sized.trainable / sized.parameters,
        memory=memory,
        judging=judging,
        fits=fits,
        budget=chosen.budget,
        tokens=chosen.tokens,
        checkpointing=chosen.checkpointing,
        seconds=epoch_seconds(sized, chosen, recipe, workload, device),
        why=why,
    )


def _impossible(method: str, error: TunesmithError) -> Line:
    nothing = Parts(0, 0, 0, 0, 0, 0)
    return Line(method, False, 0, 0.0, nothing, 0, False, 0, 0, False, 0.0, error.why or error.what)


def _smallest(shape: StepBytes, settings: TrainingSettings, longest: int, memory: int) -> Plan:
    """What needs the least of all that the recipe allows."""
    asked = settings.gradient_checkpointing
    checkpointing = shape.recomputes if asked == "auto" else bool(asked)
    budget = longest if settings.micro_batch_tokens == "auto" else int(settings.micro_batch_tokens)
    tokens = min(max(budget, longest), settings.batch_size * longest)
    return Plan(shape, budget, tokens, checkpointing, memory)


def typical_row(computed: int, pairs: int) -> float:
    """Tokens of a row, from the pairs of tokens that see each other."""
    return max(2 * pairs / max(computed, 1) - 1, 1.0)


def parts(chosen: Plan, *, row: float) -> Parts:
    """Bytes by what holds them, for the largest micro-batch, over many steps.

    Args:
        row: tokens of a typical row.
    """
    peak, trained = chosen.peak(), chosen.shape.trained
    later = chosen.later_holes(chosen.tokens)
    if chosen.shape.method in LATER:
        base, more = LATER[chosen.shape.method]
        later = int(later * (base + more * min(row / chosen.tokens, 1.0)) / plan.LATER_HOLES)
    return Parts(
        libraries=peak.libraries,
        weights=peak.weights,
        gradients=trained,
        optimizer=peak.optimizer - trained,
        activations=peak.activations + later,
        logits=peak.working,
    )


def recommend(lines: list[Line], workload: Workload, device: Device, elsewhere: Any) -> tuple[str | None, str]:
    """The method to begin with and why: LoRA, unless it does not fit or there is data and room for more.

    Args:
        elsewhere: whether the cheapest method would fit on another device.
    """
    by_name = {line.method: line for line in lines}
    full, lora, qlora = (by_name[name] for name in COMPARED)
    room = gigabytes(device.memory)
    if workload.rows >= MANY_ROWS and full.fits and full.memory.total <= COMFORTABLE * device.memory:
        return "full", (
            f"Begin with full: {workload.rows:,} rows are enough for it (from {MANY_ROWS:,}), and its "
            f"{gigabytes(full.memory.total)} leave half of the {room} free; lora is the cheaper first try."
        )
    if lora.fits:
        few = f"{workload.rows:,} rows are fewer than the {MANY_ROWS:,} from which full fine-tuning pays"
        reason = few if workload.rows < MANY_ROWS else "full fine-tuning would not fit with room to spare"
        return "lora", (
            f"Begin with lora: it needs {gigabytes(lora.memory.total)} of {room}, trains {lora.share:.2%} of the "
            f"parameters, and {reason}."
        )
    if qlora.fits:
        return "qlora", (
            f"Begin with qlora: lora {lora.why}, and in 4 bits the model needs "
            f"{gigabytes(qlora.memory.total)} of {room}."
        )
    able = [other for other in sorted(DEVICES.values(), key=lambda one: (one.memory, one.half)) if elsewhere(other)]
    where = f"; the smallest known device for qlora is {able[0].name}" if able else ""
    return None, f"Nothing fits on {device.name} with {room}: take a smaller model or shorter rows{where}."


def _fits_elsewhere(recipe: Recipe, config: Mapping[str, Any], workload: Workload, device: Device) -> bool:
    settings = next(each for each, _ in methods_to_plan(recipe) if each.name == "qlora")
    asked = resolved(recipe.model_copy(update={"method": settings}), device)
    try:
        shape = shape_from(read_architecture(config, added=len(asked.model.named_tokens)), asked)
    except ModelError:
        return False
    smallest = _smallest(shape, asked.training, workload.longest, device.memory)
    return parts(smallest, row=workload.longest).total <= SHARE * device.memory
