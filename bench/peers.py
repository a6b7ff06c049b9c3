"""Tunesmith beside other trainers: the same rows, ids, labels, adapter shape, optimizer and steps, in turn (A B B A).

    python bench/peers.py            every workload and method
    python bench/peers.py --quick    workloads a and d for lora, in under 12 minutes on 2 cores

Each run is a process of its own, in the trainer's own environment. A run whose loss before the first step differs by
more than 1e-6 (relative, fp32), or that learns from another number of tokens, is void. Timings of a shared machine
drift, so only ratios within one run of this script mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GATE = 1e-6
GATE_BF16 = 2e-2


@dataclass
class Line:
    """One trainer on one workload: what its runs measured, and why they do not count if they do not."""

    workload: str
    method: str
    trainer: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    void: str | None = None

    @property
    def seconds(self) -> float:
        """Of all timed steps of all runs."""
        return sum(sum(run["seconds"]) for run in self.runs)

    def rate(self, name: str) -> float:
        """Tokens of a kind, in all timed steps, a second."""
        return sum(sum(run[name]) for run in self.runs) / self.seconds

    @property
    def peak(self) -> int:
        return max(run["peak_bytes"] for run in self.runs)


@dataclass(frozen=True)
class Trainer:
    name: str
    python: Path
    script: Path
    options: dict[str, Any]
    methods: tuple[str, ...] = ("lora", "full", "qlora")


def main() -> None:
    arguments = _arguments()
    from tunesmith.model.source import resolve

    device = arguments.device
    model = arguments.model or str(resolve("smollm2-135m-instruct"))
    trainers = [
        Trainer("tunesmith", Path(sys.executable), HERE / "ours.py", {"budget": arguments.budget}),
        Trainer("trl tuned", _environment("trl"), HERE / "trl_sft.py", {"tuned": True}, ("lora", "full")),
    ]
    if not arguments.quick:
        trainers.append(
            Trainer("trl as installed", _environment("trl"), HERE / "trl_sft.py", {"tuned": False}, ("lora", "full"))
        )
    workloads = arguments.workloads or (["a", "d"] if arguments.quick else ["a", "b", "c", "d", "e"])
    methods = arguments.methods or (["lora"] if arguments.quick else ["lora", "full", "qlora"])
    report: dict[str, Any] = {"machine": _machine(), "sgemm": [], "lines": [], "shares": {}}
    lines: list[Line] = []
    for name in workloads:
        for method in methods:
            made = _compare(name, method, trainers, model, device, arguments, report)
            lines += made
            _print(made, report["shares"].get(f"{name} {method}"))
    report["lines"] = [asdict(line) for line in lines]
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report, indent=1), encoding="utf-8")
    _summary(lines, report)


def _compare(
    name: str, method: str, trainers: list[Trainer], model: str, device: str, arguments: Any, report: dict[str, Any]
) -> list[Line]:
    """Every trainer twice, forward and backward in the list, with the machine's own speed between the runs."""
    import roofline
    import torch
    import workloads
    from transformers import AutoConfig, AutoTokenizer

    steps = arguments.steps + 1  # the first is not timed
    load = workloads.make(name, AutoTokenizer.from_pretrained(model), data=Path(arguments.data), steps=steps)
    job = {
        "model": model, "rows": load.rows, "batch": load.batch, "method": method, "r": 16, "rate": 2e-4,
        "threads": arguments.threads, "device": device,
    }  # fmt: skip
    print(
        f"\n{name}: {load.source}, {len(load.rows)} rows, {load.tokens} tokens, {load.supervised} supervised; {method}"
    )
    able = [trainer for trainer in trainers if method in trainer.methods]
    lines = {trainer.name: Line(name, method, trainer.name) for trainer in able}
    speeds = []
    for trainer in [*able, *reversed(able)]:
        torch.set_num_threads(arguments.threads)
        speeds.append(roofline.sgemm() if device == "cpu" else 0.0)
        run = _run(trainer, {**job, **trainer.options})
        if isinstance(run, str):
            lines[trainer.name].void = run
        else:
            lines[trainer.name].runs.append(run)
    report["sgemm"] += speeds
    ours = lines["tunesmith"]
    for line in lines.values():
        line.void = line.void or _gate(line, ours, device)
    if ours.runs and device == "cpu":
        config = AutoConfig.from_pretrained(model)
        parts = [load.rows[at : at + load.batch] for at in range(load.batch, len(load.rows), load.batch)]
        flops = sum(_flops(roofline, config, method, part) for part in parts)
        seconds = statistics.mean(sum(run["seconds"]) for run in ours.runs)
        report["shares"][f"{name} {method}"] = flops / seconds / statistics.mean(speeds)
    return list(lines.values())


