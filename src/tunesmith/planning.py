"""Which method fits, what it takes, and which to begin with: arithmetic from a config, a workload and a device.

Memory is ``plan.predict``, the same prediction by which a run chooses its micro-batch. Time is floating-point
operations over what the device gives of its peak. Imports no torch unless a config cannot be counted without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith import plan
from tunesmith.architecture import ITEMSIZE, NotUnderstood, part_of, read_architecture, shape_from
from tunesmith.devices import DEVICES, Device
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.plan import MEASURED_SHARE, SHARE, Plan, gigabytes
from tunesmith.recipe import METHOD_SETTINGS, REWRITES_BASE, AdapterSettings, Recipe, TrainingSettings
from tunesmith.shape import FP32, INT8, NF4, QUANTIZED, Shape, method_label
from tunesmith.workload import Workload

COMPARED = ("full", "lora", "qlora")
MANY_ROWS = 10_000  # from which full fine-tuning is worth its cost, where it fits (Tunesmith's guide)
COMFORTABLE = 0.5  # of the device's memory: what full fine-tuning may need to be recommended
# Share of the peak that a step reaches. CPU: measured, SmolLM2-135M in fp32 against numpy's sgemm on the same threads,
# full, lora and qlora at 128 and 1,024 tokens a row: 0.65 to 0.74. GPU: assumed, not measured; well-tuned trainers
# of dense models reach 0.3 to 0.5 of the dense bf16 peak.
EFFICIENCY = {"cpu": 0.70, "cuda": 0.35}
BANDWIDTH = 10**10  # bytes/s of a CPU's memory, for what is no product: AdamW and dequantizing. Measured: 8 to 10 GB/s
ADAMW = 7  # a parameter, its gradient and two moments are read; all but the gradient are written
# Of the activations, what the heap of a CPU grows by after the first micro-batch: a share, and another for a row that
# fills the micro-batch, in proportion for a shorter one. Fitted to three steps each of SmolLM2-135M, 1,024 tokens in
# rows of 128, 512 and 1,024; the same steps differ by up to 9% between processes, by the state of the heap.
LATER = {"full": (0.0, 0.14), "lora": (0.16, 0.2), "qlora": (0.16, 0.2)}
LATER["lora-int8"] = LATER["qlora"]  # not fitted: weights are dequantized the same way


@dataclass(frozen=True, slots=True)
class Work:
    """Weights that a token is multiplied with: in the decoder, what trains of those, in the output layer, in adapters.

    ``layers`` of the decoder, ``width`` of attention, ``packed``: weights in 4 bits.
    """

    products: int
    trained: int
    head: int
    adapters: int
    layers: int
    width: int
    packed: int


@dataclass(frozen=True, slots=True)
class Sized:
    """A model with a method: bytes of a step, its products, and parameters in all and trained."""

    shape: Shape
    work: Work
    parameters: int
    trainable: int
    counted: str


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
    recipe, lines, sized = _as_started(recipe), [], None
    for settings, own in _methods(recipe):
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


def _methods(recipe: Recipe) -> list[tuple[Any, bool]]:
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


def _as_started(recipe: Recipe) -> Recipe:
    """Where it goes on from an adapter, with the settings of that one's file."""
    method = recipe.method
    if not isinstance(method, AdapterSettings) or method.adapter_name_or_path is None:
        return recipe
    from tunesmith.methods.starting import find_start, started

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

        from tunesmith import sizes
    except ImportError:
        raise error from None
    if folder is not None:
        code = recipe.model.trust_remote_code
        built = AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
    elif config.get("model_type") in CONFIG_MAPPING:
        built = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    else:
        raise error
    shape = sizes.shape_of(built, recipe, folder or Path("nowhere"))
    counts = sizes.counts_of(built, recipe)
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


def _smallest(shape: Shape, settings: TrainingSettings, longest: int, memory: int) -> Plan:
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


