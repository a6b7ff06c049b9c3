"""What a finished run keeps for the same rows, weights and decoding: it need not be measured again.

That is its answers, and if nothing else is asked of the held-out rows, its whole verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.evaluation.held_out_recipe import DURING
from tunesmith.evaluation.metrics.answers import needs_answers
from tunesmith.evaluation.not_measured import reasons_of
from tunesmith.evaluation.side_passes import SIDE_PASSES
from tunesmith.evaluation.task import Question
from tunesmith.model.generate import Generation
from tunesmith.recipe.methods import QUANTIZED, method_label
from tunesmith.recipe.settings import PAIR_METRICS, EvaluationSettings
from tunesmith.runs.drift import Fingerprint
from tunesmith.runs.environment import package_versions, source_digest
from tunesmith.runs.results import has_whole_result
from tunesmith.runs.samples import SAMPLES
from tunesmith.runs.stored_shapes import answer_lines, verdict_of
from tunesmith.workflows.judged_target import FoundTarget, JudgedTarget

_OF_THE_RUN = ("step", "selection", "advice", "base_model", "left_out")  # of a verdict
_DECODING = ("max_new_tokens", "do_sample", "temperature", "top_p", "batch_size")


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """The lines of a run's samples.jsonl, and what they were compared with.

    ``verdict`` is that of the run, and ``settings`` are those that it was made by.
    """

    file: Path
    step: int
    base_model: str | None
    verdict: Mapping[str, Any]
    settings: EvaluationSettings
    samples: list[dict[str, Any]]

    def of(self, side: Literal["base", "tuned"], questions: Sequence[Question]) -> list[Generation] | None:
        """One model's answers to these questions; None unless every one of them is there and whole."""
        found, lines = [], {(line["source"], line["prompt"], line["truth"]): line for line in self.samples}
        for question in questions:
            line = lines.get((question.source, question.prompt_text, question.truth))
            stopped = None if line is None else line.get(f"{side}_stopped")
            if line is None or line.get(side) is None or stopped is None or line.get(f"{side}_settled"):
                return None
            found.append(Generation(line[side], (), bool(stopped)))
        return found

    def verdict_for(self, asked: EvaluationSettings) -> dict[str, Any] | None:
        """The run's verdict without what is measured beside it; None if other things are asked of the held-out rows.

        A function of the user or a judge behind an endpoint may have changed, which no file of the run knows, and what
        was left out may be measured now: then it is None, too.
        """
        changeable = [name for name in (*asked.metrics, asked.compute_metrics or "") if ":" in name]
        changeable += [name for name in asked.metrics if name in PAIR_METRICS]
        if changeable or any(_part(key) not in SIDE_PASSES for key in reasons_of(self.verdict)):
            return None
        apart = {*SIDE_PASSES, *DURING}
        if self.settings.model_dump(exclude=apart) != asked.model_dump(exclude=apart) or not self.verdict["metrics"]:
            return None
        return {key: value for key, value in self.verdict.items() if key not in _OF_THE_RUN and key not in SIDE_PASSES}

    def beside(self, asked: EvaluationSettings, *, own_probe: bool) -> dict[str, Any]:
        """What the run measured beside its verdict and is asked for in the same way.

        Args:
            asked: what is asked for now.
            own_probe: whether the probe is that of the run's recipe, whose file is known to be the same.
        """
        missing = {_part(key) for key in reasons_of(self.verdict)}
        return {
            key: self.verdict[key]
            for key in SIDE_PASSES
            if key in self.verdict
            and key not in missing
            and getattr(asked, key) == getattr(self.settings, key)
            and (key != "probe" or own_probe or asked.probe is True)
        }

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
    verdict = verdict_of(run) or {}
    step = verdict.get("step")
    if not isinstance(step, int) or run.checkpoint(step).resolve() != checkpoint.resolve():
        return None
    then, now = recipe.evaluation, ready.judge.settings
    if then.do_sample or any(getattr(then, name) != getattr(now, name) for name in _DECODING):
        return None
    quantized = method_label(recipe.method) in QUANTIZED
    if quantized or not ready.tuned.device.startswith(str(recipe.model.device)) or _other_code(before):
        return None
    samples = answer_lines(run, SAMPLES)
    return KeptAnswers(run.folder / SAMPLES, step, verdict.get("base_model"), verdict, then, samples)


def wanted(settings: EvaluationSettings, questions: Sequence[Question]) -> Sequence[Question]:
    """The questions that have to be answered."""
    return questions if needs_answers(settings) else questions[: settings.samples]


def _part(key: str) -> str:
    """The measurement that a reason in ``left_out`` is of: ``divergence`` of ``divergence.general``."""
    return key.partition(".")[0]


def _other_code(before: Fingerprint) -> bool:
    versions = package_versions()
    code = {"tunesmith": versions.pop("tunesmith"), "the code of tunesmith": source_digest()}
    return dict(before.packages) != versions or dict(before.code) != code
