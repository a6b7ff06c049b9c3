"""What else changed in the answers on held-out rows: refusals, length, and text that is copied from training rows.

It is measured on the answers alone, without a model. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.memorised import CopySearch, longest_runs
from tunesmith.evaluation.metrics.base import row_scores
from tunesmith.evaluation.refusals import refuses
from tunesmith.evaluation.statistics import widened_tail

LEAST_ROWS = 20  # answers; fewer say nothing
COPIED_SHARE = 0.5  # of an answer's words in one run from a training row: then it is copied
EXAMPLES, LONGEST_TEXT = 5, 200  # that are kept, and the characters of each
_COUNTS_AT_A_TIME = 1 << 21


def side_effects(
    samples: Sequence[Mapping[str, Any]], training: Iterable[tuple[str, str]] | None, level: Level
) -> dict[str, Any] | None:
    """Refusals, length and copies of both models' answers; None if there are too few.

    Args:
        samples: lines of samples.jsonl: source, prompt, truth, base and tuned. Rows with one prompt belong together.
            Rows with an answer that was left unfinished on purpose (``base_settled``, ``tuned_settled``) are left out.
        training: (source, text) of each training answer; None if they are not known. Then copies are not measured.
        level: how sure the intervals must be.

    Returns:
        ``{rows, refusals, length}``, and ``copied`` if ``training`` is given. Each has base, tuned, difference,
        interval and changed: whether there is evidence of a change.
    """
    samples = [each for each in samples if not each.get("base_settled") and not each.get("tuned_settled")]
    if len(samples) < LEAST_ROWS or "base" not in samples[0]:
        return None
    groups = np.unique([sample["prompt"] for sample in samples], return_inverse=True)[1]  # [rows]
    texts = {name: [sample[name] for sample in samples] for name in ("base", "tuned", "truth", "prompt", "source")}
    refused = {name: np.array([refuses(text) for text in texts[name]]) for name in ("base", "tuned")}
    found = {
        "rows": len(samples),
        "refusals": _shares(refused["base"], refused["tuned"], groups, level),
        "length": _lengths(texts, groups, level),
    }
    if training is not None:
        found["copied"] = _copied(texts, training, groups, level)
    return found


def _shares(base: np.ndarray, tuned: np.ndarray, groups: np.ndarray, level: Level) -> dict[str, Any]:
    """Two shares of answers (bool [rows] each), compared row by row."""
    before, after = (row_scores(each, groups) for each in (base, tuned))  # type: ignore[arg-type]
    found = compare_alone("share", before, after, level)
    kept = {name: found[name] for name in ("base", "tuned", "difference", "interval", "p_value")}
    return {**kept, "changed": found["verdict"] in ("better", "worse")}


def _lengths(texts: Mapping[str, Sequence[str]], groups: np.ndarray, level: Level) -> dict[str, Any]:
    """Median characters of an answer, with a paired bootstrap of their difference."""
    lengths = {name: np.array([len(text.strip()) for text in texts[name]]) for name in ("base", "tuned", "truth")}
    numbers = np.unique(groups, return_inverse=True)[1]  # [rows]
    count = int(numbers.max()) + 1
    random, made = np.random.default_rng(level.seed), []
    chunk = max(1, _COUNTS_AT_A_TIME // len(numbers))
    for start in range(0, level.resamples, chunk):
        resamples = min(chunk, level.resamples - start)
        # How often each resample has each group, then each row: [resamples, groups] -> [resamples, rows].
        drawn = random.integers(count, size=(resamples, count)) + np.arange(resamples)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count)[:, numbers]
        made.append(_medians(lengths["tuned"], times) - _medians(lengths["base"], times))
    tail = widened_tail((1 - level.confidence) / 2, count)
    low, high = np.quantile(np.concatenate(made), [tail, 1 - tail]).tolist()
    medians = {name: float(np.median(each)) for name, each in lengths.items()}
    return {
        **medians,
        "difference": medians["tuned"] - medians["base"],
        "interval": [low, high],
        "changed": low > 0 or high < 0,
    }


def _medians(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The lower median of values [rows] in each resample, where times [resamples, rows] says how often each counts."""
    order = np.argsort(values, kind="stable")
    reached = times[:, order].cumsum(axis=1)  # [resamples, rows]
    middle = (reached[:, -1:] + 1) // 2
    return values[order][(reached >= middle).argmax(axis=1)].astype(np.float64)


def _copied(
    texts: Mapping[str, Sequence[str]], training: Iterable[tuple[str, str]], groups: np.ndarray, level: Level
) -> dict[str, Any]:
    rows = len(texts["tuned"])
    # One pass over the training answers looks for the runs of both models.
    search = longest_runs([*texts["base"], *texts["tuned"]], [*texts["truth"]] * 2, [*texts["prompt"]] * 2, training)
    base, tuned = _is_copied(search, 0, rows), _is_copied(search, rows, rows)
    measured = sum(search.measured[rows:])
    runs = [(run, texts["source"][number]) for number, run in enumerate(search.runs[rows:]) if run is not None]
    runs.sort(key=lambda each: (-each[0].words, each[1]))
    return {
        **_shares(base, tuned, groups, level),
        "measured": measured,
        "training_answers": search.training_answers,
        "examples": [
            {
                "source": source,
                "training_row": run.source,
                "words": run.words,
                "share": run.share,
                "text": run.text[:LONGEST_TEXT],
            }
            for run, source in runs[:EXAMPLES]
        ],
    }


def _is_copied(search: CopySearch, start: int, rows: int) -> np.ndarray:
    """Whether each answer is copied, bool [rows]."""
    runs = search.runs[start : start + rows]
    return np.array([run is not None and run.share >= COPIED_SHARE for run in runs])
