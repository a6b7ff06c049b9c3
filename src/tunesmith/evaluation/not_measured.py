"""What was asked for and could not be measured, and why: ``left_out`` of verdict.json, the one place for that.

Its keys are those of what is missing in the verdict: ``probe``, ``divergence`` or a part of it such as
``divergence.general``, ``memorisation``, ``side_effects``, ``judge``, ``compute_metrics``,
``baselines.few_shot``. This module imports neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import TunesmithError, ran_out
from tunesmith.runs.progress import Listener, Silent

BASELINES = "baselines."
PARTS = ("general", "own_answers")  # of the divergence
_ALONE = {"probe": "--probe", "divergence": "divergence=true", "memorisation": "memorisation=true"}
_WORDS = {
    "probe": "The probe",
    "divergence": "Divergence from the base",
    "divergence.general": "Divergence from the base on general text",
    "divergence.own_answers": "Divergence from the base on the base's own answers",
    "memorisation": "Memorisation",
    "side_effects": "What else changed in the answers",
    "judge": "The metric judge",
}


@dataclass(slots=True)
class NotMeasured:
    """The reasons by key, while a verdict is made. The listener hears of those that nobody could foresee."""

    listener: Listener = field(default_factory=Silent)
    reasons: dict[str, str] = field(default_factory=dict)

    def note(self, key: str, why: str) -> None:
        """Keeps a reason."""
        self.reasons[key] = why

    @contextmanager
    def noting(self, key: str, who: str | None = None) -> Iterator[None]:
        """Inside, a message to the user, or memory that runs out, is the reason; the verdict stays.

        Every other error is a bug, and is raised.

        Args:
            key: of what is measured inside.
            who: is asked.
        """
        try:
            with self.noting_memory(key, who):
                yield
        except TunesmithError as error:
            behind = ", ".join(filter(None, (who, error.where)))
            why = [f"{error.what.rstrip('.')}{f' ({behind})' if behind else ''}.", error.why]
            self._tell(key, " ".join(filter(None, why)))

    @contextmanager
    def noting_memory(self, key: str, who: str | None = None) -> Iterator[None]:
        """The same for memory alone, where a message to the user must end the command."""
        try:
            yield
        except (MemoryError, RuntimeError, OSError, ImportError) as error:
            if not ran_out(error):
                raise
            how = f" with {_ALONE[key]}" if key in _ALONE else ""
            self._tell(
                key,
                f"Memory ran out{f' ({who})' if who else ''}. The verdict does not depend on it. With more free memory "
                f"or a smaller evaluation.batch_size, `tunesmith eval`{how} measures it again.",
            )

    def _tell(self, key: str, why: str) -> None:
        self.note(key, why)
        self.listener.warn(f"{key} is left out of the verdict: {why}")

    def result(self) -> dict[str, Any]:
        """What verdict.json keeps: nothing if all was measured."""
        return {"left_out": dict(self.reasons)} if self.reasons else {}


def reasons_of(verdict: Mapping[str, Any]) -> dict[str, str]:
    """The reasons of a stored verdict. Earlier versions also kept some in the place of what is missing."""
    found: dict[str, str] = {}
    places = {f"divergence.{part}": (verdict.get("divergence") or {}).get(part) for part in PARTS}
    for key, place in {**places, "memorisation": verdict.get("memorisation")}.items():
        if isinstance(place, Mapping) and "left_out" in place:
            found[key] = place["left_out"]
    of_baselines = (verdict.get("baselines") or {}).get("left_out") or {}
    found |= {f"{BASELINES}{name}": why for name, why in of_baselines.items()}
    return {**found, **(verdict.get("left_out") or {})}


def left_out_lines(verdict: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason."""
    return [
        f"{_WORDS.get(key) or _name(key)} is not measured: {why.rstrip('.')}."
        for key, why in reasons_of(verdict).items()
    ]


def _name(key: str) -> str:
    return f"The baseline {key.removeprefix(BASELINES)}" if key.startswith(BASELINES) else key
