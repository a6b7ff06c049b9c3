"""Settings of generated answers: names, defaults and bounds. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from tunesmith.errors import RecipeError

DEFAULT_NEW_TOKENS = 256
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How answers are decoded; names and meaning are those of transformers' GenerationConfig.

    Args:
        max_new_tokens: limit on the tokens of an answer; if neither this nor ``max_length`` is given, that of the run's
            evaluation, and 256 for a model without a run.
        max_length: limit on the tokens of prompt and answer together, instead of ``max_new_tokens``.
        do_sample: draw each token at random; by default the likeliest token is taken (greedy decoding).
        temperature: divides the logits before drawing.
        top_p: draw from the smallest set of tokens that has this much probability.
        num_return_sequences: answers to each prompt; more than one needs ``do_sample``.
        seed: seed of the random draws.

    Raises:
        RecipeError: a value is out of bounds or contradicts another.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    num_return_sequences: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_bounds()
        if self.max_new_tokens is not None and self.max_length is not None:
            raise RecipeError(
                f"max_new_tokens {self.max_new_tokens} and max_length {self.max_length} both limit the answer",
                why="max_length also counts the prompt, so one of the two would be ignored.",
                remedy="Give one of them.",
            )
        if self.do_sample:
            return
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if value != 1.0:
                raise RecipeError(
                    f"{name} {value:g} has no effect while do_sample is false",
                    remedy=f"Set do_sample: true, or leave {name} out.",
                )
        if self.num_return_sequences > 1:
            raise RecipeError(
                f"num_return_sequences {self.num_return_sequences} with do_sample: false",
                why="Greedy decoding gives one answer to a prompt, so all answers would be the same.",
                remedy="Set do_sample: true, or leave num_return_sequences out.",
            )

    def _check_bounds(self) -> None:
        if self.temperature == 0:
            raise RecipeError(
                "temperature 0 is not a temperature",
                why="The logits are divided by the temperature. To get the likeliest token, turn sampling off.",
                remedy="Set do_sample: false and leave temperature out.",
            )
        for name, low in (("max_new_tokens", 1), ("max_length", 1), ("num_return_sequences", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise RecipeError(f"{name} must be at least {low}, found {value}")
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(f"temperature must be above 0 and finite, found {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p must be above 0 and at most 1, found {self.top_p:g}")

    def new_tokens(self, prompt_length: int) -> int:
        """How many tokens may follow a prompt of this length; below 1 where ``max_length`` leaves no room."""
        if self.max_length is not None:
            return self.max_length - prompt_length
        return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens


def settings_by_name(values: Mapping[str, Any]) -> GenerationSettings:
    """Settings that a program gives by name. None stands for a default that is None.

    Raises:
        RecipeError: a name is unknown, or a value is of another type, out of bounds or contradicts another.
    """
    kinds = get_type_hints(GenerationSettings)
    found: dict[str, Any] = {}
    for name, given in values.items():
        value = given.item() if type(given).__module__ == "numpy" else given
        optional = type(None) in get_args(kinds.get(name))
        found[name] = None if value is None and optional else checked_setting(name, value, shown=repr(value))
    return GenerationSettings(**found)


def checked_setting(name: str, value: Any, *, shown: str, where: str | None = None) -> Any:
    """The value of one setting, in the type that it has. ``shown`` is the value in errors.

    Raises:
        RecipeError: there is no such setting, or its value is of another type.
    """
    kinds = get_type_hints(GenerationSettings)
    if name not in kinds:
        close = difflib.get_close_matches(name, kinds, n=1, cutoff=0.6)
        remedy = f"Did you mean `{close[0]}`?" if close else f"The settings are {', '.join(kinds)}."
        raise RecipeError(f"`{name}` is not a generation setting", where=where, remedy=remedy)
    kind = next(kind for kind in _KINDS if kind in (kinds[name], *get_args(kinds[name])))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RecipeError(f"`{name}` must be {_KINDS[kind]}, found {shown}", where=where)
    return value
