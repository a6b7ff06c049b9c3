"""Turns validation errors into messages that name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tunesmith.errors import RecipeError
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.recipe.objectives import OBJECTIVE_SETTINGS
from tunesmith.recipe.other_names import OTHER_NAMES, meant, plain
from tunesmith.recipe.section import Settings
from tunesmith.recipe.settings import Recipe

Path_ = tuple[str | int, ...]  # the path of a key: ("data", "train", 0, "path")
# Sections with variants, selected by name: the settings of each variant, and the default variant.
VARIANTS: Mapping[str, tuple[Mapping[str, type[Settings]], str]] = {
    "method": (METHOD_SETTINGS, "lora"),
    "objective": (OBJECTIVE_SETTINGS, "sft"),
}


_QUOTES = (
    'Put the value into quotes, such as "{subject}: {body}"; in a command with other quotes around the argument: '
    "'data.columns.input=\"{subject}: {body}\"'."
)


def dotted(path: Path_) -> str:
    """``data.train[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def explain(error: ValidationError, raw: Any, origins: Mapping[Path_, str], place: str) -> RecipeError:
    """One message for all errors: the first one, followed by the others."""
    lines, first_where, remedies = [], None, []
    for item in _distinct(error.errors()):
        path, rest = _walk(raw, item["loc"])
        if item["type"] == "value_error":
            path = _named_key(item["msg"], path, origins)
        if item["type"] == "extra_forbidden":
            path_given = next((known for known in origins if known[: len(path)] == path), path)
        else:
            path_given = path
        where = line_of(path_given, origins) or place
        first_where = first_where or where
        text, remedy = _sentence(item, path, rest, raw)
        text, _, more = text.partition("\n")  # of a section's own message: what to do
        text, remedy = text.removeprefix(f"{where.removeprefix('flag ')}: "), remedy or more or None
        lines.append(text if where == first_where else f"{text} ({where})")
        remedies += [remedy] if remedy and remedy not in remedies else []
    return RecipeError(lines[0], where=first_where, why="\n".join(lines[1:]) or None, remedy=" ".join(remedies) or None)


def _distinct(items: Sequence[Any]) -> list[Any]:
    """One error per key. For a union, each member reports an error for the same value; they are joined.

    If a member reports an error inside the value, the value was meant for that member, and only its errors stay.
    """
    entered = {
        item["loc"][:end] for item in items for end in range(len(item["loc"]) - 1) if _is_union_tag(item["loc"][end:])
    }
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for item in items:
        of_union = _is_union_tag(item["loc"][-1:])
        if not (of_union and item["loc"][:-1] in entered):
            groups.setdefault(item["loc"][:-1] if of_union else item["loc"], []).append(item)
    merged = []
    for loc, members in groups.items():
        first = dict(members[0], loc=loc)
        if len(members) > 1:
            found = [*dict.fromkeys(_expectation(member) for member in members)]
            first["msg"] = " or ".join([found[0], *(each.removeprefix("expected ") for each in found[1:])])
        merged.append(first)
    return merged


def _is_union_tag(part: tuple[Any, ...]) -> bool:
    name = str(part[0]) if part else ""
    return name.startswith(("literal[", "list[", "dict[")) or name in ("float", "int", "str", "bool")


def _expectation(item: Any) -> str:
    if item["type"] == "too_short" and item["ctx"]["min_length"] == 1:
        return "expected a list that is not empty"
    return item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")


def _walk(raw: Any, loc: Sequence[str | int]) -> tuple[Path_, Path_]:
    """Splits pydantic's location, without union tags, into the path that the user wrote and the missing rest."""
    node, path = raw, []
    for position, part in enumerate(loc):
        if _holds(node, part):
            node = node[part]
            path.append(part)
        elif part in METHOD_SETTINGS or part in OBJECTIVE_SETTINGS or _is_union_tag((part,)):
            continue
        elif part != 0:  # index 0 belongs to a source that was given without a list
            return tuple(path), tuple(loc[position:])
    return tuple(path), ()


def _holds(node: Any, part: str | int) -> bool:
    if isinstance(node, Mapping):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)


def _named_key(message: str, section: Path_, origins: Mapping[Path_, str]) -> Path_:
    """The key that a message is about: the first key in the text that the user wrote, else the section."""
    for word in re.findall(r"[a-z_0-9.]+", message):
        path = (*section, *word.strip(".").split("."))
        if path in origins:
            return path
    return section


