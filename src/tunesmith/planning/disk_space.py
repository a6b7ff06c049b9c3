"""Predicts the bytes that a run's checkpoints take on the disk, from what its method trains and keeps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tunesmith.errors import ModelError, TrainError
from tunesmith.model.weights.config_file import read_at_hand
from tunesmith.model.weights.gguf_header import tensor_shapes
from tunesmith.model.weights.weight_files import weight_bytes, weight_files
from tunesmith.planning.step_shape import StepBytes
from tunesmith.recipe.methods import AdapterSettings
from tunesmith.recipe.optimizers import FP32, state_bytes
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import ModelSettings, Recipe, TrainingSettings

_OF_LAYER = re.compile(
    r"(?:model\.|transformer\.|decoder\.)*(?:layers|h)\.(?P<layer>\d+)\.(?P<module>[\w.]+)\.weight\Z", re.ASCII
)
_GGUF_LAYER = re.compile(r"blk\.(?P<layer>\d{1,9})\.(?P<module>\w+)\.weight\Z", re.ASCII)
_LINEARS = frozenset(  # modules of decoder layers that are linear maps in every architecture that has them
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "gate_up_proj",
        "c_attn",
        "c_fc",
    ]
)
_OF_GGUF = {  # the usual modules by their names in GGUF files; others do not count
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
SHARD = 5 * 10**9  # bytes of a file of weights, at most
WHOLE = ("full", "freeze")  # methods whose checkpoints hold the whole model


@dataclass(frozen=True, slots=True)
class CheckpointBytes:
    """The bytes of one checkpoint: its weights, the optimizer's state, and the tokenizer with other small files."""

    weights: int
    optimizer: int
    text: int = 0

    @property
    def total(self) -> int:
        """All files."""
        return self.weights + self.optimizer + self.text

    @property
    def largest(self) -> int:
        """The largest file; weights are cut into shards."""
        return max(min(self.weights, SHARD), self.optimizer, self.text)


def least_checkpoint(recipe: Recipe) -> CheckpointBytes:
    """The least that a checkpoint of a run takes, by the files of the model alone: 0 if they are not here.

    It needs no torch and no rows, so that what cannot fit at all is refused at once. Where the files do not tell how
    much trains, less is counted.
    """
    stored = _stored(recipe.model)
    if stored is None:
        return CheckpointBytes(0, 0)
    method, optim, shapes = recipe.method, recipe.training.optim, stored.shapes
    itemsize = FP32 if recipe.model.dtype == "float32" else FP32 // 2  # it may be stored in fp32 and trained in bf16
    if isinstance(method, AdapterSettings):
        matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
        adapted = [shape for name, shape in matrices.items() if _is_adapted(name, method, stored.layers)]
        rank = min((method.r, *method.rank_pattern.values()))
        pairs = [side for rows, columns in adapted for side in ((rank, columns), (rows, rank))]  # A and B
        weights = sum(FP32 * math.prod(pair) for pair in pairs)
        return CheckpointBytes(weights, sum(state_bytes(optim, pair) for pair in pairs))
    weights = stored.size * itemsize // FP32
    if method.name == "freeze":  # which part of it trains is not known yet
        return CheckpointBytes(weights, 0)
    trained = [shape for name, shape in shapes.items() if not name.startswith("lm_head")]  # which may be tied
    return CheckpointBytes(weights, sum(state_bytes(optim, shape, itemsize=itemsize) for shape in trained))


