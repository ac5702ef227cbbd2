"""`replies.html`: the same prompts under every stage of a run, each token coloured by what alignment did to it.

One file that loads nothing: style and script stand in it, and the page forbids itself any connection. All text from data
and models is escaped. Without its script every prompt is shown, one below the other.
"""

import base64
import hashlib
import html
import itertools
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

BOUNDS = (0.05, 0.5, 1.5, 3.0)
"""|log-ratio| in nats from which on a token's colour is one step stronger."""
SHARES = (0.05, 0.25, 0.5, 0.75)
"""The same for |advantage|, as shares of the largest on the page."""
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #d5dae0; --card: #f5f7f9;
  --mine: #e3ebf8; --up1: #e3f0f9; --up2: #bcdcf1; --up3: #8cc3e8; --up4: #63b0e3; --down1: #fbeadd; --down2: #f6cfae;
  --down3: #efae7b; --down4: #e99352; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --text: #e9edf0; --soft: #a0aab4; --line: #3a424b; --card: #1d2228; --mine: #26364f;
    --up1: #1a2f3f; --up2: #1c435e; --up3: #1d5479; --up4: #1c6494; --down1: #37271a; --down2: #54351c; --down3: #70431c;
    --down4: #8a4f1a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: .3rem 0 .5rem; }
h2 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: .4rem 0; max-width: 80ch; }
.soft, .role, .sum { color: var(--soft); font-size: .9rem; }
nav { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; padding: .5rem 0;
  background: var(--page); border-bottom: 1px solid var(--line); }
