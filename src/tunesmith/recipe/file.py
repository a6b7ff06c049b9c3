"""Reads a recipe from YAML 1.2 and ``key=value`` overrides. Errors have file and line, and each value its source."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from tunesmith.errors import RecipeError
from tunesmith.recipe import aliases
from tunesmith.recipe.complaints import Path_, dotted, explain, line_of
from tunesmith.recipe.paths import local
from tunesmith.recipe.precedence import replaced
from tunesmith.recipe.section import Settings
from tunesmith.recipe.settings import Recipe
from tunesmith.recipe.yaml_limits import MOST_CHARACTERS, YamlRefused, refuse_bombs

MARKS = ("|", ",", "\t")  # values that are no YAML by themselves
LONGEST_QUOTED = 1000  # characters of a value that a remedy repeats
SHORT_FOR: Mapping[Path_, str] = {  # where a text can stand for a mapping, and the key that has the text
    ("model",): "path",
    ("method",): "name",
    ("objective",): "name",
    ("data", "train"): "path",
    ("data", "eval"): "path",
    ("data", "test"): "path",
}


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe and the sources of its values.

    ``origins`` maps the path of a key to ``file:line`` or ``flag``. ``notes`` has a note for each setting that has
    another name in the file. ``folder`` is that of the file; the current one if there is no file.
    """

    recipe: Recipe
    origins: Mapping[Path_, str]
    notes: Mapping[Path_, str]
    folder: Path

    def origin(self, path: Path_) -> str:
        """The source of a value: ``file:line``, ``flag`` or ``default``, with the note on its other name, if any."""
        source = self._source(path)
        return f"{source} ({self.notes[path]})" if path in self.notes else source

    def _source(self, path: Path_) -> str:
        if path in self.origins:
            return self.origins[path]
        # `model: x`, `method: x`, `train: x` and `train: [x]` are short for mappings
        if path[-1] == "path" or path == ("method", "name"):
            section = path[:-1]
            while section and section not in self.origins and isinstance(section[-1], int):
                section = section[:-1]
            deeper = [known for known in self.origins if known != section and known[: len(section)] == section]
            if section in self.origins and all(self.origins[known] == "flag" for known in deeper):
                return self.origins[section]
        return "default"


