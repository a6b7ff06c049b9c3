"""Puts around a prompt what the run's training rows had around theirs: an instruction and a system turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.checks.facts import mask
from tunesmith.data.checks.personal import KINDS, check_mask
from tunesmith.data.examples.example import Example, user_text
from tunesmith.data.examples.message import Message, printable
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.recipe.settings import Recipe

Masked = tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]


@dataclass(frozen=True, slots=True)
class TrainedPrompt:
    """What the training rows have around their text; it goes with a merged model.

    Args:
        instructions: the source and its instruction, of each training source.
        systems: the different system texts of the rows; None stands for rows without one.
        shape: the shape of all rows; None if there are several.
        mask: kinds of personal data that are masked in them.
        tools: names of tools that rows have, the first few.
    """

    instructions: tuple[tuple[str, str | None], ...] = ()
    systems: tuple[str | None, ...] = ()
    shape: str | None = None
    mask: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, recipe: Recipe, sources: Sequence[Mapping[str, Any]] = ()) -> TrainedPrompt:
        """Of a run. ``sources`` is what it records of them, as in data.json."""
        trained = [source for source in sources if source["side"] == "train"]
        shapes = {source.get("format") for source in trained}
        return cls(
            tuple((source.path, source.instruction) for source in recipe.data.sources("train")),
            tuple(dict.fromkeys(text for source in trained for text in source.get("systems", []))),
            shapes.pop() if len(shapes) == 1 else None,
            recipe.data.clean.mask,
            tuple(dict.fromkeys(name for source in trained for name in source.get("tools", []))),
        )

    @classmethod
    def from_json(cls, found: Any) -> TrainedPrompt:
        """What ``to_json`` gave. Raises TypeError, KeyError or ValueError for anything else."""
        instructions = [(str(name), _text(text)) for name, text in found["instructions"]]
        kinds, tools = tuple(found.get("mask", ())), found.get("tools", ())  # earlier versions did not record them
        if not set(kinds) <= set(KINDS):
            raise ValueError(f"{kinds} are no kinds of personal data")
        systems = tuple(map(_text, found["systems"]))
        return cls(tuple(instructions), systems, _text(found["shape"]), kinds, tuple(map(str, tools)))

    def to_json(self) -> dict[str, Any]:
        """For a folder that is published: the sources are numbered, not named."""
        texts = dict.fromkeys(text for _, text in self.instructions)
        numbered = [[f"source {number}", text] for number, text in enumerate(texts, start=1)]
        lists = {"systems": list(self.systems), "mask": list(self.mask), "tools": list(self.tools)}
        return {"instructions": numbered, "shape": self.shape, **lists}

    @property
    def raw_text(self) -> bool:
        """Whether the rows are raw text, which has no chat template around it."""
        return self.shape == "text"

    def instruction(self, where: str) -> str | None:
        """The instruction of all sources. Raises RunError if they have different ones."""
        if len({text for _, text in self.instructions}) > 1:
            each = "; ".join(f"{name}: {'none' if text is None else repr(text)}" for name, text in self.instructions)
            raise RunError(
                "The training sources of this run have different instructions, so any of them could be meant",
                where=where,
                why=f"{each}.",
                remedy="Choose one with --instruction TEXT (in Python: instruction=TEXT), or send your text alone with "
                "--raw (raw=True).",
            )
        return self.instructions[0][1] if self.instructions else None


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


@dataclass(frozen=True, slots=True)
class RunPrompt:
    """What goes before the user's text. ``from_run``: the instruction is the run's, and not the user's.

    ``system``: the system text that all training rows have. ``systems_differ``: they have different ones, so none is
    sent. ``raw_text``: no chat template goes around the text. ``mask``: kinds of personal data to mask.
    ``tools``: names of tools that training rows have; those of a prompt are the user's to give.
    """

    instruction: str | None = None
    from_run: bool = False
    system: str | None = None
    systems_differ: bool = False
    raw_text: bool = False
    mask: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def masked(self, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]] = ()) -> Masked:
        """Turns and tools with their personal data masked, as all rows of the training were."""
        if not self.mask:
            return messages, tuple(tools)
        found = mask(Example(messages, source="", tools=tuple(map(dict, tools))), self.mask)
        return found.messages, found.tools

    def around(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the instruction before the last user turn, where training has it.

        Earlier turns stay as they are, like the history of a training row. A turn that begins with the instruction
        already stays as it is, too, and so does one that is the instruction, as of a training row without an input. A
        conversation with a system turn keeps its own.
        """
        if self.system is not None and not any(message.role in ("system", "developer") for message in messages):
            messages = (Message("system", self.system), *messages)
        users = [number for number, message in enumerate(messages) if message.role == "user"]
        if self.instruction is None or not users:
            return tuple(messages)
        turn = messages[users[-1]]
        opening = user_text(self.instruction, "x")[:-1]  # with the blank line: other text may begin alike
        if turn.content.startswith(opening) or turn.content == user_text(self.instruction, ""):
            return tuple(messages)
        framed = replace(turn, content=user_text(self.instruction, turn.content))
        return (*messages[: users[-1]], framed, *messages[users[-1] + 1 :])

    def around_instructed(self) -> RunPrompt:
        """What goes around messages that hold their instruction already."""
        return replace(self, instruction=None)

    def document(self, messages: Sequence[Message]) -> str:
        """The conversation as one raw text: an answer goes on its message, and a later message is on a line of its own.

        Raises:
            RecipeError: there is a turn that a raw text cannot have.
        """
        text = ""
        for turn in messages:
            if turn.role not in ("user", "assistant"):
                raise RecipeError(
                    f"a {turn.role} turn cannot be sent",
                    why="The model was trained on raw text, which has no turns.",
                    remedy="Leave it out, or write it into your text.",
                )
            text += "\n" if text and turn.role == "user" else ""
            text += turn.content
        return text

    def note(self, *, system: str | None = None) -> str | None:
        """One line about what goes before the text, where the user gives this system text; None if nothing does."""
        parts = []
        if self.instruction is not None:
            whose = "the run's" if self.from_run else "your"
            parts.append(f"{whose} instruction {self.instruction!r}")
        if self.system is not None and system is None:
            parts.append(f"the run's system turn {self.system!r}")
        if self.systems_differ and system is None:
            parts.append("no system turn, because the training rows have different ones (--system gives one)")
        kinds = ", ".join(f"[{kind}]" for kind in self.mask)
        masks = f"personal data is replaced by {kinds}, as in training" if kinds else ""
        if self.raw_text:
            before = f"after {parts[0]}, " if parts else ""
            besides = f"; {masks} (--raw sends it as it is)" if masks else ""
            return f"prompt: {before}your text as it is, without a chat template, as in training on raw text{besides}"
        if not parts:
            return f"prompt: {masks} (--raw sends it as it is)" if masks else None
        goes = f"before your text goes {' and '.join(parts)}"
        return f"prompt: {goes}{f'; {masks}' if masks else ''} (--raw leaves {'both' if masks else 'it'} out)"

    def note_on_tools(self) -> str | None:
        """One line for a prompt without tools, where the rows of the training have some."""
        if not self.tools:
            return None
        return (
            f"tools: the run's rows have tools ({', '.join(map(printable, self.tools))}), and this prompt has none. "
            "Give them in a column `tools` of rows with --data, or in Python with generate(..., tools=[...])"
        )


