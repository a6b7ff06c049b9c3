"""`tunesmith merge`: writes a tuned model as plain weights that every tool loads, and checks them.

The same held-out rows go through the tuned model as it runs, the weights with the update added, and the folder as it is
read back. Their logits must agree. Over a quantized base there are two ways, and the closer one is kept: the update is
added to the values that it was trained over (dequantized), or to the base before it was quantized.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.corpus import encode_corpus
from tunesmith.data.examples.message import Message
from tunesmith.data.survey import only_held_out, survey_rows
from tunesmith.deploy import plain_weights
from tunesmith.deploy.model_card import model_card
from tunesmith.deploy.plain_weights import Closeness
from tunesmith.deploy.tuned import ModelTarget, Tuned, find_target, load
from tunesmith.errors import DataError, ExportError, RunError, TunesmithError
from tunesmith.evaluation.held_out_recipe import evaluation_recipe
from tunesmith.methods.base import weights_in
from tunesmith.methods.continued_adapter import read_config_file
from tunesmith.methods.lora import Lora
from tunesmith.methods.quantized_base import was_stored_quantized
from tunesmith.model.weights.added_tokens import NO_TOKENS
from tunesmith.model.weights.config_file import read_config
from tunesmith.model.weights.resolve import kind
from tunesmith.model.weights.text_side import save_text_side
from tunesmith.planning import budget, memory
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.notebook import paragraph
from tunesmith.runs.progress import Listener
from tunesmith.runs.stored_addresses import refuse_stored_addresses
from tunesmith.runs.stored_facts import languages_of
from tunesmith.runs.surroundings import library_call
from tunesmith.runs.whole_files import place_for

_ROWS, _ROW_TOKENS = 16, 512  # compared at most
_REFERENCE_BYTES = 1 << 28  # of float32 logits that are kept to compare with
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUESTIONS = ("Hello, how are you?", "Translate to French: good morning.", "What is 12 times 7?", "Write a short poem.")


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model.

    Args:
        folder: the folder that was written.
        base, revision: the model that was tuned.
        checkpoint: what was trained on top of it.
        method: how it was tuned.
        onto: ``base``, or over a quantized one ``dequantized`` or ``unquantized``: what the update was added to.
        candidates: each way that was measured, before its weights were rounded to ``dtype``.
        written: the folder as it is read back.
        tolerance: the largest ``written.relative`` that is accepted.
        rows: which rows were compared.
        changes: of the base since the training, which were allowed.
    """

    folder: str
    base: str
    revision: str | None
    checkpoint: str
    method: str
    onto: str
    candidates: dict[str, Closeness]
    written: Closeness
    tolerance: float
    rows: str
    dtype: str
    files: int
    bytes: int
    changes: list[dict[str, str]]

    def __str__(self) -> str:
        return (
            f"Wrote {self.folder}: {self.bytes / 1e6:,.1f} MB of {self.dtype}. "
            f"On {self.rows} its logits differ from the tuned model's by {self.written.relative:.1e}; "
            f"{self.tolerance:.1e} is allowed."
        )

    def _repr_html_(self) -> str:
        return paragraph(str(self))

    def to_json(self) -> dict[str, Any]:
        """Every field, the measurements as objects."""
        return asdict(self)


@library_call()
def merge(
    target: str | Path,
    out: str | Path,
    *,
    dtype: str = "auto",
    data: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    progress: bool = True,
    listener: Listener | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    allow_changes: str | Sequence[str] = (),
) -> Merged:
    """Writes a run, a checkpoint or an adapter folder as a model folder of plain weights.

    Args:
        target: a run stands for its last checkpoint.
        out: a new or empty folder.
        dtype: of the weights: float32, bfloat16, float16; auto: as the base is stored.
        data: rows to compare logits on; by default the run's held-out rows.
        max_shard_size: of one file of weights, such as ``5GB``.
        overwrite: replace a merged model that is there.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.
        model: the base, where it is not at the place that the run or adapter names.
        trust_remote_code: run code that comes with the model. What a run's own recipe says does not count.
        allow_changes: kinds of changes of the base since the training with which it is merged, such as ``["weights"]``.

    Raises:
        ExportError: nothing was tuned, the folder is taken, or the weights do not answer as the tuned model does.
        TunesmithError: the target or the rows cannot be read.
    """
    listener, to = heard_by(listener, progress), place_for(out)
    wanted = _dtype(dtype)
    _check_shard_size(max_shard_size)
    found = _find_tuned(str(target))
    plain_weights.check_free(to, overwrite=overwrite, inputs=[target, model, data, found.checkpoint])
    tuned = load(
        target, listener=listener, model=model, trust_remote_code=trust_remote_code, allow_changes=allow_changes
    )
    changes = [change.to_json() for change in tuned.changes]
    run_dtype = _held_in(tuned.model)
    wanted = wanted or _stored_dtype(tuned.folder) or run_dtype
    needed = plain_weights.size_of(tuned.model, wanted)
    plain_weights.check_room(to, needed)
    rows, said = _rows(tuned, data, listener)
    listener.say(f"comparing logits on {said}")
    reference = list(plain_weights.logits_of(tuned.model, rows))
    tolerances = [plain_weights.TOLERANCES[each] for each in _precisions(tuned, run_dtype)]
    plain, onto, candidates = _closest(tuned, reference, rows, listener)
    plain_weights.refuse_far(candidates[onto], max(tolerances), what="the merged model")
    facts, template, load_weights = _facts(tuned), tuned.template, tuned.load_plain
    del tuned  # its memory is for the weights that are read back
    gc.collect()
    with plain_weights.merged_folder(to, needed, overwrite=overwrite) as folder:
        plain_weights.write_weights(plain, folder, dtype=wanted, max_shard_size=max_shard_size)
        del plain
        save_text_side(template, folder)
        again = load_weights(folder=folder, dtype=run_dtype, added=NO_TOKENS)
        written = plain_weights.closeness(reference, again, rows)
        tolerance = max(plain_weights.TOLERANCES[wanted], *tolerances)
        plain_weights.refuse_far(written, tolerance, what=f"the model in {_name(wanted)}")
        files, size = plain_weights.sizes_in(folder)
        result = Merged(
            folder=str(to),
            base=found.base,
            revision=found.revision,
            checkpoint=str(found.checkpoint),
            method=facts["method"]["name"],
            onto=onto,
            candidates=candidates,
            written=written,
            tolerance=tolerance,
            rows=said,
            dtype=_name(wanted),
            files=files,
            bytes=size,
            changes=changes,
        )
        _describe(folder, result, facts)
    return result


