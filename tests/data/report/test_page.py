from __future__ import annotations

import json
import os
import re
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.report.ledger import OUTCOMES
from tunesmith.data.report.page import _BARS, ROWS_NAMED, TEXT_LIMIT, data_report, visible

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title></head><body onload=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "`onclick=alert(1)`",
    "--><svg/onload=alert(1)>",
    "<!-- <![CDATA[ <?php",
    '<a href="javascript:alert(1)">https://example.org</a>',
    "{{ 7 * 7 }} {% raw %} {# #}",
    "&lt;b&gt; &#x202e; &amp; &nosuch;",
    "\ud800 alone, \udfff\ud800 the wrong way round",
    "a\u202etxt.exe\u202c \u2066isolate\u2069 \u200fmark\u061c",
    "nul\0 bell\a escape\x1b[31m delete\x7f next line\x85 feed\x0c",
    "\ufeffmark \ufffe\uffff \U0001ffff zero\u200bwidth \u2028 \u2029 \U000e0041tag",
    "one\r\ntwo\rthree\n\nfour\tfive",
    "\nbegins with a new line",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́O",
    "שלום 123, مرحبا",
    "👨‍👩‍👧‍👦 🏳️‍🌈 ﷽",
]


def counts(**places: int) -> dict[str, int]:
    filled = {place: places.get(place, 0) for place, _, _ in OUTCOMES}
    return {"read": sum(filled.values()), **filled}


def found(text: str = "harmless", **changed: Any) -> dict[str, Any]:
    """What check finds, with every section, and the text wherever a text comes from the data."""
    rows = counts(invalid=3, duplicate=17, leaked=11, too_long=2, unbalanced=5, held_out=498, test=3_080, trained=9_475)
    tokens = counts(duplicate=1_127, leaked=729, too_long=40_132, unbalanced=331, held_out=33_017, trained=628_192)
    supervised = counts(duplicate=122, leaked=79, too_long=14_014, unbalanced=36, held_out=3_590, trained=68_314)
    ledger = {"rows": rows, "tokens": tokens, "supervised": supervised}
    base = {
        "schema": 1,
        "good": False,
        "judgement": text,
        "notes": [text, text],
        "sources": [
            {"path": text, "side": "train", "split": text, "format": "csv", "rows": 10, "invalid": 3, "share": 0.25},
            {"path": text, "side": "test", "format": "csv", "rows": 10, "invalid": 0},
        ],
        "ledger": {**ledger, "sources": {f"{text}.csv": ledger}},
        "lengths": {
            "unit": "tokens",
            "quantiles": {"min": 3, "p5": 9, "p25": 20, "p50": 41, "p75": 60, "p95": 80, "p99": 95, "max": 99},
            "histogram": [{"from": start, "to": start + 9, "rows": 7 * start} for start in range(0, 100, 10)],
            "longest": f"{text}:7",
        },
        "labels": {"distinct": 6, "counts": [{"label": f"{text}{n}", "rows": 600 - 110 * n} for n in range(6)]},
        "scripts": [{"name": text, "rows": 7}],
        "languages": {"sampled": 1_000, "counts": [{"name": text, "rows": 7}]},
        "diversity": {
            "first_words": 412,
            "most_frequent": [{"text": text, "rows": 3}],
            "clusters": [{"rows": 9, "first": f"{text}:8"}],
        },
        "findings": [
            {
                "id": text,
                "severity": severity,
                "count": 2,
                "rows": [f"{text}:4", f"{text}:5"],
                "samples": [{"row": f"{text}:4", "text": text}],
                "message": text,
                "remedy": text,
            }
            for severity in ("info", "error", "warning")
        ],
        "bad": [{"source": f"{text}:6", "field": text, "found": text, "expected": text, "raw": text}],
        "shown": [{"source": f"{text}:4", "tokens": 9, "supervised": 4, "pieces": [[text, False], [text, True]]}],
    }
    return {**base, **changed}