nav[hidden] { display: none; }
button, select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .25rem .7rem; min-width: 0; max-width: 100%; }
select { flex: 1 1 12rem; }
button:disabled { color: var(--soft); }
.said { background: var(--card); border-radius: .6rem; padding: .4rem .8rem; margin: .35rem 0; width: fit-content; max-width: 90%; }
.said.seeker { background: var(--mine); margin-left: auto; }
.said p { margin: 0; }
.sides { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.side { border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; min-width: 0; }
.tokens { line-height: 2; white-space: pre-wrap; }
.t, .key { border-radius: 3px; border-bottom: 2px solid transparent; padding: .1rem 1px; }
.t:hover, .t:focus { outline: 2px solid var(--text); }
.up1 { background: var(--up1); } .up2 { background: var(--up2); } .up3 { background: var(--up3); } .up4 { background: var(--up4); }
.down1 { background: var(--down1); } .down2 { background: var(--down2); } .down3 { background: var(--down3); }
.down4 { background: var(--down4); }
.up2, .up3, .up4 { border-bottom-style: solid; border-bottom-color: var(--text); }
.down2, .down3, .down4 { border-bottom-style: dotted; border-bottom-color: var(--text); }
button[aria-pressed="true"] { outline: 2px solid var(--text); }
body:not(.by-advantage) .advantages, .by-advantage .ratios { display: none; }
.key { padding: .1rem .5rem; white-space: nowrap; margin-right: .2rem; line-height: 2; }
.detail { min-height: 3em; font-variant-numeric: tabular-nums; }
"""
SCRIPT = """
const prompts = [...document.querySelectorAll("section")], nav = document.querySelector("nav");
const choice = nav.querySelector("select"), [back, on] = nav.querySelectorAll("button");
function show(at) {
  at = Math.min(Math.max(at, 0), prompts.length - 1);
  prompts.forEach((prompt, i) => { prompt.hidden = i !== at; });
  choice.value = at; back.disabled = at === 0; on.disabled = at === prompts.length - 1;
}
choice.addEventListener("change", () => show(Number(choice.value)));
back.addEventListener("click", () => show(Number(choice.value) - 1));
on.addEventListener("click", () => show(Number(choice.value) + 1));
for (const side of document.querySelectorAll(".side")) {
  const detail = side.querySelector(".detail"), tell = event => {
    if (event.target.classList.contains("t")) detail.textContent = event.target.title;
  };
  for (const what of ["mouseover", "focusin", "click"]) side.addEventListener(what, tell);
}
const kinds = [...document.querySelectorAll("#kinds button")], tokens = document.querySelectorAll(".t");
kinds.forEach((button, at) => button.addEventListener("click", () => {
  document.body.classList.toggle("by-advantage", at === 1);
  kinds.forEach(one => one.setAttribute("aria-pressed", one === button));
  for (const token of tokens) token.className = `t ${at ? token.dataset.advantage || "" : token.dataset.ratio}`;
}));
for (const part of document.querySelectorAll("[data-needs-script]")) part.hidden = false;
nav.hidden = false;
show(0);
"""


class Token(NamedTuple):
    """One token of a reply."""

    text: str
    logprob: float
    """Under the policy that is compared, nats."""
    ref_logprob: float
    """Under the reference, nats."""
    advantage: float | None = None
    """Reward units, not whitened; None where the run cannot say."""

    @property
    def log_ratio(self) -> float:
        """log π − log π_ref, the token's k1, nats."""
        return self.logprob - self.ref_logprob


class Reply(NamedTuple):
    """What one stage's policy says to a prompt."""

    tokens: Sequence[Token]
    finished: bool
    """Whether it ends with `<eos>`."""
    components: Mapping[str, float]
    """What the reward model says of it, by component; empty where there is none."""
    score: float | None
    """Their weighted sum; None where there is no reward model."""


class Prompt(NamedTuple):
    """One context and the replies to it."""

    said: Sequence[tuple[str, str]]
    """(role, words) of what the policy reads."""
    human: str
    """What the human answered there."""
    replies: Mapping[str, Reply]
    """By stage."""


class Replies(NamedTuple):
    """All that the page shows."""

    run: str
    how: str
    """How replies were made, in words."""
    compared: Mapping[str, tuple[str, str]]
    """Stage to whose log-probabilities its replies are coloured by: (policy, reference)."""
    prompts: Sequence[Prompt]


def colour(value: float, bounds: Sequence[float] = BOUNDS) -> str:
    """The class of a token's colour: `up1` … `up4` for log-ratios or advantages above 0, `down1` … `down4` below.

    Args:
      value: nats, or what the bounds are in.
      bounds: |value| from which on the colour is one step stronger, ascending.

    Examples:
      >>> colour(0.01), colour(0.7), colour(-9.0), colour(float("nan"))
      ('', 'up2', 'down4', '')
    """
    step = sum(abs(value) >= bound for bound in bounds)
    return f"{'up' if value > 0 else 'down'}{step}" if step else ""


def page(replies: Replies) -> str:
    """The whole file.

    Raises: ValueError where there is no prompt.
    """
    if not replies.prompts:
        raise ValueError("a page of replies needs at least one prompt")
    n = len(replies.prompts)
    options = "".join(
        f'<option value="{at}">{at + 1} of {n}: {_text(_start(prompt))}</option>'
        for at, prompt in enumerate(replies.prompts)
    )
    bounds = _advantage_bounds(replies)
    sections = "\n".join(_prompt(at, prompt, replies, bounds) for at, prompt in enumerate(replies.prompts))
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; img-src data:"
    title = f"Replies of {_text(replies.run)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{_text(replies.how)}</p>
{_legend(replies, bounds)}
<nav hidden><button>Previous</button><select aria-label="prompt">{options}</select><button>Next</button></nav>
{sections}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _advantage_bounds(replies: Replies) -> tuple[float, ...]:
    """Bounds of the colours of advantages; none where no token has one."""
    tokens = (token for prompt in replies.prompts for reply in prompt.replies.values() for token in reply.tokens)
    sizes = [abs(token.advantage) for token in tokens if token.advantage is not None and math.isfinite(token.advantage)]
    largest = max(sizes, default=0.0)
    return tuple(share * largest for share in SHARES) if largest > 0 else ()


def _legend(replies: Replies, bounds: Sequence[float]) -> str:
    if all(policy == reference for policy, reference in replies.compared.values()):
        return "<p>No colours: this run has no aligned policy yet to compare with.</p>"
    ratios = (
        "<p>A token's colour is its log-ratio log π − log π<sub>ref</sub> in nats, its share of the KL (k1). Blue, solid line: alignment made it "
        f"likelier here; orange, dotted line: less likely. Replies of what was not aligned show what PPO's (or GRPO's) policy makes of them. Touch a token for its numbers.</p><p>{_keys(BOUNDS)}</p>"
    )
    if not bounds:
        why = "they need PPO with one response to a prompt, and its reward model"
        return f'{ratios}<p class="soft">Advantages are not shown: {why}.</p>'
    return (
        f'<div class="ratios">{ratios}</div><div class="advantages"><p>A token\'s colour is its advantage, in units of the reward and '
        "not whitened: what PPO's newest critic, reward model and KL price make of this reply. Blue, solid line: more than the critic "
        f"expected; orange, dotted line: less.</p><p>{_keys(bounds)}</p></div>"
        '<p id="kinds" data-needs-script hidden><button aria-pressed="true">log-ratio</button> '
        '<button aria-pressed="false">advantage</button></p>'
    )


def _keys(bounds: Sequence[float]) -> str:
    said = [f"{bound:.2g}".replace("0.", ".", 1) for bound in bounds]
    steps = list(itertools.pairwise(said))
    names = [f"&lt; −{said[-1]}", *(f"−{high} to −{low}" for low, high in reversed(steps))]
    names += [*(f"{low} to {high}" for low, high in steps), f"&gt; {said[-1]}"]
    classes = [f"down{step}" for step in (4, 3, 2, 1)] + [f"up{step}" for step in (1, 2, 3, 4)]
    return "".join(f'<span class="key {kind}">{name}</span>' for kind, name in zip(classes, names, strict=True))


def _prompt(at: int, prompt: Prompt, replies: Replies, bounds: Sequence[float]) -> str:
    said = "".join(
        f'<div class="said {"seeker" if role == "seeker" else "other"}"><p class="role">{_text(role)}</p><p>{_text(words) or "…"}</p></div>'
        for role, words in prompt.said
    )
    sides = "".join(_side(stage, reply, replies.compared[stage], bounds) for stage, reply in prompt.replies.items())
    return (
        f'<section aria-label="prompt {at + 1}"><h2>Prompt {at + 1}</h2>{said}<h2>Replies</h2><div class="sides">{sides}</div>'
        f'<p class="soft">The human answered: {_text(prompt.human) or "(nothing)"}</p></section>'
    )


def _side(stage: str, reply: Reply, compared: tuple[str, str], bounds: Sequence[float]) -> str:
    policy, reference = compared
    plain = policy == reference
    tokens = "".join(_token(token, compared, bounds) for token in reply.tokens)
    total = math.fsum(token.log_ratio for token in reply.tokens)
    about = [f"{len(reply.tokens)} tokens" + ("" if reply.finished else ", not ended")]
    if not plain:
        about.append(f"Σ (log {_text(policy)} − log {_text(reference)}) = {_signed(total)} nats")
    if reply.score is not None:
        parts = ", ".join(f"{_text(name)} {_signed(value)}" for name, value in reply.components.items())
        about.append(f"reward model: {parts}; weighted {_signed(reply.score)}")
    return (
        f'<div class="side"><h3>{_text(stage)}</h3><div class="tokens">{tokens}</div>'
        f'<p class="sum">{". ".join(about)}.</p><p class="soft detail"></p></div>'
    )


def _token(token: Token, compared: tuple[str, str], bounds: Sequence[float]) -> str:
    policy, reference = compared
    if policy == reference:
        kind, numbers = "", f"log {policy} {_signed(token.logprob)}"
    else:
        kind = colour(token.log_ratio)
        numbers = f"log {policy} {_signed(token.logprob)}, log {reference} {_signed(token.ref_logprob)}, log-ratio {_signed(token.log_ratio)}"
    label, credit = f"“{token.text.strip()}”: {numbers} nats", ""
    if token.advantage is not None and bounds:
        label += f"; advantage {_signed(token.advantage)}"
        credit = f' data-advantage="{colour(token.advantage, bounds)}"'
    classes = f"t {kind}".strip()
    shown = f'title="{_text(label)}">{_text(token.text)}</span>'
    return f'<span class="{classes}" data-ratio="{kind}"{credit} tabindex="0" {shown}'


def _start(prompt: Prompt) -> str:
    words = " ".join((prompt.said[-1][1] if prompt.said else "").split())
    return words if len(words) <= 60 else words[:59] + "…"


def _signed(value: float) -> str:
    # No sign before what is rounded to nothing.
    return f"{value:+.2f}".replace("-", "−") if not abs(value) < 0.005 else "0.00"


def _text(text: str) -> str:
    """Escaped; control characters and halves of characters, which no page may hold, are shown as a replacement."""
    kept = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)
    return html.escape("".join(kept))
