"""The report of a run is one page that anybody can read, in which no text of the data or of a model is markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.cli.foreign import ACTS, ATTACK, foreign_run
from tests.deploy.report.made_run import compared, made_run, sample, samples, verdict

from tunesmith.deploy.report.answers import Part, differences
from tunesmith.deploy.report.page import run_report
from tunesmith.deploy.report.run_facts import run_facts
from tunesmith.errors import RunError
from tunesmith.evaluation.headline import headline
from tunesmith.safe_text import visible

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title></head><body onload=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "--><svg/onload=alert(1)>",
    '<a href="javascript:alert(1)">javascript:alert(1)</a>',
    "{{ 7 * 7 }} {% raw %} {# #}",
    "&lt;b&gt; &amp; &nosuch;",
    "a\u202etxt.exe\u202c \u2066isolate\u2069",
    "nul\0 bell\a escape\x1b[31m delete\x7f next line\x85 feed\x0c",
    "\ufeffmark zero\u200bwidth \u2028 \u2029",
    "שלום 123, مرحبا",
]
EVERYTHING = [
    "metrics", "curves", "labels", "calibration", "samples", "slices", "broke", "baselines", "advice", "evaluations",
    "benchmarks", "ledger", "recipe", "versions", "reproduce",
]  # fmt: skip


class Parsed(HTMLParser):
    """The tags of a page with their attributes, the text, and the text inside marks of differences."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.pieces: list[str] = []
        self.marked: dict[str, list[str]] = {"ins": [], "del": []}
        self.other: list[str] = []
        self._mark = ""
        self.feed(page)
        self.close()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(attrs)))
        self._mark = tag if tag in self.marked else ""

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", ()))
        self._mark = ""

    def handle_data(self, data):
        self.pieces.append(data)
        if self._mark:
            self.marked[self._mark].append(data)

    def handle_comment(self, data):
        self.other.append(data)

    def handle_decl(self, decl):
        self.other.append(decl)


def page_of(folder: Path, text: str = "harmless", **changed: Any) -> str:
    return run_report(run_facts(made_run(folder, text, **changed)))


def shown(page: str) -> str:
    return Parsed(page).text


@pytest.fixture
def page(tmp_path: Path) -> str:
    return page_of(tmp_path / "run")


def test_the_page_has_every_section_in_order_and_links_to_it(page: str) -> None:
    assert re.findall(r'<h2 id="(\w+)">', page) == EVERYTHING
    assert re.findall(r'href="#(\w+)"', page) == EVERYTHING


def tags_without_marks(page: str) -> list[str]:
    return [tag for tag, _ in Parsed(page).tags if tag.strip("/") not in ("ins", "del")]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_the_data_or_of_a_model_becomes_markup(tmp_path: Path, page: str, text: str) -> None:
    name = visible(text).replace("/", "_")  # a folder's name has no NUL
    hostile = page_of(tmp_path / f"run {name}", text)
    hostile.encode()
    assert tags_without_marks(hostile) == tags_without_marks(page)
    assert Parsed(hostile).other == ["DOCTYPE html"]
    allowed = {attribute for _, attributes in Parsed(page).tags for attribute, _ in attributes}
    assert {name for _, attributes in Parsed(hostile).tags for name, _ in attributes} == allowed
    assert visible(hostile) == hostile and ACTS.findall(hostile) == []
    assert Parsed(hostile).text.count(visible(text)) > 20


def test_the_page_runs_nothing_and_loads_nothing(page: str) -> None:
    parsed = Parsed(page)
    tags = {tag for tag, _ in parsed.tags}
    attributes = [attribute for _, attrs in parsed.tags for attribute in attrs]
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
    assert not [name for name, _ in attributes if name.startswith("on") or name in {"src", "srcset", "action", "data"}]
    assert {value[0] for name, value in attributes if name == "href" and value} == {"#"}
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'; style-src 'unsafe-inline';" in page


def test_elements_close_in_order_and_names_are_unique(page: str) -> None:
    void = {"meta", "line", "rect", "circle", "polyline"}
    opened: list[str] = []
    for tag, _ in Parsed(page).tags:
        if tag.startswith("/"):
            if tag[1:] not in void:
                assert opened.pop() == tag[1:]
        elif tag not in void:
            opened.append(tag)
    assert opened == []


