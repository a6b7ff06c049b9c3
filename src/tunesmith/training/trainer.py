"""Takes the steps of a run from its last checkpoint on, and records, validates and saves as the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from tunesmith.data.batches.layout import Batch
from tunesmith.data.chat.template import ChatTemplate
from tunesmith.errors import ModelError, NotFiniteError, TrainError
from tunesmith.evaluation.during import during_judge
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.model.weights.text_side import save_text_side
from tunesmith.planning import memory
from tunesmith.planning.disk_space import WHOLE
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener, StepResult, sample_line
from tunesmith.runs.recorder import Recorder
from tunesmith.runs.stopping import Stop
from tunesmith.training import checkpoint
from tunesmith.training.attach import Ready, optimizer_of
from tunesmith.training.guard import Guard, refuse_to_save
from tunesmith.training.loop import Hooks, Step, train_steps
from tunesmith.training.selection import Selection, selection, selects_nothing
from tunesmith.training.step_rows import Steps, rate_of
from tunesmith.training.validation import Validation, validate

METRICS, SAMPLES = "metrics.jsonl", "samples_during.jsonl"


@dataclass(frozen=True, slots=True)
class Trained:
    """How the steps ended.

    The weights of ``judged_step`` are the run's; without a selection that is the last step. ``scores`` are those of the
    judged step on the validation rows, if they are known. ``tokens`` are counts of the whole run.
    """

    last_step: int
    judged_step: int
    scores: TokenScores | None
    selection: Selection | None
    tokens: dict[str, int]


@dataclass(frozen=True, slots=True)
class Due:
    """When something happens: every so many steps or after each epoch, and always after the last step."""

    strategy: str
    every: int
    last_step: int

    def at(self, step: int, epoch: float) -> bool:
        """Whether it happens after this step, which reaches this epoch."""
        if step == self.last_step:
            return True
        if self.strategy == "epoch":
            return epoch == int(epoch)
        return self.strategy == "steps" and step % self.every == 0


class Trainer:
    """The steps of one run, with what happens after a step.

    Args:
        run: its folder. What was written after its last checkpoint is removed, because it is computed again.
        ready: the model, as that checkpoint has it.
        steps: of the whole run.
        validation: measures the validation rows; None if no rows are held out.
        template: the chat template, which is saved with the model.
        listener: hears the progress.
    """

    def __init__(
        self,
        run: Run,
        ready: Ready,
        steps: Steps,
        *,
        validation: Judge | None,
        template: ChatTemplate,
        listener: Listener,
    ) -> None:
        self.run, self.ready, self.steps, self.validation = run, ready, steps, validation
        self.template, self.listener, self.settings = template, listener, ready.recipe.training
        self.during = during_judge(validation)
        self.total_steps = steps.order.total_steps
        self.optimizer = optimizer_of(ready)
        self.checkpoints = run.folder / "checkpoints"
        self.final_scores: TokenScores | None = None
        checkpoint.remove_unfinished(self.checkpoints)
        saved = run.checkpoints
        state: dict[str, Any] = checkpoint.restore(saved[-1], self.optimizer) if saved else {"step": 0}
        self.first = int(state["step"])
        self.stop, self._saved_to_stop = Stop(listener.say), False
        # The epoch of the checkpoint's step if a stop came before its validation, which is then still due.
        self._validation_due: float | None = state.get("validation_due")
        self.guard = Guard(
            on_nonfinite=self.settings.on_nonfinite,
            spike_sigma_factor=self.settings.spike_sigma_factor,
            max_skipped_steps=self.settings.max_skipped_steps,
            state=state.get("guard"),
        )
        recorded = [*state.get(checkpoint.SMALLER, []), *checkpoint.smaller_in_status(run)]
        steps.smaller.update({int(since): int(tokens) for since, tokens in recorded})
        totals = dict(state.get("totals", {}))
        self.selection = selection(self.settings, totals.pop("selection", {}))
        unwritten = state.get(checkpoint.UNWRITTEN)  # a line of that step was then written by a process that was killed
        done, validated = (self.first - 1, True) if unwritten else (self.first, self._validation_due is None)
        for name in (METRICS, SAMPLES):
            if (run.folder / name).is_file() or name == METRICS:
                run.drop_after(name, done, validated=validated)
        line = Due(self.settings.logging_strategy, self.settings.logging_steps, self.total_steps)
        self.recorder = Recorder(
            run,
            line_due=lambda result: line.at(result.step, result.epoch),
            report_to=self.settings.report_to,
            totals=totals,
            step=self.first,
            warn=listener.warn,
            unwritten=unwritten,
        )
        if saved:
            self._tidy(self.first)  # a process may have been killed between its checkpoint and this

    def run_steps(self) -> Trained:
        """Trains to the last step. Ctrl-C and SIGTERM stop it after a step, with a checkpoint; see ``Stop``."""
        settings, listener = self.settings, self.listener
        if self.first:
            listener.say(f"continuing after step {self.first} of {self.total_steps}")
        with self.stop.listening(), listener.task("training", self.total_steps) as advance:
            self._set_running(self.first)

            def on_step(result: StepResult) -> None:
                advance(result.step, self.recorder.on_step(result))

            self._validate_at_last()
            train_steps(
                self.ready.model,
                takewhile(lambda _: not (self._saved_to_stop or self.stopped_at), self.steps.after(self.first)),
                objective=self.steps.objective,
                optimizer=self.optimizer,
                rate=self.rate(),
                max_grad_norm=settings.max_grad_norm,
                seed=settings.seed,
                hooks=Hooks(on_step, self.on_eval, self.eval_due, self.save, self.save_due, self.smaller),
                guard=self.guard,
            )
        self.stop.end()
        self.recorder.close()
        self.run.seal(METRICS, SAMPLES)
        last = self.stopped_at or self.total_steps
        judged, found = last, self.selection
        if found is not None and settings.load_best_model_at_end:
            judged = found.best_step or last
        if self.stopped_at is not None:
            listener.say(
                f"stopped early at step {last} of {self.total_steps}: {settings.metric_for_best_model} was no better "
                f"in {settings.early_stopping_patience} validations in a row"
            )
        if found is not None and judged != last:
            listener.say(f"step {judged} is judged: best {found.metric}, {found.best:.6g}")
        if found is not None and (silent := selects_nothing(found.metric, self.run.read_lines(METRICS))):
            listener.warn(silent)
        self.run.set_status("running", step=last, judged_step=judged, **self._best())
        scores = self.final_scores if judged == last else None
        return Trained(last, judged, scores, found, self.recorder.tokens)

    @property
    def stopped_at(self) -> int | None:
        """The step after which early stopping ended the run."""
        return self.selection.stopped_at if self.selection else None

    def rate(self) -> Callable[[int], float]:
        """The learning rate by step."""
        return rate_of(self.ready.recipe, self.total_steps)

    def eval_due(self, step: Step) -> bool:
        """Every ``eval_steps`` or epoch, and after the last step. A stop puts it off until the run continues."""
        due = Due(self.settings.eval_strategy, self.settings.eval_steps, self.total_steps)
        wanted = self.validation is not None and due.at(step.number, step.epoch)
        self._validation_due = step.epoch if wanted and self.stop.asked else None
        return wanted and self._validation_due is None

    def _validate_at_last(self) -> None:
        """Makes up for the validation that a stop put off, with what follows it."""
        if self._validation_due is None:
            return
        step = Step(self.first, self._validation_due, [])
        self._validation_due = None
        self.on_eval(step)
        if self.save_due(step):
            self.save(step)

    def save_due(self, step: Step) -> bool:
        """Every ``save_steps`` or epoch, after the last step, after the best so far if it is judged, and to stop."""
        return self._save_planned(step) or self._judged_so_far(step) or self.stop.asked

    def _judged_so_far(self, step: Step) -> bool:
        best = self.selection is not None and self.selection.best_step == step.number
        return self.settings.load_best_model_at_end and best

    def _save_planned(self, step: Step) -> bool:
        due = Due(self.settings.save_strategy, self.settings.save_steps, self.total_steps)
        return due.at(step.number, step.epoch) or step.number == self.stopped_at

    def on_eval(self, step: Step) -> None:
        """Measures the current weights on the validation rows. The metric that selects a step is taken into account."""
        assert self.validation is not None
        try:
            selected_by = self.selection.metric if self.selection else None
            found = validate(self.validation, self.ready.model, selected_by=selected_by)
        except ModelError as error:
            raise NotFiniteError(
                f"The validation loss of step {step.number} is not finite",
                where=f"step {step.number}",
                why=f"The learning rate of this step was {self.rate()(step.number):g}.",
                remedy="Lower training.learning_rate or add warm-up (training.warmup_steps: 0.1), and start over with "
                "--overwrite.",
            ) from error
        if self.during is not None:
            found = found.with_answers(self.during, self.ready.model)
        shown = {name: found.metrics[name] for name in (self.during.settings.metrics if self.during else ())}
        self.recorder.on_eval(
            step.number, step.epoch, found.loss, found.seconds, found.by_source, found.metrics, shown=shown
        )
        self._select(step.number, found)
        self._sample(self.validation, step)
        if step.number == self.total_steps:
            self.final_scores = found.scores

    def _select(self, step: int, found: Validation) -> None:
        if self.selection is None:
            return
        if self.selection.metric not in found.selectable:
            raise TrainError(
                f"There is no metric {self.selection.metric!r} to select a step by",
                where="training.metric_for_best_model",
                why=f"A validation gives {', '.join(found.selectable)}.",
                remedy=f"Name one of them; {self.ready.recipe.evaluation.compute_metrics} must return it each time.",
            )
        self.selection.add(step, found.selectable[self.selection.metric], self.settings)

    def _sample(self, judge: Judge, step: Step) -> None:
        """Writes down and says one answer of the current weights. Training does not depend on it."""
        if not judge.task.questions or judge.settings.samples == 0:
            return
        line = judge.sample_answer(self.ready.model)
        self.run.append(SAMPLES, {"step": step.number, "epoch": round(step.epoch, 4), **line})
        self.listener.say(f"step {step.number}: {sample_line(line)}")

    def save(self, step: Step) -> None:
        """Writes a checkpoint and the run's status, and removes the checkpoints that are no longer needed.

        To stop or not, a checkpoint that a run without a stop has, too, gets the same bytes.
        """
        stops = self.stop.asked
        if step.number == self.stopped_at:
            self.recorder.write_rest()  # a kill after this checkpoint would lose these steps' line
        totals = {**self.recorder.state(), "selection": self.selection.state() if self.selection else {}}
        checkpoint.save(
            self.checkpoints,
            step.number,
            write_model=lambda beside: self._write_model(beside, step.number),
            optimizer=self.optimizer,
            state={
                "totals": totals,
                "guard": self.guard.state(),
                **self._smaller_so_far(),
                **self._besides_plan(step),
                **self._due_later(),
            },
            needed=self._checkpoint_bytes,
        )
        self._saved_to_stop = stops
        self._set_running(step.number, **self._best())
        self.run.seal(METRICS, SAMPLES)
        self._tidy(step.number)

    def _besides_plan(self, step: Step) -> dict[str, Any]:
        """Marks a checkpoint that the recipe does not plan with the reason why it is there."""
        if self._save_planned(step):
            return {}
        return {checkpoint.ONLY_AS_BEST if self._judged_so_far(step) else checkpoint.ONLY_TO_STOP: True}

    def _due_later(self) -> dict[str, Any]:
        """The validation that a stop put off, and what is written down after it if the run then stops early."""
        if self._validation_due is None:
            return {}
        return {"validation_due": self._validation_due, checkpoint.UNWRITTEN: self.recorder.unwritten()}

    def _tidy(self, newest: int) -> None:
        """Removes what is no longer needed once the newest checkpoint is whole."""
        settings = self.settings
        if settings.save_optimizer == "newest":
            checkpoint.remove_older_optimizers(self.checkpoints, newest=newest)
        best = self.selection.best_step if self.selection else self.recorder.totals.best_step
        if settings.load_best_model_at_end:
            checkpoint.remove_former_best(self.checkpoints, best=best)
        if settings.save_total_limit is not None and self._validation_due is None:  # else the best is not known yet
            checkpoint.prune(self.checkpoints, keep=settings.save_total_limit, best=best)

    def smaller(self, step: Step, error: BaseException) -> list[Batch] | None:
        """The rows of a step in which memory ran out, in micro-batches of half the tokens; None if they cannot shrink.

        The gradient stays the same. Later steps keep the budget, and so does a run that continues, from this step on.
        """
        before = self.steps.budget(step.number)
        batches = self.steps.halved(step)
        if batches is not None:
            now, reason = self.steps.budget(step.number), str(error).splitlines()
            self.listener.warn(
                f"step {step.number}: memory ran out{f' ({reason[0]})' if reason else ''}. From this step on a "
                f"micro-batch has at most {now:,} tokens instead of {before:,}; the gradient is the same"
            )
            self.run.set_status("running", **self._smaller_so_far())
        return batches

    def _smaller_so_far(self) -> dict[str, Any]:
        return {checkpoint.SMALLER: [list(each) for each in self.steps.smaller.items()]} if self.steps.smaller else {}

    def _set_running(self, step: int, **facts: Any) -> None:
        """Records the step, and the most memory so far: if the process is killed, nothing else can tell."""
        held = memory.peak(str(self.ready.recipe.model.device))
        self.run.set_status("running", step=step, total_steps=self.total_steps, held_memory=held, **facts)

    def _checkpoint_bytes(self) -> int:
        """The bytes of a checkpoint's weights and optimizer."""
        whole = self.ready.recipe.method.name in WHOLE
        weights = [own for own in self.ready.model.parameters() if whole or own.requires_grad]
        state = checkpoint.optimizer_state(self.optimizer).values()
        return sum(tensor.nbytes for tensor in (*weights, *state))

    def _write_model(self, folder: Path, step: int) -> None:
        """The method's files, and the tokenizer with the template that was trained on, for other libraries to load."""
        state = self.ready.method.state(self.ready.model)
        refuse_to_save(state, step=step, what="weights")
        self.ready.method.save(state, folder)
        save_text_side(self.template, folder)

    def _best(self) -> dict[str, Any]:
        """The best step so far, for status.json."""
        totals = self.recorder.totals
        if totals.best_step is None:
            return {}
        facts: dict[str, Any] = {"best": {"step": totals.best_step, "eval_loss": totals.best_loss}}
        return facts | ({"selection": self.selection.state()} if self.selection else {})
