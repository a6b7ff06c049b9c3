"""A run that continues: is its recipe, its base, its data and the code still what it began with?

Each difference that can change a byte is refused with its name, unless the user allows its kind. Then the run goes on
with what is there now, and keeps a record of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tunesmith.data.chat.template import is_jinja, template_in_file
from tunesmith.data.ledger import EpochTokens
from tunesmith.data.report.summary import languages
from tunesmith.data.survey import Survey
from tunesmith.errors import RunError
from tunesmith.evaluation.metrics.user_functions import function_files
from tunesmith.evaluation.probe.items import own_file
from tunesmith.model.weights.base_files import base_changes, base_files
from tunesmith.model.weights.device import gpu_name
from tunesmith.model.weights.resolve import resolve
from tunesmith.recipe.complaints import Path_, dotted
from tunesmith.recipe.file import leaves, portable, read_recipe
from tunesmith.recipe.methods import QUANTIZED, AdapterSettings, method_label
from tunesmith.recipe.optimizers import BITSANDBYTES
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.drift import Change, Fingerprint, compared, record_of, settle
from tunesmith.runs.edited_recipe import MAY_CHANGE, is_place, judges_only, of_rows
from tunesmith.runs.environment import package_versions, processor, source_digest
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import changes, sha256_of, take_off
from tunesmith.runs.progress import Listener
from tunesmith.runs.reporters import chosen_reporters
from tunesmith.runs.run_files import FUNCTIONS
from tunesmith.runs.start_folder import recipe_of, stored_recipe
from tunesmith.runs.stored_addresses import write_recipe
from tunesmith.runs.whole_files import write_whole
from tunesmith.training import references
from tunesmith.training.setup import Prepared
from tunesmith.training.step_rows import Steps
from tunesmith.workflows.continuing import with_rules_of
from tunesmith.workflows.places import check_places

_ALWAYS = ("torch", "transformers", "tokenizers", "numpy", "jinja2")
_FIXED = (  # settings that a checkpoint fits only as they were
    "method", "objective", "output_dir", "model.path", "model.revision", "model.add_tokens", "model.add_special_tokens",
    "data.train", "data.eval", "data.test", "data.chat_template", "training.optim", "training.layout",
)  # fmt: skip
_SPLITS = ("train", "eval", "test")
_BASE = ("model", "path")
_STEPS, _EPOCHS = ("training", "max_steps"), ("training", "num_train_epochs")
_LENGTH: Mapping[Path_, Path_] = {_STEPS: _EPOCHS, _EPOCHS: _STEPS}


class Continuation:
    """What a run that continues is held against, and the changes that the user allows.

    Args:
        run: the run.
        asked: the recipe that is given now.
        allowed: kinds of changes.
    """

    def __init__(self, run: Run, asked: Recipe, allowed: Collection[str], listener: Listener) -> None:
        self.run, self.asked, self.allowed, self.listener = run, asked, allowed, listener
        self.before = Fingerprint.read(run)
        self.changes: list[Change] = []
        self.changed_settings: list[Path_] = []
        self.moved: list[Path_] = []

    def check_recipe(self) -> None:
        """Raises RunError if the run was started with other settings, and nobody allowed that.

        A value may be the one that was asked for, such as `auto`, or the one that it was resolved to, as in the run's
        own recipe.yaml.
        """
        stored = read_recipe(self.run.fact("asked")).recipe  # a setting that is newer than the run has its default
        before, now = _all_values(stored), _all_values(self.asked)
        # Where the run is now is known: its folder may have another name than when it began.
        paths = [path for path in {**before, **now} if path != ("output_dir",)]
        changed = [path for path in paths if before.get(path) != now.get(path) and path not in MAY_CHANGE]
        if changed:
            resolved = _all_values(recipe_of(self.run))
            changed = [path for path in changed if path not in now or now[path] != resolved.get(path)]
        if self.before is not None and self.run.status().get("status") != "finished":  # the contents are compared
            moved = [path for path in changed if path == _BASE or of_rows(path)]
            self.moved = [
                path for path in moved if all("://" not in str(each.get(path, "://")) for each in (before, now))
            ]
            changed = [path for path in changed if path not in self.moved]
        # One of the two keys of the run's length takes the place of the other, which the user has not touched.
        named = [path for path in changed if not (path not in now and _LENGTH.get(path) in changed)]
        changes = [Change("recipe", dotted(path), _was(path, before), repr(now.get(path))) for path in named]
        self._refuse_fixed(named, changes)
        self.changed_settings = changed
        selects = stored.training.selects or self.asked.training.selects
        by_answers = stored.selects_by_answers or self.asked.selects_by_answers
        unfinished = self.run.status().get("status") != "finished"  # else there is a verdict, with the former values
        found = [*changes, *self._edited()]
        free = [each for each in found if unfinished and judges_only(each.key, selects=selects, by_answers=by_answers)]
        self._settle([each for each in found if each not in free])
        for change in free:
            self.listener.say(f"{change}. It changes no weights and is recorded")
        self.changes += free

    def _refuse_fixed(self, paths: Sequence[Path_], changes: Sequence[Change]) -> None:
        """Raises RunError for settings that no flag can change, once others of the recipe are allowed."""
        fixed = [
            change
            for path, change in zip(paths, changes, strict=True)
            if any(dotted(path[:size]) in _FIXED for size in (1, 2))
        ]
        if fixed:
            kept = self.run.folder / "recipe.yaml"
            places = any(path == _BASE or of_rows(path) for path in paths)
            raise RunError(
                "The run in this folder was started with another recipe",
                where=str(self.run.folder),
                why="\n".join(map(str, [*fixed, *(change for change in changes if change not in fixed)][:10])),
                remedy="Change the recipe back to continue, name another output_dir, or start over with "
                "--overwrite in place of --resume."
                + (f" If it only lies elsewhere now, write that into {kept}." if places else ""),
            )

    def _edited(self) -> list[Change]:
        """What was changed in the run's own recipe.yaml. Where the model and the rows are may be corrected there."""
        if self.before is None:
            return []
        began = _all_values(read_recipe(dict(self.before.recipe)).recipe)
        now = _all_values(recipe_of(self.run))
        return [
            Change("recipe", f"recipe.yaml: {dotted(path)}", repr(began.get(path)), repr(now.get(path)))
            for path in {**began, **now}
            if began.get(path) != now.get(path) and not is_place(path) and path not in MAY_CHANGE
        ]

    def recipe(self) -> Recipe:
        """The run's own recipe with the changes that were allowed.

        It has the text of its chat template, so that the template's file is not needed.

        Raises:
            RunError: the model or the rows are not where they were.
        """
        recipe = self._with_changes(self._where_it_is(stored_recipe(self.run, self.asked)), self.asked)
        recipe = with_rules_of(self.run, recipe, self.asked)
        check_places(self.run, recipe)
        if recipe.data.chat_template is None or not (self.run.folder / "template.json").is_file():
            return recipe
        text = self._template(self.run.read_json("template.json")["templates"]["default"], recipe)
        return recipe.with_values(data={"chat_template": text}) if is_jinja(text) else recipe

    def _template(self, text: str, recipe: Recipe) -> str:
        """The run's template, or that of the recipe's file if its text was changed and the change is allowed.

        A file that is not there any more is not needed.

        Raises:
            RunError: it was changed, and nobody allowed that.
        """
        stored, names = recipe.data.chat_template, {} if self.before is None else self.before.base["template"]
        began_in = None if stored is None else os.path.join(self.run.status().get("started_in") or "", stored)
        for setting in (self.asked.data.chat_template, stored, began_in):
            if setting is None or is_jinja(setting) or setting in names or (found := template_in_file(setting)) is None:
                continue
            was, now = (hashlib.sha256(each.encode()).hexdigest() for each in (text, found))
            key = f"data.chat_template: {setting}"
            self._settle(compared("template", {key: was}, {key: now}))
            return found
        return text

    def _where_it_is(self, recipe: Recipe, *, absolute: bool = False) -> Recipe:
        """The recipe with the places of the base and of the rows that the user gives now."""
        for path in self.moved:
            if path == _BASE:
                recipe = recipe.with_values(model={"path": _place(self.asked.model.path, absolute)})
                continue
            split, at = str(path[1]), int(path[2])
            sources = [*getattr(recipe.data, split)]
            there = _place(getattr(self.asked.data, split)[at].path, absolute)
            sources[at] = sources[at].model_copy(update={"path": there})
            recipe = recipe.with_values(data={split: sources})
        return recipe

    def _with_changes(self, stored: Recipe, given: Recipe) -> Recipe:
        """The recipe with the values that another one has for the changed settings.

        Raises:
            RecipeError: they contradict the values that stay.
        """
        sections: dict[str, dict[str, Any]] = {}
        for section, key in dict.fromkeys(path[:2] for path in self.changed_settings):
            sections.setdefault(str(section), {})[str(key)] = getattr(getattr(given, str(section)), str(key))
        changed = stored.with_values(**sections)
        read_recipe(portable(changed))
        return changed

    def check_surroundings(self, recipe: Recipe) -> None:
        """Raises RunError if the base, the packages or Tunesmith are others than when the run began."""
        model, say = recipe.model, self.listener.say
        folder = resolve(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code, say=say)
        self.now = fingerprint(recipe, folder, self.listener)
        self._compare_processor(recipe.model.device)
        if self.before is None:
            self.listener.say(
                "this run has no fingerprint, because an earlier version began it: what changed before today is not "
                "known. It gets one now"
            )
            return
        base, questions = base_changes(self.before, self.now.base, recipe), probe_changes(self.before, recipe)
        self._settle([*base, *questions, *_code_changes(recipe, self.before, self.now), *_changed_functions(self.run)])

    def _compare_processor(self, device: str) -> None:
        """Says that another processor or GPU may compute other bytes: a run may go on elsewhere."""
        if not (self.run.folder / "environment.json").is_file() or "environment.json" in changes(self.run.folder):
            return
        began = self.run.read_json("environment.json")
        for key, here in {"processor": processor(), "gpu": gpu_name(device)}.items():
            if began.get(key) not in (None, here):  # None: none computed, or an earlier version did not note it
                self.listener.warn(
                    f"the run began on {began[key]}, and this machine has {here or 'no GPU'}: the result may differ "
                    "from that of a run without a break"
                )

    def check_data(self, survey: Survey) -> None:
        """Raises RunError if a data file has other content than when the run was started."""
        self._settle(data_changes(self.run, survey))

    def _settle(self, changes: Sequence[Change]) -> None:
        where = str(self.run.folder)
        self.changes += settle(changes, self.allowed, where=where, listener=self.listener, otherwise=self._otherwise())

    def _otherwise(self) -> str:
        return f"; {self.run.way_to_start_over()} starts over"

    def record(self, prepared: Prepared, steps: Steps, tokens: EpochTokens, checkpoint: Path | None) -> None:
        """Writes down what the run goes on with from here, before it takes a step.

        The record comes first: if the process is killed after it, a change whose files are not replaced yet is refused
        again.

        Args:
            steps: of the run, with the recipe that has every value resolved.
            tokens: of an epoch.
            checkpoint: that the run goes on from.

        Raises:
            RunError: the changes leave fewer steps than the run has taken.
        """
        if self.before is not None and not self.changes:
            self._keep_places()
            return
        step = 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))
        self._refuse_nothing_left(step, steps.order.total_steps)
        stored = self._with_changes(self._where_it_is(recipe_of(self.run), absolute=True), steps.recipe)
        began, earlier = (step, ()) if self.before is None else (self.before.step, self.before.changes)
        records = (record_of(self.changes, step=step),) if self.changes else ()
        now = replace(self.now, recipe=portable(stored), step=began, changes=(*earlier, *records))
        now.write(self.run)
        if not self.changes:
            return
        if {change.kind for change in self.changes} - {"packages", "code"}:
            take_off(self.run.folder, references.FILE)  # the untuned model is measured again
        write_recipe(self.run, stored)
        keep_functions(self.run)
        write_facts_of_rows(self.run, prepared, tokens)
        if self.changed_settings or self.moved:
            self.run.set_status("running", asked=portable(self.asked))

    def _keep_places(self) -> None:
        """Writes down where the base and the rows are now, once their contents were found to be the same."""
        if self.moved:
            write_recipe(self.run, self._where_it_is(recipe_of(self.run), absolute=True))
            self.run.set_status("running", asked=portable(self.asked))

    def _refuse_nothing_left(self, step: int, total_steps: int) -> None:
        if self.changes and step > total_steps:
            raise RunError(
                "The changed run would have fewer steps than it has taken",
                where=str(self.run.folder),
                why=f"Its checkpoint is of step {step}, and now it has {total_steps} steps.",
                remedy="Put back what changed, give it more steps (training.max_steps, with --allow-changes recipe), "
                f"or start over with {self.run.way_to_start_over()}.",
            )


