"""Chat templates of Tunesmith's own, for models whose template leaves out what the rows hold. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

# ChatML with functions in the system turn, calls as <tool_call> JSON and results as <tool_response>: the form that
# servers parse as "hermes".
_CHATML_TOOLS = """\
{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else '' %}
{%- if system or tools %}
    {{- '<|im_start|>system\\n' + system }}
    {%- if tools %}
        {{- ('\\n\\n' if system else '') + 'You can call these functions, each described in JSON:\\n<tools>' }}
        {%- for tool in tools %}
            {{- '\\n' + (tool | tojson) }}
        {%- endfor %}
        {{- '\\n</tools>\\nTo call a function, answer with its name and its arguments:\\n<tool_call>\\n' }}
        {{- '{"name": <name>, "arguments": <arguments>}\\n</tool_call>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message['content'] }}
        {%- for call in message['tool_calls'] or [] %}
            {{- '\\n' if message['content'] or not loop.first else '' }}
            {{- '<tool_call>\\n{"name": ' + (call['function']['name'] | tojson) + ', "arguments": ' }}
            {{- (call['function']['arguments'] | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message['role'] != 'system' or not loop.first %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CHATML_TOOLS = "chatml_tools"
PACKAGED = {CHATML_TOOLS: _CHATML_TOOLS}  # by the name that data.chat_template takes
_CHATML = ("<|im_start|>", "<|im_end|>")


def writes_tool_calls(folder: Path) -> bool | None:
    """Whether the template of a model's folder mentions tool calls; None if there is no template to read."""
    try:
        texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.jinja")]
        config = folder / "tokenizer_config.json"
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    except (OSError, ValueError, AttributeError):  # the tokenizer says what is wrong, when it is loaded
        return None
    texts += [found] if isinstance(found, str) else [str(each) for each in found or ()]
    return any("tool_calls" in text for text in texts) if texts else None


def knows_chatml(folder: Path) -> bool:
    """Whether the tokenizer of a model's folder has the tokens of ChatML."""
    try:
        found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        return set(_CHATML) <= {token["content"] for token in found}
    except (OSError, ValueError, KeyError, TypeError):
        return False
