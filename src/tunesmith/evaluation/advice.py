"""What to try next, from what a run has measured. Each advice has its figure and a command; without a figure, none.

In a command, RUN stands for the folder of the run. This module does not import torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunesmith.evaluation.damage import rose
from tunesmith.evaluation.verdict import Advice
from tunesmith.evaluation.wording import SIGNS
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.samples import by_label, is_wrong, one_line
from tunesmith.runs.symptoms import Symptom, symptoms

OTHER_RUN = "output_dir=RUN-2"
LEAST_CUT, CUT_SHARE = 2, 0.02  # answers that are cut off, and their share of all
FEW_ROWS, LEAST_JUDGED = (
    10,
    3,
)  # rows of a label to train on, and held-out ones before its share of right answers counts
MOST_TIMES = 20  # so many times as many rows are worth naming


def advice(
    verdict: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    *,
    lines: Iterable[Mapping[str, Any]] = (),
    trained_labels: Mapping[str, int] | None = None,
) -> list[Advice]:
    """What to try next, the most certain first; empty where nothing was measured that calls for it.

    Args:
        verdict: as in verdict.json.
        samples: the lines of samples.jsonl.
        recipe: of the run.
        lines: of metrics.jsonl.
        trained_labels: rows that were trained on by label, where answers are labels.
    """
    found = {symptom.kind: symptom for symptom in symptoms(lines)}
    slower = [*_learning_rate(found.get("learning_rate"), recipe, 1 / 3), *_broken(verdict, samples, recipe)]
    return [
        *slower[:1],  # the same command for several reasons
        *_learning_rate(None if slower else found.get("flat"), recipe, 3.0),
        *_overfitting(found.get("overfitting"), verdict),
        *([] if slower else _forgetting(verdict, recipe)),
        *_cut_off(verdict, samples, recipe),
        *_contradictions(samples),
        *_few_of_a_label(samples, trained_labels or {}),
        *_few_rows(verdict),
    ]


def _learning_rate(found: Symptom | None, recipe: Recipe, times: float) -> Iterator[Advice]:
    """The training loss rises or does not fall: the rate is at the edge of what works."""
    if found is not None:
        command = (
            f"tunesmith train RUN/recipe.yaml training.learning_rate={recipe.learning_rate * times:.2g} {OTHER_RUN}"
        )
        yield Advice(reason=found.kind, text=_measured(found), command=command)


def _broken(verdict: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], recipe: Recipe) -> Iterator[Advice]:
    """Answers broke: they repeat themselves, or they do not end though the limit has room for the reference answers."""
    damage = {each["kind"]: each for each in verdict.get("damage", []) if each["evidence"]}
    repeated, endless = damage.get("repetition"), damage.get("unfinished")
    if verdict.get("verdict") != "worse" or _are_longer(samples, _cut(samples)):
        endless = None  # answers that got better may still need a lesson in how to end, or more room
    sign = repeated or endless
    if sign is not None:
        before, after = (round(sign[name] * sign["rows"]) for name in ("base", "tuned"))
        text = f"{after} of {sign['rows']} answers {SIGNS[sign['kind']]} (base: {before}): the learning rate "
        text += f"({recipe.learning_rate:.2g}) may be too high."
        command = f"tunesmith train RUN/recipe.yaml training.learning_rate={recipe.learning_rate / 3:.2g} {OTHER_RUN}"
        yield Advice(reason="damage", text=text, command=command)


def _overfitting(found: Symptom | None, verdict: Mapping[str, Any]) -> Iterator[Advice]:
    """The validation loss rose while the training loss fell, and the last step was judged."""
    if found is not None and "selection" not in verdict:
        command = f"tunesmith train RUN/recipe.yaml training.load_best_model_at_end=true {OTHER_RUN}"
        yield Advice(reason="overfitting", text=_measured(found), command=command)


def _forgetting(verdict: Mapping[str, Any], recipe: Recipe) -> Iterator[Advice]:
    """General text became less likely than it was for the base, by more than what may be harmless."""
    general = (verdict.get("divergence") or {}).get("general")
    if general is None or "left_out" in general or general["loss"]["verdict"] != "worse":
        return
    base, tuned = general["loss"]["base"], general["loss"]["tuned"]
    if rose("loss", base, tuned):
        text = f"General text became less likely: its loss rose from {base:.3g} to {tuned:.3g}, and predictions moved "
        text += f"by {general['kl']:.2g} nats per token from the base's. Lower the learning rate, or mix in general "
        text += "rows (docs/probe.md)."
        command = f"tunesmith train RUN/recipe.yaml training.learning_rate={recipe.learning_rate / 3:.2g} {OTHER_RUN}"
        yield Advice(reason="forgetting", text=text, command=command)


def _cut_off(verdict: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], recipe: Recipe) -> Iterator[Advice]:
    """Answers end at the limit. Either that is too low for the reference answers, or their end is not learned."""
    cut = _cut(samples)
    if len(cut) < _many(samples):
        return
    limit = recipe.evaluation.max_new_tokens
    if longer := _are_longer(samples, cut):
        text = f"{len(longer)} of {len(samples)} answers were cut off at {limit} tokens, shorter than the reference."
        yield Advice(reason="cut off", text=text, command=f"tunesmith eval RUN max_new_tokens={2 * limit}")
    elif any(each["kind"] == "unfinished" and each["evidence"] for each in verdict.get("damage", [])):
        text = f"{len(cut)} of {len(samples)} answers do not end within {limit} tokens, though the reference answers "
        text += "are shorter. See whether the end of an answer is learned."
        yield Advice(reason="unfinished", text=text, command="tunesmith check RUN/recipe.yaml --show 3")


def _cut(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in samples if not each["tuned_stopped"] and not each.get("tuned_settled")]


def _are_longer(samples: Sequence[Mapping[str, Any]], cut: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The answers that were cut off though the reference goes on, if they are more than a few."""
    longer = [each for each in cut if len(each["truth"]) > len(each["tuned"])]
    return longer if len(longer) >= _many(samples) else []