def fingerprint(recipe: Recipe, folder: Path, listener: Listener) -> Fingerprint:
    """What the bytes of a run depend on, as it is now.

    Args:
        folder: of the base model.
    """
    versions = package_versions()
    code = {"tunesmith": versions.pop("tunesmith"), "the code of tunesmith": source_digest()}
    base, questions = base_files(folder, say=listener.say), _questions(recipe)
    return Fingerprint(base, portable(recipe), versions, code, questions=questions)


def _questions(recipe: Recipe) -> dict[str, str]:
    file = own_file(recipe.evaluation.probe)
    return {} if file is None else {f"evaluation.probe: {recipe.evaluation.probe}": sha256_of(file)}


def probe_changes(before: Fingerprint, recipe: Recipe) -> list[Change]:
    """A user's own file of questions that has other content than before. Another file is another setting."""
    now = {key: digest for key, digest in _questions(recipe).items() if key in before.questions}
    return compared("data", {key: before.questions[key] for key in now}, now)


def _code_changes(recipe: Recipe, before: Fingerprint, now: Fingerprint) -> list[Change]:
    """What differs in Tunesmith and in the packages that this recipe uses."""
    names = [*_ALWAYS, *(["peft"] if isinstance(recipe.method, AdapterSettings) else [])]
    if method_label(recipe.method) in QUANTIZED or recipe.training.optim in BITSANDBYTES:
        names.append("bitsandbytes")
    if recipe.model.device.startswith("cuda"):
        names.append("liger-kernel")
    names = [name for name in names if name in before.packages]  # what an earlier version did not note is not known
    was, there = ({name: each.packages.get(name) for name in names} for each in (before, now))
    return [*compared("packages", was, there), *compared("code", before.code, now.code)]


