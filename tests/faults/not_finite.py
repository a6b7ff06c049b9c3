"""Values that are not finite, spikes, and memory that runs out, in real processes that train.

Whatever is spoiled, no checkpoint takes it. The run stops with its own exit code or goes on, as its recipe says, and a
run that skipped steps and was killed ends with the same bytes. The process is a fork that patches one place of the
program before it becomes the command; files of weights are spoiled on the disk.
"""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.points import Points
from tests.faults.processes import Command, Ended, run
from tests.faults.table import Fault, Try
from tests.faults.world import METHODS, TRAIN, apart, content, copy_of, in_a_fork, make_world, recipe

from tunesmith.runs.folder import Run

NOT_FINITE, FAILED = 4, 3
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
SKIP = {"on_nonfinite": "skip", "max_skipped_steps": 2}
SKIPPED = (2, 5, 6, 14)  # steps of the run of 14
MOMENTS = 20
ROOMS = (20, 60, 120, 200, 300, 400, 600, 900)  # MiB that a process may take besides what it has


class Patched(Points):
    """Changes the program in the fork that becomes the command, and may kill it at a point."""

    def __init__(self, folder: Path, patch: Callable[[], None], kill_at: int | None = None) -> None:
        super().__init__(folder / "points.log", kill_at)
        self.patch = patch

    def watch(self, folder: Path) -> None:
        """Patches, and counts points if one is chosen."""
        if self.kill_at is not None:
            super().watch(folder)
        self.patch()


def _step_number() -> list[int]:
    """The number of the step that is computed, in a list, from now on."""
    from tunesmith.training import loop

    seed, now = loop.seed_dropout, [0]

    def hear(given: int, step: int, micro_batch: int) -> None:
        now[0] = step
        seed(given, step, micro_batch)

    loop.seed_dropout = hear
    return now


def spoil_loss(steps: dict[int, float]) -> None:
    """Multiplies the losses of some steps."""
    from tunesmith.training.objectives.preference import PreferenceObjective
    from tunesmith.training.objectives.supervised import CrossEntropy

    now = _step_number()
    for kind in (CrossEntropy, PreferenceObjective):
        plain = kind.sum

        def spoiled(self: Any, model: Any, batch: Any, plain: Any = plain) -> Any:
            return plain(self, model, batch) * steps.get(now[0], 1.0)

        kind.sum = spoiled


def spoil_gradient(step: int, bad: float) -> None:
    """Puts a value into the gradient of the last weight that trains, after the backward pass of a step."""
    import torch

    now, clip = _step_number(), torch.nn.utils.clip_grad_norm_

    def spoiled(parameters: Any, *rest: Any, **named: Any) -> Any:
        if now[0] == step:
            [own for own in parameters if own.grad is not None][-1].grad.view(-1)[-1] = bad
        return clip(parameters, *rest, **named)

    torch.nn.utils.clip_grad_norm_ = spoiled


def spoil_state(step: int, bad: float, key: str) -> None:
    """Puts a value into the optimizer's state before a step."""
    import torch

    now, plain = _step_number(), torch.optim.AdamW.step

    def spoiled(self: Any, *rest: Any, **named: Any) -> Any:
        if now[0] == step:
            next(iter(self.state.values()))[key].view(-1)[-1] = bad
        return plain(self, *rest, **named)

    torch.optim.AdamW.step = spoiled


def no_room(step: int, most: int) -> None:
    """From a step on, a micro-batch of more tokens than ``most`` finds no memory."""
    import torch

    from tunesmith.training.objectives.supervised import CrossEntropy

    now, plain = _step_number(), CrossEntropy.sum

    def crowded(self: Any, model: Any, batch: Any) -> Any:
        if now[0] >= step and batch.computed > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, model, batch)

    CrossEntropy.sum = crowded


