"""A folder of plain weights: written whole or not at all, and compared with the logits of the model they came from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ExportError
from tunesmith.model.modes import evaluation_mode
from tunesmith.model.weights.finite import not_finite, some
from tunesmith.model.weights.load import quiet_transformers
from tunesmith.model.weights.weight_files import trained_files
from tunesmith.runs.disk import WRITE_ERRORS, is_full, no_room, why_full
from tunesmith.runs.outputs import refuse_inputs, refuse_shut, refuse_strangers
from tunesmith.runs.whole_files import recover_folder, whole_folder

MARK = "tunesmith_merge.json"  # a folder with it is ours, and may be replaced
WRITTEN = (
    MARK, "README.md", "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
    "chat_template*", "additional_chat_templates", "*.model", "*.tiktoken", "*.jinja", "*processor_config.json", "*.py",
    "manifest.json", "base",
)  # fmt: skip
"""What `merge` of an earlier version wrote into its folder. Since then the mark lists every file."""
# Root mean square of what logits differ by, as a share of their own spread. float32: the same sums in another order.
# The others: each weight is rounded once, by 2^-9 (bfloat16) or 2^-12 (float16) of itself at most, through all layers.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Closeness:
    """How far the logits of one model are from those of another, over ``positions`` tokens.

    Args:
        relative: root mean square of the differences by that of the logits, each row of logits about its mean.
        largest: the largest difference of a logit.
        agreement: share of the positions with the same likeliest token.
    """

    relative: float
    largest: float
    agreement: float
    positions: int


@torch.no_grad()
def logits_of(model: nn.Module, rows: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """The logits of each row, float32 [tokens, vocabulary] on the CPU: row by row, so nothing is padded."""
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for row in rows:
            yield model(input_ids=torch.tensor([list(row)], device=device), use_cache=False).logits[0].float().cpu()


def closeness(reference: Sequence[Tensor], model: nn.Module, rows: Sequence[Sequence[int]]) -> Closeness:
    """The logits of a model against those of another on the same rows. What is not finite is infinitely far."""
    apart = spread = 0.0
    largest, same, positions = 0.0, 0, 0
    for before, after in zip(reference, logits_of(model, rows), strict=True):
        if before.shape != after.shape:
            raise ExportError(
                "the merged model has another vocabulary than the tuned one",
                why=f"{before.shape[-1]} logits a token before, {after.shape[-1]} after",
            )
        difference = after - before
        apart += difference.sub(difference.mean(dim=-1, keepdim=True)).double().square().sum().item()
        spread += before.sub(before.mean(dim=-1, keepdim=True)).double().square().sum().item()
        largest = max(largest, difference.abs().max().item())
        same += int((before.argmax(dim=-1) == after.argmax(dim=-1)).sum())
        positions += len(before)
    relative = math.sqrt(apart / spread) if spread else math.inf
    if not math.isfinite(relative):
        relative = largest = math.inf
    return Closeness(relative, largest, same / positions, positions)


def refuse_far(found: Closeness, tolerance: float, *, what: str) -> None:
    """Raises ExportError where logits are further apart than the tolerance."""
    if found.relative <= tolerance:
        return
    raise ExportError(
        f"{what} does not answer as the tuned model does, so it was not kept",
        why=f"Its logits differ by {found.relative:.2g} of their spread (tolerance {tolerance:g}), by "
        f"{found.largest:.3g} at most; the likeliest token is the same at {found.agreement:.1%} of "
        f"{found.positions} positions.",
        remedy="Keep more digits with --dtype float32. If that is what was asked for, this is a fault of Tunesmith.",
    )


def check_free(to: Path, *, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Raises ExportError if ``to`` cannot be replaced.

    Reasons: it holds other files or a merged model that is to stay, you are in it, or nothing can be written there.
    """
    if Path.cwd().is_relative_to(to.resolve()):
        raise ExportError(
            "the merged model cannot replace the folder you are in",
            where=str(to),
            why="A merged model is written beside its folder and then takes the place of it.",
            remedy="Name a new folder, such as --out merged.",
        )
    refuse_inputs(to, inputs)
    refuse_shut(to)
    recover_folder(to, earlier=None if overwrite else [MARK])  # what is to be replaced need not come back first
    _refuse_taken(to, overwrite=overwrite)


