"""Is the verdict calibrated? Null runs and runs with a known small effect, through the same `compare` as real ones.

    python -m bench.verdict                       # a table in about a minute
    python -m bench.verdict --runs 2000 --json bench/results/verdict.json
    python -m bench.verdict --scores scores.npz   # row scores of a real run, from bench.verdict_scores

A population has scores of a base and a tuned model for each group of rows. Half of the null population is swapped: base
and tuned model change places, so that the true difference is exactly 0 in every metric, whatever the scores are. A
share of it is swapped for an effect, and the true difference is the metric of the whole population. A run draws groups
from it and is judged. Counted are, for each kind of metric, size and grouping: false "better" and "worse" (at most 2.5%
each), how often the 95% interval holds the true difference (95%), and how often an effect is found.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.metrics.base import ExtremesOf, RowScores, RowStatistics, Scores
from tunesmith.evaluation.metrics.classification import extremes_of_labels, macro_f1

SIZES = (20, 60, 200, 1000)  # groups of a run
SWAPPED = {"null": 0.5, "effect": 0.25}  # share of the population in which base and tuned model change places
LABELS = 5


@dataclass(frozen=True)
class Population:
    """Statistics of one metric: float64 [groups, rows of a group, k] of base and tuned model, and their value."""

    name: str
    base: np.ndarray
    tuned: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray] | None = None  # None: a ratio of two sums
    extremes_of: ExtremesOf | None = None

    def truth(self, swapped: float) -> float:
        """Tuned minus base over the whole population, some of it swapped."""
        before, after = (each.sum((0, 1)) for each in (self.base, self.tuned))  # [k] each
        mixed = [(1 - swapped) * one + swapped * other for one, other in ((before, after), (after, before))]
        found = [float(self._value(sums)) for sums in mixed]
        if self.name == "perplexity":
            found = [float(np.exp(each)) for each in found]
        return found[1] - found[0]

    def _value(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1] if self.of_sums is None else self.of_sums(sums)

    def draw(self, groups: int, swapped: float, random: np.random.Generator) -> tuple[Scores, Scores]:
        """Scores of a run: groups drawn with replacement, each swapped by chance."""
        drawn = random.integers(len(self.base), size=groups)
        swap = random.random(groups) < swapped  # [groups]
        pair = self.base[drawn], self.tuned[drawn]  # [groups, rows, k] each
        before, after = (np.where(swap[:, None, None], two, one) for one, two in (pair, pair[::-1]))
        rows = before.shape[1]
        numbers = np.repeat(np.arange(groups), rows) if rows > 1 else None
        return self._scores(before, numbers), self._scores(after, numbers)

    def _scores(self, statistics: np.ndarray, groups: np.ndarray | None) -> Scores:
        flat = statistics.reshape(-1, statistics.shape[-1])  # [rows, k]
        if self.of_sums is None:
            return RowScores(flat[:, 0], flat[:, 1], groups, counts=self.name == "token_accuracy")
        return RowStatistics(flat, self.of_sums, self.of_sums(flat), groups, extremes_of=self.extremes_of)


def simulated(rows: int, *, labels: int = LABELS, groups: int = 4000, seed: int = 0) -> Iterator[Population]:
    """Populations of every kind. Rows of a group share most of what makes them hard.

    Args:
        rows: of a group.
        labels: of macro F1. Rare ones have a share of the rows that falls with their rank (Zipf's law).
        groups: of the population.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    shape = groups, rows

    def latent(shared: float) -> np.ndarray:
        return shared * random.normal(size=(groups, 1)) + np.sqrt(1 - shared**2) * random.normal(size=shape)

    hard = latent(0.8)  # [groups, rows]
    own = [latent(0.6), latent(0.6)]
    better = [0.0, 0.35]  # the tuned model is a little better in every metric
    skill = [gain + 0.8 * each - hard for gain, each in zip(better, own, strict=True)]  # [groups, rows] each
    tokens = np.ceil(random.gamma(1.5, 20.0, size=shape))
    ones = np.ones(shape)

    def pair(of: Callable[[np.ndarray], np.ndarray], weight: np.ndarray) -> list[np.ndarray]:
        return [np.stack([of(each) * weight, weight], axis=-1) for each in skill]

    loss = pair(lambda each: np.exp(0.4 - 0.6 * each), tokens)  # heavy tails, as losses have
    yield Population("loss", *loss)
    yield Population("perplexity", *pair(lambda each: np.log1p(np.exp(0.5 - each)), tokens))
    yield Population("token_accuracy", *pair(lambda each: 1 / (1 + np.exp(-each)), tokens))
    yield Population("exact_match", *pair(lambda each: (each > 0.3).astype(float), ones))
    yield Population("rare_match", *pair(lambda each: (each > 2.2).astype(float), ones))
    yield Population("fields", *pair(lambda each: np.clip(np.rint(2 + 1.5 * each), 0, 4) / 4, ones))
    yield Population("unbounded", *pair(lambda each: np.exp(each), ones))
    one_hot = np.eye(labels)
    of_rank = 1 / np.arange(1, labels + 1)
    for name, shares in (("macro_f1", None), ("rare_labels_f1", of_rank / of_rank.sum())):
        true = random.choice(labels, size=shape, p=shares)
        guess = random.integers(labels, size=shape)
        of_labels = []
        for each in skill:
            answer = np.where(each > 0.0, true, guess)  # [groups, rows]
            right = (answer == true)[..., None]
            # Hits, false alarms and misses of each label: [groups, rows, 3 x labels].
            parts = [one_hot[true] * right, one_hot[answer] * ~right, one_hot[true] * ~right]
            of_labels.append(np.concatenate(parts, axis=-1))
        yield Population(name, *of_labels, macro_f1, extremes_of_labels)


def measured(file: Path) -> Iterator[Population]:
    """Populations of a real run's row scores. Groups are used as one row each, by their sums."""
    found = np.load(file)
    for key in (key for key in found.files if key.endswith(":base")):
        name = key.removesuffix(":base")
        yield Population(name, found[key][:, None], found[f"{name}:tuned"][:, None])


def judge(population: Population, groups: int, swapped: float, seed: int, resamples: int) -> dict[str, Any]:
    """One run's verdict of a metric."""
    random = np.random.default_rng([seed, groups, int(100 * swapped)])
    base, tuned = population.draw(groups, swapped, random)
    return of_pair(population.name, base, tuned, resamples=resamples, seed=seed)


def of_pair(name: str, base: Scores, tuned: Scores, *, resamples: int, seed: int) -> dict[str, Any]:
    """The verdict of one metric on the same rows."""
    ones = RowScores(np.arange(1.0, len(base) + 1), np.ones(len(base)), base.groups)  # a loss that is the same
    source = "loss" if name == "perplexity" else name
    scores = [{"loss": ones, source: each} for each in (base, tuned)]
    verdict = compare(*scores, metrics=[name], resamples=resamples, seed=seed)
    return dict(verdict["metrics"][name])


def table(populations: Mapping[str, Population], *, sizes: tuple[int, ...], runs: int, resamples: int) -> list[dict]:
    """A line for each population, size and condition."""
    lines = []
    for grouped, population in populations.items():
        lower = population.name in ("loss", "perplexity")
        for size in sizes:
            for condition, swapped in SWAPPED.items():
                began, truth = time.perf_counter(), population.truth(swapped)
                found = [judge(population, size, swapped, seed, resamples) for seed in range(runs)]
                covered = [each["interval"][0] <= truth <= each["interval"][1] for each in found]
                says = [each["verdict"] for each in found]
                right = "worse" if (truth > 0) == lower else "better"
                lines.append(
                    {
                        "metric": grouped,
                        "groups": size,
                        "condition": condition,
                        "truth": truth,
                        "better": says.count("better") / runs,
                        "worse": says.count("worse") / runs,
                        "power": says.count(right) / runs if condition == "effect" else None,
                        "coverage": sum(covered) / runs,
                        "predicted": float(np.median([each["detectable"] or np.nan for each in found])),
                        "seconds": round(time.perf_counter() - began, 2),
                    }
                )
    return lines


def main() -> None:
    """Prints the table, and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="runs of each line")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="groups of a run")
    parser.add_argument("--labels", type=int, default=LABELS, help="of macro F1")
    parser.add_argument("--scores", type=Path, help="row scores of a real run, instead of simulated ones")
    parser.add_argument("--only", nargs="+", help="names of metrics")
    parser.add_argument("--json", type=Path, help="the file to write")
    asked = parser.parse_args()
    if asked.scores is not None:
        populations = {each.name: each for each in measured(asked.scores)}
    else:
        populations = {each.name: each for each in simulated(1, labels=asked.labels)}
        populations |= {f"{each.name}, groups of 4": each for each in simulated(4, labels=asked.labels)}
    if asked.only:
        populations = {name: each for name, each in populations.items() if each.name in asked.only}
    lines = table(populations, sizes=tuple(asked.sizes), runs=asked.runs, resamples=asked.resamples)
    print("| metric | groups | condition | true difference | better | worse | power | coverage |")
    print("|---|---|---|---|---|---|---|---|")
    for line in lines:
        power = "" if line["power"] is None else f"{line['power']:.1%}"
        print(
            f"| {line['metric']} | {line['groups']} | {line['condition']} | {line['truth']:+.3g} | "
            f"{line['better']:.1%} | {line['worse']:.1%} | {power} | {line['coverage']:.1%} |"
        )
    nulls = [line for line in lines if line["condition"] == "null"]
    print(
        f"\nFalse better in null runs: {np.mean([line['better'] for line in nulls]):.2%} of {asked.runs * len(nulls):,}"
    )
    print(f"Largest of one line: {max(line['better'] for line in nulls):.1%}")
    print(f"Coverage: {np.mean([line['coverage'] for line in lines]):.2%}")
    if asked.json is not None:
        asked.json.write_text(json.dumps({"runs": asked.runs, "resamples": asked.resamples, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
