"""What a run writes down while it trains: metrics.jsonl, TensorBoard events, the best step, and the progress line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tunesmith.progress import Advance
from tunesmith.run import Run
from tunesmith.training.loop import StepResult


@dataclass(slots=True)
class Totals:
    """Counts since the last line of metrics, and since the run began. They travel in the checkpoint."""

    loss_sum: float = 0.0
    supervised: int = 0
    tokens: int = 0
    computed: int = 0
    run_tokens: int = 0
    run_computed: int = 0
    run_supervised: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    last_loss: float | None = field(default=None)


class Recorder:
    """Turns step results into lines. Between two steps it draws no random number and touches no weight."""

    def __init__(
        self, run: Run, *, logging_steps: int, total_steps: int, tensorboard: bool, totals: dict[str, Any], step: int
    ) -> None:
        self.run, self.logging_steps, self.total_steps = run, logging_steps, total_steps
        self.totals = Totals(**totals)
        self.advance: Advance = lambda done, facts: None
        self._timed, self._seconds = 0, 0.0  # tokens and seconds of this window in this process
        self._writer = _events(run, step) if tensorboard else None

    def on_step(self, result: StepResult) -> None:
        """Adds a step; every ``logging_steps`` steps, and after the last, writes the mean over labels since then."""
        totals = self.totals
        totals.loss_sum += result.loss * result.supervised_tokens
        for name, value in (
            ("supervised", result.supervised_tokens),
            ("tokens", result.tokens),
            ("computed", result.computed_tokens),
        ):
            setattr(totals, name, getattr(totals, name) + value)
            setattr(totals, f"run_{name}", getattr(totals, f"run_{name}") + value)
        self._timed += result.tokens
        self._seconds += result.seconds
        facts = {"loss": f"{result.loss:.4f}", "tokens/s": f"{self._timed / self._seconds:.0f}"}
        if totals.last_loss is not None:
            facts["eval loss"] = f"{totals.last_loss:.4f}"
        self.advance(result.step, facts)
        if result.step % self.logging_steps == 0 or result.step == self.total_steps:
            self._write_line(result)

    def _write_line(self, result: StepResult) -> None:
        totals = self.totals
        self._record(
            {
                "step": result.step,
                "epoch": round(result.epoch, 4),
                "loss": totals.loss_sum / totals.supervised,
                "learning_rate": result.learning_rate,
                "grad_norm": result.gradient_norm,
                "tokens": totals.tokens,
                "computed_tokens": totals.computed,
                "supervised_tokens": totals.supervised,
                "tokens_per_second": round(self._timed / self._seconds, 1),
            }
        )
        totals.loss_sum, totals.supervised, totals.tokens, totals.computed = 0.0, 0, 0, 0
        self._timed, self._seconds = 0, 0.0

    def on_eval(
        self, step: int, epoch: float, loss: float, seconds: float, by_source: Mapping[str, float] | None = None
    ) -> None:
        """Writes a validation loss; the step with the lowest so far is the best (a pointer, nothing is copied).

        Args:
            by_source: the loss on each source's rows, where they are of several.
        """
        totals = self.totals
        totals.last_loss = loss
        line = {"step": step, "epoch": round(epoch, 4), "eval_loss": loss, "eval_seconds": round(seconds, 3)}
        self._record({**line, "eval_loss_by_source": dict(by_source)} if by_source else line)
        if totals.best_loss is None or loss < totals.best_loss:
            totals.best_step, totals.best_loss = step, loss

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return asdict(self.totals)

    def close(self) -> None:
        """Flushes the event file."""
        if self._writer is not None:
            self._writer.close()

    def _record(self, line: dict[str, Any]) -> None:
        self.run.append("metrics.jsonl", line)
        if self._writer is not None:
            apart = line.get("eval_loss_by_source", {})
            scalars = {**line, **{f"eval_loss/{source}": loss for source, loss in apart.items()}}
            for name, value in scalars.items():
                if name not in ("step", "epoch", "eval_loss_by_source"):
                    side = "eval" if name.startswith("eval_") else "train"
                    self._writer.add_scalar(f"{side}/{name.removeprefix('eval_')}", value, line["step"])
            self._writer.flush()


def _events(run: Run, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1 if step else None)
