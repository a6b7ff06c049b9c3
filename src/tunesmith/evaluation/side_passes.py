"""What both models are asked besides the held-out rows, to see what the training broke: the probe and the like.

The base is asked once, inside the context that the verdict enters anyway, and the tuned model after it. A pass that
cannot be made costs no verdict: it is left out, and the verdict says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.batches.layout import LayoutName
from tunesmith.data.chat.template import ChatTemplate, Encoded
from tunesmith.evaluation.divergence.measuring import divergence_pass
from tunesmith.evaluation.memorisation import MemorisationPass, passages
from tunesmith.evaluation.not_measured import NotMeasured
from tunesmith.evaluation.probe.asking import ProbePass, probe_pass
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Listener

SIDE_PASSES = ("probe", "divergence", "memorisation")  # keys of the recipe and of verdict.json


class SidePass(Protocol):
    """One thing that both models are asked."""

    def check(self, model: nn.Module) -> None:
        """Prepares it for the model. Raises ModelError if the model cannot be asked."""
        ...

    def base_pass(self, untuned: nn.Module) -> None:
        """Asks the base. It is not called for a model without a base."""
        ...

    def tuned_pass(self, model: nn.Module) -> None:
        """Asks the tuned model, after the base."""
        ...

    def result(self, left_out: NotMeasured) -> dict[str, Any] | None:
        """What verdict.json keeps; None if there is nothing to say. ``left_out`` takes what could not be measured."""
        ...


@dataclass(frozen=True, slots=True)
class RunRows:
    """The rows that a run learned from, and those that it did not, as they are encoded.

    ``together`` rows that follow each other belong to one example.
    """

    trained: Sequence[Encoded]
    held_out: Sequence[Encoded]
    together: int = 1


@dataclass(frozen=True, slots=True)
class SidePasses:
    """All passes that a recipe asks for, by their keys in verdict.json.

    ``left_out`` says by key why a pass was not made, and what else of the verdict is missing.
    """

    passes: dict[str, SidePass]
    left_out: NotMeasured

    def __bool__(self) -> bool:
        return bool(self.passes)

    def check(self, model: nn.Module) -> None:
        """Raises ModelError if the model cannot be asked something."""
        for each in self.passes.values():
            each.check(model)

    @contextmanager
    def after(self, base: AbstractContextManager[nn.Module]) -> Iterator[nn.Module]:
        """The context of the base, which is also asked here once everything else was."""
        with base as untuned:
            yield untuned
            for key, each in self.passes.items():
                with self.left_out.noting(key, "base"):
                    each.base_pass(untuned)

    def ask(self, model: nn.Module) -> None:
        """Asks the tuned model."""
        for key, each in self.passes.items():
            if key not in self.left_out.reasons:
                with self.left_out.noting(key, "tuned model"):
                    each.tuned_pass(model)

    def results(self) -> dict[str, Any]:
        """What verdict.json keeps of each, and under ``left_out`` why others are not there."""
        found: dict[str, Any] = {}
        for key, each in self.passes.items():
            if key not in self.left_out.reasons:
                with self.left_out.noting(key):
                    found[key] = each.result(self.left_out)
        return {**{key: result for key, result in found.items() if result is not None}, **self.left_out.result()}

    def probe_lines(self) -> list[dict[str, Any]]:
        """The lines of probe.jsonl; none without a probe."""
        probe = None if "probe" in self.left_out.reasons else self.passes.get("probe")
        return probe.lines() if isinstance(probe, ProbePass) else []


def side_passes(
    settings: EvaluationSettings,
    *,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    listener: Listener,
    budget: int,
    layout: LayoutName,
    rows: RunRows | None,
) -> SidePasses:
    """The passes that the settings ask for.

    Args:
        budget: tokens to compute in a batch.
        layout: how rows are laid out.
        rows: of the run; None if they are not known. Then memorisation is not measured.

    Raises:
        DataError: a file of probe items cannot be used, or the template refuses an item.
    """
    passes: dict[str, SidePass] = {}
    texts: dict[str, Any] = {"tokenizer": tokenizer, "stop_ids": stop_ids, "settings": settings, "listener": listener}
    probe = probe_pass(settings, template=template, tokenizer=tokenizer, stop_ids=stop_ids, listener=listener)
    if probe is not None:
        passes["probe"] = probe
    if settings.divergence:
        passes["divergence"] = divergence_pass(template=template, budget=budget, layout=layout, **texts)
    if settings.memorisation and rows is not None:
        trained, held_out = (
            passages(of, stop_ids=stop_ids, seed=settings.seed, together=rows.together)
            for of in (rows.trained, rows.held_out)
        )
        passes["memorisation"] = MemorisationPass(trained, held_out, budget=budget, layout=layout, **texts)
    elif settings.memorisation:
        listener.say("memorisation is not measured: it needs the rows that the run was trained on, so leave --data out")
    return SidePasses(passes, NotMeasured(listener))
