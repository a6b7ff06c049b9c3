"""Model cards: of a run (model_card.md in its folder), and of a merged model (README.md beside its weights).

The block at the head of a card is what model hubs read (https://huggingface.co/docs/hub/model-cards), with the figures
of the verdict as a model-index. A card is published, so it names no folder of this machine and holds no secret.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCardData

from tunesmith.data.files.locations import HUB_ID
from tunesmith.deploy.report.run_facts import RunFacts
from tunesmith.evaluation.below_verdict import lines_below, slice_lines
from tunesmith.evaluation.headline import RATES, headline
from tunesmith.evaluation.wording import SIGNS, lower_is_better, sentence
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.plain_text import between
from tunesmith.safe_text import fenced, markdown_code, markdown_text, one_line, visible, without_known_secrets

ONTO = {
    "base": "the weights that it was trained over",
    "dequantized": "the values of the quantized base, dequantized: closer to the tuned model than the original weights",
    "unquantized": "the original, unquantized weights: closer to the tuned model than the dequantized ones",
}


PUBLISHED = {"smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}  # bundled: id, licence
_TASK = "text-generation"
_HUB_METRICS = {"macro_f1": "f1", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "json_field_f1": "f1"}


def run_card(facts: RunFacts) -> str:
    """The card of a run's result as Markdown. It depends on the files of the run alone."""
    recipe, verdict = facts.recipe, _published(facts.verdict)
    method = recipe.method.name
    name = _plain(facts.summary.name)
    adapter = method in ("lora", "qlora")
    base = recipe.model.path
    step = (facts.verdict or {}).get("step", facts.status.get("step"))
    head = _head(
        name,
        base=base,
        library="peft" if adapter else "transformers",
        relation="adapter" if adapter else "finetune",
        method=method,
        verdict=verdict,
        recipe=recipe,
        started_in=facts.status.get("started_in"),
        languages=facts.languages,
    )
    known = _known_base(base)
    shown = known or PurePath(base).name
    at = (
        ""
        if not isinstance(step, int)
        else f" These are the weights of step {step}, in {markdown_code(f'step-{step:06d}')}."
    )
    parts = [
        head,
        f"# {_text(name)}\n",
        f"**{_text(headline(verdict, facts.summary.status))}**\n",
        f"{_code(shown)}, fine-tuned with {method} and {recipe.objective.name} by Tunesmith.{at}\n",
        *_judged(verdict),
        *_broke(verdict),
        _use_of_run(name, shown, adapter=adapter),
        _training(recipe, recipe.method.model_dump(exclude_defaults=True) | {"name": method}, facts.status),
        *_rows(facts),
    ]
    return "\n".join(parts)


