"""The log-probability of each of k labels as the answer to each prompt: one tree a row.

Scored one by one, k labels read a prompt k times. Here all labels of a row are one tree behind its prompt. The prompt
is computed once, what labels begin with is computed once, and the last token of a label, which predicts nothing, is not
computed at all. What prompts begin with is computed once for all rows (beginnings_kept.py). A softmax over the whole
vocabulary is made once for each token of the tree that has another behind it.

The first row is computed both ways before the others. A model for which they differ scores labels one by one.

Shapes: k labels, U tokens of the tree, of which I have others behind them, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tunesmith.data.batches.layout import Edges, micro_batches
from tunesmith.errors import ModelError
from tunesmith.model.beginnings_kept import KeptBeginnings
from tunesmith.model.compute.agreement import ROUNDING, TOLERANCE
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.compute.logprobs import pass_logprobs, target_logprobs
from tunesmith.model.compute.rope import turns_within
from tunesmith.model.compute.slots import Feed, SlotCache, SlotPass
from tunesmith.model.continuous import ENTER_AT_ONCE, admits, position_limit, text_config
from tunesmith.model.decoding import Job, memory_faults
from tunesmith.model.modes import evaluation_mode, random_state_kept

_SLOTS = 8  # rows in one pass at most
_COMPARED = 2  # labels of the first row that are computed both ways


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt and a label, as a layout needs them."""

    ids: np.ndarray
    supervised: np.ndarray


class _LabelTree:
    """The labels as a tree, each of whose tokens is predicted by the one before it or by the end of the prompt.

    inner: [I] token ids of those with others behind them; parents: [I], the inner token before each, -1 for the prompt;
    before: [U], the same for all tokens; target: [U] their ids; paths: bool [k,U], the tokens of each label.
    """

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        runs = {tuple(label[:end]) for label in labels for end in range(1, len(label) + 1)}
        followed = {run[:-1] for run in runs} - {()}
        order = sorted(followed, key=lambda run: (len(run), run))  # a parent comes before its children
        place = {run: number for number, run in enumerate(order)} | {(): -1}
        nodes = {run: number for number, run in enumerate(sorted(runs))}
        self.inner = [run[-1] for run in order]
        self.parents = [place[run[:-1]] for run in order]
        self.before = np.array([place[run[:-1]] for run in nodes])
        self.target = np.array([run[-1] for run in nodes])
        self.paths = np.zeros((len(labels), len(nodes)))
        for number, label in enumerate(labels):
            self.paths[number, [nodes[tuple(label[:end])] for end in range(1, len(label) + 1)]] = 1


