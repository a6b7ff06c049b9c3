"""Asks base and tuned model the tasks of lm-evaluation-harness, and compares them item by item."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import jinja2
from jinja2.sandbox import SandboxedEnvironment
from torch import nn

from tunesmith.data.batches.layout import probed_layout
from tunesmith.data.files.arrow_rows import parquet_blocks
from tunesmith.deploy.report.files import report_again
from tunesmith.deploy.tuned import Tuned, load
from tunesmith.errors import DataError, RecipeError, pip_install
from tunesmith.evaluation.benchmarks.progress import only_our_progress
from tunesmith.evaluation.benchmarks.scoring import compared, values
from tunesmith.evaluation.benchmarks.task_files import TaskFiles, read_task_files
from tunesmith.evaluation.benchmarks.task_values import changed_tasks, growing_groups, refused_values
from tunesmith.evaluation.benchmarks.templates import TaskEnvironment
from tunesmith.evaluation.compare import Level
from tunesmith.planning.budget import micro_batch_tokens
from tunesmith.recipe.paths import local, refuse_odd_name
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.drift import allowed_kinds
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.plain_files import refuse_links
from tunesmith.runs.progress import Listener
from tunesmith.runs.results import keep_result
from tunesmith.runs.run_files import BENCHMARKS
from tunesmith.runs.surroundings import library_call
from tunesmith.training.rehearsal import memory_faults

EXTRA, PACKAGE = "benchmarks", "lm_eval"
# The file of a task is a program of the harness. Whatever it raises while the harness loads it, makes its questions or
# scores its answers is a fault of the file, of its data, or of the network.
TASK_FAULTS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, SyntaxError, RecursionError,
    AssertionError, ArithmeticError, NotImplementedError,
)  # fmt: skip
SHOWN = 5  # names that are close to one that is not known, and things that files would run
FEWSHOT_SEED = 1234  # that of the harness's own command


@library_call()
def benchmark(
    target: str | Path,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    progress: bool = True,
    listener: Listener | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    allow_functions: bool = False,
    allow_changes: str | Sequence[str] = (),
) -> dict[str, Any]:
    """Compares base and tuned model on tasks of lm-evaluation-harness. A run keeps the result in benchmarks.jsonl.

    Args:
        target: a run (its last checkpoint), a checkpoint, an adapter folder or a model.
        tasks: names of tasks, groups or tags.
        include_path: a folder with YAML files of more tasks. Those with names of the harness's own replace them.
        limit: the items of each task; all by default.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.
        model: the base, where it is not at the place that the run or adapter names.
        trust_remote_code: run code that comes with the model.
        allow_functions: run the Python that files of ``include_path`` name.
        allow_changes: kinds of changes since the training with which it is judged.

    Returns:
        ``{time, target, tasks, include_path, limit, harness, base_model, confidence, benchmarks}``. ``benchmarks`` are
        entries of scoring.compared, or of scoring.values for a model without a base.

    Raises:
        RecipeError: the extra is not installed, a task is not known, or its files would run code.
        DataError: the data of a task cannot be loaded.
    """
    listener = heard_by(listener, progress)
    folder = _folder(include_path)
    needs_harness()
    files = None if folder is None or allow_functions else _checked_files(folder)
    with only_our_progress(listener):
        names = _known_tasks(tasks, folder, files)
        listener.say(f"reading tasks: {', '.join(names)}")
        with _guarded(allow_functions=allow_functions, limited=files is not None):
            loaded = _loaded(names, folder, files)
    tuned = load(
        target,
        listener=listener,
        model=model,
        trust_remote_code=trust_remote_code,
        allow_changes=sorted(allowed_kinds(allow_changes)),
    )
    if tuned.target.run is not None:
        refuse_links(tuned.target.run.folder, [BENCHMARKS])
    settings = EvaluationSettings() if tuned.target.recipe is None else tuned.target.recipe.evaluation
    level = Level(settings.confidence, settings.resamples, settings.seed)

    def ask(model: nn.Module, name: str) -> dict[str, Any]:
        return _ask(_harness_model(model, tuned, name, settings.batch_size, listener), loaded, limit)

    context, base_name = tuned.reference()
    with (
        memory_faults(),
        only_our_progress(listener),
        _guarded(allow_functions=allow_functions, limited=files is not None),
    ):
        found = ask(tuned.model, "tuned")
        if context is None:
            entries = values(found)
        else:
            with context as untuned:
                before = ask(untuned, "base")
            ways = {task: _aggregations(each) for task, each in loaded["tasks"].items()}
            entries = compared(before, found, ways, level)
    result: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "target": str(target),
        "tasks": list(tasks),
        "include_path": None if folder is None else str(folder),
        "limit": limit,
        "harness": importlib.metadata.version("lm-eval"),
        "base_model": base_name,
        "confidence": settings.confidence,
        "benchmarks": entries,
    }
    if tuned.target.run is not None and keep_result(tuned.target.run, BENCHMARKS, result, listener):
        report_again(tuned.target.run, listener)
    return result


def needs_harness() -> None:
    """Raises RecipeError if lm-evaluation-harness is not installed."""
    if find_spec(PACKAGE) is None:
        raise RecipeError(
            "Tasks need lm-evaluation-harness, which is not installed",
            where="--tasks",
            why=f"The package {PACKAGE} cannot be found.",
            remedy=f"Install it with {pip_install('benchmarks')}.",
        )


def _folder(include_path: str | Path | None) -> Path | None:
    if include_path is None:
        return None
    folder = Path(local(str(include_path)))
    if not folder.is_dir():
        raise RecipeError(
            "There is no such folder of tasks",
            where=str(include_path),
            why="--include-path names a folder with YAML files of lm-evaluation-harness.",
            remedy="Correct the path, or leave --include-path out.",
        )
    refuse_odd_name(str(folder.resolve()))
    return folder.resolve()


def _known_tasks(tasks: Sequence[str], folder: Path | None, files: TaskFiles | None) -> list[str]:
    """The names, each known to the harness. Raises RecipeError for one that is not."""
    known = [name for name in _manager(tasks, folder, files).task_index if isinstance(name, str)]
    unknown = [name for name in tasks if name not in known]
    if unknown or not tasks:
        name = unknown[0] if unknown else ""
        close = difflib.get_close_matches(name, known, n=SHOWN)
        raise RecipeError(
            f"There is no task {name!r}" if unknown else "No task is named",
            where="--tasks",
            why=f"Close to it are {', '.join(close)}."
            if close
            else f"{len(known):,} tasks, groups and tags are known.",
            remedy="Correct the name. `lm-eval ls tasks` lists the tasks; --include-path FOLDER adds your own.",
        )
    return list(dict.fromkeys(tasks))


def _checked_files(folder: Path) -> TaskFiles:
    """The values in the files of tasks. Raises RecipeError if they would run code, or cannot be read."""
    from lm_eval.api import metrics, registry  # pyright: ignore[reportMissingImports]

    assert metrics is not None  # its import fills the registry
    files = read_task_files(folder, set(registry.METRIC_REGISTRY))
    if files.code:
        lines = [f"{path.name}: {what}" for path, what in files.code[:SHOWN]]
        more = [f"... and {len(files.code) - SHOWN} more"] if len(files.code) > SHOWN else []
        raise RecipeError(
            "The files of these tasks would run Python code",
            where=str(files.code[0][0]),
            why="\n".join([*lines, *more]),
            remedy="Read that code. If you trust it, add --allow-functions.",
        )
    if files.unread:
        path, why = files.unread[0]
        raise RecipeError(
            "A file of these tasks cannot be read as a whole, so it is not known what it would run",
            where=str(path),
            why=why,
            remedy="Correct it, or move it out of the folder. If you trust all files of the folder and the code that "
            "they name, add --allow-functions: then the harness reads them itself.",
        )
    check = functools.cache(_why_not_read)
    wrong = [(path, each) for path, config in files.configs for each in _refused_values(config, folder, check)]
    _refuse_values([*wrong, *growing_groups(files.configs)])
    return files


def _refused_values(config: dict[str, Any], folder: Path, check: Callable[[Path], str | None]) -> list[str]:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return list(refused_values(config, folder, set(_PACKAGED_DATASETS_MODULES), check))


def _why_not_read(file: Path) -> str | None:
    """Why a file of data is not read: `datasets` unpacks whatever it gets, without a limit. None if it is.

    Raises:
        DataError: it is a parquet file that becomes too large.
    """
    from datasets.utils.extract import Extractor

    if Extractor.infer_extractor_format(file) is not None:
        return "it is packed; unpack it"
    with file.open("rb") as opened:
        if opened.read(4) == b"PAR1":
            for _ in parquet_blocks(opened, str(file)):  # as it is read, its size is counted
                pass
    return None


def _refuse_values(found: Sequence[tuple[Path, str]]) -> None:
    """Raises RecipeError if files hold values that are not let through."""
    if found:
        lines = [f"{path.name}: {what}" for path, what in found[:SHOWN]]
        more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise RecipeError(
            "The files of these tasks hold values that files of others may not have",
            where=str(found[0][0]),
            why="\n".join([*lines, *more]),
            remedy="Change or remove them. If you trust the files of the folder and the code that they name, add "
            "--allow-functions: then nothing in them is refused.",
        )


def _manager(tasks: Sequence[str], folder: Path | None, files: TaskFiles | None) -> Any:
    """The harness's index of tasks. Its own files are thousands: they are read only for names that the folder lacks.

    With ``files`` it gets their values, and opens none of them itself.
    """
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    include = None if folder is None or files is not None else str(folder)
    entries = {} if files is None else _entries(files)
    if folder is not None:
        own = TaskManager(include_path=include, include_defaults=False)
        own.task_index.update(entries)
        if set(tasks) <= set(own.task_index):
            return own
    manager = TaskManager(include_path=include)
    if files is not None:
        _refuse_values(list(changed_tasks(files.configs, set(manager.task_index) - set(entries))))
    manager.task_index.update(entries)
    return manager


def _entries(files: TaskFiles) -> dict[str, Any]:
    """What the harness would index of these files, with their values in place of their paths."""
    from lm_eval.tasks._index import TaskIndex  # pyright: ignore[reportMissingImports]

    entries: dict[str, Any] = {}
    for path, config in files.configs:
        with suppress(KeyError, TypeError, ValueError):  # neither a task nor a group: the harness leaves it out, too
            TaskIndex.process_cfg(config, path, entries)
    for entry in entries.values():
        entry.yaml_path = None
    return entries


def _loaded(tasks: Sequence[str], folder: Path | None, files: TaskFiles | None) -> Any:
    """The tasks with their data. Raises DataError if they cannot be loaded, RecipeError for one that runs code."""
    state = random.getstate()
    random.seed(FEWSHOT_SEED)  # some tasks shuffle their choices with it
    try:
        with _template_faults():
            loaded = _manager(tasks, folder, files).load(list(tasks))
    except TASK_FAULTS as error:
        text = str(error).strip() or type(error).__name__
        raise DataError(
            "The tasks cannot be loaded",
            where=", ".join(tasks),
            why=f"{type(error).__name__}: {text[:500]}",
            remedy="If the data is on the hub, this needs a network once; then it is in the cache of `datasets`. "
            "If the task is your own, correct its file.",
        ) from error
    finally:
        random.setstate(state)
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise RecipeError(
                f"The task {name} runs programs that the model writes",
                where="--tasks",
                why="Tunesmith has no sandbox for them.",
                remedy="Leave the task out, or run it with `lm-eval` itself, in a container.",
            )
        task.build_all_requests = _guarded_call(task.build_all_requests, name, "questions cannot be made")
        task.process_results = _guarded_call(task.process_results, name, "answers cannot be scored")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _guarded_call(of_task: Callable[..., Any], name: str, what: str) -> Callable[..., Any]:
    """What a task does by its file, with one message for what its file or data make impossible."""

    @functools.wraps(of_task)
    def guarded(*given: Any, **named: Any) -> Any:
        try:
            return of_task(*given, **named)
        except TASK_FAULTS as error:
            text = str(error).strip() or type(error).__name__
            raise DataError(
                f"The task's {what}",
                where=name,
                why=f"{type(error).__name__}: {text[:500]}",
                remedy="Correct the task's file, such as its fewshot_config, or its data.",
            ) from error

    return guarded


def _harness_model(model: nn.Module, tuned: Tuned, name: str, batch_size: int, listener: Listener) -> Any:
    from tunesmith.evaluation.benchmarks.harness_model import HarnessModel

    return HarnessModel(
        model,
        tuned.tokenizer,
        stop_ids=tuned.stop_ids,
        batch_size=batch_size,
        budget=functools.partial(micro_batch_tokens, tuned.device),
        layout=probed_layout(tuned.target.recipe),
        name=name,
        listener=listener,
    )


def _ask(asked: Any, loaded: Any, limit: int | None) -> dict[str, Any]:
    """Lets one model do the tasks: the harness's results, with its log of items. Both models get the same examples."""
    from lm_eval import evaluator  # pyright: ignore[reportMissingImports]

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with _template_faults():
        found = evaluator.evaluate(lm=asked, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    return cast(dict[str, Any], found)


@contextmanager
def _template_faults() -> Iterator[None]:
    """Raises RecipeError for a template that cannot be filled in, or that the sandbox stops."""
    try:
        yield
    except jinja2.TemplateError as error:
        raise RecipeError(
            "A template of a task cannot be filled in",
            where="--tasks",
            why=f"{error}".rstrip(".") + ".",
            remedy="Correct the template in the task's file, or the names of the fields in its data.",
        ) from error


def _aggregations(task: Any) -> dict[str, str]:
    """How a task makes each metric of its items, by the harness's name. A function of the user has none."""
    from lm_eval.api import registry  # pyright: ignore[reportMissingImports]

    names = {function: name for name, function in registry.AGGREGATION_REGISTRY.items()}
    return {metric: names[function] for metric, function in task.aggregation().items() if function in names}


@contextmanager
def _guarded(*, allow_functions: bool, limited: bool) -> Iterator[None]:
    """The harness without code that nobody asked for.

    Its templates are filled in by a sandbox, because a template can run code; those of somebody's files (``limited``)
    by one with limits of time and memory. Metrics that the package `evaluate` loads
    are programs from the hub, or from a folder of that name in the working folder: they are loaded only if the user
    allows that. Raises RecipeError for one that was asked for.
    """
    import evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval import utils  # pyright: ignore[reportMissingImports]

    env, load_metric = utils.env, evaluate.load
    kind = TaskEnvironment if limited else SandboxedEnvironment
    sandbox = kind(loader=env.loader, undefined=env.undefined, keep_trailing_newline=env.keep_trailing_newline)
    sandbox.filters |= {name: each for name, each in env.filters.items() if name not in sandbox.filters}
    refused: list[RecipeError] = []

    def refuse(path: str, *_: Any, **__: Any) -> None:
        refused.append(
            RecipeError(
                f"The metric {path} is a program that is fetched",
                where="--tasks",
                why="The package `evaluate` takes it from the hub, or from a folder of that name here, and runs it.",
                remedy="If you trust it, add --allow-functions.",
            )
        )
        raise refused[0]

    utils.env = sandbox
    evaluate.load = evaluate.load if allow_functions else refuse
    try:
        yield
    finally:
        utils.env, evaluate.load = env, load_metric
        if refused:  # the harness goes on without the metric, or fails for the lack of it
            raise refused[0]
