"""Which chat template a run uses: the recipe's, the tokenizer's, or the default for base models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For a base model, which has no template: the instruction format of Stanford Alpaca. A system text stands first,
# turns are a blank line apart, and an answer ends with the model's stop token. It knows no tools.
_DEFAULT = (
    "@BOS@{% if tools %}{{ raise_exception('the default template knows no tools') }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% if message['tool_calls'] %}{{ raise_exception('the default template knows no tool calls') }}{% endif %}"
    "{{ '### Response:\\n' + message['content'] + @STOP@ }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}{{ raise_exception('the default template knows no ' + message['role'] + ' turns') }}{% endif %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


def choose_templates(
    tokenizer: PreTrainedTokenizerBase, setting: str | None, *, stop_ids: Sequence[int]
) -> tuple[dict[str, str], str]:
    """The templates by name ("default" always; "tool_use" where the model has one), and where they come from.

    Args:
        setting: ``data.chat_template``: Jinja text, a file, or the name of one of the tokenizer's templates.

    Raises:
        RecipeError: the setting names no file.
        ModelError: the tokenizer has named templates and none is the default.
    """
    own = tokenizer.chat_template
    named: dict[str, str] = dict(own) if isinstance(own, dict) else {}
    if setting is not None:
        return {"default": named[setting] if setting in named else _read(setting)}, "recipe"
    if named and "default" not in named:
        names = ", ".join(sorted(named))
        raise ModelError(
            "the tokenizer has several chat templates and none is the default",
            why=f"found: {names}",
            remedy="name one of them in data.chat_template.",
        )
    if named:
        return {name: named[name] for name in ("default", "tool_use") if name in named}, "tokenizer"
    if isinstance(own, str) and own.strip():
        return {"default": own}, "tokenizer"
    return {"default": default_template(tokenizer, stop_ids=stop_ids)}, "default"


def default_template(tokenizer: PreTrainedTokenizerBase, *, stop_ids: Sequence[int]) -> str:
    """The instruction format for a model without a template.

    It begins with the tokenizer's beginning-of-text token where the tokenizer itself would add one. Its answers end
    with a token that generation stops on: the end-of-text token, or else the first stop token by its text.
    """
    bos = tokenizer.bos_token_id
    begins = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    if tokenizer.eos_token_id in stop_ids:
        stop = "eos_token"
    else:
        stop = repr(tokenizer.convert_ids_to_tokens(int(stop_ids[0])))
    return _DEFAULT.replace("@BOS@", "{{ bos_token }}" if begins else "").replace("@STOP@", stop)


def _read(setting: str) -> str:
    if "{%" in setting or "{{" in setting:
        return setting
    try:
        return Path(setting).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "the chat template cannot be read",
            where="data.chat_template",
            why=f"{setting}: {error.strerror if isinstance(error, OSError) else 'not UTF-8 text'}",
            remedy="give a file that holds a Jinja template, or the template's text itself.",
        ) from error