def epoch_seconds(sized: Sized, chosen: Plan, recipe: Recipe, workload: Workload, device: Device) -> float:
    """Seconds of one pass over the rows, validation and verdict aside."""
    return step_seconds(
        sized,
        recipe,
        device,
        computed=workload.computed,
        logits=workload.logits,
        pairs=workload.pairs,
        checkpointing=chosen.checkpointing,
        micro_batches=max(1, -(-workload.computed // max(chosen.budget, 1))),
        steps=max(1, -(-workload.rows // recipe.training.batch_size)),
    )


def step_seconds(
    sized: Sized,
    recipe: Recipe,
    device: Device,
    *,
    computed: int,
    logits: int,
    pairs: int,
    checkpointing: bool,
    micro_batches: int = 1,
    steps: int = 1,
) -> float:
    """Seconds for so many tokens, logits and pairs.

    A product of a token with N weights is 2N FLOPs, forward; its gradient by the token 2N more, and by weights that
    train another 2N. So adapters need 4N + 4cE a token (and 6 for their own weights), full fine-tuning 6N + 6cE, with
    E the output layer and c the share of tokens whose logits a label needs. Attention is 4 d a layer for each pair of
    tokens that see each other, forward, and twice that backward. Checkpointing adds a forward pass of the layers.
    Layers below the lowest that trains have the forward pass alone.
    """
    work, shape = sized.work, sized.shape
    passed = shape.layers / work.layers  # of all layers, those that the gradient passes
    products, attention = 2 * work.products * computed, 4 * work.width * work.layers * pairs
    flops = products + attention + passed * (products + 2 * attention) + 2 * work.trained * computed
    flops += (6 if shape.head else 4) * work.head * logits + 6 * work.adapters * computed
    flops += passed * (products + attention) if checkpointing else 0
    dtype = recipe.model.dtype
    if recipe.method.name == "qlora" and device.kind == "cuda":
        dtype = "bfloat16" if device.bf16 else "float16"  # what a GPU's 4-bit layers compute in
    speed = device.speed(dtype) * EFFICIENCY[device.kind]
    bandwidth = device.bandwidth or BANDWIDTH
    stored = NF4 if recipe.method.name == "qlora" else INT8
    unpacked = work.packed * (FP32 + stored) * (3 if checkpointing else 2) * micro_batches
    return flops / speed + (ADAMW * sized.shape.trained * steps + unpacked) / bandwidth


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
    settings = next(each for each, _ in _methods(recipe) if each.name == "qlora")
    asked = resolved(recipe.model_copy(update={"method": settings}), device)
    try:
        shape = shape_from(read_architecture(config, added=len(asked.model.named_tokens)), asked)
    except ModelError:
        return False
    smallest = _smallest(shape, asked.training, workload.longest, device.memory)
    return parts(smallest, row=workload.longest).total <= SHARE * device.memory


def read_config(path: str, *, revision: str | None = None, fetch: bool = True) -> tuple[dict[str, Any], Path | None]:
    """A model's config and its folder, None where only the config is at hand: a file, a folder, bundled, or of the hub.

    Args:
        fetch: or convert, what is not here yet.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    place = Path(path).expanduser()
    if place.is_file() and place.suffix == ".json":
        return _json_of(place), None
    if (place / "config.json").is_file():
        return _json_of(place / "config.json"), place
    from tunesmith.model.cache import cache_dir

    for made in sorted((cache_dir() / "models").glob(f"{path}-*/config.json")) if "/" not in path else []:
        return _json_of(made), made.parent
    if place.exists() or "/" not in path:
        if not fetch:
            raise ModelError("the config is not at hand", where=path)
        from tunesmith.model.source import resolve

        folder = resolve(path, revision=revision)
        return _json_of(folder / "config.json"), folder
    return _json_of(_hub_config(path, revision, fetch=fetch)), None


def _hub_config(path: str, revision: str | None, *, fetch: bool) -> Path:
    """config.json of a hub id, from the local hub cache or fetched: a few kilobytes."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    name, _, written = path.partition("@")
    try:
        chosen = revision or written or None
        return Path(hf_hub_download(name, "config.json", revision=chosen, local_files_only=not fetch))
    except (HFValidationError, HTTPError, OSError) as error:
        raise ModelError(
            f"the config of {path} cannot be fetched",
            where="model.path",
            why=str(error).splitlines()[0],
            remedy="Connect to the network, log in with `hf auth login` for a gated model, or name its config.json.",
        ) from error


def _json_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("the config cannot be read", where=str(file), why=str(error)) from error
    if not isinstance(found, dict):
        raise ModelError("the config is no JSON object", where=str(file))
    return found


def at_measure(line: Line, recipe: Recipe, device: Device) -> Recipe:
    """The recipe of the steps to measure for a line: its method, micro-batch and checkpointing, all resolved."""
    recipe = _as_started(recipe)
    settings = next(each for each, _ in _methods(recipe) if method_label(each) == line.method)
    asked = resolved(recipe.model_copy(update={"method": settings}), device)
    return asked.with_values(training={"micro_batch_tokens": line.budget, "gradient_checkpointing": line.checkpointing})


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predicted beside measured for the very same micro-batch; errors are predicted / measured - 1."""

    method: str
    tokens: int
    predicted_bytes: int
    measured_bytes: int
    memory_error: float
    predicted_seconds: float
    measured_seconds: float
    time_error: float


def compare(config: Mapping[str, Any], asked: Recipe, device: Device, trial: Any, **at: Any) -> Comparison:
    """What would have been predicted for the steps that were measured.

    Args:
        asked: the recipe of the steps (``at_measure``).
        trial: a ``trial.Trial``; the speed of a CPU is what it was next to the steps.
        at: ``folder`` of the model.
    """
    sized = size(config, asked, **at)
    checkpointing = bool(asked.training.gradient_checkpointing)
    chosen = Plan(sized.shape, int(asked.training.micro_batch_tokens), trial.tokens, checkpointing, device.memory)
    if trial.flops:
        device = replace(device, fp32=trial.flops)
    seconds = step_seconds(
        sized,
        asked,
        device,
        computed=trial.tokens,
        logits=trial.logits,
        pairs=trial.pairs,
        checkpointing=checkpointing,
    )
    predicted = parts(chosen, row=typical_row(trial.tokens, trial.pairs)).total
    return Comparison(
        method=method_label(asked.method),
        tokens=trial.tokens,
        predicted_bytes=predicted,
        measured_bytes=trial.peak,
        memory_error=predicted / trial.peak - 1,
        predicted_seconds=seconds,
        measured_seconds=trial.seconds,
        time_error=seconds / trial.seconds - 1,
    )
