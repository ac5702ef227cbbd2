"""Every page of the site in headless Chromium: a phone and a desk, a light and a dark scheme."""

import base64
import csv
import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

OVERFLOW = """
const width = document.documentElement.clientWidth, scrolls = node => {
  for (let at = node; at && at !== document.body; at = at.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(at).overflowX)) return true;
  return false;
};
return [document.documentElement.scrollWidth - width, [...document.querySelectorAll("main *")]
  .filter(node => !node.closest("svg svg, defs, svg g") && node.getBoundingClientRect().right > width + 1 && !scrolls(node))
  .slice(0, 3).map(node => node.outerHTML.slice(0, 120))];
"""
CONTRAST = """
const parts = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const light = ([r, g, b]) => [r, g, b].map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
  .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
const behind = node => {
  for (let at = node; at; at = at.parentElement) {
    const colour = parts(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const faint = new Map();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || node.closest("script, style, svg")) continue;
  const front = parts(getComputedStyle(node).color), back = behind(node), key = front + "/" + back;
  if (faint.has(key)) continue;
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  faint.set(key, [(a + .05) / (b + .05), walker.currentNode.textContent.trim().slice(0, 40)]);
}
return [...faint].filter(([, [ratio]]) => ratio < 4.5).map(([colours, [ratio, text]]) => `${colours}: ${ratio.toFixed(2)} ${text}`);
"""
BROKEN = """
return [...document.querySelectorAll("svg.math use")].filter(use => !document.querySelector(use.getAttribute("href")))
  .length + [...document.querySelectorAll("svg.math")].filter(svg => svg.getBoundingClientRect().width < 2 && !svg.closest("details:not([open])")).length
  + [...document.images].filter(image => image.complete && !image.naturalWidth).length;
"""


def show(chromium: Any, page: Path, width: int, scheme: str) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chromium.get(page.as_uri())
    chromium.execute_script("for (const part of document.querySelectorAll('main details')) part.open = true")


def all_pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 60
    return found


def test_nothing_leaves_a_phones_screen_and_every_formula_is_drawn(chromium: Any, site: Path) -> None:
    wrong = {}
    for page in all_pages(site):
        show(chromium, page, 400, "light")
        beyond, nodes = chromium.execute_script(OVERFLOW)
        broken = chromium.execute_script(BROKEN)
        if beyond > 0 or nodes or broken:
            wrong[str(page.relative_to(site))] = (beyond, nodes, broken)
    assert not wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(chromium: Any, site: Path, scheme: str) -> None:
    wrong = {}
    for page in all_pages(site):
        show(chromium, page, 1300, scheme)
        if faint := chromium.execute_script(CONTRAST):
            wrong[str(page.relative_to(site))] = faint
    assert not wrong


def test_the_checks_above_see_what_they_look_for(chromium: Any, site: Path) -> None:
    show(chromium, site / "index.html", 400, "dark")
    chromium.execute_script(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<p id=long style=\"width:900px;color:#333\">wide</p>"
        '<svg class="math" style="width:9px"><use href="#nothing"/></svg>\')'
    )
    beyond, nodes = chromium.execute_script(OVERFLOW)
    assert beyond > 0 and any("long" in node for node in nodes)
    assert any("wide" in text for text in chromium.execute_script(CONTRAST))
    assert chromium.execute_script(BROKEN) == 1


def test_the_menu_of_a_phone_is_folded_and_that_of_a_desk_is_not(chromium: Any, site: Path) -> None:
    page = site / "notebooks" / "02_kl.html"
    show(chromium, page, 400, "light")
    assert chromium.execute_script("return document.querySelector('main h1').getBoundingClientRect().bottom") < 400
    assert not chromium.execute_script("return document.querySelector('.menu details').open")
    show(chromium, page, 1300, "light")
    assert chromium.execute_script("return document.querySelector('.menu details').open")
    chromium.execute_script("window.scrollTo(0, 3000)")
    assert abs(chromium.execute_script("return document.querySelector('.menu').getBoundingClientRect().top")) < 2
    assert chromium.execute_script("return document.querySelector('.next a[rel=next]').href").endswith(
        "03_rewards.html"
    )


def test_sliders_compute_what_the_library_computes(chromium: Any, site: Path) -> None:
    import jax.numpy as jnp

    from rlhf_jax.equations.gae import generalized_advantage_estimation
    from rlhf_jax.equations.ppo import clipped_surrogate

    move = (
        "const input = document.querySelector(`.try input[data-name='${arguments[0]}']`);"
        "input.value = arguments[1]; input.dispatchEvent(new Event('input')); return document.querySelector('.try p').textContent"
    )
    show(chromium, site / "notebooks" / "05_ppo_clip.html", 400, "light")
    for ratio, advantage in ((1.5, 1.0), (0.5, 1.0), (0.5, -1.0)):
        chromium.execute_script(move, "A", advantage)
        said = chromium.execute_script(move, "ρ", ratio)
        loss = clipped_surrogate(jnp.log(jnp.array([ratio])), jnp.zeros(1), jnp.array([advantage]), clip_eps=0.2)[0]
        assert said.startswith(f"Loss {float(loss):.2f}.")
        assert ("the clip acts" in said) == ((ratio - 1) * advantage > 0)
    show(chromium, site / "notebooks" / "04_gae.html", 400, "light")
    chromium.execute_script(move, "λ", 0.5)
    drawn = chromium.execute_script(
        "return [...document.querySelectorAll('.try svg text')].map(node => node.textContent)"
    )
    rewards, values = jnp.zeros(6).at[-1].set(0.6), jnp.array([0.5, 0.4, 0.45, 0.9, 0.8, 0.7, 0.0])
    advantages = generalized_advantage_estimation(rewards, values, gamma=1.0, gae_lambda=0.5)
    shown = [float(text) for text in drawn[::2]]
    assert max(abs(x - float(a)) for x, a in zip(shown, advantages, strict=True)) < 0.0051