def model_card(merged: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The card of a merged model as Markdown.

    Args:
        merged: the fields of ``merge.Merged``.
        facts: ``method`` (its settings), ``hub`` (the base's hub id or None), and of a run ``run``, ``training`` (its
            recipe), ``status``, ``languages``, ``verdict`` and ``verdict_is_of_this``.
    """
    name, verdict = PurePath(merged["folder"]).name, _published(facts.get("verdict"))
    this = verdict if facts.get("verdict_is_of_this") else None
    recipe = facts.get("training")
    started_in = (facts.get("status") or {}).get("started_in")
    head = _head(
        _plain(name),
        base=facts.get("hub") or (recipe.model.path if recipe is not None else ""),
        library="transformers",
        relation="finetune",
        method=facts["method"]["name"],
        verdict=this,
        recipe=recipe,
        started_in=started_in,
        languages=facts.get("languages") or [],
    )
    parts = [
        head,
        f"# {_text(name)}\n",
        _origin(merged, facts),
        _use(merged),
        *([] if recipe is None else [_training(recipe, facts["method"], facts["status"])]),
        *_judged(verdict, of_step=None if facts.get("verdict_is_of_this") else (verdict or {}).get("step")),
        *_broke(this),
        _closeness(merged),
    ]
    return "\n".join(parts)


def _head(
    name: str,
    *,
    base: str,
    library: str,
    relation: str,
    method: str,
    verdict: Mapping[str, Any] | None,
    recipe: Recipe | None,
    started_in: str | None,
    languages: list[str],
) -> str:
    """The block that hubs read. What is not known is left out."""
    known = _known_base(base)
    sources = [] if recipe is None else recipe.data.sources("train")
    held_out = [] if recipe is None else recipe.data.sources("eval") or sources
    results = _results(verdict, held_out, started_in)
    data = ModelCardData(
        base_model=known,
        language=languages or None,
        datasets=_datasets(sources, started_in) or None,
        library_name=library,
        license=next((licence for _, (hub, licence) in PUBLISHED.items() if hub == known), None),
        pipeline_tag=_TASK,
        tags=["tunesmith", method],
        metrics=[*dict.fromkeys(each.metric_type for each in results)] or None,
        model_name=name if results else None,
        eval_results=results or None,
        base_model_relation=None if known is None else relation,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _known_base(base: str) -> str | None:
    """The hub id of a base; None for a folder or file of this machine. A run stores those as absolute paths."""
    if base in PUBLISHED:
        return PUBLISHED[base][0]
    found = HUB_ID.fullmatch(base)
    return found["repository"] if found else None


def _datasets(sources: Iterable[SourceSettings], started_in: str | None) -> list[str]:
    """The hub ids among the sources: what has the form of one and is not here."""
    return [
        found["repository"]
        for source in sources
        if (found := HUB_ID.fullmatch(source.path))
        and not PurePath(source.path).suffix
        and not Path(started_in or "", source.path).exists()
    ]


def _results(
    verdict: Mapping[str, Any] | None, held_out: list[SourceSettings], started_in: str | None
) -> list[EvalResult]:
    """The tuned model's figures on the held-out rows."""
    if verdict is None or not verdict["metrics"]:
        return []
    hub = _datasets(held_out, started_in)
    names = ", ".join(PurePath(source.path).name for source in held_out) or "the run's data"
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=hub[0] if hub else "private",
            dataset_name=_plain(f"{verdict['rows']} held-out rows of {names}"),
            metric_type=_HUB_METRICS.get(name, _plain(name)),
            metric_name=_plain(f"{name} (base {found['base']:.4g})"),
            metric_value=float(f"{found['tuned']:.6g}"),
        )
        for name, found in verdict["metrics"].items()
        if math.isfinite(found["tuned"])
    ]


