// Things to try below a picture: sliders over a formula of the lesson. Numbers are computed here, nothing is loaded.
const SPACE = "http://www.w3.org/2000/svg";
function draw(name, attributes, parent, text) {
  const node = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
const LETTERS = innerWidth < 500 ? 22 : 14;
function bars(svg, groups, low, high) {
  // groups: [label, [value, colour, pattern of the edge]…]
  const width = 600, height = 220, base = 190 - 170 * (0 - low) / (high - low), step = width / groups.length;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  draw("line", { x1: 0, x2: width, y1: base, y2: base, stroke: "currentColor" }, svg);
  groups.forEach(([label, ...values], at) => {
    values.forEach(([value, colour], which) => {
      const y = 190 - 170 * (value - low) / (high - low), wide = step * .7 / values.length, x = at * step + step * .15 + which * wide;
      draw("rect", { x, y: Math.min(y, base), width: wide * .9, height: Math.abs(y - base), fill: colour }, svg);
      draw("text", { x: x + wide * .45, y: Math.min(y, base) - 4, "text-anchor": "middle", "font-size": LETTERS, fill: "currentColor" }, svg, value.toFixed(2));
    });
    draw("text", { x: at * step + step / 2, y: 212, "text-anchor": "middle", "font-size": LETTERS, fill: "currentColor" }, svg, label);
  });
}
const TRIES = {
  clip: {
    title: "Try it: one token under the clip",
    sliders: [["ρ", "ratio ρ", .3, 2, .01, 1.1], ["A", "advantage A", -2, 2, .1, 1], ["ε", "clip range ε", .05, .5, .01, .2]],
    show(svg, { ρ, A, ε }) {
      const loss = r => Math.max(-A * r, -A * Math.min(Math.max(r, 1 - ε), 1 + ε));
      const x = r => (r - .3) / 1.7 * 600, y = l => 110 - l / 4 * 100;
      svg.setAttribute("viewBox", "0 0 600 220");
      draw("rect", { x: x(1 - ε), width: x(1 + ε) - x(1 - ε), y: 0, height: 220, fill: "#d55e00", opacity: .18 }, svg);
      draw("line", { x1: 0, x2: 600, y1: 110, y2: 110, stroke: "currentColor", opacity: .4 }, svg);
      const points = Array.from({ length: 171 }, (_, i) => .3 + i * .01);
      draw("polyline", { points: points.map(r => `${x(r)},${y(-A * r)}`).join(" "), fill: "none", stroke: "currentColor", "stroke-dasharray": "4 4" }, svg);
      draw("polyline", { points: points.map(r => `${x(r)},${y(loss(r))}`).join(" "), fill: "none", stroke: "#0072b2", "stroke-width": 3 }, svg);
      draw("circle", { cx: x(ρ), cy: y(loss(ρ)), r: 7, fill: "currentColor" }, svg);
      const acts = (A > 0 && ρ > 1 + ε) || (A < 0 && ρ < 1 - ε) || A === 0;
      return `Loss ${loss(ρ).toFixed(2)}. Its gradient with respect to log π is ${acts ? "0: the clip acts, the token has no say" : (-A * ρ).toFixed(2)}. Solid: with the clip, dashed: without; the band is 1 ± ε.`;
    },
  },
  lambda: {
    title: "Try it: how far does the end reach?",
    sliders: [["λ", "λ", 0, 1, .01, .95]],
    show(svg, { λ }) {
      const words = ["Maybe", "watch", "Heat", ",", "good", "<eos>"], V = [.5, .4, .45, .9, .8, .7, 0], rewards = [0, 0, 0, 0, 0, .6];
      const advantages = [];
      for (let t = 5, later = 0; t >= 0; t--) advantages[t] = later = rewards[t] + V[t + 1] - V[t] + λ * later;
      bars(svg, words.map((word, t) => [word, [advantages[t], advantages[t] < 0 ? "#d55e00" : "#0072b2"]]), -.3, .6);
      return `Advantages of six tokens, γ = 1; the score 0.6 is paid at the end. The critic's values before them are ${V.slice(0, 6).join(", ")}. At λ = 0 each token answers for the change of opinion it caused, at λ = 1 for the score minus the value before it.`;
    },
  },
  kappa: {
    title: "Try it: the best policy at a price",
    sliders: [["κ", "price κ", .05, 3, .05, .5]],
    show(svg, { κ }) {
      const genres = ["western", "musical", "noir", "spy"], scores = [0, .4, 1, .7], normal = weights => weights.map(w => w / weights.reduce((a, b) => a + b));
      const ref = normal([1.4, .4, 0, -.6].map(Math.exp)), best = normal(ref.map((p, i) => p * Math.exp(scores[i] / κ)));
      const sum = f => genres.reduce((total, _, i) => total + f(i), 0), score = sum(i => best[i] * scores[i]), kl = sum(i => best[i] * Math.log(best[i] / ref[i]));
      bars(svg, genres.map((genre, i) => [genre, [ref[i], "#8a929c"], [best[i], "#0072b2"]]), 0, 1.05);
      return `Grey: the reference, blue: the best policy. Score ${score.toFixed(2)}, KL ${kl.toFixed(2)} nats, objective E[s] − κ KL = ${(score - κ * kl).toFixed(3)}.`;
    },
  },
  hacking: {
    title: "Try it: a proxy at a price",
    sliders: [["κ", "price κ of a nat", .02, 2, .01, .5], ["c", "price of a word", 0, .1, .01, 0]],
    show(svg, { κ, c }) {
      const replies = ["vague", "apt", "chatty", "endless"], words = [4, 8, 14, 20], truth = [.1, 1, .6, .2], ref = [.6, .3, .08, .02];
      const proxy = truth.map((u, i) => u + .1 * words[i]), paid = proxy.map((s, i) => s - c * words[i]), top = Math.max(...paid);
      const tilted = ref.map((p, i) => p * Math.exp((paid[i] - top) / κ)), all = tilted.reduce((a, b) => a + b), best = tilted.map(p => p / all);
      const mean = values => best.reduce((total, p, i) => total + p * values[i], 0), before = ref.reduce((total, p, i) => total + p * truth[i], 0);
      const kl = best.reduce((total, p, i) => total + (p > 0 ? p * Math.log(p / ref[i]) : 0), 0), between = mean(truth.map((u, i) => u * paid[i])) - mean(truth) * mean(paid);
      bars(svg, replies.map((reply, i) => [reply, [ref[i], "#8a929c"], [best[i], "#0072b2"]]), 0, 1.05);
      return `Proxy ${mean(proxy).toFixed(3)}, truth ${mean(truth).toFixed(3)} (reference ${before.toFixed(3)}), KL ${kl.toFixed(3)} nats. Grey: the reference, blue: the best policy at these prices. A cheaper nat would ${between > 0 ? "raise" : "lower"} the truth.`;
    },
  },
  runs: {
    title: "Try it: six stored runs",
    sliders: [["κ", "price κ of a nat", 0, .2, .01, 0]],
    show(svg, { κ }) {
      // docs/results/full_hacking_hackable.csv: κ, then proxy, truth and √KL with length free, and with length priced.
      const runs = [[0, [1.084571, -.1422762, 4.471894], [1.047163, -.1080064, 4.841408]], [.05, [1.041667, -.1363657, 2.66801], [.9952379, -.1215788, 2.653983]], [.2, [.8443186, -.04261416, 1.833238], [.7254736, -.003952272, 1.423441]]];
      const [price, free, priced] = runs.reduce((a, b) => Math.abs(b[0] - κ) < Math.abs(a[0] - κ) ? b : a), two = at => [[free[at], "#0072b2"], [priced[at], "#d55e00"]];
      bars(svg, [["proxy", ...two(0)], ["true utility", ...two(1)]], -.25, 1.2);
      const told = row => `proxy ${row[0].toFixed(3)}, true utility ${row[1].toFixed(3)}, √KL ${row[2].toFixed(2)}`;
      return `The stored runs nearest to this price have κ = ${price}. Blue, length free: ${told(free)}. Orange, length priced: ${told(priced)}. Proxy and utility are differences from imitation.`;
    },
  },
};
for (const place of document.querySelectorAll("[data-try]")) {
  const { title, sliders, show } = TRIES[place.dataset.try], values = {}, head = document.createElement("strong");
  head.textContent = title;
  place.append(head);
  const svg = document.createElementNS(SPACE, "svg"), said = document.createElement("p");
  svg.setAttribute("role", "img");
  const again = () => {
    svg.replaceChildren();
    said.textContent = show(svg, values);
    svg.setAttribute("aria-label", said.textContent);
  };
  for (const [key, name, min, max, step, start] of sliders) {
    const label = document.createElement("label"), input = document.createElement("input"), shown = document.createElement("output");
    Object.assign(input, { type: "range", min, max, step, value: start });
    input.dataset.name = key;
    values[key] = start;
    shown.textContent = start.toFixed(2);
    label.append(name, input, shown);
    input.addEventListener("input", () => { values[key] = Number(input.value); shown.textContent = values[key].toFixed(2); again(); });
    place.append(label);
  }
  place.append(svg, said);
  again();
}
