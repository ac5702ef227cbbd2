"""The page stands alone, escapes what it is given, and says first what matters."""

import dataclasses
from html.parser import HTMLParser

import pytest

from rlhf_jax.evaluation.results import DIFFERENCE, Result
from rlhf_jax.reporting import html_report
from rlhf_jax.reporting.contents import Contents, Conversation

HOSTILE = "</style></details><script>alert(1)</script><img src=x onerror=alert(1)>\"'&`**\x07"
VOID = {"meta", "br", "img"}


class Checked(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that closes another."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def contents(**changes) -> Contents:
    results = [
        Result("sft/mean_utility", 0.4, 300, "closed-loop", "w/test-users-sampled", (0.3, 0.5), (0,), "true utility"),
        Result("ppo/mean_utility", 0.6, 300, "closed-loop", "w/test-users-sampled", (0.5, 0.7), (0,), "true utility"),
        Result("ppo-sft/mean_utility", 0.2, 300, "closed-loop", "w/test-users-sampled", (0.1, 0.3), (0,), DIFFERENCE),
        Result("reward_model/pearson", 0.7, 80, "held-out", "w/validation", (0.6, 0.8), (0,), "Pearson"),
    ]
    samples = [
        {"stage": "ppo", "step": step, "prompt": f"asked {step}", "reply": "said", "scores": {"score": value}}
        for step, value in ((8, 0.5), (16, 0.25), (24, None))
    ]
    fields = {"title": "Toy", "notes": ["A note."], "results": results, "left_out": [], "gate": 0.6, "sections": []}
    fields |= {"conversations": [], "samples": samples, "config": {}, "command": None, "gathered": False}
    return Contents(**{**fields, **changes})


def test_the_verdict_comes_first_and_the_definitions_last() -> None:
    page = html_report.page(contents(), {}, "How to read it.")
    answer, _, rest = page.partition("<details>")
    assert "▲" in answer and "Better in this run</strong>: true utility +0.200" in answer
    row = "<td>true utility, sampled</td><td>0.400</td><td>0.600</td><td>+0.200 [+0.100, +0.300]</td>"
    assert (
        row in answer
        and '<span class="better">▲ better in this run</span>' in answer
        and "<td>300 users</td>" in answer
    )
    folds = [part.split("</summary>")[0].split("<summary>")[1] for part in rest.split("<details>")]
    assert folds[0] == "All tables" and folds[-1] == "Definitions"
    assert rest.index("How to read it.") > rest.index("<summary>Definitions")
    # The first and the last evaluation; a score that was no number is a dash.
    assert "asked 8" in rest and "asked 16" not in rest and "<td>asked 24</td><td>said</td><td>–</td>" in rest


def test_without_a_comparison_the_page_says_so() -> None:
    page = html_report.page(contents(results=[], samples=[]), {}, "")
    Checked(page)
    assert "No two systems were compared in this run" in page and "No result has been written yet." in page


@pytest.mark.parametrize(
    "field", ["title", "note", "caption", "reply", "prompt", "system", "config", "command", "definition"]
)
def test_what_others_wrote_is_text(field: str) -> None:
    plain = contents()
    said = HOSTILE if field == "reply" else "hello"
    sample = {"stage": "ppo", "step": 1, "prompt": HOSTILE if field == "prompt" else "", "reply": said, "scores": {}}
    name = f"a{HOSTILE}" if field == "system" else "sft"
    first = dataclasses.replace(plain.results[0], definition=HOSTILE) if field == "definition" else plain.results[0]
    page = html_report.page(
        contents(
            title=HOSTILE if field == "title" else "Toy",
            notes=[HOSTILE if field == "note" else "", f"![{HOSTILE if field == 'caption' else ''}](plots/own.png)"],
            results=[first, *plain.results[1:]],
            conversations=[Conversation("1", ("user: hi",), {name: said})],
            samples=[sample],
            config={"config": {"dir": HOSTILE if field == "config" else ""}},
            command=HOSTILE if field == "command" else None,
        ),
        {"own": '<?xml?><svg width="9pt" height="9pt" viewBox="0 0 9 9"><text>x</text></svg>'},
        "",
    )
    tags = [tag for tag, _ in Checked(page).tags]
    assert "script" not in tags and "img" not in tags and "alert(1)" in page
    assert not any(name.startswith("on") for _, attributes in Checked(page).tags for name in attributes)


def test_figures_do_not_share_names_and_keep_their_size() -> None:
    svg = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg height="20pt" width="300.5pt" viewBox="0 0 300 20">'
        '<metadata>where="http://example.org"</metadata><path id="a" clip-path="url(#a)"/><use xlink:href="#a"/></svg>\n'
    )
    one = html_report.inline_svg(svg, "one/x", 'say "A"')
    assert one.startswith('<svg viewBox="0 0 300 20" style="max-width: 300.5pt; min-width: min(40rem, 300.5pt)"')
    assert 'aria-label="say &quot;A&quot;"' in one and "http" not in one
    assert '<path id="one_x-a" clip-path="url(#one_x-a)"/><use xlink:href="#one_x-a"/></svg>' in one