def least_bytes(recipe: Recipe, each: CheckpointBytes) -> int:
    """The least bytes of all checkpoints of a run, if no more is known of its rows than that there are some."""
    training = recipe.training
    epochs = 1.0 if training.max_steps else training.num_train_epochs
    return most_bytes(each, training, steps=training.max_steps or math.ceil(epochs), epochs=epochs)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the files of a base hold: their bytes, as fp32 at the most, the shapes by name, and the number of layers."""

    size: int
    shapes: dict[str, tuple[int, ...]]
    layers: object


def _stored(model: ModelSettings) -> _Stored | None:
    """What the files of a base hold that is on this machine; None for another one, or if they cannot be read."""
    location = Path(local(model.path))
    if location.is_file() and location.suffix.lower() == ".gguf":
        return _in_gguf(location)
    try:
        found = read_at_hand(model.path, revision=model.revision)
    except ModelError:  # whoever loads it says what is wrong
        return None
    if found is None:
        return None
    config, folder = found
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    return _Stored(weight_bytes(folder), _stored_shapes(folder), layers)


def _in_gguf(file: Path) -> _Stored | None:
    """The tensors of a GGUF file by their names in the folder that it becomes, where all are fp32."""
    try:
        found = tensor_shapes(file)
    except (ValueError, KeyError, OverflowError, OSError):  # whoever converts it says what is wrong
        return None
    shapes, last = {}, -1
    for name, shape in found.items():
        layer = _GGUF_LAYER.match(name)
        if layer is not None:
            last = max(last, int(layer["layer"]))
            module = _OF_GGUF.get(layer["module"], layer["module"])
            name = f"model.layers.{layer['layer']}.{module}.weight"
        if not name.startswith("rope_freqs"):
            shapes["lm_head.weight" if name == "output.weight" else name] = shape
    return _Stored(FP32 * sum(map(math.prod, shapes.values())), shapes, last + 1)


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of floating point in a model's files, from their headers; none of a damaged file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="np") as weights:
                slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
                shapes |= {
                    name: tuple(each.get_shape())
                    for name, each in slices.items()
                    if each.get_dtype() in ("F32", "F16", "BF16")  # others are packed: their shapes are not the model's
                }
        except (SafetensorError, OSError):  # loading says what is wrong
            continue
    return shapes


def _is_adapted(name: str, method: AdapterSettings, layers: object) -> bool:
    """Whether a stored weight surely gets an adapter of the full rank. Experts, which may be fused, do not count."""
    unsure = (method.exclude_modules, method.layers_to_transform, method.adapter_name_or_path)
    layer = _OF_LAYER.match(name)
    if any(each is not None for each in unsure) or method.init_lora_weights == "eva" or layer is None:
        return False
    if not isinstance(layers, int) or int(layer["layer"][:9]) >= layers or ".experts." in name:
        return False
    module, targets = layer["module"], method.target_modules
    if isinstance(targets, str):
        return targets == "all-linear" and module.rpartition(".")[2] in _LINEARS
    return any(module == each or module.endswith(f".{each}") for each in targets)


def does_not_fit(folder: Path, why: str, training: TrainingSettings, *, each: int, most: int) -> TrainError:
    """The refusal of a run whose checkpoints do not fit.

    Args:
        each: bytes of a checkpoint.
        most: bytes of all checkpoints that are there at a time.
    """
    fewer = "set training.save_total_limit: 1, " if training.save_total_limit != 1 and most > each else ""
    return TrainError(
        "The checkpoints of this run do not fit on the disk",
        where=str(folder),
        why=f"{why} A checkpoint takes {each:,} bytes or more, and up to {most:,} bytes of checkpoints are there at a "
        f"time (save_steps: {training.save_steps}, save_total_limit: {training.save_total_limit or 'none'}).",
        remedy=f"Make room, {fewer}or name an output_dir on another disk. If somebody removes checkpoints while it "
        "trains, set training.check_disk: false.",
    )


def checkpoint_bytes(shape: StepBytes, *, text: int = 0) -> CheckpointBytes:
    """One checkpoint of a run. full and freeze write a whole model, the others what they train.

    Args:
        text: bytes of the tokenizer's files.
    """
    weights = shape.trained
    if shape.method in WHOLE:  # freeze keeps copies of what trains in the memory of a CPU
        weights = shape.weights - (shape.trained if shape.method == "freeze" and shape.device == "cpu" else 0)
    return CheckpointBytes(weights, int(shape.states * shape.trained), text)


def most_bytes(each: CheckpointBytes, training: TrainingSettings, *, steps: int, epochs: float) -> int:
    """The bytes of all checkpoints at the moment when there are most: a new one is written before an old one goes.

    Args:
        steps: of the whole run.
        epochs: passes over the rows.
    """
    by_strategy = {"steps": math.ceil(steps / training.save_steps), "epoch": math.ceil(epochs), "no": 1}
    best = 1 if training.load_best_model_at_end else 0
    saves = min(by_strategy[training.save_strategy] + best, steps)
    models = saves
    if training.save_total_limit is not None:
        models = min(saves, max(training.save_total_limit, 1 + best) + 1)
    optimizers = models if training.save_optimizer == "all" else min(saves, 2)
    return models * (each.weights + each.text) + optimizers * each.optimizer
