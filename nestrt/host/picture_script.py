"""The script of the HTML form: zoom, figures, keys. It draws by the rules of picture_layout.py, picture_place.py and
picture_svg.py, whose numbers it is given, and makes every text a text node: nothing that a guest wrote is parsed.
"""

from __future__ import annotations

SCRIPT = r"""
"use strict";
(() => {
const { settings: S, words, boxes } = JSON.parse(document.getElementById("data").textContent);
const [chart, figures, where, search, hits] =
  ["chart", "figures", "where", "search", "hits"].map((id) => document.getElementById(id));
const defs = chart.querySelector("defs");

function grow() {
  const around = [];
  for (const [depth, classes, name, used, given, note, x, width, fill, said] of boxes) {
    const node = { classes, name, used, given, note, x, width, fill, below: [], parent: around[depth - 1] };
    node.said = said.map((word) => words[word]);
    around[depth] = node;
    if (node.parent) node.parent.below.push(node);
  }
  return around[0];
}
const stack = [{ node: grow() }];
let drawn = [];

function make(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const wide = (part) => 100 * part + "%";
const sum = (numbers) => numbers.reduce((one, other) => one + other, 0);
const percent = (fill) => (fill >= 0.00995 || fill === 0 ? (100 * fill).toFixed(0) + "%"
  : fill >= 0.0005 ? (100 * fill).toFixed(1) + "%" : "<0.1%");
const heat = (fill) => (fill < S.nearly ? "ok" : fill < S.full ? "warm" : "hot");
const letters = (text) => sum([...text].map((c) => (c > "\u10ff" && c !== "\u2026" ? 2 : 1)));
const fitting = (texts, most) => texts.find((text) => letters(text) <= most) || "";

function shortened(name, most) {
  const end = Math.floor((most - 1) / 2), begin = most - 1 - end;
  return name.slice(0, begin).join("") + "\u2026" + name.slice(name.length - end).join("");
}

function texts(item, px) {
  const [name, second, third] = S.letters.map((letter) => (px - S.sides) / letter);
  const last = item.name.split("/").pop();
  const bundle = item.classes === "bundle";
  let first = fitting([item.name, bundle ? "+" + parseInt(item.name, 10) : last], name);
  const most = Math.floor(Math.floor(name) / (letters(last) > [...last].length ? 2 : 1));
  if (!first && most >= 4 && !bundle) first = shortened([...last], most);
  let lines = [item.used ? item.used + " of " + item.given : item.given];
  if (item.fill !== null) {
    const part = percent(item.fill);
    lines = [lines[0] + S.between + part, item.used + S.between + part, part];
  }
  if (bundle && !first) return ["", "", ""];
  const parts = item.note.split(S.between);
  const notes = parts.map((_, end) => parts.slice(0, parts.length - end).join(S.between));
  return [first, fitting(lines, second), fitting(notes, third)];
}

function bundles(widths, least) {
  const found = [];
  let first = -1, width = 0;
  widths.forEach((each, number) => {
    if (each >= least) {
      if (first >= 0) found.push([first, number]);
      found.push([number, number + 1]);
      first = -1; width = 0;
      return;
    }
    if (first < 0) first = number;
    width += each;
    if (width >= S.bundle * least) {
      found.push([first, number + 1]);
      first = -1; width = 0;
    }
  });
  if (first >= 0) found.push([first, widths.length]);
  return found;
}

function bars(members) {
  const each = Math.ceil(members.length / S.bars), paths = { ok: "", warm: "", hot: "" };
  let count = 0;
  for (let at = 0; at < members.length; at += each, count += 1) {
    const fill = Math.min(1, Math.max(...members.slice(at, at + each).map((member) => member.fill || 0)));
    if (fill) paths[heat(fill)] += `M${count} 100v-${(100 * fill).toFixed(1)}h1v${(100 * fill).toFixed(1)}z`;
  }
  const drawings = Object.entries(paths).filter(([, d]) => d)
    .map(([name, d]) => make("path", { class: "bar " + name, d }));
  return make("svg", { viewBox: `0 0 ${count} 100`, preserveAspectRatio: "none", width: "100%", height: "100%" },
    ...drawings);
}

function bundle(members) {
  const fullest = members.reduce((one, other) => ((other.fill || 0) > (one.fill || 0) ? other : one));
  const [first, last] = [members[0].name, members[members.length - 1].name];
  const said = ["first", first, "last", last];
  if (fullest.fill !== null) said.push("fullest", fullest.name + ", " + percent(fullest.fill));
  const name = members.length + " more";
  return { classes: "bundle", name, used: "", given: first, note: "\u2026 " + last, fill: null, said };
}

function show(item) {
  const list = document.createElement("dl"), heading = document.createElement("h2");
  heading.textContent = item.name;
  for (let at = 0; at < item.said.length; at += 2) {
    const term = document.createElement("dt"), value = document.createElement("dd");
    term.textContent = item.said[at];
    value.textContent = item.said[at + 1];
    list.append(term, value);
  }
  figures.replaceChildren(heading, list);
}

function put(item, view, x, y, width, row, over, inner) {
  const classes = item.classes.split(" "), [name, second, note] = texts(item, width * chart.clientWidth);
  const said = item.said.map((text, at) => text + (at % 2 ? "; " : ": ")).join("");
  const box = make("svg", { class: item.classes, x: wide(x), y, width: wide(width), height: S.row, role: "treeitem",
    "aria-level": row + 1, "aria-label": item.name + "; " + said, tabindex: 0 });
  const all = { width: "100%", height: "100%" };
  box.append(make("rect", { class: "box", ...all }));
  if (classes.includes("open")) box.append(make("rect", { fill: "url(#hatch)", ...all }));
  if (item.fill) {
    const fill = Math.min(1, item.fill);
    box.append(make("rect", { class: "fill " + heat(fill), y: wide(1 - fill), width: "100%", height: wide(fill) }));
  }
  if (classes.includes("over")) box.append(make("rect", { class: "strip", y: S.row - 3, width: "100%", height: 3 }));
  if (inner) box.append(inner);
  box.append(make("rect", { class: "edge", ...all }));
  if (name) box.append(make("text", { class: "name", x: 7, y: 18 }, name));
  if (second) box.append(make("text", { x: 7, y: 34 }, second));
  const tag = note.startsWith(S.mark) ? note.split(S.between)[0] : "";
  if (note) {
    const text = make("text", { class: "note", x: 7, y: 49 });
    if (tag) text.append(make("tspan", { class: "tag" }, tag));
    text.append(note.slice(tag.length));
    box.append(text);
  }
  chart.append(box);
  drawn.push({ box, item, view, row, over });
  return drawn[drawn.length - 1];
}

function rowOf(siblings, view, x, width, y, row, over) {
  const least = S.least * S.px / chart.clientWidth;
  let bottom = y;
  for (const [first, end] of bundles(siblings.map((each) => each.width * width), least)) {
    const members = siblings.slice(first, end), left = x + members[0].x * width;
    const across = Math.max(S.thinnest, sum(members.map((member) => member.width)) * width);
    bottom = Math.max(bottom, y + S.row + S.gap);
    if (members.length > 1) {
      const range = { node: members[0].parent, members };
      put(bundle(members), range, left, y, across, row, over, bars(members));
      continue;
    }
    const [node] = members, shown = put(node, { node }, left, y, across, row, over);
    bottom = Math.max(bottom,
      rowOf(node.below, { node }, left, node.width * width, y + S.row + S.gap, row + 1, shown));
  }
  return bottom;
}

function draw() {
  const view = stack[stack.length - 1], under = S.row + S.gap;
  drawn = [];
  chart.replaceChildren(defs);
  const top = put(view.node, null, 0, 0, 1, 0, null);
  const members = view.members || view.node.below;
  const total = view.members ? sum(members.map((member) => member.width)) || 1 : 1;
  const x = view.members ? -members[0].x / total : 0;
  chart.setAttribute("height", Math.max(under, rowOf(members, view, x, 1 / total, under, 1, top)));
  where.replaceChildren(...stack.map((each, number) => {
    const step = document.createElement("button");
    step.type = "button";
    step.textContent = each.members ? each.members.length + " more" : each.node.name;
    if (number === stack.length - 1) step.setAttribute("aria-current", "true");
    step.addEventListener("click", () => { stack.length = number + 1; draw(); });
    return step;
  }));
  show(view.members ? bundle(view.members) : view.node);
}

function zoom(shown) {
  if (shown.view === null) return out();
  if (shown.item.classes === "free") return undefined;
  stack.push(shown.view);
  draw();
  drawn[0].box.focus({ preventScroll: true });
  return undefined;
}

function out() {
  if (stack.length < 2) return;
  const inside = chart.contains(document.activeElement);
  stack.pop();
  draw();
  if (inside) drawn[0].box.focus({ preventScroll: true });
}

function step(from, key) {
  const row = drawn.filter((each) => each.row === from.row), at = row.indexOf(from);
  if (key === "ArrowRight") return row[at + 1];
  if (key === "ArrowLeft") return row[at - 1];
  if (key === "ArrowUp") return from.over;
  if (key === "ArrowDown") return drawn.find((each) => each.over === from);
  return key === "Home" ? drawn[0] : undefined;
}

const at = (event) => drawn.find((each) => each.box.contains(event.target));
chart.addEventListener("click", (event) => { const shown = at(event); if (shown) zoom(shown); });
for (const kind of ["pointerover", "focusin"]) {
  chart.addEventListener(kind, (event) => { const shown = at(event); if (shown) show(shown.item); });
}
chart.addEventListener("keydown", (event) => {
  const shown = at(event), other = shown && step(shown, event.key);
  if (other) other.box.focus();
  else if (shown && (event.key === "Enter" || event.key === " ")) zoom(shown);
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") out(); });

const nodes = [];
(function list(node) { nodes.push(node); node.below.forEach(list); })(stack[0].node);
let sought = "", next = 0;
search.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !search.value) return;
  event.preventDefault();
  const text = search.value.toLowerCase();
  const found = nodes.filter((node) => node.classes !== "free" && node.name.toLowerCase().includes(text));
  next = text === sought ? (next + 1) % (found.length || 1) : 0;
  sought = text;
  hits.textContent = found.length ? next + 1 + " of " + found.length : "nothing";
  if (!found.length) return;
  stack.length = 1;
  if (found[next] !== stack[0].node) stack.push({ node: found[next] });
  draw();
});
window.addEventListener("resize", draw);

for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
chart.setAttribute("role", "tree");
document.querySelector("details").open = false;
draw();
})();
"""
