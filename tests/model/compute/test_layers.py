"""The decoder's layers are found by what they are, not by what they are called."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.model.architectures import FALL_BACK, NAMED, SHARE, tiny_config
from tests.tiny import config_for, tiny
from transformers import AutoModelForCausalLM

from tunesmith.model.compute.layers import decoder_layers, lowest_trained

EVERY = (*SHARE, *(name for names in FALL_BACK.values() for name in names))
# Whose list is not as long as num_hidden_layers says: a stack that is passed several times, a part of bytes and one of
# patches, layers of two attentions.
OTHERWISE = ("blt", "hrm_text", "longcat_flash")


def built(name: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in NAMED else [pytest.mark.slow]) for n in EVERY])
def test_every_architecture_has_its_list(name: str) -> None:
    model = built(name)
    layers = decoder_layers(model)
    assert layers is not None
    if name not in OTHERWISE:
        assert len(layers) == model.config.get_text_config().num_hidden_layers
    assert not re.search("audio|image|vision", next(name for name, own in model.named_modules() if own is layers))
    model.requires_grad_(False)
    layers[-1].requires_grad_(True)
    assert 0 < lowest_trained(model, layers) < len(layers) or len(layers) == 1


@pytest.mark.parametrize(
    ("part", "lowest"),
    [
        ("model.embed_tokens", 0),
        ("model.layers.2.mlp.up_proj", 2),
        ("model.layers.3", 3),
        ("model.norm", 4),
        ("lm_head", 4),
    ],
)
def test_the_gradient_passes_the_layers_above_what_trains(part: str, lowest: int) -> None:
    model = tiny(config_for("llama", num_hidden_layers=4, tie_word_embeddings=False)).requires_grad_(False)
    layers = decoder_layers(model)
    assert layers is not None and layers is model.model.layers
    assert lowest_trained(model, layers) == 4
    model.get_submodule(part).requires_grad_(True)
    assert lowest_trained(model, layers) == lowest
    model.model.norm.requires_grad_(True)
    assert lowest_trained(model, layers) == lowest


def test_a_tied_head_counts_where_it_is_used_first() -> None:
    model = tiny(config_for("llama", tie_word_embeddings=True)).requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert lowest_trained(model, model.model.layers) == 0