def _refuse_taken(to: Path, *, overwrite: bool) -> None:
    if to.is_symlink() and not to.exists():
        raise ExportError(
            "the output is a link to a folder that is not there",
            where=str(to),
            why=f"It points to {os.readlink(to)}.",
            remedy="Name another --out, or remove the link.",
        )
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not (to / MARK).is_file():
        raise ExportError(
            "the folder holds something that `merge` did not write",
            where=str(to),
            why="Tunesmith overwrites only what it wrote itself.",
            remedy="Name another --out.",
        )
    if not overwrite:
        raise ExportError(
            "there is a merged model already", where=str(to), remedy="Add --overwrite, or name another --out."
        )
    refuse_strangers(to, _written(to))


def _written(to: Path) -> list[str]:
    """Patterns of what `merge` has written into this folder."""
    try:
        files = json.loads((to / MARK).read_bytes())["files"]
        return [*map(escape, files), MARK]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [*WRITTEN]


def _list_files(folder: Path) -> None:
    """Adds the names of all files to the mark, by which the folder's own files are known later."""
    mark = folder / MARK
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    record = {**json.loads(mark.read_bytes()), "files": files}
    mark.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_room(to: Path, needed: int) -> None:
    """Raises ExportError where the disk has less room than the weights take."""
    parent = next(folder for folder in to.absolute().parents if folder.exists())
    why = no_room(parent, needed)
    if why is not None:
        raise ExportError(
            "the disk has no room for the merged model",
            where=str(to),
            why=why,
            remedy="Make room, name another --out, or use a smaller --dtype.",
        )


@contextmanager
def merged_folder(to: Path, needed: int, *, overwrite: bool) -> Iterator[Path]:
    """Inside, an empty folder to write to, which becomes ``to`` if nothing is raised. OSError becomes ExportError.

    Args:
        to: looked at again at the end, because somebody may have put something there meanwhile.
        overwrite: whether an earlier merged model there is replaced.
        needed: bytes, for the message of a full disk.
    """
    try:
        with whole_folder(to) as beside:
            yield beside
            if (beside / MARK).is_file():
                _list_files(beside)
            _refuse_taken(to, overwrite=overwrite)
    except WRITE_ERRORS as error:
        if isinstance(error, SafetensorError) and not is_full(error):
            raise
        why = why_full(to, error, needed) if is_full(error) else str(error)
        raise ExportError(
            "the merged model cannot be written", where=str(to), why=why, remedy="Make room, or another --out."
        ) from error


def write_weights(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype, max_shard_size: str) -> None:
    """config.json, generation_config.json and safetensors; the model passed in is changed to ``dtype``.

    A tensor whose dtype is not the model's own on purpose (such as a router's bias) keeps it. Raises ExportError if a
    weight is too large for the dtype.
    """
    own = model.dtype
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dtype == own:
                tensor.data = tensor.data.to(dtype)
    too_large = not_finite(dict(model.named_parameters()))
    if too_large:
        name = str(dtype).removeprefix("torch.")
        raise ExportError(
            f"the model in {name} does not answer as the tuned model does, so it was not kept",
            why=f"{len(too_large):,} of its tensors hold numbers that {name} has no room for: {some(too_large)}.",
            remedy="Keep them with --dtype float32.",
        )
    _say_whether_tied(model)
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=max_shard_size)


def _say_whether_tied(model: PreTrainedModel) -> None:
    """An embedding or head that was tuned apart from the other must not be tied to it again on loading."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    text = model.config.get_text_config()
    if head is None or not (model.config.tie_word_embeddings or text.tie_word_embeddings):
        return
    if head.weight is not embedding.weight and not torch.equal(head.weight, embedding.weight):
        model.config.tie_word_embeddings = text.tie_word_embeddings = False


def size_of(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the weights in a dtype."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def sizes_in(folder: Path) -> tuple[int, int]:
    """How many files of weights there are, and their bytes."""
    files = trained_files(folder)
    return len(files), sum(os.path.getsize(file) for file in files)