def limit_memory(mebibytes: int) -> None:
    """Lets the process take so much memory besides what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def broken_files(folder: Path) -> str | None:
    """The first file of weights or optimizer state in a run's checkpoints that is not finite."""
    import numpy as np
    from safetensors.numpy import load_file

    for file in sorted(folder.glob("run/checkpoints/*/*.safetensors")):
        for name, values in load_file(file).items():
            if not np.isfinite(values).all():
                return f"{file.relative_to(folder)}: {name} is not finite"
    return None


def _new(world: Path, folder: Path, name: str = "lora with dropout", **training: Any) -> Path:
    folder.mkdir(parents=True)
    values = recipe(world, **METHODS[name])
    values["training"].update(training)
    if values.get("objective"):
        values["data"]["train"] = str(world / "pairs.jsonl")
        del values["evaluation"]["metrics"]
    (folder / "recipe.yaml").write_text(json.dumps(values, indent=1))
    return folder


def _wrong(folder: Path, ended: Ended, code: int, said: str = "") -> str | None:
    """What is wrong with how a run ended."""
    if ended.code != code:
        return f"exit {ended.code} and not {code}: {ended.said[-1500:]}"
    if "Traceback" in ended.said:
        return f"a traceback: {ended.said[-1500:]}"
    if said not in ended.said:
        return f"it did not say {said!r}: {ended.said[-1500:]}"
    return broken_files(folder)


def _stops(folder: Path, whole: bool) -> Iterator[Try]:
    """Every place that can be spoiled, under every method: exit code 4, and no checkpoint holds it."""
    world = make_world(folder / "world")
    methods = ("full", "lora with dropout", "qlora", "freeze", "dpo", "accumulation") if whole else ("accumulation",)
    for method in methods:
        for name, bad in BAD.items() if whole else [("nan", math.nan)]:
            places: dict[str, Callable[[], None]] = {
                "the loss of step 5": lambda bad=bad: spoil_loss({5: bad}),
                "the gradient of step 5": lambda bad=bad: spoil_gradient(5, bad),
                "exp_avg before step 5": lambda bad=bad: spoil_state(5, bad, "exp_avg"),
                "exp_avg_sq before step 5": lambda bad=bad: spoil_state(5, bad, "exp_avg_sq"),
            }
            for place, patch in places.items():
                at = _new(world, folder / "at", method)
                ended = run(TRAIN, at, points=Patched(at, patch))
                lost = _wrong(at, ended, NOT_FINITE, "not finite")
                if lost is None and "step 5" in place and not place.startswith("exp"):
                    again = run(TRAIN, at)  # as a fault that is gone
                    lost = _wrong(at, again, 0)
                yield Try(f"{method}: {name} in {place}", lost)
                shutil.rmtree(at)
    at = _new(world, folder / "at", "full", learning_rate=3e38, num_train_epochs=0.1)
    yield Try("full: a rate that overflows in the last step", _wrong(at, run(TRAIN, at), NOT_FINITE, "not finite"))


def _goes_on(folder: Path, whole: bool) -> Iterator[Try]:
    """Skipped steps, and a kill at random moments: the same bytes as without the kill."""
    world = make_world(folder / "world")
    steps: dict[int, float] = dict(zip(SKIPPED, (math.nan, math.inf, -math.inf, math.nan), strict=True))
    for method in ("lora with dropout", "full", "dpo") if whole else ("lora with dropout",):
        for name, rule, spoiled in (
            ("not finite", SKIP, steps),
            ("spike", {"spike_sigma_factor": 6.0, "num_train_epochs": 4}, {20: 1e5, 24: -1e5}),
        ):
            plain = _new(world, folder / "plain", method, **rule)
            ended = run(TRAIN, plain, points=Patched(plain, lambda spoiled=spoiled: spoil_loss(spoiled)))
            lost = _wrong(plain, ended, 0, "is skipped")
            last = Run(plain / "run").status()["step"]  # dpo has fewer rows, and fewer steps
            said = [f"step {step} is skipped" in ended.said for step in spoiled if step <= last]
            yield Try(f"{method}, {name}: skipped", lost or (None if all(said) else f"not all skipped: {said}"))
            wanted, draw = content(plain), random.Random(method)
            for _ in range(MOMENTS if whole else 2):
                at, moment = _new(world, folder / "at", method, **rule), draw.uniform(0, ended.seconds)
                patched = Patched(at, lambda spoiled=spoiled: spoil_loss(spoiled))
                command = Command(TRAIN, at, points=patched)
                time.sleep(moment)
                command.signal(signal.SIGKILL)
                command.wait()
                again = run(TRAIN, at, points=patched)
                lost = _wrong(at, again, 0) or apart(content(at), wanted)
                yield Try(f"{method}, {name}: killed after {moment:.3f} s", lost)
                shutil.rmtree(at)
            shutil.rmtree(plain)


