"""Answers that a finished run keeps, for the same rows, weights and decoding: they need not be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.evaluation.metrics.answers import needs_answers
from tunesmith.evaluation.task import Question
from tunesmith.model.generate import Generation
from tunesmith.recipe.methods import QUANTIZED, method_label
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.drift import Fingerprint
from tunesmith.runs.environment import package_versions, source_digest
from tunesmith.runs.results import has_whole_result
from tunesmith.runs.samples import SAMPLES
from tunesmith.runs.stored_shapes import answer_lines
from tunesmith.workflows.judged_target import FoundTarget, JudgedTarget

_DECODING = ("max_new_tokens", "do_sample", "temperature", "top_p", "batch_size")


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """The lines of a run's samples.jsonl by source, prompt and reference answer, and what they were compared with."""

    file: Path
    step: int
    base_model: str | None
    lines: Mapping[tuple[str, str, str], Mapping[str, Any]]

    def of(self, side: Literal["base", "tuned"], questions: Sequence[Question]) -> list[Generation] | None:
        """One model's answers to these questions; None unless every one of them is there and whole."""
        found = []
        for question in questions:
            line = self.lines.get((question.source, question.prompt_text, question.truth))
            stopped = None if line is None else line.get(f"{side}_stopped")
            if line is None or line.get(side) is None or stopped is None or line.get(f"{side}_settled"):
                return None
            found.append(Generation(line[side], (), bool(stopped)))
        return found

    def __str__(self) -> str:
        return f"{self.file}, of step {self.step}"


def kept_answers(found: FoundTarget, ready: JudgedTarget) -> KeptAnswers | None:
    """What the target's run keeps. None if it was judged otherwise than it is now, or if that is not known.

    It must be the checkpoint that the run judged on its own rows, with the same base, decoding, device, packages and
    code. Answers that were sampled or made by quantized weights are always made again.
    """
    run, recipe, checkpoint = found.target.run, found.target.recipe, found.target.checkpoint
    if run is None or recipe is None or checkpoint is None or found.data is not None or ready.changes:
        return None
    before = Fingerprint.read(run)
    finished = run.status().get("status") == "finished" and (run.folder / SAMPLES).is_file()
    if not finished or before is None or not has_whole_result(run):
        return None
    verdict = run.read_json("verdict.json")
    step = verdict.get("step")
    if not isinstance(step, int) or run.checkpoint(step).resolve() != checkpoint.resolve():
        return None
    then, now = recipe.evaluation, ready.judge.settings
    if then.do_sample or any(getattr(then, name) != getattr(now, name) for name in _DECODING):
        return None
    quantized = method_label(recipe.method) in QUANTIZED
    if quantized or not ready.tuned.device.startswith(str(recipe.model.device)) or _other_code(before):
        return None
    lines = {(line["source"], line["prompt"], line["truth"]): line for line in answer_lines(run, SAMPLES)}
    return KeptAnswers(run.folder / SAMPLES, step, verdict.get("base_model"), lines)


def wanted(settings: EvaluationSettings, questions: Sequence[Question]) -> Sequence[Question]:
    """The questions that have to be answered."""
    return questions if needs_answers(settings) else questions[: settings.samples]


def _other_code(before: Fingerprint) -> bool:
    versions = package_versions()
    code = {"tunesmith": versions.pop("tunesmith"), "the code of tunesmith": source_digest()}
    return dict(before.packages) != versions or dict(before.code) != code