def _published(verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The verdict with the names of files in the place of their paths."""
    if verdict is None:
        return None
    found = dict(verdict)
    found["metrics"] = {_name(name): values for name, values in verdict["metrics"].items()}
    for key in ("decided_by", "sliced_by", "data"):
        if isinstance(found.get(key), str):
            found[key] = _name(found[key])
    if found.get("cannot_tell"):
        found["cannot_tell"] = [_name(name) for name in found["cannot_tell"]]
    if found.get("slices"):
        found["slices"] = [
            {**each, "name": _name(each["name"]) if each["by"] == "source" else each["name"]}
            for each in found["slices"]
        ]
    if found.get("probe"):
        found["probe"] = {**found["probe"], "name": _name(found["probe"]["name"])}
    return found


def _name(path: str) -> str:
    return PurePath(path).name or path


def _plain(text: str) -> str:
    """A text on one line, without secrets and what cannot be seen."""
    return one_line(visible(without_known_secrets(" ".join(text.split()))))


def _text(text: str) -> str:
    return markdown_text(without_known_secrets(text))


def _code(text: str) -> str:
    return markdown_code(without_known_secrets(text))


def _origin(merged: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    base = facts.get("hub") or PurePath(merged["base"]).name
    revision = f" at revision {markdown_text(merged['revision'])}" if merged["revision"] else ""
    checkpoint = markdown_code(PurePath(merged["checkpoint"]).name) if facts.get("run") else ""
    run = f", from {checkpoint} of the run {markdown_code(facts['run'])}" if facts.get("run") else ""
    return (
        f"{markdown_code(base)}{revision}, fine-tuned with {facts['method']['name']}{run}. The update has been added "
        f"into {ONTO[merged['onto']]}, so these are plain weights in {merged['dtype']}: no adapter and no extra "
        "package.\n"
    )


def _use(merged: Mapping[str, Any]) -> str:
    name = json.dumps(PurePath(merged["folder"]).name, ensure_ascii=False)
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained({name}, dtype="auto")',
        f"tokenizer = AutoTokenizer.from_pretrained({name})  # has the chat template of the training",
    ]
    return "\n".join([*fenced(lines, "python"), ""])


def _use_of_run(name: str, base: str, *, adapter: bool) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    if adapter:
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f"model = AutoPeftModelForCausalLM.from_pretrained({quoted})  # the folder or hub id of the adapter",
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base, ensure_ascii=False)})",
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({quoted})  # the folder or hub id of these weights",
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base, ensure_ascii=False)})",
        ]
    return "\n".join(["## How to use\n", *fenced(map(without_known_secrets, lines), "python"), ""])


def _training(recipe: Recipe, method: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    training = recipe.training
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.num_train_epochs:g} epochs"
    settings = {key: _name(value) if key.endswith("path") and value else value for key, value in method.items()}
    settings.pop("adapter_sha256", None)
    rows = [
        ("data", _text(", ".join(PurePath(source.path).name for source in recipe.data.sources("train")))),
        ("objective", _text(recipe.objective.name)),
        ("method", _text(json.dumps(settings))),
        ("length", f"{length}, {status.get('total_steps', '?')} optimizer steps in all"),
        ("batch size", training.batch_size),
        ("learning rate", f"{recipe.learning_rate:g}, {training.lr_scheduler_type}"),
        ("seed", training.seed),
    ]
    return "\n".join(["## Training\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])


def _rows(facts: RunFacts) -> list[str]:
    """Where the rows went."""
    if facts.ledger is None:
        return []
    counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in facts.ledger["rows"].items() if count]
    return [f"Rows: {', '.join(counts)}.\n"]


def _judged(verdict: Mapping[str, Any] | None, *, of_step: int | None = None) -> list[str]:
    """The verdict with its metrics. ``of_step``: it is of this step, and not of these weights."""
    if verdict is None:
        return ["## Verdict\n\nNone: these weights were not judged against their base.\n"]
    if not verdict["metrics"]:
        return ["## Verdict\n", _text(f"{verdict['verdict']}: {verdict.get('reason')}") + "\n"]
    lines = ["## Verdict\n", _text(sentence(cast(Any, verdict))) + "\n"]
    if of_step is not None:
        lines.append(f"It is of step {of_step} of the run, not of the checkpoint that was merged.\n")
    lines += ["| metric | base | tuned | difference | interval | verdict |", "|---|---|---|---|---|---|"]
    for name, found in verdict["metrics"].items():
        figures = (
            f"{found['base']:.4g} | {found['tuned']:.4g} | {found['difference']:+.3g} | {between(found['interval'])}"
        )
        lower = " (lower is better)" if lower_is_better(name) else ""
        lines.append(f"| {_text(name)}{lower} | {figures} | {_text(str(found.get('verdict', '')))} |")
    return [*lines, ""]


def _broke(verdict: Mapping[str, Any] | None) -> list[str]:
    """Signs of damage, the probe, other changes of the answers, and the worst slices; none if nothing is known."""
    if verdict is None or not verdict["metrics"]:
        return []
    signs = []
    for each in verdict.get("damage") or []:
        what = f"answers that {SIGNS[each['kind']]}" if each["kind"] in SIGNS else "the loss"
        before, after = (
            f"{100 * each[of]:.1f}%" if each["kind"] in RATES else f"{each[of]:.4g}" for of in ("base", "tuned")
        )
        signs.append(f"{what}: {before} -> {after}{'' if each['evidence'] else ' (no evidence)'}")
    said = [line.strip() for line in [*lines_below(verdict), *slice_lines(verdict)]]
    found = [*signs, *said] or ["No sign of damage on the held-out rows. Other abilities were not asked for."]
    return ["## What it broke, and where it is worst\n", *(f"- {_text(line)}" for line in found), ""]


def _closeness(merged: Mapping[str, Any]) -> str:
    written = merged["written"]
    lines = [
        "## Merge\n",
        f"Compared with the tuned model as it ran, on {merged['rows']}: logits differ by {written['relative']:.2g} of "
        f"their spread (root mean square; accepted up to {merged['tolerance']:g}), by {written['largest']:.3g} at "
        f"most, and the likeliest token is the same at {written['agreement']:.2%} of the positions.\n",
    ]
    if len(merged["candidates"]) > 1:
        tried = ", ".join(f"{name} base {found['relative']:.2g}" for name, found in merged["candidates"].items())
        lines.append(f"Before rounding to {merged['dtype']}, each way to merge was measured: {tried}.\n")
    return "\n".join(lines)