def _too_many(folder: Path, whole: bool) -> Iterator[Try]:
    """More skipped steps in a row than allowed: the run stops, and so it does when it was killed in between."""
    world = make_world(folder / "world")
    spoiled = {step: math.nan for step in (4, 5, 6)}
    at = _new(world, folder / "at", **SKIP)
    ended = run(TRAIN, at, points=Patched(at, lambda: spoil_loss(spoiled)))
    yield Try("three in a row", _wrong(at, ended, NOT_FINITE, "3 steps in a row"))
    for number in range(2 if whole else 1):
        ended = run(TRAIN, at, points=Patched(at, lambda: spoil_loss(spoiled)))
        yield Try(f"again, time {number + 1}", _wrong(at, ended, NOT_FINITE, "3 steps in a row"))
    yield Try("the fault is gone", _wrong(at, run(TRAIN, at), 0))


def _spoil_file(file: Path, bad: float) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    weights = load_file(file)
    name = sorted(name for name, own in weights.items() if own.dtype == np.float32)[-1]
    weights[name].reshape(-1)[-1] = bad
    save_file(weights, file, metadata={"format": "pt"})


def _weights(folder: Path, whole: bool) -> Iterator[Try]:
    """A base and an adapter whose files hold such a value: refused by name, by every command that reads them."""
    world = make_world(folder / "world")
    made = _new(world, folder / "made")
    run(TRAIN, made)
    kept = Run(made / "run").checkpoints[-1]
    for name, bad in BAD.items() if whole else [("nan", math.nan)]:
        for method in ("full", "lora with dropout", "qlora", "freeze") if whole else ("qlora",):
            other = copy_of(world, folder / "other")
            in_a_fork(lambda other=other, bad=bad: _spoil_file(other / "model" / "model.safetensors", bad))
            at = _new(other, folder / "at", method)
            ended = run(TRAIN, at)
            lost = _wrong(at, ended, 1, "the weights are not finite")
            yield Try(f"{name} in the base of {method}", lost or ("a run began" if (at / "run").exists() else None))
            shutil.rmtree(other)
            shutil.rmtree(at)
        at = folder / "adapter"
        shutil.copytree(kept, at / "adapter")
        in_a_fork(lambda at=at, bad=bad: _spoil_file(at / "adapter" / "adapter_model.safetensors", bad))
        (at / "adapter" / "manifest.json").unlink(missing_ok=True)  # as a tool without manifests writes it
        generate = ["generate", "adapter", "--prompt", "hello", "max_new_tokens=2"]
        for argv in (generate, ["merge", "adapter", "--out", "merged"]):
            yield Try(f"{name} in an adapter, {argv[0]}", _wrong(at, run(argv, at), 1, "the weights are not finite"))
        shutil.rmtree(at)