def test_headings_go_down_one_step_at_a_time_and_tables_have_captions(page: str) -> None:
    levels = [int(tag[1]) for tag, _ in Parsed(page).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.count("<table") == page.count("<caption>") > 10
    assert page.count("<svg") == page.count('role="img"') == 2


def test_the_verdict_comes_first_in_one_sentence(page: str) -> None:
    text = shown(page)
    said = (
        "The tuned model is better than the base model: on 40 rows that it was not trained on, right labels went from "
        "5.0% to 85.0%, and its answers end in repetition."
    )
    assert text.index(said) < text.index("Metrics")
    assert "✓ Better" in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"verdict": "worse", "damage": []}, "The tuned model is worse than the base model: on 40 rows that it was"),
        ({"verdict": "no evidence"}, "It is not shown whether the tuned model is better or worse than the base model"),
        ({"verdict": "no worse"}, "The tuned model is not worse, within the margin, than the base model"),
        ({"base_model": "the adapter it started from"}, "is better than the adapter it started from: on 40 rows"),
        ({"decided_by": "loss"}, "the loss on them (lower is better) went from 2 to 0.5"),
        ({"data": "more.jsonl", "trained_on": 7}, "on 40 rows of more.jsonl, 7 of which it was trained on, right"),
        (
            {"metrics": {}, "verdict": "no evidence", "reason": "There are no held-out rows (data.eval is 0)."},
            "This run cannot say whether the tuned model is better: there are no held-out rows (data.eval is 0).",
        ),
    ],
)
def test_the_sentence_follows_the_verdict(changed: dict[str, Any], said: str) -> None:
    assert said in headline({**verdict(), **changed})