def read_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Reads a recipe from a YAML file or a mapping, or takes it as it is, and applies ``section.key=value`` overrides.

    Settings can have the other names of ``aliases.py``. An override replaces the keys of the recipe that say the same
    thing, and a note says so; ``section.key=null`` leaves the key out.

    Raises:
        RecipeError: with file and line, if the text is not YAML, or a key is given twice, unknown, of another type or
            contradictory.
    """
    notes: dict[Path_, str] = {}
    folder = Path.cwd()
    if isinstance(source, Recipe):
        raw: dict[str, Any] = source.model_dump(exclude_unset=True, context={"addresses": True})
        raw.setdefault("method", {})["name"] = source.method.name
        place, origins = "recipe", {}
    elif isinstance(source, Mapping):
        raw, place, origins = _plain(source), "recipe", {}
    else:
        place = str(source)
        raw, origins = _read_yaml(Path(local(source)))
        folder = Path(local(source)).parent.absolute()
    _rename(raw, origins, notes, place)
    asked = _parsed(overrides, notes)
    _drop_replaced(raw, asked, origins, notes, place)
    for path, value, override in asked:
        if value is None and _leaves_out(path, override):
            _forget(raw, path)
        else:
            _put(raw, path, value, override)
        for old in [known for known in origins if known[: len(path)] == path]:
            del origins[old]
        origins[path] = "flag"
        origins.update(dict.fromkeys(_below(value, path), "flag"))
    try:
        return LoadedRecipe(Recipe.model_validate(raw), origins, notes, folder)
    except ValidationError as error:
        raise explain(error, raw, origins, place) from None


def _rename(raw: dict[str, Any], origins: dict[Path_, str], notes: dict[Path_, str], place: str) -> None:
    """Moves every setting that has another name to its own name."""
    try:
        found = aliases.renamed(raw)
    except ValueError as error:
        said, name = error.args
        raise RecipeError(said, where=line_of(name, origins) or place) from None
    for name, setting in found:
        where = origins.pop(name, None)
        raw[name[0]].pop(name[1])
        if setting.name is None:
            continue
        before = _get(raw, setting.name)
        if before is not None and before != setting.value:
            raise RecipeError(
                f"{dotted(name)} and {dotted(setting.name)} say the same thing: give one of them",
                where=where or place,
                why=f"They are {setting.value!r} and {before!r}.",
            )
        _put(raw, setting.name, setting.value, dotted(name))
        if where is not None:
            origins.setdefault(setting.name, where)
        if setting.note is not None:
            notes[setting.name] = setting.note


def _parsed(overrides: Sequence[str], notes: dict[Path_, str]) -> list[tuple[Path_, Any, str]]:
    """The overrides as (path, value, text), under the settings' own names. Those that change nothing are left out.

    Raises RecipeError if two names of one setting are given with different values.
    """
    found: list[tuple[Path_, Any, str]] = []
    for override in overrides:
        given, value = parse_override(override)
        try:
            setting = aliases.canonical(tuple(map(str, given)), value)
        except ValueError as error:
            raise RecipeError(str(error), where=override) from None
        if setting.name is None:
            continue
        for path, before, text in found:
            name = text.partition("=")[0].strip()
            if path == setting.name and name != dotted(given) and before != setting.value:
                raise RecipeError(
                    f"{name} and {dotted(given)} say the same thing: give one of them",
                    where=override,
                    why=f"They are {before!r} and {setting.value!r}.",
                )
        notes.pop(setting.name, None)
        if setting.note is not None:
            notes[setting.name] = setting.note
        found.append((setting.name, setting.value, override))
    return found


def _drop_replaced(
    raw: dict[str, Any],
    asked: Sequence[tuple[Path_, Any, str]],
    origins: dict[Path_, str],
    notes: dict[Path_, str],
    place: str,
) -> None:
    """Removes the recipe's keys that an override replaces. Overrides that contradict each other are refused later."""
    given = [path for path, _, _ in asked]
    for path, value, _ in asked:
        for other in list(replaced(path, value, raw)):
            if any(other[: len(each)] == each for each in given):
                continue
            before = _plain_text(_get(raw, other))
            note = f"{dotted(path)} replaces {dotted(other)}: {before} of {line_of(other, origins) or place}"
            notes[path] = f"{notes[path]}; {note}" if path in notes else note
            _forget(raw, other)
            for old in [known for known in origins if known[: len(other)] == other]:
                del origins[old]


def _plain_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _leaves_out(path: Path_, override: str) -> bool:
    """Whether ``key=null`` leaves a key out. Without a value it may be a mistake, such as an empty shell variable."""
    return len(path) <= 2 and bool(override.partition("=")[2].strip())


def _forget(raw: dict[str, Any], path: Path_) -> None:
    section = _get(raw, path[:-1])
    if isinstance(section, dict):
        section.pop(path[-1], None)


