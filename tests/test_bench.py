"""The benchmark's own arithmetic: floor, gate, summary and rows. Trainers are not run here."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench import environments, process, report, roofline, shapes, workloads

NOWHERE = Path("no-such-folder")


@pytest.fixture(scope="module")
def word_tokenizer() -> Any:
    """A token a word and a mark, as the bundled model's tokenizer has it for the words of generated rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[UNK]", "user", "system", ".", *workloads.WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.chat_template = (
        "{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + ' |\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )
    return fast


def random_rows(seed: int) -> list[dict[str, list[int]]]:
    """Short rows of two tokens, so that many share what they begin with and some are the same."""
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 8)):
        ids = [rng.randrange(2) for _ in range(rng.randint(2, 6))]
        labels = [-100, *(token if rng.random() < 0.5 else -100 for token in ids[1:])]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def brute_force(rows: list[dict[str, list[int]]]) -> tuple[int, int, int]:
    prefixes, predicting = set(), set()
    for row in rows:
        for end in range(1, len(row["input_ids"]) + 1):
            prefixes.add(tuple(row["input_ids"][:end]))
            if row["labels"][end - 1] != -100:
                predicting.add(tuple(row["input_ids"][: end - 1]))
    return len(prefixes), len(predicting), sum(len(prefix) for prefix in prefixes)


@pytest.mark.parametrize("seed", range(20))
def test_the_floor_counts_each_distinct_prefix_once(seed: int) -> None:
    rows = random_rows(seed)
    assert roofline.trie_counts(rows) == brute_force(rows)


@pytest.mark.parametrize(("method", "passes"), [("lora", 2), ("qlora", 2), ("full", 3)])
def test_the_floor_of_a_step_is_what_its_products_add_up_to(method: str, passes: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, tie_word_embeddings=False,
    )  # fmt: skip
    model, rows = LlamaForCausalLM(config), random_rows(3)
    linear = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("proj.weight"))
    distinct, logits, pairs = brute_force(rows)
    flops = 2 * passes * (linear * distinct + model.lm_head.weight.numel() * logits)
    scores_and_values = 2 * (2 * 4 * 4)  # two products of head size for each of four heads
    flops += 3 * scores_and_values * 3 * pairs  # forward once and backward twice, in three layers
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert roofline.floor_per_token(config, method, [rows]) == pytest.approx(flops / tokens)
    assert roofline.floor_per_token(config, method, [rows, rows]) == pytest.approx(flops / tokens)


def run(loss: float = 4.0, *, supervised: int = 10, rate: float = 100.0, peak: int = 1_000) -> dict[str, Any]:
    return {
        "step_zero_loss": loss, "supervised": supervised, "seconds": [1.0, 3.0], "tokens": [rate, 3 * rate],
        "supervised_tokens": [10, 30], "peak_bytes": peak,
    }  # fmt: skip


def test_the_gate_takes_the_same_loss_and_the_same_labels_alone() -> None:
    ours = report.Line("tunesmith", [run()])
    assert report.gate(report.Line("peer", [run(4.0 * (1 + 9e-7))]), ours, tolerance=1e-6) is None
    assert "loss" in str(report.gate(report.Line("peer", [run(), run(4.0 * (1 - 2e-6))]), ours, tolerance=1e-6))
    assert "loss" in str(report.gate(report.Line("peer", [run(float("nan"))]), ours, tolerance=1e-6))
    exact = {**run(4.0 * (1 - 7e-6)), "step_zero_loss_fp64": 4.0}
    assert report.gate(report.Line("peer", [exact]), ours, tolerance=1e-6) is None
    labels = report.gate(report.Line("peer", [run(supervised=11)]), ours, tolerance=1e-6)
    assert labels == "11 supervised tokens, expected 10"
    assert report.gate(report.Line("peer"), ours, tolerance=1e-6) == "no run"


def comparison(workload: str, ours: dict[str, Any], peer: dict[str, Any]) -> report.Comparison:
    lines = {name: report.Line(name, [one, one]) for name, one in (("tunesmith", ours), ("trl tuned", peer))}
    return report.Comparison(workload, "lora", "made up", 50, 5_000.0, 2e6, lines, [1e9, 3e9])


def test_the_summary_has_both_ratios_and_the_worse_share_and_peak() -> None:
    shared = comparison("a", run(rate=800, peak=400), run(rate=100, peak=1_000))
    plain = comparison("d", run(rate=300, peak=900), run(rate=200, peak=1_000))
    expected = "speedup_shared=8.0 speedup_plain=1.5 sgemm_share=0.30 peak_memory_ratio=0.90"
    assert report.summary([shared, plain]) == expected
    assert shared.figures(shared.lines["tunesmith"]) == {
        "tokens_per_second": 800, "supervised_per_second": 10, "epoch_seconds": 5_000 / 800, "peak_bytes": 400,
        "sgemm_share": 0.8,
    }  # fmt: skip