def test_a_run_without_a_verdict_says_so_and_shows_the_rest(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run", verdict=None, samples=None, evaluations=None, benchmarks=None)
    assert "This run has no verdict yet: its status is finished." in shown(page)
    assert re.findall(r'<h2 id="(\w+)">', page) == ["curves", "ledger", "recipe", "versions", "reproduce"]


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", verdict=None, samples=None)
    run.set_status("failed", error={"what": "The loss is not finite"})
    text = shown(run_report(run_facts(run)))
    assert "its status is failed" in text and "The run failed: The loss is not finite" in text


def test_what_cannot_be_shown_is_one_message(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", environment={"python": 3})
    with pytest.raises(RunError, match=r"environment\.json is damaged"):
        run_facts(run)


def test_damaged_later_results_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run", evaluations=[{"time": 3}])
    assert "Damaged: evaluations.jsonl is not shown (It lacks time or target)" in shown(page)
    assert re.findall(r'<h2 id="(\w+)">', page) == [name for name in EVERYTHING if name != "evaluations"]


def test_differences_are_marked_by_ins_and_del(page: str) -> None:
    marked = Parsed(page).marked
    assert marked["del"].count("base") == 4 and marked["ins"].count("tuned") == 4
    assert "the" not in marked["del"]


def test_answers_without_a_common_word_are_not_struck_as_a_whole() -> None:
    base, tuned = differences("I am a bank.", "terminate_account")
    assert (base, tuned) == ([Part("I am a bank.")], [Part("terminate_account")])
    base, tuned = differences("say\n  yes", "say no")
    assert base == [Part("say"), Part("\n  yes", "del")] and tuned == [Part("say"), Part(" no", "ins")]


def test_answers_stand_by_what_the_training_changed(tmp_path: Path) -> None:
    text = shown(page_of(tmp_path / "run"))
    titles = ("Best: what the training gained", "Worst: what the training lost", "Still wrong", "Changed")
    places = [text.index(title) for title in titles]
    rows = [text.index(f"harmless.jsonl:{number}") for number in (1, 2, 3, 4)]
    assert sorted([*places, *rows]) == [place for pair in zip(places, rows, strict=True) for place in pair]
    assert text.count("cut off at the limit") == 4


def test_answers_without_scores_are_shown_as_changed(tmp_path: Path) -> None:
    lines = [{key: value for key, value in each.items() if "scores" not in key} for each in samples()]
    text = shown(page_of(tmp_path / "run", samples=lines))
    assert "Changed" in text and "Best:" not in text and "Still wrong" not in text


def test_the_figures_of_each_metric_are_in_the_table(page: str) -> None:
    text = shown(page)
    assert "+80.0 points" in text and "+65.0 to +92.5 points" in text
    assert "-1.5" in text and "-1.6 to -1.4" in text
    assert "lower is better" in text and "decides" in text


def test_the_forest_plot_marks_evidence_by_shape(page: str) -> None:
    plot = page[page.index("<svg") : page.index("</svg>")]
    assert plot.count('class="point sure"') == 3 and plot.count('class="point unsure"') == 1
    assert plot.count('class="zero"') == 4, "shares and scores from 0 to 1 have an axis for all, others one for each"
    zero = re.search(r'class="zero"[^>]* x1="([\d.]+)"', plot)
    point = re.search(r'class="point sure"[^>]* cx="([\d.]+)"', plot)
    assert zero and point and float(zero[1]) < float(point[1])


def test_metrics_without_a_finite_interval_stay_in_the_table(tmp_path: Path) -> None:
    metrics = {"accuracy": compared(0.0, 1.0, float("nan"), float("inf"))}
    page = page_of(tmp_path / "run", verdict={**verdict(), "metrics": metrics}, metrics=None)
    assert "<svg" not in page and "+nan to +inf points" in shown(page)


def test_divergence_memorisation_calibration_and_benchmarks_are_shown(page: str) -> None:
    text = shown(page)
    assert "Divergence from the base on the base's own answers: 0.375 nats per token" in text
    assert "15 of 30 training rows come back word for word" in text and "has memorised rows" in text
    assert "brier score" in text and "0.125 to 0.375" in text and "62%" in text
    assert "acc" in text and "0.625" in text and "+0.375" in text and "+0.1 to +0.6" in text


def test_a_simple_method_that_does_as_well_is_named(page: str) -> None:
    text = shown(page)
    assert "A linear model over words" in text and "as well, within 0.02" in text
    assert "The base reaches 5.0%, and the tuned model 85.0%." in text


def test_few_labels_have_a_matrix_and_many_have_their_mistakes(tmp_path: Path, page: str) -> None:
    assert page.count('class="right"') == 3 and "none of the labels" in shown(page)
    labels = [{"label": f"l{n}", "precision": 0.0, "recall": 0.0, "f1": n / 100, "rows": 2} for n in range(77)]
    confusion = [{"truth": f"l{n}", "answer": f"l{n + 1}", "rows": 77 - n} for n in range(76)]
    labels.append({"label": "of training alone", "precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0})
    found = {**verdict(), "details": {"classification": {"tuned": {"labels": labels, "confusion": confusion}}}}
    many = page_of(tmp_path / "many", verdict=found)
    text = shown(many)
    assert 'class="matrix"' not in many and "78 labels." in text and "of training alone" not in text
    assert "and 56 more kinds of mistakes" in text and "and 57 more labels" in text


def test_a_run_of_ten_thousand_rows_stays_a_small_page(tmp_path: Path) -> None:
    long = [sample("word " * (2_000 if n < 100 else 1), n, n % 2, n % 3 / 2) for n in range(10_000)]
    slices = [{**each, "name": f"{n}"} for n in range(5_000) for each in verdict()["slices"][:1]]
    accounts = {f"{n}.jsonl": {"rows": {"read": 1, "trained": 1, "held_out": 0}} for n in range(5_000)}
    files = [{"path": f"{n}.jsonl", "sha256": "ab" * 32} for n in range(5_000)]
    data = [{"path": "p", "side": "train", "format": "f", "rows": 1, "invalid": 0, "files": files}]
    page = page_of(
        tmp_path / "run",
        samples=long,
        verdict={**verdict(), "slices": slices},
        ledger={"rows": {"read": 1, "trained": 1, "held_out": 0}, "sources": accounts},
        data=data,
    )
    assert len(page.encode()) < 2_000_000
    text = shown(page)
    assert "more characters]" in text and "(samples.jsonl has all)" in text
    assert "and 4,980 more slices" in text and "and 4,950 more files" in text


def test_secrets_are_not_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-in-the-environment")
    key = "hf_aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"
    text = f"use {key} or planted-in-the-environment at https://me:pa55word@host/x?sig=123456"
    page = page_of(tmp_path / "run", text)
    for secret in (key, "planted-in-the-environment", "pa55word", "123456"):
        assert secret not in page


def test_a_foreign_run_is_shown_as_text(tmp_path: Path, verdict_of_a_foreign_run: dict[str, Any]) -> None:
    run = foreign_run(tmp_path / f"run{ATTACK.replace('/', '')}", verdict_of_a_foreign_run)
    page = run_report(run_facts(run))
    assert "OWNED" in page and "<script>" not in page and ACTS.findall(page) == []


@pytest.fixture
def verdict_of_a_foreign_run() -> dict[str, Any]:
    return json.loads(json.dumps({**verdict(), "details": {"classification": "none"}, "slices": []}))
