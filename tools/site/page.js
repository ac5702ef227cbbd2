// Menu and contents: open where there is room for them. Search: in an index that is loaded when somebody begins to type.
const wide = matchMedia("(min-width: 52.01rem)"), wider = matchMedia("(min-width: 76.01rem)");
const menu = document.querySelector(".menu details"), contents = document.querySelector(".contents details");
const fit = () => { menu.open = wide.matches; if (contents) contents.open = wider.matches; };
fit();
wide.addEventListener("change", fit);
wider.addEventListener("change", fit);
document.querySelector(".menu [aria-current]")?.scrollIntoView({ block: "nearest" });
const root = document.documentElement.dataset.root, field = document.querySelector("#search"), found = document.querySelector(".found");
let index = null;
function load() {
  if (index || document.querySelector("#index")) return;
  const script = document.createElement("script");
  script.id = "index";
  script.src = root + "search.js";
  script.onload = () => { index = window.SEARCH_INDEX; show(); };
  document.head.append(script);
}
function show() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  found.replaceChildren();
  document.querySelector(".menu .pages").hidden = words.length > 0;
  if (!words.length || !index) return;
  const hits = [];
  for (const [page, heading, href, text] of index) {
    const title = (page + " " + heading).toLowerCase(), body = text.toLowerCase();
    if (!words.every(word => title.includes(word) || body.includes(word))) continue;
    hits.push([words.filter(word => title.includes(word)).length, page, heading, href]);
  }
  hits.sort((one, other) => other[0] - one[0]);
  const list = document.createElement("ul");
  for (const [, page, heading, href] of hits.slice(0, 25)) {
    const item = document.createElement("li"), link = document.createElement("a"), small = document.createElement("small");
    link.href = root + href;
    link.textContent = heading || page;
    small.textContent = heading ? page : "";
    link.append(small);
    item.append(link);
    list.append(item);
  }
  found.append(hits.length ? list : "Nothing found.");
}
field.addEventListener("focus", load);
field.addEventListener("input", () => { load(); show(); });
