"""ROUGE-L as a metric, from the folder above: `evaluation: {metrics: ["examples/rouge_l.py:rouge_l"]}`."""

import re


def rouge_l(answer: str, truth: str) -> float:
    """F1 of the longest common subsequence of lower-case words (Lin 2004), without stemming; 0 where there is none."""
    found, expected = (re.findall(r"\w+", text.lower()) for text in (answer, truth))
    lengths = [0] * (len(expected) + 1)  # of the longest subsequence that both have so far, by words of the truth
    for word in found:
        before = lengths[:]
        for place, other in enumerate(expected):
            lengths[place + 1] = before[place] + 1 if word == other else max(before[place + 1], lengths[place])
    common = lengths[-1]
    return 2 * common / (len(found) + len(expected)) if common else 0.0