def _flops(roofline: Any, config: Any, method: str, rows: list[dict[str, list[int]]]) -> float:
    distinct, logits, pairs = roofline.trie_counts(rows)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width, kept = config.num_attention_heads * size, config.num_key_value_heads * size
    layer = config.hidden_size * (2 * width + 2 * kept) + 3 * config.hidden_size * config.intermediate_size
    return roofline.floor_flops(
        method=method, distinct=distinct, logits=logits, pairs=pairs, linear=layer * config.num_hidden_layers,
        head=config.vocab_size * config.hidden_size, layers=config.num_hidden_layers, width=width,
    )  # fmt: skip


def _run(trainer: Trainer, job: dict[str, Any]) -> dict[str, Any] | str:
    """What the run measured, or the last line of its error."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
        begin = time.perf_counter()
        done = subprocess.run(
            [trainer.python, trainer.script, asked, answered], env=environment, capture_output=True, text=True
        )
        if done.returncode or not answered.is_file():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            print(f"  {trainer.name:<18} failed: {last[0][:160]}", flush=True)
            return last[0]
        result = json.loads(answered.read_text(encoding="utf-8"))
    rate = sum(result["tokens"]) / sum(result["seconds"])
    print(f"  {trainer.name:<18} {rate:8.0f} tokens/s  ({time.perf_counter() - begin:.0f} s with loading)", flush=True)
    return result


def _gate(line: Line, ours: Line, device: str) -> str | None:
    if not line.runs or not ours.runs:
        return "no run"
    allowed = GATE if device == "cpu" else GATE_BF16
    for run in line.runs:
        expected = ours.runs[0]["step_zero_loss"]
        if abs(run["step_zero_loss"] / expected - 1) > allowed:
            return f"loss before the first step {run['step_zero_loss']:.7f}, expected {expected:.7f}"
        if run["supervised"] != ours.runs[0]["supervised"]:
            return f"{run['supervised']} supervised tokens, expected {ours.runs[0]['supervised']}"
    return None


def _print(lines: list[Line], share: float | None) -> None:
    ours = lines[0]
    for line in lines:
        if line.void:
            print(f"  {line.trainer:<18} void: {line.void}")
            continue
        note = f"  {share:.2f} of sgemm on floor FLOPs" if line is ours and share else ""
        ratio = "" if line is ours or ours.void else f"  ours is {ours.rate('tokens') / line.rate('tokens'):.1f}x"
        print(
            f"  {line.trainer:<18} {line.rate('tokens'):8.0f} real tokens/s {line.rate('supervised_tokens'):7.0f} "
            f"supervised/s  peak {line.peak / 1e9:5.2f} GB{ratio}{note}",
            flush=True,
        )


def _summary(lines: list[Line], report: dict[str, Any]) -> None:
    """The one line that a script reads."""

    def found(workload: str, trainer: str) -> Line | None:
        some = (line for line in lines if (line.workload, line.method, line.trainer) == (workload, "lora", trainer))
        return next((line for line in some if line.void is None), None)

    ratios, peaks, shares = {}, [], []
    for name, workload in (("shared", "a"), ("plain", "d")):
        ours, peer = found(workload, "tunesmith"), found(workload, "trl tuned")
        if ours is None or peer is None:
            continue
        ratios[name] = ours.rate("tokens") / peer.rate("tokens")
        peaks.append(ours.peak / peer.peak)
        shares.append(report["shares"].get(f"{workload} lora", float("nan")))
    if len(ratios) == 2:
        print(
            f"\nspeedup_shared={ratios['shared']:.1f} speedup_plain={ratios['plain']:.1f} "
            f"sgemm_share={min(shares):.2f} peak_memory_ratio={max(peaks):.2f}"
        )


def _environment(name: str) -> Path:
    """The interpreter of a peer's own environment, made from bench/requirements-NAME.txt when there is none."""
    folder = ROOT / f".venv-bench-{name}"
    python = folder / "bin" / "python"
    marker = folder / ".made"
    wanted = (HERE / f"requirements-{name}.txt").read_text(encoding="utf-8")
    if not marker.is_file() or marker.read_text(encoding="utf-8") != wanted:
        print(f"making {folder.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
        for what in ([torch], ["-r", str(HERE / f"requirements-{name}.txt")]):
            subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *what], check=True)
        marker.write_text(wanted, encoding="utf-8")
    return python


def _machine() -> dict[str, Any]:
    import torch

    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="workloads a and d, lora, TRL tuned alone")
    parser.add_argument("--workloads", nargs="*", choices=list("abcde"))
    parser.add_argument("--methods", nargs="*", choices=["lora", "full", "qlora"])
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each run")
    parser.add_argument("--model", help="a model folder; the bundled model by default")
    parser.add_argument("--data", default=os.environ.get("TUNESMITH_BENCH_DATA", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget", type=int, default=0, help="our tokens of a micro-batch; 0: automatic")
    parser.add_argument("--out", help="where the report goes, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
