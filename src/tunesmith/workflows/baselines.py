"""The baselines of a run's verdict, from the rows that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from torch import nn

from tunesmith.data.chat.template import ChatTemplate, Encoded
from tunesmith.data.corpus import Corpus, encode_corpus
from tunesmith.data.report.findings import different_labels
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.baselines import Baselines, chosen
from tunesmith.evaluation.few_shot import KEY as FEW_SHOT
from tunesmith.evaluation.few_shot import FewShotPass, few_shot_pass
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.not_measured import BASELINES, NotMeasured
from tunesmith.evaluation.training_answers import training_pairs
from tunesmith.recipe.settings import BaselineName, Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener
from tunesmith.workflows.places import check_rows
from tunesmith.workflows.same_run import data_changes


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The rows that a run was trained on: their survey, and their tokens."""

    survey: Survey
    rows: Sequence[Encoded]
    examples: np.ndarray

    @classmethod
    def of(cls, survey: Survey, corpus: Corpus) -> TrainedOn:
        """Those of a run whose rows are at hand."""
        return cls(survey, corpus.train, corpus.train.examples)

    @property
    def are_labels(self) -> bool:
        """Whether the answers are labels, by the rule of `init`."""
        return different_labels(self.survey.scan) is not None


def rows_of_run(run: Run, stored: Recipe, template: ChatTemplate, listener: Listener) -> TrainedOn | None:
    """The rows that a run was trained on, read again. None where they cannot be had, which the listener hears."""
    try:
        check_rows(run, stored)
        survey = survey_rows(stored.data, seed=stored.training.seed, objective=stored.objective.name)
        if data_changes(run, survey):
            listener.warn("there are no baselines: the files that the run was trained on have changed since")
            return None
        return TrainedOn.of(survey, encode_corpus(survey, template, listener=listener))
    except TunesmithError as error:
        listener.warn(f"there are no baselines, as the rows that the run was trained on cannot be read: {error.what}")
        return None


@dataclass(frozen=True, slots=True)
class BaselinePass:
    """Makes the baselines of a verdict when it is called, once base and tuned model have answered.

    ``learned`` is None where there are none, and ``few_shot`` where nobody asks for it.
    """

    judge: Judge | None
    learned: TrainedOn | None
    few_shot: FewShotPass | None
    listener: Listener
    left_out: NotMeasured

    def after(self, base: AbstractContextManager[nn.Module]) -> AbstractContextManager[nn.Module]:
        """The context of the base, which also makes its answers for ``few_shot``, if that is asked for."""
        return base if self.few_shot is None else self.few_shot.after(base, self.left_out)

    def __call__(self) -> Baselines | None:
        judge, learned, listener = self.judge, self.learned, self.listener
        if judge is None or learned is None:
            return None
        settings, raw_text = judge.settings, learned.survey.scan.raw_text
        pairs = training_pairs(
            learned.rows,
            raw_text,
            judge.tokenizer,
            judge.stop_ids,
            are_labels=learned.are_labels,
            seed=settings.seed,
        )
        names, left_out = chosen(settings, pairs, [question.truth for question in judge.task.questions])
        for name, why in left_out.items():
            listener.say(f"the baseline {name} is left out: {why}")
            self.left_out.note(f"{BASELINES}{name}", why)
        lacks = FEW_SHOT in self.left_out.reasons  # its answers could not be made
        asked: list[BaselineName] = [each for each in names if not (lacks and each == "few_shot")]
        if not asked:
            return None
        if len(pairs.prompts) < pairs.total:
            listener.say(f"baselines learn from {len(pairs.prompts):,} of {pairs.total:,} training rows")
        listener.say(f"baselines: {', '.join(asked)}")
        made = {} if self.few_shot is None else {"few_shot": self.few_shot.texts}
        return Baselines(asked, pairs, settings, made, self.left_out, listener)


def baseline_pass(
    recipe: Recipe,
    judge: Judge | None,
    survey: Survey,
    learned: Callable[[], TrainedOn | None],
    *,
    template: ChatTemplate,
    model: nn.Module,
    listener: Listener,
    left_out: NotMeasured,
) -> BaselinePass:
    """The pass that a recipe asks for. Prompts of ``few_shot`` are made at once, so that a fault shows early.

    Args:
        recipe: what is asked for.
        judge: of the rows that are judged, of which ``survey`` is.
        learned: gives the rows to learn from, if they can be had.
        template: of the run.
        model: whose positions limit the prompts.
        listener: hears the progress.
        left_out: takes why one could not be measured.
    """
    evaluation = recipe.evaluation
    asked = evaluation.baselines != "none" and bool(evaluation.answer_metrics) and recipe.objective.name == "sft"
    rows = learned() if asked and judge is not None and judge.task.questions else None
    if rows is None or judge is None or "few_shot" not in evaluation.baselines:
        return BaselinePass(judge, rows, None, listener, left_out)
    few_shot = few_shot_pass(
        evaluation,
        judge.task,
        survey.scan,
        rows.examples,
        rows.survey.scan,
        are_labels=rows.are_labels,
        template=template,
        model=model,
        tokenizer=judge.tokenizer,
        stop_ids=judge.stop_ids,
        listener=listener,
    )
    return BaselinePass(judge, rows, few_shot, listener, left_out)