class Parsed(HTMLParser):
    """Every tag of a page with its attributes, and all text; of marked text what the marks hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.pieces: list[str] = []
        self.marked: list[str] = []
        self.other: list[str] = []
        self._in_mark = False
        self.feed(page)
        self.close()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(attrs)))
        self._in_mark = tag == "mark"

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", ()))
        self._in_mark = False

    def handle_data(self, data):
        self.pieces.append(data)
        if self._in_mark:
            self.marked.append(data)

    def handle_comment(self, data):
        self.other.append(data)

    def handle_decl(self, decl):
        self.other.append(decl)

    def handle_pi(self, data):
        self.other.append(data)

    def unknown_decl(self, data):
        self.other.append(data)


def page_of(*, title: str = "Data", text: str = "harmless", **changed: Any) -> str:
    return data_report(found(text, **changed), title=title)


def headings(page: str) -> list[str]:
    return re.findall(r'<h2 id="(\w+)">', page)


def assert_only_text(text: str, harmless: Parsed) -> None:
    """The text is on the page as text, and nothing else differs from the page of a harmless one."""
    page = page_of(title=text, text=text)
    page.encode()
    parsed = Parsed(page)
    assert parsed.tags == harmless.tags
    assert parsed.other == ["DOCTYPE html"]
    assert parsed.text.count(visible(text)) >= harmless.text.count("harmless")
    assert visible(page) == page


@pytest.fixture(scope="module")
def harmless() -> Parsed:
    return Parsed(page_of(title="harmless"))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_the_data_becomes_markup(text: str, harmless: Parsed):
    assert_only_text(text, harmless)


@given(st.text(st.characters(), min_size=1, max_size=40))
def test_any_text_is_shown_as_text(harmless: Parsed, text: str):
    assert_only_text(text, harmless)


def test_naughty_strings_are_only_text(harmless: Parsed):
    beside = Path(__file__).parents[3].parent / "shared" / "data"
    path = Path(os.environ.get("TUNESMITH_SHARED_DATA", beside)) / "hostile" / "blns.json"
    if not path.is_file():
        pytest.skip("the shared data are not here")
    strings = [text for text in json.loads(path.read_text(encoding="utf-8")) if text]
    assert len(strings) > 400
    for at in range(0, len(strings), 10):
        assert_only_text("\n".join(strings[at : at + 10]), harmless)


def test_the_page_runs_nothing_and_loads_nothing():
    page = page_of()
    parsed = Parsed(page)
    tags = {tag for tag, _ in parsed.tags}
    attributes = [attribute for _, attrs in parsed.tags for attribute in attrs]
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
    assert not [name for name, _ in attributes if name.startswith("on") or name in {"src", "srcset", "action", "data"}]
    assert {value[0] for name, value in attributes if name == "href" and value} == {"#"}
    assert not re.search(r"url\(|@import|https?:|//", page)
    policy = dict(parsed.tags[[tag for tag, _ in parsed.tags].index("meta") + 1][1])
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert str(policy["content"]).startswith("default-src 'none'; style-src 'unsafe-inline';")


def test_elements_close_in_order_and_names_are_unique(harmless: Parsed):
    void = {"meta", "line", "rect"}
    opened: list[str] = []
    for tag, _ in harmless.tags:
        if tag.startswith("/"):
            if tag[1:] not in void:
                assert opened.pop() == tag[1:]
        elif tag not in void:
            opened.append(tag)
    assert opened == []
    ids = [value for _, attrs in harmless.tags for name, value in attrs if name == "id"]
    links = [value for _, attrs in harmless.tags for name, value in attrs if name == "href"]
    assert len(set(ids)) == len(ids)
    assert links == [f"#{name}" for name in ids]


def test_what_cannot_be_seen_is_written_out():
    assert visible("a\0b\r\x7f\x85\u202e\ud800\U000e0041\ufeff") == "a␀b␍\\u007F\\u0085\\u202E\\uD800\\U000E0041\\uFEFF"
    seen = "tab\t line\n é 漢 שלום 👨‍👩‍👧 नमस्ते می‌خواهم"
    assert visible(seen) == seen


def test_the_state_is_told_in_words():
    assert "Not ready" in page_of() and "Good" not in Parsed(page_of()).text
    assert "Good" in page_of(good=True) and "Not ready" not in page_of(good=True)


def test_every_figure_of_the_ledger_is_on_the_page():
    data = found()
    text = Parsed(data_report(data, title="Data")).text
    ledger = data["ledger"]
    parts = [ledger, *ledger["sources"].values()]
    figures = [n for part in parts for key in ("rows", "tokens", "supervised") for n in part[key].values()]
    assert len(figures) == 60
    for figure in figures:
        assert re.search(rf"(?<![\d,]){figure:,}(?![\d,])", text), figure
    assert "Rows add up: 9,475 + 498 + 3,080 + 5 + 2 + 11 + 17 + 3 = 13,091." in text
    assert "do not add up" not in text


def test_the_bars_of_the_ledger_are_in_proportion():
    page = page_of()
    stacks = re.findall(r'<div class="stack".*?</div>', page)
    assert len(stacks) == 3
    grown = {name: float(share) for name, share in re.findall(r'class="(\w+)" style="flex-grow:([\d.]+)"', stacks[0])}
    assert grown["trained"] == pytest.approx(100 * 9_475 / 13_091, abs=0.001)
    assert sum(grown.values()) == pytest.approx(100, abs=0.01)


def test_a_ledger_that_does_not_add_up_says_so():
    rows = {**counts(trained=10), "read": 14}
    text = Parsed(page_of(ledger={"rows": rows, "sources": {}})).text
    assert "The rows do not add up: 4 of 14 are not accounted for." in text


def test_without_tokens_the_ledger_has_rows_only():
    page = page_of(ledger={"rows": counts(trained=10), "tokens": None, "supervised": None, "sources": {}})
    assert page.count('<div class="stack"') == 1
    assert "tokens learned" not in page


def test_a_million_row_names_stay_a_small_page():
    finding = {**found()["findings"][0], "count": 1_000_000, "rows": [f"data.jsonl:{n}" for n in range(1, 1_000_001)]}
    began = time.process_time()
    page = page_of(findings=[finding], shown=[])
    assert time.process_time() - began < 3
    assert len(page.encode()) < 1_000_000
    text = Parsed(page).text
    assert "data.jsonl: 1, 2, 3," in text and ", 199, 200\n" in text and ", 201" not in text
    assert "and 999,800 more (check --json names all)" in text


def test_large_data_stay_a_small_page():
    long = "x" * 10_000
    many = found(
        sources=[{"path": f"{n}.csv", "side": "train", "format": "csv", "rows": 1, "invalid": 0} for n in range(5_000)],
        ledger={"rows": counts(trained=9), "sources": {f"{n}.csv": {"rows": counts(trained=1)} for n in range(5_000)}},
        bad=[{"source": f"a:{n}", "field": "f", "found": "a", "expected": "b", "raw": long} for n in range(5_000)],
        labels={"distinct": 5_000, "counts": [{"label": f"label {n}", "rows": 5_000 - n} for n in range(5_000)]},
        shown=[{"source": "a:1", "tokens": 1, "supervised": 1, "pieces": [[long, n % 2 == 0] for n in range(500)]}],
    )
    page = data_report(many, title="Data")
    assert len(page.encode()) < 1_000_000
    assert "and 4,800 more (check --json names all)" in page
    assert page.count("and 4,800 more sources") == 2


def test_sections_with_nothing_to_say_are_left_out():
    nothing = dict.fromkeys(("lengths", "labels", "languages", "diversity"))
    empty = dict.fromkeys(("notes", "sources", "scripts", "findings", "bad", "shown"), ())
    page = page_of(**nothing, **empty, ledger={"rows": counts(), "sources": {}})
    assert headings(page) == ["ledger"]
    assert "<svg" not in page and "<details" not in page and "<mark" not in page
    without = {key: value for key, value in found().items() if key not in nothing}
    assert not set(headings(data_report(without, title="Data"))) & {"lengths", "labels", "diversity"}
    everything = ["ledger", "sources", "findings", "lengths", "labels", "scripts", "diversity", "bad", "shown"]
    assert headings(page_of()) == everything


def test_findings_stand_by_severity_and_errors_are_open():
    page = page_of()
    opened = re.findall(r'<details class="finding (\w+)"( open)?>', page)
    assert opened == [("error", " open"), ("warning", ""), ("info", "")]


def test_rows_of_several_files_are_named_in_order():
    names = ["a.csv:3", "a.csv:9", "s3://b/c.jsonl:1", "a.csv:4", "a name without a line"]
    page = page_of(findings=[{**found()["findings"][0], "rows": names}])
    shown = [Parsed(line).text for line in re.findall(r'<p class="row-names">.*', page)]
    assert [line.strip() for line in shown] == ["a.csv: 3, 9", "s3://b/c.jsonl: 1", "a.csv: 4", "a name without a line"]


def test_many_labels_show_the_largest_and_the_smallest():
    labels = {"distinct": 77, "counts": [{"label": f"label {n}", "rows": 770 - 10 * n} for n in range(77)]}
    page = page_of(labels=labels, scripts=[], languages=None, diversity=None)
    text = Parsed(page).text
    assert page.count('class="track"') - len(OUTCOMES) - 1 == _BARS
    assert "label 19" in text and "label 20" not in text and "label 56" not in text and "label 57" in text
    assert "Between them 37 labels of 210 to 570 rows each" in text
    assert "Smallest: label 76 (10), label 75 (20)," in text
    assert "77.0 times as many rows" in text


def test_labels_with_few_rows_are_marked():
    labels = {"distinct": 3, "counts": [{"label": name, "rows": rows} for name, rows in (("a", 9), ("b", 9), ("c", 4))]}
    text = Parsed(page_of(labels=labels)).text
    assert "c (few)" in text and "b (few)" not in text


def test_long_texts_are_cut_and_say_so():
    sample = {"row": "a:1", "text": "y" * 5_000}
    text = Parsed(page_of(findings=[{**found()["findings"][0], "samples": [sample]}])).text
    assert max(len(run) for run in re.findall("y+", text)) == TEXT_LIMIT
    assert "[…3,000 more characters]" in text


def shown(pieces: list[list[Any]]) -> Parsed:
    return Parsed(page_of(shown=[{"source": "a:1", "tokens": 9, "supervised": 4, "pieces": pieces}]))


def test_supervised_tokens_are_marked_and_the_rest_is_not():
    parsed = shown([["\n<|user|>", False], ["\n hi ", False], ["yes", True], ["<|end|>", True], ["\n", False]])
    assert parsed.marked[1:] == ["yes<|end|>"]
    assert "\n<|user|>\n hi yes<|end|>\n" in parsed.text
    style = Parsed(page_of()).text
    assert re.search(r"mark \{ background: .*text-decoration: underline", style)


def test_a_long_turn_keeps_its_beginning_and_its_end():
    parsed = shown([["b" + "x" * 4_998 + "e", False], ["answer", True]])
    half = TEXT_LIMIT // 2
    assert f"b{'x' * (half - 1)} […3,000 characters left out…] {'x' * (half - 1)}e" in parsed.text
    assert parsed.marked[1:] == ["answer"]


def test_a_row_of_very_many_turns_keeps_its_first_and_last():
    parsed = shown([[f"turn {number}.", number % 2 == 1] for number in range(100)])
    assert "turn 19. […480 characters left out…] turn 80." in parsed.text
    assert parsed.marked[-1] == "turn 99."


def drawn(buckets: list[tuple[int, int, int]], **quantiles: int) -> tuple[list[tuple[float, float]], str]:
    """(x, height) of every bar, and the page."""
    middle = {name: quantiles.get(name, 1) for name in ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max")}
    histogram = [{"from": start, "to": end, "rows": rows} for start, end, rows in buckets]
    page = page_of(lengths={"unit": "characters", "quantiles": middle, "histogram": histogram, "longest": "a:1"})
    bars = re.findall(r'<rect class="bar" x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)">', page)
    return [(float(x), float(height)) for x, height in bars], page


def test_bars_of_equal_buckets_stand_at_equal_distances():
    bars, page = drawn([(0, 9, 10), (10, 19, 40), (20, 29, 0), (30, 33, 20)])
    assert bars[1][0] - bars[0][0] == pytest.approx((bars[2][0] - bars[0][0]) / 3, abs=0.1)
    assert (bars[0][1] / bars[1][1], bars[2][1] / bars[1][1]) == pytest.approx((0.25, 0.5), abs=0.01)
    assert "logarithmic" not in page


def test_growing_buckets_have_a_logarithmic_axis():
    bars, page = drawn([(2**n, 2 ** (n + 1), 5) for n in range(4, 16)], p50=4_096)
    distances = [right[0] - left[0] for left, right in pairwise(bars)]
    assert max(distances) < 1.1 * min(distances)
    assert "characters, logarithmic" in page and "p50 4,096" in page


@pytest.mark.parametrize("buckets", [[(0, 0, 1)], [(7, 7, 3)], [(0, 1, 0)], [(5, 6, 2), (900_000, 1_000_000, 1)]])
def test_odd_histograms_are_drawn(buckets: list[tuple[int, int, int]]):
    bars, page = drawn(buckets, p5=0, p99=2_000_000)
    assert len(bars) == sum(rows > 0 for _, _, rows in buckets)
    places = [float(x) for x in re.findall(r'<line class="mark" x1="([\d.]+)"', page)]
    assert places and all(52 <= x <= 848 for x in places)


def luminance(colour: str) -> float:
    digits = "".join(digit * 2 for digit in colour) if len(colour) == 3 else colour
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_its_ground(dark: bool):
    light_colours, dark_colours = re.findall(r":root \{(.*?)\}", page_of(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): #(\w+)", light_colours + (dark_colours if dark else "")))
    pairs = [("ink", "page"), ("ink", "panel"), ("soft", "page"), ("soft", "panel"), ("link", "page")]
    pairs += [(state, f"{state}-tint") for state in ("good", "bad", "warn", "info")]
    pairs += [("learned-ink", "learned"), ("on-trained", "trained")]
    for text, ground in pairs:
        darker, lighter = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def test_bad_rows_beyond_the_first_are_counted():
    bad = [{"source": f"a:{n}", "field": None, "found": "", "expected": "", "raw": None} for n in range(ROWS_NAMED + 3)]
    text = Parsed(page_of(bad=bad)).text
    assert f"a:{ROWS_NAMED - 1}" in text and f"a:{ROWS_NAMED}" not in text
    assert "and 3 more (check --json names all)" in text
