"""Whether answers are as long as the truths."""

from __future__ import annotations

from tunesmith.evaluation.metrics.base import AnswerRows, RowMetric, RowScores, row_scores


class AnswerLength(RowMetric):
    """The shorter text's characters over the longer's: 1 where answer and truth are equally long, 0.5 at half or twice.

    Details: the mean characters of answers and truths.
    """

    name = "answer_length"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """From 0 to 1. White space around the texts does not count."""
        lengths = sorted((len(answer.strip()), len(truth.strip())))
        return lengths[0] / lengths[1] if lengths[1] else 1.0

    def scores(self, rows: AnswerRows) -> RowScores:
        """Every row, and the mean lengths."""
        of_rows = [self.score(*row) for row in zip(rows.answers, rows.truths, rows.prompts, strict=True)]
        found = row_scores(of_rows, rows.groups)
        means = {
            name: sum(len(text.strip()) for text in texts) / len(texts)
            for name, texts in (("answers", rows.answers), ("truths", rows.truths))
        }
        return RowScores(found.total, found.weight, found.groups, {self.name: {"mean_characters": means}})