def _find_tuned(target: str) -> ModelTarget:
    """What the target is. Raises ExportError for a plain model."""
    found = find_target(target)
    if found.checkpoint is None:
        raise ExportError(
            "there is nothing to merge",
            where=target,
            why="It is a plain model: nothing was trained on top of it.",
            remedy="Name a run, a checkpoint or an adapter folder.",
        )
    return found


def _closest(
    tuned: Tuned, reference: Sequence[Tensor], rows: Sequence[Sequence[int]], listener: Listener
) -> tuple[PreTrainedModel, str, dict[str, Closeness]]:
    """The plain weights whose logits are closest to the tuned model's, one candidate in memory at a time."""
    ways = _ways(tuned, listener)
    measured: dict[str, Closeness] = {}
    last, model = "", None
    for last, make in ways.items():
        model = None  # before the next one is made
        model = make()
        measured[last] = plain_weights.closeness(reference, model, rows)
    best, *others = sorted(measured, key=lambda name: measured[name].relative)
    if best != last:
        model = None
        model = ways[best]()
    assert model is not None
    for other in others:
        listener.say(
            f"kept: the adapter on the {best} base, whose logits are within {measured[best].relative:.2g} of the tuned "
            f"model's; on the {other} base {measured[other].relative:.2g}"
        )
    return model, best, measured


def _ways(tuned: Tuned, listener: Listener) -> dict[str, Callable[[], PreTrainedModel]]:
    """How the tuned model can become plain weights: each way makes them, by what the update is added to."""
    method, model = tuned.method, tuned.model
    assert method is not None
    parameters = sum(weights_in(parameter) for parameter in model.parameters())
    fits = budget.unquantized_base_fits(parameters, memory=memory.total_memory(tuned.device))
    quantized = not all(parameter.is_floating_point() for parameter in model.parameters())
    ways: dict[str, Callable[[], PreTrainedModel]] = {
        "dequantized" if quantized else "base": lambda: method.merge(model)
    }
    if quantized and was_stored_quantized(model):
        return ways  # there is no unquantized base
    if not isinstance(method, Lora) or not (quantized or _held_in(model) != torch.float32):
        return ways
    if not fits:
        if quantized:
            reason = "the unquantized base does not fit beside the tuned model"
            listener.say(f"{reason}, so only the dequantized one is tried")
        return ways
    # In float32, so that the sum of base and update is rounded once.
    onto_base = partial(_merged_onto, method, tuned)
    return {"unquantized": onto_base, **ways} if quantized else {"base": onto_base}


def _merged_onto(method: Lora, tuned: Tuned) -> PreTrainedModel:
    return method.merge_onto(tuned.load_plain(dtype=torch.float32), tuned.model)


