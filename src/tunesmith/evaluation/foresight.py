"""How large a difference the held-out rows can show, said before training."""

from __future__ import annotations

import math

from scipy import stats

from tunesmith.evaluation.intervals import least_groups
from tunesmith.evaluation.statistics import foreseen
from tunesmith.evaluation.task import Task
from tunesmith.evaluation.verdict import POWER
from tunesmith.evaluation.wording import few_rows_sentence, foreseen_sentence, held_out
from tunesmith.recipe.settings import CALIBRATION_METRICS, CORPUS_METRICS, TOKEN_METRICS, EvaluationSettings

ASSUMED = (0.1, 0.3)  # shares of answers that only one of the two models has right: unknown before both are measured


def foresight(task: Task, settings: EvaluationSettings) -> str:
    """What these rows can show of the metric that decides.

    For shares it is the power of McNemar's exact test, if so many answers change as ASSUMED says. The difference of a
    loss or of a metric of all rows together, such as BLEU, is given in standard deviations of the rows' differences.
    Rows of one group count as one, which is the worst case. With fewer groups than a verdict needs, none is possible.
    """
    metric = next(iter(task.metrics(settings.metrics)), "loss")
    of_tokens = metric in TOKEN_METRICS or metric == "reward_margin"
    if of_tokens or task.preferences is not None:
        numbers = task.groups[:: 1 if task.preferences is None else task.preferences.together]
    else:
        numbers = [question.group for question in task.questions]
    rows, groups = len(numbers), len(set(numbers))
    confidence = settings.confidence
    least = least_groups(confidence)
    if groups < least:
        return few_rows_sentence(rows, groups, least, confidence)
    if not of_tokens and metric not in (*CORPUS_METRICS, *CALIBRATION_METRICS):
        shown = {share: foreseen(groups, confidence, share) for share in ASSUMED}
        return foreseen_sentence(metric, rows, groups, shown, confidence)
    sizes = (stats.norm.isf((1 - confidence) / 2) + stats.norm.ppf(POWER)) / math.sqrt(groups)
    return (
        f"{held_out(rows, groups)} can show a difference in {metric} of {sizes:.2g} standard deviations of the rows' "
        f"differences ({100 * POWER:.0f} times in 100, at {100 * confidence:g}% confidence)"
    )