def test_a_void_line_leaves_the_summary_out_and_stays_in_the_table(tmp_path: Path) -> None:
    shared, plain = comparison("a", run(), run()), comparison("d", run(), run())
    plain.lines["trl tuned"].void = "not finished after 5 s"
    assert report.summary([shared, plain]) is None
    assert "trl tuned              void: not finished after 5 s" in report.table(plain)
    report.save(tmp_path / "new" / "report.json", [shared, plain], {"machine": {"cpu": "some"}})
    saved = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert saved["machine"] == {"cpu": "some"} and saved["summary"] is None
    assert [line["void"] for line in saved["comparisons"][1]["lines"]] == [None, "not finished after 5 s"]
    drawn = ElementTree.parse(tmp_path / "new" / "report.svg").getroot()
    assert len([part for part in drawn.iter() if part.tag.endswith("rect")]) == 1 + 3  # the ground, and a bar a line


def test_qlora_is_held_against_lora() -> None:
    lines = {f"tunesmith {name}": report.Line(name, [run(rate=rate)]) for name, rate in (("lora", 100), ("qlora", 73))}
    own = report.Comparison("a", "at 512 tokens", "made up", 50, 5_000.0, 2e6, lines, [1e9])
    assert report.qlora_ratio(own) == "qlora_to_lora=0.73"
    assert report.qlora_ratio(comparison("a", run(), run())) is None


@pytest.mark.parametrize("name", "abcde")
def test_a_workload_is_the_same_each_time(name: str, word_tokenizer: Any) -> None:
    made = workloads.make(name, word_tokenizer, data=NOWHERE, steps=2)
    again = workloads.make(name, word_tokenizer, data=NOWHERE, steps=2)
    assert made == again
    assert len(made.rows) == 2 * made.batch and made.batch % made.peer_rows == 0
    for row in made.rows:
        assert row["labels"][0] == -100 and any(label != -100 for label in row["labels"])
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


def common(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def test_plain_rows_have_no_common_prefix(word_tokenizer: Any) -> None:
    rows = [row["input_ids"] for row in workloads.make("d", word_tokenizer, data=NOWHERE, steps=5).rows]
    assert max(common(one, other) for one, other in itertools.combinations(rows, 2)) <= 2
    assert sum(len(row) for row in rows) / len(rows) > 80


def test_two_level_rows_have_the_promised_shape(word_tokenizer: Any) -> None:
    made = workloads.make("e", word_tokenizer, data=NOWHERE, steps=6)
    assert (made.batch, made.epoch_rows) == (32, 200)
    rows = [row["input_ids"] for row in made.rows]
    beginning = min(common(rows[0], row) for row in rows)
    assert 1_400 <= beginning <= 1_600
    _, whole = workloads.BUILDERS["e"](NOWHERE, random.Random("bench/e"))
    assert len({turns[0]["content"] for turns in whole}) == 1
    documents = Counter(turns[1]["content"].split("\n\nQuestion:")[0] for turns in whole)
    assert sorted(documents.values()) == [10] * 20
    assert len({turns[1]["content"] for turns in whole}) == 200


@pytest.mark.parametrize(("name", "millions"), [("135m", 135), ("1b", 1_236), ("8b", 8_030)])
def test_shapes_have_the_parameters_of_the_models_they_are_named_after(name: str, millions: int) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(shapes.config(name))
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_a_run_that_fails_says_its_last_lines(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("print('first'); print('second'); raise SystemExit('no such layer')", encoding="utf-8")
    with pytest.raises(process.Failed, match=r"^no such layer|first . second . no such layer"):
        process.run(Path(sys.executable), script, {"threads": 1}, limit=60)


def test_a_run_is_ended_at_its_limit(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(60)", encoding="utf-8")
    with pytest.raises(process.Failed, match="not finished after 0 s"):
        process.run(Path(sys.executable), script, {"threads": 1}, limit=0.3)


def test_a_run_hands_its_job_over_and_its_result_back(tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text("import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])", encoding="utf-8")
    assert process.run(Path(sys.executable), script, {"threads": 3}, limit=60) == {"threads": 3}


def test_an_environment_is_made_again_until_it_was_finished_from_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    (tmp_path / "bench").mkdir()
    wanted = tmp_path / "bench" / "requirements-peer.txt"
    wanted.write_text("torch==1\npeer==2\n", encoding="utf-8")
    monkeypatch.setattr(environments, "HERE", tmp_path / "bench")

    def interrupted(command: list[Any]) -> None:
        (tmp_path / ".venv-bench-peer").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environments.python("peer")
    monkeypatch.setattr(environments, "_call", lambda command: calls.append([str(part) for part in command]))
    assert environments.python("peer") == tmp_path / ".venv-bench-peer" / "bin" / "python"
    assert "--clear" in calls[0] and calls[1][-1] == "torch==1" and "--no-deps" in calls[2]
    environments.python("peer")
    assert len(calls) == 3
    wanted.write_text("torch==1\npeer==3\n", encoding="utf-8")
    environments.python("peer")
    assert len(calls) == 6


def test_an_environment_that_cannot_be_made_says_why() -> None:
    with pytest.raises(environments.Unavailable, match="no such wheel"):
        environments._call([sys.executable, "-c", "raise SystemExit('no such wheel')"])
