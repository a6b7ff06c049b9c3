"""One run of the optimizer's steps, with all that hangs on a step: records, validation, checkpoints."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import ModelError, TrainError
from tunesmith.evaluation.compare import LARGEST_EXPONENT
from tunesmith.evaluation.judge import sample_answer, token_scores
from tunesmith.evaluation.metrics.base import RowScores
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.evaluation.metrics.user_functions import computed_metrics
from tunesmith.model.weights.load import save_tokenizer
from tunesmith.recipe.schedules import rate_schedule, steps_of_warmup
from tunesmith.recipe.settings import PREFERENCE_METRICS
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener, Silent, sample_line
from tunesmith.runs.recorder import Recorder
from tunesmith.training import checkpoint, references
from tunesmith.training.attach import Ready, load
from tunesmith.training.loop import Hooks, Step, StepResult, train
from tunesmith.training.objectives.supervised import CrossEntropy, Objective
from tunesmith.training.objectives.table import preference_objective
from tunesmith.training.optim import build_optimizer
from tunesmith.training.references import References
from tunesmith.training.rehearsal import Rehearsal, ran_out, rehearse
from tunesmith.training.selection import selection
from tunesmith.training.setup import Prepared
from tunesmith.training.step_rows import lay_out, order_of

SAMPLES = "samples_during.jsonl"


class Trainer:
    """The steps of a run from its last checkpoint on.

    ``final_scores`` are the scores of the last step on the rows of validation; None where another step is judged.

    Args:
        eval_batches: the rows of validation, laid out for its loss; none where there are none.
        judge_batches: those of the verdict, where other rows select its step; else they are the rows of validation.
    """

    def __init__(
        self,
        run: Run,
        ready: Ready,
        prepared: Prepared,
        *,
        eval_batches: list[Batch],
        judge_batches: list[Batch] | None = None,
    ) -> None:
        self.run, self.ready, self.prepared = run, ready, prepared
        self.task, self.eval_batches = prepared.validation, eval_batches
        self.judging = None if prepared.selecting is None else prepared.task
        self.judge_batches = judge_batches or []
        self.settings = ready.recipe.training
        self.order = order_of(ready.recipe, prepared.corpus)
        self.optimizer = optimizer_of(ready)
        self.checkpoints = run.folder / "checkpoints"
        self.final_scores: TokenScores | None = None
        self.selection = selection(self.settings, {})
        self.listener: Listener = Silent()
        self.preference = preference_objective(ready.recipe)
        self.objective: Objective = CrossEntropy() if self.preference is None else self.preference
        self.references: References | None = None

    def steps(self, *, after: int = 0) -> Iterator[Step]:
        """Every step behind ``after``, its rows laid out."""
        for window in self.order.windows(after=after):
            if self.stopped_at is not None:
                return
            yield Step(window.step, window.epoch, self.lay_out(window.rows, step=window.step))

    def lay_out(self, rows: Sequence[int], *, step: int | None = None) -> list[Batch]:
        """The micro-batches of one step; without its number nothing is known of what the untuned model says of them."""
        budget, layout, corpus = int(self.settings.micro_batch_tokens), self.settings.layout, self.prepared.corpus
        assert layout != "auto"
        encoded = corpus.rows_of(rows)
        if self.preference is None:
            return lay_out(encoded, None, budget=budget, layout=layout)
        known = None
        if step is not None and self.references is not None:
            known = self.references.of_step(step, rows, together=corpus.together)
        return lay_out(
            encoded,
            self.preference,
            budget=budget,
            layout=layout,
            reference=known,
            desirable=corpus.labels[[row.example for row in encoded[:: self.preference.answers]]],
        )

    def refer(self, listener: Listener) -> None:
        """What the untuned model says of every row, where the objective compares with it: once, kept with the run."""
        if self.preference is None or not self.preference.refers:
            return
        found = references.stored(self.run.folder, listener)
        if found is None:
            layout = self.settings.layout
            assert layout != "auto"
            device = self.ready.recipe.model.device
            with self.ready.method.reference(self.ready.model) as untuned:
                found = references.measured(
                    untuned,
                    self.preference,
                    corpus=self.prepared.corpus,
                    order=self.order,
                    held_out=None if self.task is None else (self.task, self.eval_batches),
                    judging=None if self.judging is None else (self.judging, self.judge_batches),
                    how=references.Measuring(int(self.settings.micro_batch_tokens), layout, device),
                    listener=listener,
                )
            found.save(self.run.folder / references.FILE)
        self.references = found
        if self.task is not None:
            self.task = self.task.with_reference(found.held_out)
        if self.judging is not None:
            self.judging = self.judging.with_reference(found.judging)

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
            objective=self.objective,
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
        totals = done.get("totals", {})
        self.selection = selection(self.settings, totals.get("selection", {}))
        if first:
            listener.say(f"continuing behind step {first} of {self.order.total_steps}")
        self.listener = listener
        self.run.drop_after("metrics.jsonl", first)
        if (self.run.folder / SAMPLES).is_file():
            self.run.drop_after(SAMPLES, first)
        self.recorder = Recorder(
            self.run,
            line_due=self.line_due,
            report_to=self.settings.report_to,
            totals=totals,
            step=first,
        )
        self.run.set_status("running", step=first, total_steps=self.order.total_steps)
        with listener.task("training", self.order.total_steps) as advance, memory_faults():
            self.recorder.advance, self.recorder.warn = advance, listener.warn
            train(
                self.ready.model,
                self.steps(after=first),
                objective=self.objective,
                optimizer=self.optimizer,
                rate=self.rate(),
                max_grad_norm=self.settings.max_grad_norm,
                seed=self.settings.seed,
                hooks=Hooks(self.recorder.on_step, self.on_eval, self.eval_due, self.save, self.save_due),
            )
        self.recorder.finish_line()
        self.recorder.close()
        if self.stopped_at is not None:
            metric, patience = self.settings.metric_for_best_model, self.settings.early_stopping_patience
            listener.say(
                f"stopped early at step {self.stopped_at} of {self.order.total_steps}: "
                f"{metric} was no better in {patience} validations in a row"
            )
        self._take_best(listener)
        self.run.set_status("running", step=self.last_step, judged_step=self.judged_step, **self._facts())
        totals = self.recorder.totals
        return {
            "rows": totals.run_tokens,
            "computed": totals.run_computed,
            "supervised": totals.run_supervised,
        }

    @property
    def stopped_at(self) -> int | None:
        """The step after which early stopping ended the run."""
        return self.selection.stopped_at if self.selection else None

    @property
    def last_step(self) -> int:
        """The step that the run ended with."""
        return self.stopped_at or self.order.total_steps

    @property
    def judged_step(self) -> int:
        """The step whose weights are the run's."""
        best = self.selection.best_step if self.selection and self.settings.load_best_model_at_end else None
        return best or self.last_step

    def _take_best(self, listener: Listener) -> None:
        """The best step's weights in place of the last step's, from its checkpoint."""
        if self.judged_step == self.last_step:
            return
        assert self.selection is not None
        listener.say(f"step {self.judged_step} is judged: best {self.selection.metric}, {self.selection.best:.6g}")
        self.final_scores = None
        del self.optimizer, self.ready.model, self.ready.method  # one model at a time
        resolved = replace(self.prepared, recipe=self.ready.recipe)
        best = load(resolved, self.checkpoints / checkpoint.name(self.judged_step), Silent())
        self.ready.model, self.ready.method = best.model, best.method

    def line_due(self, result: StepResult) -> bool:
        """Every ``logging_steps`` or epoch, and after the last step."""
        return self._due(self.settings.logging_strategy, self.settings.logging_steps, result.step, result.epoch)

    def rate(self) -> Any:
        """Learning rate by step."""
        settings, total = self.settings, self.order.total_steps
        return rate_schedule(
            peak=self.ready.recipe.learning_rate,
            total_steps=total,
            warmup_steps=steps_of_warmup(settings.warmup_steps, total),
            schedule=settings.lr_scheduler_type,
            arguments=settings.lr_scheduler_kwargs,
        )

    def eval_due(self, step: Step) -> bool:
        """Every ``eval_steps`` or epoch, and after the last step."""
        return self.task is not None and self._due(
            self.settings.eval_strategy, self.settings.eval_steps, step.number, step.epoch
        )

    def save_due(self, step: Step) -> bool:
        """Every ``save_steps`` or epoch, after the last step, and where a step is the best so far and may be judged."""
        return self._save_planned(step) or (self.settings.load_best_model_at_end and self._is_best(step))

    def _save_planned(self, step: Step) -> bool:
        planned = self._due(self.settings.save_strategy, self.settings.save_steps, step.number, step.epoch)
        return planned or step.number == self.stopped_at

    def _is_best(self, step: Step) -> bool:
        return self.selection is not None and self.selection.best_step == step.number

    def _due(self, strategy: str, every: int, step: int, epoch: float) -> bool:
        if step == self.order.total_steps:
            return True
        if strategy == "epoch":
            return epoch == int(epoch)
        return strategy == "steps" and step % every == 0

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
                remedy="Lower training.learning_rate or add warm-up (training.warmup_steps: 0.1).",
            ) from error
        of_rows = self.task.scores(scores)
        loss, apart = of_rows["loss"].value, self.task.losses_by_source(of_rows["loss"])
        metrics = self._metrics(scores, of_rows)
        self.recorder.on_eval(step.number, step.epoch, loss, time.perf_counter() - begin, apart, metrics)
        self._select(step.number, loss, metrics)
        self._sample(step)
        if step.number == self.order.total_steps:
            self.final_scores = scores

    def _metrics(self, scores: TokenScores, of_rows: Mapping[str, RowScores]) -> dict[str, float]:
        """What is known of a validation besides its loss: of preferences, and what else the recipe asks for."""
        found = {name: known.value for name, known in of_rows.items() if name in PREFERENCE_METRICS}
        if self.selection is not None and self.selection.metric == "token_accuracy":
            found["token_accuracy"] = scores.token_accuracy
        function = self.ready.recipe.evaluation.compute_metrics
        if function is not None:
            device = self.ready.recipe.model.device
            found |= computed_metrics(function, self.ready.model, self.eval_batches, device=device)
        return found

    def _select(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """Takes a validation into account, where held-out rows select the step."""
        if self.selection is None:
            return
        known = {"loss": loss}
        if self.preference is None:
            known["perplexity"] = math.exp(min(loss, LARGEST_EXPONENT))
        known |= metrics
        if self.selection.metric not in known:
            raise TrainError(
                f"There is no metric {self.selection.metric!r} to select a step by",
                where="training.metric_for_best_model",
                why=f"A validation gives {', '.join(known)}.",
                remedy=f"Name one of them; {self.ready.recipe.evaluation.compute_metrics} must return it each time.",
            )
        self.selection.add(step, known[self.selection.metric], self.settings)
        self.recorder.totals.selection = self.selection.state()

    def _sample(self, step: Step) -> None:
        """One answer as it stands, for the eye: it is written down and said, and changes nothing."""
        settings = self.ready.recipe.evaluation
        if self.task is None or not self.task.questions or settings.samples == 0:
            return
        prepared = self.prepared
        line = sample_answer(
            self.ready.model, self.task, tokenizer=prepared.tokenizer, stop_ids=prepared.stops, settings=settings
        )
        self.run.append(SAMPLES, {"step": step.number, "epoch": round(step.epoch, 4), **line})
        self.listener.say(f"step {step.number}: {sample_line(line)}")

    def save(self, step: Step) -> None:
        """A checkpoint, the run's status, and the removal of checkpoints beyond the limit."""
        checkpoint.save(
            self.checkpoints,
            step.number,
            write_model=self.write_model,
            optimizer=self.optimizer,
            state={"totals": self.recorder.state(), **({} if self._save_planned(step) else {"only_as_best": True})},
        )
        self.run.set_status("running", step=step.number, total_steps=self.order.total_steps, **self._facts())
        best = self.selection.best_step if self.selection else self.recorder.totals.best_step
        if self.settings.load_best_model_at_end:
            for folder in self.run.checkpoints[:-1]:
                if folder.name != checkpoint.name(best or 0) and checkpoint.read_state(folder).get("only_as_best"):
                    shutil.rmtree(folder)
        if self.settings.save_total_limit is not None:
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
        facts: dict[str, Any] = {"best": {"step": totals.best_step, "eval_loss": totals.best_loss}}
        return facts | ({"selection": self.selection.state()} if self.selection else {})


def optimizer_of(ready: Ready) -> torch.optim.Optimizer:
    """The recipe's optimizer over what its method trains."""
    settings = ready.recipe.training
    return build_optimizer(
        ready.method.parameter_groups(ready.model),
        learning_rate=ready.recipe.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(settings.adam_beta1, settings.adam_beta2),
        epsilon=settings.adam_epsilon,
        optim=settings.optim,
    )


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