def _older_checkpoints(folder: Path, whole: bool) -> Iterator[Try]:
    """The newest checkpoint, by a version without manifests, holds such a value: the run goes back and ends well."""
    world = make_world(folder / "world")
    for save_optimizer in ("all", "newest") if whole else ("all",):
        plain = _new(world, folder / "plain", save_optimizer=save_optimizer)
        run(TRAIN, plain)
        stopped = _new(world, folder / "stopped", save_optimizer=save_optimizer)
        patched = Patched(stopped, lambda: spoil_loss({8: math.nan}))
        run(TRAIN, stopped, points=patched)
        for file in stopped.rglob("manifest.json"):
            file.unlink()
        for name, bad in BAD.items() if whole else [("nan", math.nan)]:
            for file in ("adapter_model.safetensors", "optimizer.safetensors"):
                at = copy_of(stopped, folder / "at")
                newest = Run(at / "run").checkpoints[-1]
                in_a_fork(lambda file=newest / file, bad=bad: _spoil_file(file, bad))
                lost = _wrong(at, run(TRAIN, at), 0, "not finite")
                weights = [
                    (Run(each / "run").checkpoints[-1] / "adapter_model.safetensors").read_bytes()
                    for each in (at, plain)
                ]
                lost = lost or (None if weights[0] == weights[1] else "other weights at the end")
                yield Try(f"{name} in {file}, save_optimizer {save_optimizer}", lost)
                shutil.rmtree(at)
        shutil.rmtree(plain)
        shutil.rmtree(stopped)


def _no_memory(folder: Path, whole: bool) -> Iterator[Try]:
    """Memory runs out: in a step, the micro-batch is halved; elsewhere there is one message, and nothing is lost."""
    world = make_world(folder / "world")
    plain = _new(world, folder / "plain", "lora with dropout")
    ended = run(TRAIN, plain, points=Patched(plain, lambda: no_room(5, 90)))
    yield Try("halved in step 5", _wrong(plain, ended, 0, "the gradient is the same"))
    wanted, draw = content(plain), random.Random(0)
    for _ in range(MOMENTS if whole else 2):
        at, moment = _new(world, folder / "at"), draw.uniform(0, ended.seconds)
        command = Command(TRAIN, at, points=Patched(at, lambda: no_room(5, 90)))
        time.sleep(moment)
        command.signal(signal.SIGKILL)  # as the system ends a process that takes too much
        command.wait()
        begun = (at / "run" / "status.json").exists() and '"running"' in (at / "run" / "status.json").read_text()
        again = run(TRAIN, at, points=Patched(at, lambda: no_room(5, 90)))
        lost = _wrong(at, again, 0, "was killed" if begun else "") or apart(content(at), wanted)
        yield Try(f"halved, and killed after {moment:.3f} s", lost)
        shutil.rmtree(at)
    at = _new(world, folder / "at")
    ended = run(TRAIN, at, points=Patched(at, lambda: no_room(5, 1)))
    yield Try("one row is too much", _wrong(at, ended, FAILED, "was predicted to need"))
    lost = _wrong(at, run(TRAIN, at), 0)
    yield Try("and then there is memory", lost)
    shutil.rmtree(at)
    for room in ROOMS if whole else ROOMS[2:5:2]:
        at = _new(world, folder / "at", "full")
        ended = run(TRAIN, at, points=Patched(at, lambda room=room: limit_memory(room)))
        lost = None
        if ended.code not in (0, 1, FAILED) or "Traceback" in ended.said:
            lost = f"exit {ended.code}: {ended.said[-1500:]}"
        elif ended.code and "emory" not in ended.said:
            lost = f"it did not say that memory ran out: {ended.said[-1500:]}"
        again = run(TRAIN, at)
        yield Try(f"{room} MiB of addresses", lost or _wrong(at, again, 0))
        shutil.rmtree(at)


FAULTS = [
    Fault("not finite: the run stops", _stops),
    Fault("not finite: the run goes on", _goes_on),
    Fault("not finite: too many in a row", _too_many),
    Fault("not finite: weights on the disk", _weights),
    Fault("not finite: checkpoints of earlier versions", _older_checkpoints),
    Fault("out of memory", _no_memory),
]
