"""The text side of a base model: its tokenizer, the added tokens, the stop ids, the chat template and the positions.

Training, `check`, `prepare`, `plan` and a loaded model all get them from here, so they see the same tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import ModelError
from tunesmith.recipe.data import DataSettings
from tunesmith.recipe.settings import ModelSettings
from tunesmith.runs.cache import Say, to_stderr

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from tunesmith.data.chat.template import ChatTemplate
    from tunesmith.model.weights.added_tokens import AddedTokens


@dataclass(frozen=True, slots=True)
class TextSide:
    """All that turns a recipe's rows into the tokens of its model.

    Args:
        folder: the base model's.
        config: the base model's, as transformers has it.
        tokenizer: with the recipe's tokens added.
        stop_ids: the ids that end an answer, those that the template adds to the model's own among them.
        template: the chat template of the run.
        added: the tokens that the recipe adds.
        data: the recipe's data section, with ``max_length`` at most the positions that the model has.
    """

    folder: Path
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    template: ChatTemplate
    added: AddedTokens
    data: DataSettings


def text_side(model: ModelSettings, data: DataSettings, *, say: Say) -> TextSide:
    """Finds the model of a recipe and loads its text side. The weights are not read.

    Args:
        say: takes a line for each thing that the recipe does not say itself.

    Raises:
        ModelError: there is no such model, its tokenizer does not work, or has tokens that the model does not know.
        RecipeError: the chat template cannot be read.
    """
    from tunesmith.model.weights.load import load_config, stop_ids
    from tunesmith.model.weights.resolve import resolve

    folder = resolve(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code, say=say)
    config = load_config(folder, trust_remote_code=model.trust_remote_code)
    tokenizer, added = tokenizer_of(folder, model)
    for note in added.notes():
        say(note)
    template = make_template(data, tokenizer, stop_ids(folder, tokenizer), model.named_tokens, say=say)
    text = config.get_text_config()
    rows = getattr(text, "vocab_size", None)
    if rows is not None:
        refuse_unknown_tokens(template, rows, added=added, where=folder)
    positions = getattr(text, "max_position_embeddings", None)  # a state-space model has none
    if positions is not None and data.max_length > positions:
        say(f"data.max_length: {data.max_length} -> {positions}, the positions that this model has")
        data = data.model_copy(update={"max_length": positions})
    return TextSide(folder, config, tokenizer, template.stop_ids, template, added, data)


def tokenizer_of(folder: Path, model: ModelSettings) -> tuple[PreTrainedTokenizerBase, AddedTokens]:
    """The tokenizer in a folder with the recipe's tokens added. Raises ModelError if that cannot be done."""
    from tunesmith.model.weights.added_tokens import extend
    from tunesmith.model.weights.load import load_tokenizer

    tokenizer = load_tokenizer(folder, trust_remote_code=model.trust_remote_code)
    return tokenizer, extend(tokenizer, model)


def make_template(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    added_tokens: Sequence[str] = (),
    *,
    say: Say = to_stderr,
) -> ChatTemplate:
    """The chat template of a run, with the date it prints fixed to the recipe's or to today's.

    Args:
        stop_ids: the model's own; the template may add one.
        say: takes a line if it does.
    """
    from tunesmith.data.chat.template import ChatTemplate

    date = date_of(settings)
    template = ChatTemplate(tokenizer, stop_ids=stop_ids, settings=settings, date=date, added_tokens=added_tokens)
    if template.stop_note is not None:
        say(template.stop_note)
    return template


def save_text_side(template: ChatTemplate, folder: Path) -> None:
    """Writes the tokenizer with its template beside weights or an adapter, and stop tokens that the template adds."""
    from tunesmith.model.weights.load import save_tokenizer

    template.apply_to(template.tokenizer)
    save_tokenizer(template.tokenizer, folder)
    if template.rules.stop_tokens:
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        settings["eos_token_id"] = list(template.stop_ids)
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def date_of(settings: DataSettings) -> str:
    """The date that templates print."""
    return settings.date or time.strftime("%Y-%m-%d")


def refuse_unknown_tokens(template: ChatTemplate, rows: int, *, added: AddedTokens, where: Path) -> None:
    """Raises ModelError if the tokenizer can make an id that the embedding has no row for.

    A special token that nothing uses is let through: Gemma 3's text models have one for images, beyond their rows. Text
    never becomes a special token (``data.control_tokens``), so only the template and the stop ids can use one.

    Args:
        rows: of the embedding.
        added: the tokens of the recipe, for which the embedding gets rows of its own.
    """
    tokenizer = template.tokenizer
    own = {*added.ids}
    beyond = {text: number for text, number in tokenizer.get_vocab().items() if number >= rows and number not in own}
    if not beyond:
        return
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    in_use = "".join([*template.rules.templates.values(), *map(str, filter(None, named))])
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {*template.stop_ids}
    wrong = [text for text, number in beyond.items() if number not in special or text in in_use]
    if wrong:
        raise ModelError(
            "the tokenizer has tokens that the model does not know",
            where=str(where),
            why=f"The highest token id is {max(beyond.values())}, the embedding has {rows} rows. "
            f"Without a row: {', '.join(sorted(wrong)[:5])}{' ...' if len(wrong) > 5 else ''}.",
            remedy="use the tokenizer that belongs to this model; to add tokens, name them in model.add_tokens.",
        )
