"""What a run depends on may change after it began. Says what changed, and refuses it unless the user allows it.

``fingerprint.json`` of a run holds what its bytes depend on: the files of its base, the resolved recipe, the versions
of packages and the code of Tunesmith. The hashes of the rows are in ``data.json``. What was allowed is added to
``changes`` there, and the fingerprint becomes that of now.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from tunesmith.errors import RecipeError, RunError
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener
from tunesmith.safe_text import escaped

FILE = "fingerprint.json"
FLAG = "--allow-changes"
SHOWN = 10  # changes that a message names
Kind = Literal["weights", "config", "tokenizer", "template", "data", "recipe", "packages", "code"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_BASE: tuple[Kind, ...] = ("weights", "config", "tokenizer", "template")
ALL = "all"
_ABSENT = "not there"
_HEADS = {
    ("recipe",): "The run in this folder was started with another recipe",
    ("data",): "The data has changed since this run was started",
    OF_BASE: "The base model has changed since this run was started",
    ("packages", "code"): "This run was started with other versions",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: what ``key`` was when the run began, and what it is now, both as texts."""

    kind: Kind
    key: str
    was: str
    now: str

    def __str__(self) -> str:
        return escaped(f"{self.key}: was {self.was}, is {self.now}").replace("\n", " ")

    def to_json(self) -> dict[str, str]:
        """Every field."""
        return asdict(self)


def compared(kind: Kind, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The keys whose values differ. A sha256 is shown by its first digits, and a missing key is named as such."""
    keys = dict.fromkeys([*before, *now])
    apart = [key for key in keys if json.dumps(before.get(key, _ABSENT)) != json.dumps(now.get(key, _ABSENT))]  # NaN
    return [Change(kind, key, _text(before.get(key, _ABSENT)), _text(now.get(key, _ABSENT))) for key in apart]


def _text(value: Any) -> str:
    """A value of a fingerprint in few words."""
    if isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef"):
        return f"sha256 {value[:12]}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


def allowed_kinds(asked: str | Sequence[str] | None) -> frozenset[str]:
    """The kinds that ``--allow-changes`` names, apart by commas, or that Python gives as a list.

    Raises:
        RecipeError: there is no such kind.
    """
    parts = asked.split(",") if isinstance(asked, str) else asked or ()
    names = [part.strip() for part in parts]
    for name in names:
        if name not in (*KINDS, ALL):
            near = difflib.get_close_matches(name, [*KINDS, ALL], n=1)
            raise RecipeError(
                f"{name!r} is no kind of change",
                where=FLAG,
                why=f"The kinds are {', '.join(KINDS)}; {ALL} means each of them.",
                remedy=f"Did you mean {near[0]}?"
                if near
                else f"Name one or more of them, such as {FLAG} weights,data.",
            )
    return frozenset(KINDS if ALL in names else names)


def settle(
    changes: Sequence[Change], allowed: Collection[str], *, where: str, listener: Listener, otherwise: str = ""
) -> list[Change]:
    """Says the changes that are allowed, and returns them.

    Args:
        allowed: kinds of changes.
        where: the run, for the message.
        otherwise: another way out, for the message.

    Raises:
        RunError: there are changes of other kinds.
    """
    refused = [change for change in changes if change.kind not in allowed]
    if refused:
        kinds = [kind for kind in KINDS if kind in {change.kind for change in refused}]
        head = next(
            (head for of, head in _HEADS.items() if {*kinds} <= {*of}),
            "What this run depends on has changed since it was started",
        )
        flag = f"{FLAG} {','.join(kind for kind in KINDS if kind in {*kinds, *allowed})}"
        raise RunError(
            head,
            where=where,
            why="\n".join(shown(refused)),
            remedy=f"Put back what changed. Or add `{flag}` to go on with it, which is recorded{otherwise}.",
        )
    for line in shown(changes):
        listener.warn(f"allowed: {line}")
    return list(changes)


def shown(changes: Sequence[Change]) -> list[str]:
    """Lines that name the changes, or the first of many."""
    more = [f"and {len(changes) - SHOWN:,} more"] if len(changes) > SHOWN else []
    return [*map(str, changes[:SHOWN]), *more]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the bytes of a run depend on, beside its rows.

    Args:
        base: the files of the base, for each of ``OF_BASE``.
        recipe: every resolved value, as it is stored in recipe.yaml.
        packages: the versions of packages.
        code: the version and the code of Tunesmith.
        step: the step from which this holds; 0 for a run that began with it.
        changes: what was allowed since: time, step, kinds and changes, oldest first.
        questions: the sha256 of a user's own file of questions for the probe, by its name in the recipe.
    """

    base: Mapping[str, Mapping[str, Any]]
    recipe: Mapping[str, Any]
    packages: Mapping[str, str | None]
    code: Mapping[str, str | None]
    step: int = 0
    changes: tuple[Mapping[str, Any], ...] = ()
    questions: Mapping[str, str] = field(default_factory=dict)

    def write(self, run: Run) -> None:
        """Replaces the file in the run's folder."""
        run.write_json(FILE, {"schema": 1, **asdict(self)})

    @classmethod
    def read(cls, run: Run) -> Fingerprint | None:
        """The run's; None for a run of an earlier version, which has none. Raises RunError if it is damaged."""
        if not (run.folder / FILE).is_file():
            return None
        found = run.read_json(FILE)
        try:
            return cls(
                {kind: dict(found["base"][kind]) for kind in OF_BASE},
                dict(found["recipe"]),
                dict(found["packages"]),
                dict(found["code"]),
                int(found["step"]),
                tuple(dict(each) for each in found["changes"]),
                dict(found.get("questions", {})),  # earlier versions noted none
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{FILE} is damaged",
                where=str(run.folder / FILE),
                why=f"{type(error).__name__}: {error}",
                remedy="Put it back from a copy, or remove it: the run then goes on without a comparison.",
            ) from None


def record_of(changes: Iterable[Change], *, step: int) -> dict[str, Any]:
    """What a run keeps of changes that were allowed."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"time": now, "step": step, "changes": [change.to_json() for change in changes]}


def in_words(run: Run) -> list[str]:
    """A line for each time that changes were allowed in a run, such as ``from step 4: torch: was 2.12, is 2.13``."""
    found = Fingerprint.read(run)
    lines = []
    for each in found.changes if found else ():
        changes = [Change(**change) for change in each["changes"]]
        lines.append(f"from step {each['step']}: {'; '.join(shown(changes))}")
    return lines
