"""The text side of a model: its chat template, and the positions that bound a row."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.recipe.data import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.chat.template import ChatTemplate


def make_template(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    added_tokens: Sequence[str] = (),
) -> ChatTemplate:
    """The chat template of a run, with the date it prints fixed to the recipe's or to today's."""
    from tunesmith.data.chat.template import ChatTemplate

    date = date_of(settings)
    return ChatTemplate(tokenizer, stop_ids=stop_ids, settings=settings, date=date, added_tokens=added_tokens)


def within_positions(settings: DataSettings, folder: Path) -> DataSettings:
    """``max_length`` at most the positions that the model in the folder has, as in a run."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads the model says what is wrong with it
        return settings
    limit = config.get("text_config", config).get("max_position_embeddings")
    if not isinstance(limit, int) or settings.max_length <= limit:
        return settings
    return settings.model_copy(update={"max_length": limit})


def date_of(settings: DataSettings) -> str:
    """The date that templates print."""
    return settings.date or time.strftime("%Y-%m-%d")