def _many(samples: Sequence[Mapping[str, Any]]) -> float:
    return max(LEAST_CUT, CUT_SHARE * len(samples))


def _contradictions(samples: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    """Wrong rows whose prompt has another reference answer in another row: nobody can have both right."""
    truths: dict[str, set[str]] = defaultdict(set)
    for each in samples:
        truths[each["prompt"]].add(each["truth"].strip())
    wrong = [each for each in samples if is_wrong(each)]
    torn = [each for each in wrong if len(truths[each["prompt"]]) > 1]
    if len(torn) >= LEAST_CUT:
        text = (
            f"{len(torn)} of {len(wrong)} wrong rows have a prompt to which another held-out row gives another answer, "
        )
        text += f"such as {torn[0]['source']}."
        yield Advice(reason="contradictions", text=text, command="tunesmith check RUN/recipe.yaml")


def _few_of_a_label(samples: Sequence[Mapping[str, Any]], trained: Mapping[str, int]) -> Iterator[Advice]:
    """The label that is wrong most often is right in half of its rows at most, and few rows taught it."""
    for label, right, rows in by_label(samples)[:1]:
        taught = trained.get(label)
        if taught is not None and rows >= LEAST_JUDGED and right <= rows / 2 and taught < FEW_ROWS:
            were = "row of it was" if taught == 1 else "rows of it were"
            text = f"The label {one_line(label)!r} is right in {right} of {rows} rows, and {taught} {were} "
            text += "trained on. Add rows of it."
            yield Advice(reason="few rows", text=text, command="tunesmith check RUN/recipe.yaml")


def _few_rows(verdict: Mapping[str, Any]) -> Iterator[Advice]:
    """A difference that was measured, but is smaller than what these rows show."""
    found = verdict["metrics"].get(verdict.get("decided_by"))
    if verdict.get("verdict") != "no evidence" or not found or not found.get("detectable") or not found["difference"]:
        return
    # Errors shrink with the root of the number of rows.
    times = (found["detectable"] / found["difference"]) ** 2
    if 1 < times <= MOST_TIMES:
        rows = math.ceil(times * found["rows"])
        text = (
            f"The difference of {found['difference']:+.2g} may be real: {found['rows']} rows show "
            f"{found['detectable']:.2g} or more, and about {rows:,} would show this one."
        )
        yield Advice(reason="few held-out rows", text=text, command="tunesmith eval RUN --data FILE")


def _measured(found: Symptom) -> str:
    """What the symptom says was measured, without its own advice."""
    text = found.text.split(". ")[0].rstrip(".")
    return f"{text[0].upper()}{text[1:]}."
