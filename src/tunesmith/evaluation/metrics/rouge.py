"""ROUGE, by rouge-score: the words, pairs of words, or longest common sequence of words of answer and truth."""

from __future__ import annotations

import re
from typing import Literal

from tunesmith.evaluation.metrics.base import AnswerRows, RowMetric, Scores, needs_extra

RougeName = Literal["rouge1", "rouge2", "rougeL"]
# A run of letters and digits, or one character of a script that is written without spaces.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


class Rouge(RowMetric):
    """The mean over the rows of rouge-score's F1, without stemming.

    rouge-score's own tokenizer drops every letter but a to z. Ours gives the same words where there are no others.
    """

    def __init__(self, name: RougeName) -> None:
        needs_extra(name, "rouge_score")
        self.name = name

    def scores(self, rows: AnswerRows) -> Scores:
        """Every row by itself, from 0 to 1."""
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer([self.name], tokenizer=_Words())
        return super().scores(rows)

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """From 0 to 1. Two texts without words score 0."""
        return self._scorer.score(truth, answer)[self.name].fmeasure


class _Words:
    """A tokenizer of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())
