"""A pass over slots: which columns a token of a tree sees, and that a tree fed in parts is the tree fed at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import config_for, tiny

from tunesmith.model.compute.slots import Feed, SlotCache, SlotPass
from tunesmith.model.continuous import forward

CPU = torch.device("cpu")
PROMPT = [30, 31, 32, 33, 34, 35, 36, 37]
TREE = [5, 6, 7, 8, 9, 10]
PARENTS = [-1, -1, 0, 0, 2, 1]


def test_tokens_behind_an_older_tree_see_the_prompt_their_ancestors_and_themselves() -> None:
    feed = Feed(0, 2, [8, 9, 10], PARENTS)
    assert (feed.there, feed.end) == (3, 8)
    fed = SlotPass([feed], CPU)
    assert fed.column.tolist() == [5, 6, 7] and fed.position_ids.tolist() == [[3, 4, 3]]
    (allowed,) = fed.mask(lambda batch, head, asking, asked: asked <= asking).allowed
    seen = [[index for index, one in enumerate(row) if one] for row in allowed[0].tolist()]
    # The prompt has columns 0 and 1, and the tree 2 to 7: 8 stands behind 5; 9 behind 7 and 5; 10 behind 6.
    assert seen == [[0, 1, 2, 5], [0, 1, 2, 4, 6], [0, 1, 3, 7]]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_tree_fed_in_parts_beside_other_trees_has_the_logits_of_one_pass(name: str) -> None:
    changes: dict[str, Any] = {"mistral": {"sliding_window": 4}, "gpt2": {"n_positions": 128}}.get(name, {})
    model = tiny(config_for(name, initializer_range=0.3, **changes))
    last = len(PROMPT) - 1
    with torch.no_grad():
        cache = SlotCache(model.config, slots=1, columns=20)
        behind = [*range(-1, last), *(last + 1 + parent for parent in PARENTS)]
        at_once = forward(
            model, SlotPass([Feed(0, 0, [*PROMPT, *TREE], behind)], CPU), cache, range(last + 1, last + 7)
        )
        cache = SlotCache(model.config, slots=3, columns=20)
        prompts = [Feed(0, 0, PROMPT), Feed(2, 0, PROMPT[:5])]
        forward(model, SlotPass(prompts, CPU), cache, [0])
        start = len(PROMPT)
        first = SlotPass([Feed(0, start, TREE[:3], PARENTS[:3]), Feed(2, 5, [5, 6], [-1, -1])], CPU)
        assert len(first.groups) == 1, "small trees are computed together"
        one = forward(model, first, cache, [0, 1, 2])
        second = SlotPass([Feed(2, 5, [9], [-1, -1, 0]), Feed(0, start, TREE[3:], PARENTS)], CPU)
        two = forward(model, second, cache, [1, 2, 3])
    torch.testing.assert_close(torch.cat([one, two]), at_once, rtol=1e-4, atol=1e-4)