def test_prices_of_the_proxy_do_what_the_library_and_the_stored_runs_say(chromium: Any, site: Path) -> None:
    import jax.numpy as jnp

    from rlhf_jax.equations.kl import kl_exact
    from rlhf_jax.equations.logprobs import log_softmax

    move = (
        "const input = document.querySelector(`[data-try=${arguments[0]}] input[data-name='${arguments[1]}']`);"
        "input.value = arguments[2]; input.dispatchEvent(new Event('input'));"
        "return document.querySelector(`[data-try=${arguments[0]}] p`).textContent"
    )
    show(chromium, site / "notebooks" / "14_reward_hacking.html", 400, "light")
    words, truth = jnp.array([4.0, 8.0, 14.0, 20.0]), jnp.array([0.1, 1.0, 0.6, 0.2])
    proxy, ref = truth + 0.1 * words, jnp.log(jnp.array([0.6, 0.3, 0.08, 0.02]))
    for kl_coef, length_price, turn in ((1.0, 0.0, "raise"), (0.1, 0.0, "lower"), (0.1, 0.05, "raise")):
        chromium.execute_script(move, "hacking", "κ", kl_coef)
        said = chromium.execute_script(move, "hacking", "c", length_price)
        logits = ref + (proxy - length_price * words) / kl_coef
        pi = jnp.exp(log_softmax(logits[None])[0])
        numbers = [
            float(x) for x in (pi @ proxy, pi @ truth, jnp.exp(ref) @ truth, kl_exact(logits[None], ref[None])[0])
        ]
        shown = [float(x) for x in re.findall(r"-?\d+\.\d+", said)]
        assert max(abs(x - y) for x, y in zip(shown, numbers, strict=True)) < 0.00051, said
        assert f"would {turn} the truth" in said
    results = REPOSITORY / "docs" / "results" / "full_hacking_hackable.csv"
    with results.open(encoding="utf-8") as file:
        rows = {row["name"]: float(row["value"]) for row in csv.DictReader(file)}
    for kl_coef, price in ((0.0, "0"), (0.06, "0.05"), (0.2, "0.2")):
        said = chromium.execute_script(move, "runs", "κ", kl_coef)
        assert f"κ = {price}." in said
        for way in (f"kl{price}", f"kl{price}+length"):
            told = f"proxy {rows[f'{way}-sft/proxy_score']:.3f}, true utility {rows[f'{way}-sft/mean_utility']:.3f}, "
            assert f"{told}√KL {rows[f'{way}/sqrt_kl']:.2f}" in said


BESIDE = """
return [...document.querySelectorAll(".loss svg, .loss p")].filter(node => {
  const own = node.getBoundingClientRect(), whole = node.closest(".loss").getBoundingClientRect();
  return own.width < 1 || own.right > whole.right + 1;
}).map(node => node.closest(".loss").textContent.slice(0, 60));
"""


def printed_pages(chromium: Any, page: Path) -> int:
    """How many sheets of A4 a page is when it is printed."""
    show(chromium, page, 1280, "dark")
    pdf = base64.b64decode(chromium.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    sizes = set(re.findall(rb"/MediaBox\s*\[([\d. ]+)\]", pdf))
    assert {tuple(round(float(number)) for number in size.split()) for size in sizes} == {(0, 0, 595, 842)}
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_the_sheet_is_printed_on_one_page_with_every_formula_whole(chromium: Any, site: Path) -> None:
    assert printed_pages(chromium, site / "sheet.html") == 1
    # The count sees more pages where there are more.
    assert printed_pages(chromium, site / "equations" / "group.html") > 1
    show(chromium, site / "sheet.html", 733, "light")
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert chromium.execute_script("return getComputedStyle(document.querySelector('.sheet')).columnCount") == "2"
    assert chromium.execute_script(BESIDE) == []
    text = chromium.execute_script("return document.querySelector('.sheet').textContent")
    for name in ("clipped_surrogate", "group_advantages", "dpo_loss", "kl_k3", "generalized_advantage_estimation"):
        assert name in text
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_search_finds_a_page_without_a_network(chromium: Any, site: Path) -> None:
    show(chromium, site / "notebooks" / "02_kl.html", 1300, "light")
    field = chromium.find_element("css selector", "#search")
    field.send_keys("leave_one_out_advantages")
    from selenium.webdriver.support.ui import WebDriverWait

    links = WebDriverWait(chromium, 10).until(lambda driver: driver.find_elements("css selector", ".found a"))
    hrefs = [link.get_attribute("href") for link in links]
    assert any("notebooks/07_ppo_on_a_bandit.html" in href for href in hrefs)
    assert any("equations/group.html#leave_one_out_advantages" in href for href in hrefs)
    asked = [line for line in chromium.get_log("performance") if '"Network.requestWillBeSent"' in line["message"]]
    assert not [line for line in asked if '"url":"http' in line["message"]]
    field.clear()
    field.send_keys("zzzz-no-such-word")
    WebDriverWait(chromium, 10).until(
        lambda driver: driver.find_element("css selector", ".found").text == "Nothing found."
    )