def data_changes(run: Run, survey: Survey) -> list[Change]:
    """The data files that have other content than when the run was started. A file may have another name."""

    def files(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        # The name alone: the path to a file differs with the folder that a command is given in.
        return [(Path(file["path"]).name, file["sha256"]) for source in sources for file in source["files"]]

    before, now = files(run.read_json("data.json")), files(survey.sources)
    if [digest for _, digest in before] == [digest for _, digest in now]:
        return []
    found = compared("data", _numbered(before), _numbered(now))
    return found or [Change("data", "files", "in another order", ", ".join(name for name, _ in now))]


def _numbered(files: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The digests by name; several files of one name are numbered."""
    found: dict[str, str] = {}
    for name, digest in files:
        key = next(each for each in (name, *(f"{name} ({n})" for n in range(2, len(files) + 1))) if each not in found)
        found[key] = digest
    return found


def keep_functions(run: Run) -> None:
    """Copies the files of the recipe's functions into the run, so that the run can be judged again."""
    for name, file in function_files().items():
        kept = run.folder / FUNCTIONS / name
        if kept.exists() and kept.samefile(file):
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, file.read_bytes())  # what has this name now may have other names, too


def _changed_functions(run: Run) -> list[Change]:
    """The files of functions that are others than the run's copies: they may select a step, and they judge."""
    now = {
        name: sha256_of(file) for name, file in function_files().items() if (run.folder / FUNCTIONS / name).is_file()
    }
    return compared("code", {name: sha256_of(run.folder / FUNCTIONS / name) for name in now}, now)


def write_facts_of_rows(run: Run, prepared: Prepared, tokens: EpochTokens) -> None:
    """Writes what is known of the rows: sources with hashes, findings, the template, rows left out, and the ledger.

    The ledger also has the languages of a sample of the rows, where they can be told.
    """
    run.write_json("data.json", prepared.survey.sources)
    findings = [*prepared.survey.findings, *prepared.corpus.findings]
    run.write_json("findings.json", [finding.to_json() for finding in findings])
    run.write_json("template.json", prepared.text.template.describe())
    rejected = [*prepared.survey.rejected, *(row.bad_row() for row in prepared.corpus.refused)]
    if rejected:
        run.write_lines("rejected.jsonl", [asdict(row) for row in rejected])
    ledger = replace(prepared.corpus.ledger, epoch=tokens).to_json()
    spoken = languages(prepared.survey.scan)
    run.write_json("ledger.json", ledger if spoken is None else {**ledger, "languages": spoken})


def _place(path: str, absolute: bool) -> str:
    return os.path.abspath(path) if absolute and os.path.exists(path) else path


def _was(path: Path_, before: Mapping[Path_, Any]) -> str:
    """A value as it was; of the run's length with the key that said it."""
    other = _LENGTH.get(path)
    if other is not None and other in before and path not in before:
        return f"not set ({dotted(other)} was {before[other]!r})"
    return repr(before.get(path))


def _all_values(recipe: Recipe) -> dict[Path_, Any]:
    """Every value by its path. Each source has the values that it takes from the data section."""
    values = portable(recipe)
    values["training"]["report_to"] = chosen_reporters(recipe.training.report_to)
    for split in _SPLITS:
        if sources := recipe.data.sources(split):
            values["data"][split] = [source.model_dump(mode="json") for source in sources]
    return dict(leaves(values))
