"""Records a run while it trains: metrics.jsonl, reporters, the best step, and the progress line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tunesmith.runs.folder import Run
from tunesmith.runs.progress import StepResult
from tunesmith.runs.reporters import open_reporters
from tunesmith.runs.symptoms import Symptom, Watch


@dataclass(slots=True)
class Totals:
    """Counts since the last line of metrics, and since the run began. They are saved in the checkpoint."""

    loss_sum: float = 0.0
    denominator: float = 0.0
    supervised: int = 0
    tokens: int = 0
    computed: int = 0
    run_tokens: int = 0
    run_computed: int = 0
    run_supervised: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    last_loss: float | None = None  # of the last validation
    last_shown: dict[str, float] = field(default_factory=dict)  # its metrics of answers
    # Gradient norms of the steps since the last line, None for a step that was skipped.
    norms: list[float | None] = field(default_factory=list)
    skipped: int = 0


class Recorder:
    """Turns step results into lines. It draws no random numbers and changes no weights.

    Args:
        run: its folder.
        line_due: whether a line is due after a step.
        report_to: names of reporters.
        totals: what ``state`` returned when the checkpoint was saved; empty for a new run.
        step: the step of that checkpoint, or 0.
        warn: hears what looks wrong.
        unwritten: what ``unwritten`` returned when the checkpoint was saved.
    """

    def __init__(
        self,
        run: Run,
        *,
        line_due: Callable[[StepResult], bool],
        report_to: Sequence[str],
        totals: Mapping[str, Any],
        step: int,
        warn: Callable[[str], None],
        unwritten: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.line_due, self.warn = run, line_due, warn
        self.totals = Totals(**totals)
        self._watch = Watch(run.read_lines("metrics.jsonl"))
        for at, norm in enumerate(self.totals.norms, start=step - len(self.totals.norms) + 1):
            self._watch.see_norm(at, math.nan if norm is None else norm)
        self._timed, self._seconds = 0, 0.0  # tokens and seconds of this window in this process
        self._unwritten: StepResult | None = None
        if unwritten:
            self._unwritten = StepResult(**unwritten)
            self._timed, self._seconds = self._unwritten.tokens, self._unwritten.seconds
        self._reporters = open_reporters(report_to, run, step)

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the whole run: in the rows, computed, and supervised."""
        totals = self.totals
        return {"rows": totals.run_tokens, "computed": totals.run_computed, "supervised": totals.run_supervised}

    def on_step(self, result: StepResult) -> dict[str, str]:
        """Adds a step, and writes a line of means if one is due. Returns the facts of the progress line."""
        totals = self.totals
        if result.skipped is None:
            totals.loss_sum += result.loss * result.denominator
            totals.denominator += result.denominator
        else:
            totals.skipped += 1
            self.warn(f"step {result.step} is skipped, the weights stay as they are: {result.skipped}")
        totals.supervised += result.supervised_tokens
        totals.tokens += result.tokens
        totals.computed += result.computed_tokens
        totals.run_supervised += result.supervised_tokens
        totals.run_tokens += result.tokens
        totals.run_computed += result.computed_tokens
        self._timed += result.tokens
        self._seconds += result.seconds
        facts = self._facts(result)
        norm = float(f"{result.gradient_norm:.6g}")
        totals.norms.append(None if result.skipped else norm)
        if not result.skipped:
            self._warn_of(self._watch.see_norm(result.step, norm))
        self._unwritten = result
        if self.line_due(result):
            self._write_line(result)
        return facts

    def _facts(self, result: StepResult) -> dict[str, str]:
        """Loss, speed, and the share of the tokens that shared prefixes saved."""
        totals, facts = self.totals, {"loss": f"{result.loss:.4f}"}
        if totals.last_loss is not None:
            facts["eval loss"] = f"{totals.last_loss:.4f}"
        facts |= {f"eval {name.replace('_', ' ')}": f"{value:.4g}" for name, value in totals.last_shown.items()}
        facts |= {"lr": f"{result.learning_rate:.2e}", "grad norm": f"{result.gradient_norm:.3g}"}
        facts["tokens/s"] = f"{self._timed / self._seconds:.0f}"
        if totals.run_computed < totals.run_tokens:
            facts["saved"] = f"{1 - totals.run_computed / totals.run_tokens:.0%}"
        return facts

    def _write_line(self, result: StepResult) -> None:
        totals = self.totals
        # Without a step that was taken there is no loss; a step that was skipped has no norm that is worth a point.
        mean = {"loss": totals.loss_sum / totals.denominator} if totals.denominator else {}
        own = {} if result.skipped else {"grad_norm": result.gradient_norm}
        self._record(
            {
                "step": result.step,
                "epoch": round(result.epoch, 4),
                **mean,
                "learning_rate": result.learning_rate,
                **own,
                "grad_norms": totals.norms,
                **({"skipped_steps": totals.skipped} if totals.skipped else {}),
                "tokens": totals.tokens,
                "computed_tokens": totals.computed,
                "supervised_tokens": totals.supervised,
                "tokens_per_second": round(self._timed / self._seconds, 1),
            }
        )
        totals.loss_sum, totals.denominator = 0.0, 0.0
        totals.supervised, totals.tokens, totals.computed = 0, 0, 0
        totals.norms, totals.skipped = [], 0
        self._unwritten = None
        self._timed, self._seconds = 0, 0.0

    def on_eval(
        self,
        step: int,
        epoch: float,
        loss: float,
        seconds: float,
        by_source: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        *,
        shown: Mapping[str, float] | None = None,
    ) -> None:
        """Writes a validation. The step with the lowest loss so far is remembered as the best.

        Args:
            step: of the weights.
            epoch: that the step reached.
            loss: on all rows.
            seconds: that the validation took.
            by_source: the loss on each source's rows, if there are several sources.
            metrics: other numbers of this validation, by name.
            shown: those of them that the progress line shows.
        """
        totals = self.totals
        totals.last_loss, totals.last_shown = loss, dict(shown or {})
        line = {"step": step, "epoch": round(epoch, 4), "eval_loss": loss, "eval_seconds": round(seconds, 3)}
        line |= {f"eval_{name}": value for name, value in (metrics or {}).items()}
        self._record({**line, "eval_loss_by_source": dict(by_source)} if by_source else line)
        if totals.best_loss is None or loss < totals.best_loss:
            totals.best_step, totals.best_loss = step, loss

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, for ``totals``."""
        return asdict(self.totals)

    def unwritten(self) -> dict[str, Any] | None:
        """The last step if it has no line yet: what a checkpoint needs so that ``write_rest`` can write it later."""
        return None if self._unwritten is None else asdict(self._unwritten)

    def write_rest(self) -> None:
        """Writes the line of the steps since the last one, if there are any."""
        if self._unwritten is not None:
            self._write_line(self._unwritten)

    def close(self) -> None:
        """Writes the line of the steps since the last one, if there are any, and closes the reporters."""
        self.write_rest()
        for reporter in self._reporters:
            reporter.close()

    def _record(self, line: dict[str, Any]) -> None:
        self.run.append("metrics.jsonl", line)
        self._warn_of(self._watch.see(line))
        by_source = line.get("eval_loss_by_source", {})
        scalars = {**line, **{f"eval_loss/{source}": loss for source, loss in by_source.items()}}
        values = {
            f"{'eval' if name.startswith('eval_') else 'train'}/{name.removeprefix('eval_')}": value
            for name, value in scalars.items()
            if name not in ("step", "epoch", "eval_loss_by_source", "grad_norms")
        }
        for reporter in self._reporters:
            reporter.log(values, line["step"])

    def _warn_of(self, symptoms: Iterable[Symptom]) -> None:
        for symptom in symptoms:
            self.warn(f"step {symptom.step}: {symptom.text}")