def line_of(path: Path_, origins: Mapping[Path_, str]) -> str | None:
    """Where a key, or the nearest section around it, was given, such as ``file:line``."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            origin = origins[path[:end]]
            return f"flag {dotted(path[:end])}" if origin == "flag" else origin
    return None


def _sentence(item: Any, path: Path_, rest: Path_, raw: Any) -> tuple[str, str | None]:
    key = dotted((*path, *rest))
    if item["type"] == "extra_forbidden":
        return _unknown_key(path, raw)
    if item["type"] == "missing":
        return f"`{key}` is missing", f"Add `{key}` to the recipe."
    if item["type"] == "union_tag_invalid":
        section = str(path[0])
        known = VARIANTS[section][0]
        close = difflib.get_close_matches(str(item["ctx"]["tag"]), known, n=1, cutoff=0.5)
        hint = f"Did you mean `{close[0]}`?" if close else None
        return f"`{key}`: there is no {section} `{item['ctx']['tag']}`; there are {', '.join(known)}", hint
    text = _expectation(item)
    if item["type"] == "value_error":  # for one value, or for a section, whose message names its keys
        return (text if isinstance(item["input"], (Mapping, BaseModel)) else f"`{key}`: {text}"), None
    if item["type"] == "string_type" and isinstance(item["input"], Mapping):  # `{subject}` without quotes is YAML's
        return f"`{key}`: expected a text, and braces without quotes are no text", _QUOTES
    return f"`{key}`: {text}, found {item['input']!r}", None


def _unknown_key(path: Path_, raw: Any) -> tuple[str, str | None]:
    section, name = path[:-1], str(path[-1])
    model = _settings_at(section, raw)
    variants, usual = VARIANTS.get(str(section[0]) if section else "", ({}, ""))
    owners = [variant for variant, settings in variants.items() if name in settings.model_fields]
    if len(section) == 1 and owners:
        kind = section[0]
        current = raw[kind].get("name", usual)
        return f"`{kind}.{name}` is a setting of {' and '.join(owners)}; the {kind} here is {current}", (
            f"Remove it, or set {kind}.name: {owners[0]}."
        )
    what, own = f"`{dotted(path)}` is not a setting", plain(name)
    if own in model.model_fields:
        return what, f"Did you mean `{own}`?"
    known = _known_key(own, str(section[0]) if section else "")
    if known is not None:
        return what, f"Did you mean `{known}`?"
    close = difflib.get_close_matches(own, model.model_fields, n=1, cutoff=0.6)
    if close:
        return what, f"Did you mean `{close[0]}`?"
    near = _near_key(own)
    hint = f"Did you mean `{near}`? " if near else ""
    return what, f"{hint}Known here: {', '.join(model.model_fields)}."


def key_meant(name: str) -> str | None:
    """The dotted key of the setting that a name probably means, such as ``training.learning_rate``; None: no idea."""
    section, _, last = plain(name).rpartition(".")
    if not section and last in Recipe.model_fields:
        return last
    return _known_key(last, section) or _near_key(last)


def _known_key(name: str, section: str) -> str | None:
    """The key of another tool's name, or of a setting of another section."""
    elsewhere = [dotted((known, name)) for known, names in _names().items() if name in names]
    return meant(name, section) if f"{section}.{name}" in OTHER_NAMES or not elsewhere else elsewhere[0]


def _near_key(name: str) -> str | None:
    """The key of any section that is spelled nearly like this."""
    everywhere = {field: section for section, names in _names().items() for field in names}
    close = difflib.get_close_matches(name, everywhere, n=1, cutoff=0.75)
    return f"{everywhere[close[0]]}.{close[0]}" if close else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes that a type names, such as SourceSettings in ``float | list[SourceSettings]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _sections() -> dict[str, type[BaseModel]]:
    """The sections without variants, with their settings."""
    fields = {name: field for name, field in Recipe.model_fields.items() if name not in VARIANTS}
    return {name: model for name, field in fields.items() for model in _models_in(field.annotation)}


def _names() -> dict[str, list[str]]:
    """The names of the settings of each section, of all its variants."""
    found = {section: list(settings.model_fields) for section, settings in _sections().items()}
    for section, (variants, _) in VARIANTS.items():
        found[section] = list(dict.fromkeys(name for settings in variants.values() for name in settings.model_fields))
    return found


def _settings_at(section: Path_, raw: Any) -> type[BaseModel]:
    """The settings class of a section; sources of data are in lists."""
    if not section:
        return Recipe
    name = str(section[0])
    if name in VARIANTS:
        variants, usual = VARIANTS[name]
        model: type[BaseModel] = variants.get(raw[name].get("name", usual), variants[usual])
    else:
        model = _sections()[name]
    for key in section[1:]:
        if isinstance(key, str):
            model = next(_models_in(model.model_fields[key].annotation), model)
    return model