def _get(raw: Any, path: Path_) -> Any:
    for part in path:
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every value written out; reading it back gives an equal recipe."""
    return _to_yaml(portable(recipe))


def dump_section(name: str, settings: Settings) -> str:
    """One section as YAML, with only the values that were given."""
    return _to_yaml({name: settings.model_dump(mode="json", exclude_unset=True)})


def _to_yaml(values: Mapping[str, Any]) -> str:
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[attr-defined]
    yaml.width = 4096
    yaml.dump(values, stream)
    return stream.getvalue()


def portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values that read back as an equal recipe. Settings with two forms have only one of them."""
    values = recipe.model_dump(mode="json")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        values["training"].pop(name)  # batch_size says it
    training = values["training"]
    training.pop("num_train_epochs" if training["max_steps"] is not None else "max_steps")  # giving both is refused
    for kind in ("logging", "eval", "save"):
        if values["training"][f"{kind}_strategy"] != "steps":
            values["training"].pop(f"{kind}_steps")
    for split in ("train", "eval", "test"):
        sources = getattr(recipe.data, split)
        if isinstance(sources, list):  # a source keeps only its own values, not the defaults of the section
            values["data"][split] = [source.model_dump(mode="json", exclude_unset=True) for source in sources]
    if not values["method"].get("load_in_8bit"):
        for name in ("llm_int8_threshold", "llm_int8_skip_modules"):
            values["method"].pop(name, None)  # refused without it
    if values["data"]["eval"] == 0:
        values["training"].pop("eval_steps", None)
    return values


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value of a dumped recipe with its path. Lists of settings are walked; other lists are values."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def _below(value: Any, path: Path_) -> Iterator[Path_]:
    """The paths of every key and item in a value."""
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from _below(item, (*path, key))


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)  # one more is refused below
    except FileNotFoundError:
        if "=" in str(path):
            raise _no_recipe_before(str(path)) from None
        raise RecipeError("This recipe does not exist", where=str(path), **_similar_files(path)) from None
    except IsADirectoryError:
        raise RecipeError(
            "This is a folder, not a recipe",
            where=str(path),
            remedy="Name a YAML file. To continue the run of a run folder, add --resume; --overwrite starts it over.",
        ) from None
    except UnicodeDecodeError as error:
        if _has_other_ending(path):
            raise _rows_for_a_recipe(path) from None
        raise RecipeError("The recipe cannot be read", where=str(path), why=str(error)) from None
    except OSError as error:
        raise RecipeError("The recipe cannot be read", where=str(path), why=str(error)) from None
    try:
        document = _load(text)
    except YamlRefused as error:
        raise RecipeError(error.what, where=f"{path}:{error.line}", remedy=error.remedy) from None
    except MarkedYAMLError as error:
        if _has_other_ending(path):
            raise _rows_for_a_recipe(path) from None
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        duplicate = type(error).__name__ == "DuplicateKeyError"
        raise RecipeError(
            "A key is given twice" if duplicate else "The recipe is not valid YAML",
            where=f"{path}:{line}",
            why=str(error.problem),
            remedy="Keep one of the two." if duplicate else _yaml_remedy(str(error.problem)),
        ) from None
    except YAMLError as error:
        if _has_other_ending(path):
            raise _rows_for_a_recipe(path) from None
        raise RecipeError("The recipe is not valid YAML", where=str(path), why=str(error)) from None
    if _has_other_ending(path) and not (isinstance(document, CommentedMap) and {*document} & {*Recipe.model_fields}):
        raise _rows_for_a_recipe(path)
    if not isinstance(document, CommentedMap):
        raise RecipeError(
            "The recipe is empty" if document is None else "The recipe is not a mapping of keys",
            where=f"{path}:1",
            remedy="`tunesmith init DATA` writes a recipe to start with.",
        )
    origins: dict[Path_, str] = {}
    _collect_lines(document, (), path, origins)
    return _plain(document), origins


def _has_other_ending(path: Path) -> bool:
    """Whether a file is probably no recipe. It may be one all the same, such as in JSON."""
    return path.suffix.lower() not in (".yaml", ".yml")


def _rows_for_a_recipe(path: Path) -> RecipeError:
    return RecipeError(
        "This is not a recipe; it looks like a data file",
        where=str(path),
        remedy=f"`tunesmith init {shlex.quote(str(path))}` writes a recipe for its rows.",
    )


def _no_recipe_before(argument: str) -> RecipeError:
    """The error for KEY=VALUE in the place of the recipe."""
    key, _, value = argument.partition("=")
    rows = shlex.quote(value) if key == "data.train" and value else "DATA"
    return RecipeError(
        "A recipe comes first, and KEY=VALUE behind it",
        where=argument,
        remedy=f"Name the recipe before this argument. `tunesmith init {rows}` writes one to start with.",
    )