def _rows(tuned: Tuned, data: str | None, listener: Listener) -> tuple[list[list[int]], str]:
    """Token ids to compare logits on, and what they are: given, held-out or training rows, or a few questions."""
    target, rows = tuned.target, None
    if data is not None or target.run is not None:
        try:
            rows = _read_rows(tuned, data)
        except TunesmithError as error:
            if data is not None:
                raise
            listener.warn(f"the run's rows cannot be read, so a few plain questions are compared: {error.what}")
    if rows is None:
        prompts = [tuned.template.prompt_ids([Message("user", text)]) for text in _QUESTIONS]
        return prompts, f"{len(prompts)} plain questions"
    room = max(_REFERENCE_BYTES // (4 * len(tuned.tokenizer)), 1)  # tokens whose logits are kept
    drawn = np.unique(np.linspace(0, len(rows[0]) - 1, _ROWS).round().astype(int))
    cut = [rows[0][int(number)].ids[:_ROW_TOKENS].tolist() for number in drawn]
    kept = [row[: max(room // len(cut), 1)] for row in cut]
    return kept, f"{len(kept)} {rows[1]}, {sum(map(len, kept)):,} tokens"


def _read_rows(tuned: Tuned, data: str | None) -> tuple[Any, str]:
    recipe = evaluation_recipe(tuned.target.recipe, str(tuned.target.checkpoint), data, [])
    if data is None and tuned.target.run is not None:
        refuse_stored_addresses(recipe, tuned.target.run.folder)
    survey = survey_rows(recipe.data, seed=recipe.training.seed)
    if data is not None:
        survey = only_held_out(survey)
    corpus = encode_corpus(survey, tuned.template)
    if len(corpus.held_out):
        return corpus.held_out, f"rows of {data}" if data is not None else "held-out rows"
    if not len(corpus.train):
        raise DataError("there is no row to compare logits on", where=data)
    return corpus.train, "training rows, as none were held out"


def _precisions(tuned: Tuned, run_dtype: torch.dtype) -> list[torch.dtype]:
    """The dtypes that the tuned model computes in."""
    assert tuned.method is not None
    quantization = tuned.method.load_options().get("quantization_config")
    compute = getattr(quantization, "bnb_4bit_compute_dtype", None)
    return [run_dtype, *([compute] if compute in plain_weights.TOLERANCES else [])]


def _held_in(model: nn.Module) -> torch.dtype:
    """The dtype of the base's own weights: of its embedding, which no method quantizes."""
    plain: Any = model
    if not isinstance(model, PreTrainedModel):  # an adapter's wrapper
        plain = plain.get_base_model()
    return next(plain.get_input_embeddings().parameters()).dtype


def _dtype(name: str) -> torch.dtype | None:
    if name == "auto":
        return None
    if name not in _DTYPES:
        names = ", ".join(_DTYPES)
        raise ExportError(f"{name!r} is no dtype to merge in", where="--dtype", remedy=f"Use {names} or auto.")
    return _DTYPES[name]


def _check_shard_size(text: str) -> None:
    from transformers.utils.hub import convert_file_size_to_int

    try:
        size = convert_file_size_to_int(text)
    except ValueError:
        size = 0
    if size <= 0:
        raise ExportError(
            f"{text!r} is not the size of a file", where="--max-shard-size", remedy="Write it as 5GB or 500MB."
        )


def _stored_dtype(base: Path) -> torch.dtype | None:
    """The dtype that the base's config.json names, if it is one that is written here."""
    config, _ = read_config(str(base))
    text = config.get("text_config") or {}
    named = next((each[key] for each in (config, text) for key in ("dtype", "torch_dtype") if each.get(key)), "")
    return _DTYPES.get(str(named).removeprefix("torch."))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _facts(tuned: Tuned) -> dict[str, Any]:
    """Facts for the model card: the method's settings, the run and its verdict."""
    target = tuned.target
    assert target.method is not None and target.checkpoint is not None
    method = target.method.model_dump(exclude_defaults=True, exclude={"adapter_sha256"}) | {"name": target.method.name}
    if "adapter_name_or_path" in method:  # a card is published: it names no folder of this machine
        method["adapter_name_or_path"] = Path(method["adapter_name_or_path"]).name
    facts: dict[str, Any] = {"method": method}
    facts["prompt"] = None if target.trained is None else target.trained.to_json()
    facts["hub"] = target.base.partition("@")[0] if kind(target.base) == "hub" else None
    if target.run is None:
        adapter = read_config_file(target.checkpoint)
        return facts | {"method": {"name": str(adapter.get("peft_type", "lora")).lower()}}
    status = target.run.status()
    facts |= {"run": target.run.folder.name, "training": target.recipe, "status": status}
    with suppress(RunError):  # a damaged ledger says no language, and merging does not need it
        facts["languages"] = languages_of(target.run)
    if (target.run.folder / "verdict.json").is_file():
        verdict = target.run.read_json("verdict.json")
        same = target.checkpoint.name == f"step-{int(verdict.get('step') or 0):06d}"
        facts |= {"verdict": verdict, "verdict_is_of_this": same}
    return facts


def _describe(folder: Path, result: Merged, facts: dict[str, Any]) -> None:
    verdict = facts.get("verdict")
    # The folder is given to others, so it names no path of this machine.
    names = {"folder": Path(result.folder).name, "checkpoint": Path(result.checkpoint).name}
    values = {**result.to_json(), **names, "base": facts.get("hub") or Path(result.base).name}
    record = {"tunesmith": version("tunesmith"), **values, "run": facts.get("run"), "verdict": verdict}
    record |= {"prompt": facts["prompt"]} if facts["prompt"] is not None else {}
    (folder / plain_weights.MARK).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(result.to_json(), facts), encoding="utf-8")
