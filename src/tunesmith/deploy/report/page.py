"""The report of a run: one HTML page that stands alone, with no script, no network, and no text read as markup."""

from __future__ import annotations

from pathlib import PurePath

from tunesmith.deploy.report.run_facts import RunFacts
from tunesmith.deploy.report.sections import SECTIONS, glance
from tunesmith.evaluation.headline import headline
from tunesmith.evaluation.wording import sentence
from tunesmith.runs.manifest import in_words
from tunesmith.runs.pages.rendering import page_template
from tunesmith.safe_text import visible

_LOOKS = {"better": ("good", "✓"), "no worse": ("good", "✓"), "worse": ("not-ready", "✕")}
_PACKAGES = ("tunesmith.deploy.report", "tunesmith.data.report")


def run_report(facts: RunFacts) -> str:
    """The page as HTML text that can be encoded as UTF-8. It depends on the files of the run alone."""
    found = {key: (title, section(facts)) for key, (title, section) in SECTIONS.items()}
    verdict = facts.judged
    look, sign = _LOOKS.get(verdict["verdict"] if verdict else "", ("open", "?"))
    page = page_template("run.html.j2", *_PACKAGES, masked=True).render(
        title=facts.summary.name,
        status=facts.summary.status,
        model=PurePath(facts.recipe.model.path).name,
        look=look,
        sign=sign,
        state=verdict["verdict"] if verdict else "no verdict",
        headline=headline(facts.verdict, facts.summary.status),
        said=None if verdict is None else sentence(verdict),
        error=facts.status.get("error"),
        damaged=in_words(facts.damaged),
        glance=glance(facts),
        sections={key: {"title": title, "content": content} for key, (title, content) in found.items() if content},
    )
    return visible(page)
