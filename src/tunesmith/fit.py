"""One run of the optimizer's steps, with all that hangs on a step: records, validation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.data.layout import Batch, micro_batches
from tunesmith.errors import ModelError, TrainError
from tunesmith.evaluation.judge import token_scores
from tunesmith.evaluation.loss import TokenScores
from tunesmith.model.load import save_tokenizer
from tunesmith.prepare import Prepared, Ready, order_of
from tunesmith.progress import Listener, Silent
from tunesmith.recorder import Recorder
from tunesmith.rehearsal import Rehearsal, ran_out, rehearse
from tunesmith.run import Run
from tunesmith.training import checkpoint
from tunesmith.training.loop import Hooks, Step, train
from tunesmith.training.objective import CrossEntropy
from tunesmith.training.optim import build_optimizer, rate_schedule


class Fit:
    """The steps of a run from its last checkpoint on. ``final_scores`` are the held-out scores of the last step.

    Args:
        eval_batches: the held-out rows, laid out for the validation loss; none where there are none.
    """

    def __init__(self, run: Run, ready: Ready, prepared: Prepared, *, eval_batches: list[Batch]) -> None:
        self.run, self.ready, self.prepared = run, ready, prepared
        self.task, self.eval_batches = prepared.task, eval_batches
        self.settings = ready.recipe.training
        self.order = order_of(ready.recipe, prepared.corpus)
        self.optimizer = build_optimizer(
            ready.method.parameter_groups(ready.model),
            learning_rate=ready.recipe.learning_rate,
            weight_decay=self.settings.weight_decay,
            betas=(self.settings.adam_beta1, self.settings.adam_beta2),
            epsilon=self.settings.adam_epsilon,
        )
        self.checkpoints = run.folder / "checkpoints"
        self.final_scores: TokenScores | None = None

    def steps(self, *, after: int = 0) -> Iterator[Step]:
        """Every step behind ``after``, its rows laid out."""
        for window in self.order.windows(after=after):
            yield Step(window.step, window.epoch, self.lay_out(window.rows))

    def lay_out(self, rows: Sequence[int]) -> list[Batch]:
        """The micro-batches of one step."""
        budget, layout = int(self.settings.micro_batch_tokens), self.settings.layout
        assert layout != "auto"
        return micro_batches([self.prepared.corpus.train[number] for number in rows], budget=budget, layout=layout)

    def first_epoch(self) -> list[Batch]:
        """Every micro-batch of the first pass over the rows, whether or not the run is that long."""
        rows, size = self.order.epoch_rows(0).tolist(), self.order.batch_size
        return [batch for start in range(0, len(rows), size) for batch in self.lay_out(rows[start : start + size])]

    def rehearse(self, batches: Sequence[Batch]) -> Rehearsal:
        """Measures the heaviest of the batches before the first step. Raises ModelError if the run would not fit."""
        recipe = self.ready.recipe
        return rehearse(
            self.ready.model,
            batches,
            objective=CrossEntropy(),
            plan=self.prepared.plan,
            device=recipe.model.device,
            where=recipe.model.path,
        )

    def run_steps(self, listener: Listener) -> dict[str, int]:
        """Trains to the last step. Returns token counts of the whole run: in rows, computed, supervised."""
        checkpoint.remove_unfinished(self.checkpoints)
        saved = self.run.checkpoints
        done: dict[str, Any] = checkpoint.load(saved[-1], self.optimizer) if saved else {"step": 0}
        first = int(done["step"])
        if first:
            listener.say(f"continuing behind step {first} of {self.order.total_steps}")
        self.run.drop_after("metrics.jsonl", first)
        self.recorder = Recorder(
            self.run,
            logging_steps=self.settings.logging_steps,
            total_steps=self.order.total_steps,
            tensorboard="tensorboard" in self.settings.report_to,
            totals=done.get("totals", {}),
            step=first,
        )
        self.run.set_status("running", step=first, total_steps=self.order.total_steps)
        with listener.task("training", self.order.total_steps) as advance, memory_faults():
            self.recorder.advance = advance
            train(
                self.ready.model,
                self.steps(after=first),
                objective=CrossEntropy(),
                optimizer=self.optimizer,
                rate=self.rate(),
                max_grad_norm=self.settings.max_grad_norm,
                seed=self.settings.seed,
                hooks=Hooks(self.recorder.on_step, self.on_eval, self.eval_due, self.save, self.save_due),
            )
        self.recorder.close()
        self.run.set_status("running", step=self.order.total_steps, **self._facts())
        totals = self.recorder.totals
        return {
            "rows": totals.run_tokens,
            "computed": totals.run_computed,
            "supervised": totals.run_supervised,
        }

    def rate(self) -> Any:
        """Learning rate by step."""
        settings, total = self.settings, self.order.total_steps
        ratio = math.ceil(settings.warmup_ratio * total)
        return rate_schedule(
            peak=self.ready.recipe.learning_rate,
            total_steps=total,
            warmup_steps=ratio if settings.warmup_steps is None else settings.warmup_steps,
            schedule=settings.lr_scheduler_type,
        )

    def eval_due(self, step: Step) -> bool:
        """Every ``eval_steps`` or epoch, and after the last step."""
        return self.task is not None and self._due(self.settings.eval_strategy, self.settings.eval_steps, step)

    def save_due(self, step: Step) -> bool:
        """Every ``save_steps`` or epoch, and after the last step."""
        return self._due(self.settings.save_strategy, self.settings.save_steps, step)

    def _due(self, strategy: str, every: int, step: Step) -> bool:
        if step.number == self.order.total_steps:
            return True
        if strategy == "epoch":
            return step.epoch == int(step.epoch)
        return strategy == "steps" and step.number % every == 0

    def on_eval(self, step: Step) -> None:
        """Validation loss of the weights as they stand."""
        assert self.task is not None
        begin = time.perf_counter()
        try:
            scores = token_scores(self.ready.model, self.task, self.eval_batches, title="validation", listener=Silent())
        except ModelError as error:
            raise TrainError(
                f"The validation loss of step {step.number} is not finite",
                where=f"step {step.number}",
                why=f"The learning rate of this step was {self.rate()(step.number):g}.",
                remedy="Lower training.learning_rate or add warm-up (training.warmup_ratio: 0.1).",
            ) from error
        apart = self.task.losses_by_source(scores.scores()["loss"])
        self.recorder.on_eval(step.number, step.epoch, scores.loss, time.perf_counter() - begin, apart)
        if step.number == self.order.total_steps:
            self.final_scores = scores

    def save(self, step: Step) -> None:
        """A checkpoint, the run's status, and the removal of checkpoints beyond the limit."""
        checkpoint.save(
            self.checkpoints,
            step.number,
            write_model=self.write_model,
            optimizer=self.optimizer,
            state={"totals": self.recorder.state()},
        )
        self.run.set_status("running", step=step.number, total_steps=self.order.total_steps, **self._facts())
        if self.settings.save_total_limit is not None:
            best = self.recorder.totals.best_step
            protected = {best} if best is not None else set()
            checkpoint.prune(self.checkpoints, keep=self.settings.save_total_limit, protected=protected)

    def write_model(self, folder: Path) -> None:
        """What the ecosystem loads: the method's files, and the tokenizer with the template that was trained on."""
        self.ready.method.save(self.ready.method.state(self.ready.model), folder)
        tokenizer = self.prepared.tokenizer
        self.prepared.template.apply_to(tokenizer)
        save_tokenizer(tokenizer, folder)

    def _facts(self) -> dict[str, Any]:
        totals = self.recorder.totals
        if totals.best_step is None:
            return {}
        return {"best": {"step": totals.best_step, "eval_loss": totals.best_loss}}


@contextmanager
def memory_faults() -> Iterator[None]:
    """Memory that runs out is the user's to mend, so it gets a message of its own."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: BaseException) -> TrainError:
    return TrainError(
        "Memory ran out",
        why=str(error).splitlines()[0] if str(error) else None,
        remedy="Lower training.micro_batch_tokens, set training.gradient_checkpointing: true, or use method qlora. "
        "Checkpoints that were written are whole: continue with --resume.",
    )
