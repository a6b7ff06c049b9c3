"""Which tokens of a tree of labels are computed: enough for what is wanted, each once, and no more than must be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tunesmith.model.label_tree import LEFT_OUT, MARGIN, LabelSearch, LabelTree, Wanted

STOP = 0
LABELS = [[5, 6, STOP], [5, 6, 7, STOP], [5, 8, STOP], [9, STOP], [10, 11, 12, 13, 14, STOP], [10, 11, 12, STOP], [20]]


def searched(tree: LabelTree, logprobs: np.ndarray, wanted: Wanted) -> tuple[LabelSearch, list[list[int]]]:
    """A row that was searched to its end, and the nodes of each round. ``logprobs`` [U] are those of the nodes."""
    search, rounds = LabelSearch(tree, wanted), []
    while nodes := search.next():
        rounds.append(nodes)
        search.take(nodes, np.concatenate([logprobs[tree.children[node]] for node in nodes]))
    return search, rounds


def whole(tree: LabelTree, labels: Sequence[Sequence[int]], logprobs: np.ndarray) -> np.ndarray:
    """The log-probability of each label, from its own path."""
    found = []
    for node in tree.last:
        total = 0.0
        while node:
            total, node = total + logprobs[node], tree.parent[node]
        found.append(total)
    assert len(found) == len(labels)
    return np.array(found)


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max())
    return shares / shares.sum()


def random_tree(seed: int) -> tuple[list[list[int]], LabelTree, np.ndarray]:
    """Random labels, and log-probabilities of which those below one node add up to at most 1: sharp or flat ones."""
    random = np.random.default_rng(seed)
    labels = [[*random.integers(1, 4, random.integers(0, 6)).tolist(), STOP] for _ in range(random.integers(2, 40))]
    tree = LabelTree(labels)
    logprobs = np.zeros(len(tree.token))
    for children in tree.children:
        logits = np.append(random.normal(size=len(children)) * random.choice([0.1, 3.0, 12.0]), 0.0)
        logprobs[children] = (logits - np.logaddexp.reduce(logits))[:-1]
    return labels, tree, logprobs


@pytest.mark.parametrize("seed", range(40))
def test_a_search_finds_the_likeliest_label_and_probabilities_and_computes_no_token_twice(seed: int) -> None:
    labels, tree, logprobs = random_tree(seed)
    expected = whole(tree, labels, logprobs)
    for wanted in ("likeliest", "probabilities", "all"):
        search, rounds = searched(tree, logprobs, wanted)
        values, followed = search.values()
        computed = [node for nodes in rounds for node in nodes]
        assert len(set(computed)) == len(computed) <= tree.computed + 1 and computed[0] == 0
        assert search.line == computed[1:]
        np.testing.assert_allclose(values[followed], expected[followed], atol=1e-12)
        assert (values >= expected - 1e-12).all(), "what was not followed is bounded"
        ties = np.flatnonzero(expected >= expected.max() - 1e-12)
        assert np.flatnonzero(values >= values.max() - 1e-12).tolist() == ties.tolist()
        if wanted == "likeliest":
            assert (values[~followed] < values.max() - MARGIN).all()
        if wanted == "probabilities":
            assert np.abs(softmax(values) - softmax(expected)).max() <= 2 * LEFT_OUT
            assert np.exp(values[~followed]).sum() <= 2 * LEFT_OUT * np.exp(expected).sum()
        if wanted == "all":
            assert followed.all() and len(rounds) == 1


def test_the_likeliest_label_needs_only_its_own_tokens_where_the_model_is_sure() -> None:
    tree = LabelTree(LABELS)
    assert tree.computed == 10
    logprobs = np.full(len(tree.token), -6.0)
    node = tree.last[4]
    while node:
        logprobs[node], node = -0.01, tree.parent[node]
    search, rounds = searched(tree, logprobs, "likeliest")
    # The prompt; then 10, behind which 11 and 12 are the only ones that others follow; then 13 and 14.
    assert [len(nodes) for nodes in rounds] == [1, 3, 2]
    assert tree.token[search.line].tolist() == [10, 11, 12, 13, 14]
    values, followed = search.values()
    assert followed.tolist() == [False, False, False, False, True, True, True]
    np.testing.assert_allclose(values, [-6, -6, -6, -6, -0.06, -6.03, -6])


def test_every_token_that_was_computed_for_the_likeliest_label_had_to_be() -> None:
    for seed in range(40, 80):
        labels, tree, logprobs = random_tree(seed)
        best = whole(tree, labels, logprobs).max()
        search, rounds = searched(tree, logprobs, "likeliest")
        scores = {0: 0.0}
        for node in range(1, len(tree.token)):
            scores[node] = scores[int(tree.parent[node])] + logprobs[node]
        for nodes in rounds:
            if len(nodes) * 2 >= tree.computed - len(search.line):
                continue  # little was left: the rest of it at once
            needed = [scores[node] >= best - MARGIN - 1e-9 for node in nodes]
            single = [tree.single(int(tree.parent[node])) == node for node in nodes]
            assert all(one or other for one, other in zip(needed, single, strict=True))


def test_where_nothing_can_be_left_out_the_rest_of_the_tree_is_one_round() -> None:
    random = np.random.default_rng(3)
    labels = [[*random.integers(1, 200, 3).tolist(), STOP] for _ in range(30)]
    tree = LabelTree(labels)
    logprobs = np.full(len(tree.token), -5.0)
    search, rounds = searched(tree, logprobs, "probabilities")
    assert len(rounds) == 2 and len(search.line) == tree.computed
    assert search.values()[1].all()


def test_what_all_labels_begin_with_is_computed_with_the_prompt() -> None:
    tree = LabelTree([[7, 8, 1, STOP], [7, 8, 2, STOP], [7, 8, 3, STOP]])
    search = LabelSearch(tree, "likeliest")
    assert tree.token[search.next()].tolist() == [-1, 7, 8]


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_a_row_with_a_value_that_is_not_finite_ends_and_shows_it(bad: float) -> None:
    tree = LabelTree(LABELS)
    for wanted in ("likeliest", "probabilities", "all"):
        search, _ = searched(tree, np.full(len(tree.token), bad), wanted)
        assert not np.isfinite(search.values()[0]).any()