def label_logprobs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    on_rows: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The log-probability of each label behind each prompt, float64 [rows, k], in nats.

    A label's is the sum over its tokens. Labels of unequal length are comparable as answers if each ends with the stop
    token. The model's mode and the random state are what they were.

    Args:
        model: a causal model with our attention, or a PEFT model around one.
        prompts: token ids, exactly as the model is to see them.
        labels: token ids of each label, at least one each, with the stop token if the label is a whole answer.
        on_rows: called with the number of rows that were completed.

    Raises:
        ModelError: a prompt is empty or too long for the model, memory ran out, or a value is not finite.
    """
    check_labels(model, prompts, labels)
    longest = max(len(label) for label in labels)
    if not len(prompts):
        return np.empty((0, len(labels)))
    device = inner_model(model).device
    jobs = [Job(tuple(prompt), longest, [(number, 0)]) for number, prompt in enumerate(prompts)]
    told = on_rows or (lambda _: None)
    with memory_faults(jobs, _SLOTS), evaluation_mode(model), random_state_kept(device):
        found = _by_trees(model, jobs, labels, told) if admits(model, jobs) else None
        if found is None:
            found = _one_by_one(model, jobs, labels, told)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise ModelError(
            "The model's log-probabilities are not finite",
            where=f"prompt {row + 1}",
            why="Its logits overflowed (float16 has no room above 65504), or its weights are damaged.",
            remedy="Use model.dtype float32 or bfloat16; after training, lower training.learning_rate.",
        )
    return found


def check_labels(model: nn.Module, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> None:
    """Raises ModelError if a prompt is empty, or with the longest label too long for the model. Nothing is computed."""
    assert labels and all(len(label) for label in labels), "labels have tokens"
    longest, limit = max(len(label) for label in labels), position_limit(model)
    for number, prompt in enumerate(prompts, start=1):
        _check_length(number, len(prompt), longest, limit)


def _check_length(number: int, prompt: int, label: int, limit: int | None) -> None:
    if not prompt:
        raise ModelError("The prompt has no tokens", where=f"prompt {number}", remedy="Give at least one token.")
    if limit is not None and prompt + label > limit:
        raise ModelError(
            "A prompt and its longest label are longer than the model can read",
            where=f"prompt {number}",
            why=f"{prompt} tokens and {label} of the label are {prompt + label}; the model has {limit} positions.",
            remedy="Shorten the prompt or the label.",
        )


def _by_trees(
    model: nn.Module, jobs: Sequence[Job], labels: Sequence[Sequence[int]], told: Callable[[int], None]
) -> np.ndarray | None:
    """All rows over a cache of slots; None if the first row comes out different from its labels one by one."""
    tree = _LabelTree(labels)
    slots = min(_SLOTS, len(jobs))
    columns = max(len(job.prompt) for job in jobs) + len(tree.inner)
    cache = SlotCache(text_config(model), slots=slots, columns=columns)
    kept = KeptBeginnings(cache, slots)
    found = np.empty((len(jobs), len(labels)))
    order = sorted(range(len(jobs)), key=lambda number: jobs[number].prompt)
    done = 0
    while done < len(order):
        # 1. Rows that enter this pass, each behind the longest beginning that a slot has.
        lines: list[np.ndarray] = []
        feeds: list[Feed] = []
        size = 0
        for slot, number in enumerate(order[done : done + slots]):
            line = np.array(jobs[number].prompt)
            have = kept.enter(line, slot, lines)
            if have is None or (feeds and size + len(line) - have + len(tree.inner) > ENTER_AT_ONCE):
                break
            lines.append(line)
            feeds.append(_feed(slot, line, have, tree))
            size += len(feeds[-1].ids)
        # 2. One pass over the rests of their prompts and their trees.
        numbers = order[done : done + len(feeds)]
        found[numbers] = _pass(model, cache, feeds, tree) @ tree.paths.T
        for slot, line in enumerate(lines):
            kept.hold(slot, line)
        if not done and not _agrees(model, jobs[order[0]], labels, found[order[0]]):
            return None
        done += len(feeds)
        told(len(feeds))
    return found


def _feed(slot: int, line: np.ndarray, have: int, tree: _LabelTree) -> Feed:
    """The rest of a prompt and the inner tokens of the tree behind it."""
    rest = len(line) - have
    parents = [*range(-1, rest - 1), *(rest + parent if parent >= 0 else rest - 1 for parent in tree.parents)]
    return Feed(slot, have, [*line[have:].tolist(), *tree.inner], parents)


def _pass(model: nn.Module, cache: SlotCache, feeds: Sequence[Feed], tree: _LabelTree) -> np.ndarray:
    """The log-probability of each token of the tree in each row, float64 [rows,U]."""
    fed = SlotPass(feeds, inner_model(model).device)
    inner, rows = len(tree.inner), len(feeds)
    # 1. The tokens that predict others: the last of each prompt, then the inner tokens; I + 1 a row.
    positions = torch.tensor([index for end in fed.ends for index in range(end - inner - 1, end)], device=fed.device)
    # 2. One edge for each token of each tree, from the token before it.
    logit = np.concatenate([tree.before + 1 + row * (inner + 1) for row in range(rows)])
    edges = Edges(
        row=torch.arange(rows, device=fed.device).repeat_interleave(len(tree.target)),
        logit=torch.from_numpy(logit).to(fed.device),
        target=torch.from_numpy(np.tile(tree.target, rows)).to(fed.device),
        weight=torch.ones(len(logit), device=fed.device),
    )
    made = pass_logprobs(model, fed, cache, positions, edges)
    return made.double().cpu().numpy().reshape(rows, -1)


def _agrees(model: nn.Module, job: Job, labels: Sequence[Sequence[int]], found: np.ndarray) -> bool:
    """Whether some labels of a row, computed one by one, come out as found [k]: the longest, and the first."""
    chosen = sorted(range(len(labels)), key=lambda number: -len(labels[number]))[:_COMPARED]
    expected = _one_by_one(model, [job], [labels[number] for number in chosen], lambda _: None)[0]
    limit = TOLERANCE * max(ROUNDING, TOLERANCE * torch.finfo(inner_model(model).dtype).eps)
    return bool((np.abs(found[chosen] - expected) <= limit * np.abs(expected)).all())


def _one_by_one(
    model: nn.Module, jobs: Sequence[Job], labels: Sequence[Sequence[int]], told: Callable[[int], None]
) -> np.ndarray:
    """Each label behind each prompt as a row of its own."""
    device = inner_model(model).device
    found = np.zeros((len(jobs), len(labels)))
    alone = turns_within(model, [len(job.prompt) + job.new_tokens for job in jobs])
    for number, job in enumerate(jobs):
        rows = [
            _Row(np.array([*job.prompt, *label], np.int32), np.arange(len(job.prompt) + len(label)) >= len(job.prompt))
            for label in labels
        ]
        for batch in micro_batches(rows, budget=1 if alone else ENTER_AT_ONCE, layout="padded"):
            logprobs = target_logprobs(model, batch.to(device)).logprobs.double().cpu().numpy()
            np.add.at(found[number], batch.edges.row.numpy(), logprobs)
        told(1)
    return found