def run_prompt(
    trained: TrainedPrompt | None, *, where: str, raw: bool = False, instruction: str | None = None
) -> RunPrompt:
    """What training put around its rows: the instruction of all sources and the system turn of all rows.

    Args:
        trained: what the model was trained with; None for a model without a run.
        where: the run, for errors.
        raw: no instruction, no system turn and no masks.
        instruction: used in place of the run's.

    Raises:
        RecipeError: raw and an instruction are given.
        RunError: the training sources have different instructions, so any of them could be meant.
        DataError: personal data was masked in training, and what finds it is not installed here.
    """
    if raw and instruction is not None:
        raise RecipeError("--raw sends no instruction, and --instruction gives one", remedy="Use one of the two.")
    raw_text = trained is not None and trained.raw_text
    if raw or trained is None:
        return RunPrompt(instruction, raw_text=raw_text)
    check_mask(trained.mask, otherwise="send your text as it is with --raw (in Python: raw=True)")
    systems = {*trained.systems}
    return RunPrompt(
        trained.instruction(where) if instruction is None else instruction,
        from_run=instruction is None,
        system=next(iter(systems)) if len(systems) == 1 else None,
        systems_differ=len(systems) > 1,
        raw_text=raw_text,
        mask=trained.mask,
        tools=trained.tools,
    )


def recorded_prompt(file: Path) -> TrainedPrompt | None:
    """The prompt that `merge` recorded in a file; None if there is none, as in folders of earlier versions."""
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return TrainedPrompt.from_json(record["prompt"]) if "prompt" in record else None
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            "the record of the merged model cannot be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}.",
            remedy="Merge the run again, or remove this file: then no instruction goes before a prompt.",
        ) from error