class _Constructor(RoundTripConstructor):
    """Keeps a date as text, so that the setting can refuse a date that does not exist."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", lambda constructor, node: node.value)


def _yaml() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def _load(text: str) -> Any:
    refuse_bombs(text)
    return _yaml().load(text)


def _yaml_remedy(problem: str) -> str:
    if "escape" in problem:
        return "Put the text into single quotes: in double quotes a backslash begins an escape such as \\n."
    return "Fix this line. A colon needs a space after it."


def _similar_files(path: Path) -> dict[str, str]:
    folder = path.parent
    names = sorted(entry.name for entry in folder.glob("*.y*ml")) if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return {"remedy": f"Did you mean {folder / close[0]}?"}
    return {"remedy": "Check the path. `tunesmith init DATA` writes a recipe to start with."}


def _collect_lines(node: Any, path: Path_, file: Path, origins: dict[Path_, str]) -> None:
    if isinstance(node, CommentedMap):
        own = node.lc.data or {}  # without keys that came from a merge (<<)
        for key, value in node.items():
            origins[(*path, key)] = f"{file}:{(own[key][0] if key in own else node.lc.line) + 1}"
            _collect_lines(value, (*path, key), file, origins)
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            origins[(*path, index)] = f"{file}:{node.lc.item(index)[0] + 1}"
            _collect_lines(value, (*path, index), file, origins)


def _plain(node: Any) -> Any:
    """ruamel's nodes as plain Python values."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    if isinstance(node, Enum):  # such as peft.TaskType.CAUSAL_LM
        return node.value
    if isinstance(node, TaggedScalar):  # !!str no
        return str(node.value)
    if isinstance(node, ScalarBoolean):  # one with an anchor; an int to Python
        return bool(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def parse_override(override: str, *, example: str = "training.seed=1") -> tuple[Path_, Any]:
    """``section.key=value`` as the path of the key and its YAML value. ``example`` is shown for a wrong form.

    Raises:
        RecipeError: it is not key=value, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        remedy = f"Write KEY=VALUE without spaces, such as {example}."
        raise RecipeError("This argument is not KEY=VALUE", where=override, remedy=remedy)
    if text in MARKS:  # a separator of a table
        return tuple(key.strip().split(".")), text
    try:
        value = _plain(_load(text)) if text.strip() else None
    except YamlRefused as error:
        remedy = _quoted(key, text) or error.remedy
        raise RecipeError(error.what, where=override[:200], remedy=remedy) from None
    except YAMLError as error:
        remedy = _quoted(key, text)
        raise RecipeError(
            "The value of this argument is not YAML", where=override, why=str(error), remedy=remedy
        ) from None
    return tuple(key.strip().split(".")), value


def _quoted(key: str, text: str) -> str | None:
    """The remedy for a text that begins like a mapping; None for another, and for one that no template is."""
    if not text.lstrip().startswith("{") or len(text) > LONGEST_QUOTED:
        return None
    quoted = text.strip().replace("\\", "\\\\").replace('"', '\\"')
    return "If it is a text, put quotes into it: " + shlex.quote(f'{key.strip()}="{quoted}"')


def _put(raw: dict[str, Any], path: Path_, value: Any, override: str) -> None:
    node: dict[Any, Any] = raw
    for position, part in enumerate(path[:-1]):
        child = node.get(part)
        short = SHORT_FOR.get(path[: position + 1])
        if isinstance(child, str) and short:
            child = {short: child}
        if child is None:
            child = {}
        if not isinstance(child, dict):
            raise RecipeError(
                "This override sets a key of a value that has no keys",
                where=override,
                why=f"`{dotted(path[: position + 1])}` is {child!r}.",
            )
        node[part] = child
        node = child
    node[path[-1]] = value
