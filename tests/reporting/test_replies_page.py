"""The page of replies: colours, numbers and escaping, on made-up replies."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from rlhf_jax.reporting import replies_page
from rlhf_jax.reporting.replies_page import Prompt, Replies, Reply, Token

HOSTILE = "</span></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x07\ud800"


@dataclasses.dataclass
class Span:
    """A token as the page shows it."""

    attributes: dict[str, str | None]
    text: str = ""


class Read(HTMLParser):
    """Tags, tokens and text of a page; fails on a tag that closes another."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.tokens: list[Span] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if "data-ratio" in dict(attrs):
            self.tokens.append(Span(dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "span" and self.tokens and not self.tokens[-1].text:
            self.tokens[-1].text = data


def shown(tokens: list[Token], *, text: str = "hello", policy: str = "ppo", score: float | None = 0.25) -> Replies:
    reply = Reply(tokens, finished=False, components={text: -1.0} if score is not None else {}, score=score)
    prompts = [Prompt([("seeker", text), ("recommender", "")], text, {"ppo": reply})]
    return Replies(text, f"how {text}", {"ppo": (policy, "sft")}, prompts)


def test_a_tokens_colour_is_its_log_ratio_or_its_advantage() -> None:
    tokens = [Token(" a", -1.0, -4.5, -2.0), Token(" b", -2.0, -1.0, 0.6), Token(" c", -1.0, -1.01, 0.0)]
    page = Read(replies_page.page(shown(tokens)))
    spans = [(each.text, each.attributes) for each in page.tokens]
    assert [text for text, _ in spans] == [" a", " b", " c"]
    assert [attributes["class"] for _, attributes in spans] == ["t up4", "t down2", "t"]
    assert [attributes["data-ratio"] for _, attributes in spans] == ["up4", "down2", ""]
    # Largest 2: bounds .1, .5, 1 and 1.5.
    assert [attributes["data-advantage"] for _, attributes in spans] == ["down4", "up2", ""]
    assert spans[0][1]["title"] == "“a”: log ppo −1.00, log sft −4.50, log-ratio +3.50 nats; advantage −2.00"
    assert "3 tokens, not ended. Σ (log ppo − log sft) = +2.51 nats" in page.text
    assert "weighted +0.25" in page.text and "Advantages are not shown" not in page.text


def test_without_advantages_the_page_says_so_and_without_a_policy_it_has_no_colours() -> None:
    page = Read(replies_page.page(shown([Token(" a", -1.0, -4.5)], score=None)))
    assert "Advantages are not shown" in page.text and "reward model:" not in page.text
    assert [each.attributes.get("data-advantage") for each in page.tokens] == [None]
    alone = Read(replies_page.page(shown([Token(" a", -1.0, -4.5)], policy="sft")))
    assert "no aligned policy yet" in alone.text and "Σ" not in alone.text
    assert [each.attributes["class"] for each in alone.tokens] == ["t"]


def test_text_is_escaped_and_the_page_loads_nothing() -> None:
    safe = Read(replies_page.page(shown([Token(" a", -1.0, -2.0)])))
    page = replies_page.page(shown([Token(HOSTILE, -1.0, -2.0)], text=HOSTILE))
    read = Read(page)
    assert read.tags == safe.tags and read.tags.count("script") == 1 and "img" not in read.tags
    assert read.tokens[0].text == HOSTILE.replace("\x07", "\ufffd").replace("\ud800", "\ufffd")
    page.encode("utf-8")
    assert "default-src 'none'" in page and not re.search(r"https?:|@import|url\(", page)


def test_a_page_needs_a_prompt() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        replies_page.page(shown([])._replace(prompts=[]))
