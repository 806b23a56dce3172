"""The page's look, and the few lines of script that every page has."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #5c6877; --rule: #dfe4ea; --accent: #0b6e99;
  --good: #2670b8; --bad: #c8440a; --wash-good: #e8f1fa; --wash-bad: #fcece4;
  --c1: #2670b8; --c2: #c8440a; --c3: #1a8a6b; --c4: #8a5bb5; --c5: #b07d00; --c6: #5c6877;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #11161d; --card: #1a212b; --ink: #e6ebf1; --soft: #9aa7b6; --rule: #303a47; --accent: #5cc0ea;
    --good: #6db1ee; --bad: #ff8d57; --wash-good: #182d42; --wash-bad: #40251a;
    --c1: #6db1ee; --c2: #ff8d57; --c3: #4fc7a4; --c4: #bf98e6; --c5: #e0b341; --c6: #9aa7b6;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.2rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; padding-bottom: 1rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.2rem; }
h3 { margin: 0 0 .6rem; font-size: .95rem; display: flex; justify-content: space-between; gap: .5rem; }
h3 span:first-child { overflow-wrap: anywhere; }
.subtitle, .intro { color: var(--soft); margin: .25rem 0 0; overflow-wrap: anywhere; }
.intro { margin: -.4rem 0 1rem; max-width: 75ch; }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--rule);
  padding: .55rem max(1.25rem, calc((100% - 1180px) / 2 + 1.25rem)); display: flex; gap: 1.25rem; overflow-x: auto; }
nav a { color: var(--soft); text-decoration: none; white-space: nowrap; font-size: .9rem; }
nav a:hover { color: var(--accent); }
section { margin: 1.75rem 0 2.5rem; }
.card, .chart, .scroll, .tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.card { padding: 1rem; min-width: 0; }
.card .chart, .card .scroll { border: 0; padding: 0; background: none; }
.columns { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
section > * + *:not(.intro) { margin-top: 1rem; }
section > h2 + * { margin-top: 0; }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); }
.card .tiles { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); margin-bottom: .75rem; }
.tile { padding: .75rem .9rem; display: flex; flex-direction: column; }
.tile span { color: var(--soft); font-size: .82rem; }
.tile strong { font-size: 1.55rem; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile small, td small { color: var(--soft); }
td small { display: block; font-size: .78rem; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.note { margin: 0; padding: .8rem 1rem; border-left: 4px solid var(--accent); background: var(--card);
  border-radius: 6px; color: var(--ink); }
.note.good { border-color: var(--good); background: var(--wash-good); color: var(--ink); }
.note.bad { border-color: var(--bad); background: var(--wash-bad); color: var(--ink); }
.scroll { overflow: auto; max-height: 640px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .5rem; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--card); color: var(--soft); font-size: .82rem;
  font-weight: 600; white-space: nowrap; box-shadow: inset 0 -1px var(--rule); vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: color-mix(in srgb, var(--accent) 7%, transparent); }
td button { margin: -.2rem 0; } td:has(button) { white-space: nowrap; }
th:first-child, td:first-child { padding-left: .9rem; }
.num { text-align: right; white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.card > .facts { font-size: .85rem; }
button.plain, button.copy { font: inherit; font-size: .85rem; color: var(--accent); background: none; cursor: pointer;
  border: 1px solid var(--rule); border-radius: 6px; padding: .2rem .65rem; white-space: nowrap; }
button.plain:hover, button.copy:hover { border-color: var(--accent); }
.copyline { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: center; margin: .35rem 0; }
.copyline span { color: var(--soft); font-size: .85rem; min-width: 12.5rem; }
.copyline code { flex: 1 1 12rem; }
input[type=range] { accent-color: var(--accent); }
input[type=number] { font: inherit; font-size: .9rem; color: inherit; background: var(--paper); width: 8.5rem;
  border: 1px solid var(--rule); border-radius: 6px; padding: .2rem .5rem; }
code { font: .9rem ui-monospace, "DejaVu Sans Mono", monospace; background: var(--paper); border: 1px solid var(--rule);
  border-radius: 6px; padding: .2rem .5rem; overflow-wrap: anywhere; }
.chart { margin: 0; padding: 1rem; }
.chart figcaption { font-weight: 600; margin-bottom: .4rem; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .label { font-size: 12.5px; }
.grid { stroke: var(--rule); } .axis, .tick { stroke: var(--soft); }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke: currentColor; }
.bar { fill: currentColor; fill-opacity: .55; } .bar:hover { fill-opacity: .9; } .dot { fill: currentColor; }
.key { display: inline-block; width: .75rem; height: .75rem; border-radius: 3px; background: currentColor;
  margin-right: .4rem; vertical-align: -1px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; color: var(--soft); }
.cursor line { stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 4 3; }
.cursor text { fill: var(--ink); } .marker circle { fill: var(--card); stroke: var(--ink); stroke-width: 2.4; }
.c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); } .c4 { color: var(--c4); }
.c5 { color: var(--c5); } .c6, .muted { color: var(--c6); }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.images { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; margin-bottom: .7rem; }
.images figure { margin: 0; }
.images img { display: block; width: 100%; max-height: 240px; object-fit: contain; background: #0b0e12;
  border-radius: 6px; }
.images figcaption { color: var(--soft); font-size: .78rem; text-align: center; margin-top: .2rem; }
.badge { font-size: .75rem; font-weight: 600; border-radius: 99px; padding: .1rem .6rem; white-space: nowrap;
  align-self: start; background: var(--paper); color: var(--soft); border: 1px solid var(--rule); }
.badge.bad { background: var(--wash-bad); color: var(--bad); border-color: transparent; }
.badge.good { background: var(--wash-good); color: var(--good); border-color: transparent; }
.badge:empty { display: none; }
@media (max-width: 520px) {
  header, main { padding-left: .8rem; padding-right: .8rem; } nav { padding-left: .8rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); } .card, .chart { padding: .75rem; }
  .chart text, .chart .label { font-size: 14px; }
}
@media print {
  nav, button { display: none !important; } .scroll { max-height: none; } .card, .chart { break-inside: avoid; }
}
"""

SCRIPT = """
"use strict";
const fiducial = {
  data: id => JSON.parse(document.getElementById(id).textContent),
  // Value -> pixel on one axis of the chart around an element; "x" or "y".
  pixel(svg, axis, value) {
    const [low, high, start, end] = svg.dataset[axis].split(" ").map(Number);
    return start + (Math.min(Math.max(value, low), high) - low) / (high - low) * (end - start);
  },
  // Value of the x axis under a pointer event.
  valueAt(svg, event) {
    const [low, high, start, end] = svg.dataset.x.split(" ").map(Number);
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    return low + Math.min(Math.max((x - start) / (end - start), 0), 1) * (high - low);
  },
  // Move a cursor (no y) or a dot.
  place(id, x, y) {
    const mark = document.getElementById(id);
    if (!mark) return;
    const svg = mark.ownerSVGElement;
    const down = y === undefined ? 0 : this.pixel(svg, "y", y);
    mark.setAttribute("transform", `translate(${this.pixel(svg, "x", x).toFixed(1)} ${down.toFixed(1)})`);
  },
};
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {  // not a secure context: the old way
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("th");
    if (!head) return;
    const down = head.getAttribute("aria-sort") !== "descending";
    const key = row => row.cells[head.cellIndex].dataset.sort ?? row.cells[head.cellIndex].textContent;
    const order = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const way = a - b || (Number.isNaN(a - b) ? a.localeCompare(b) : 0);
      return down ? -way : way;
    };
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b))));
  });
}
"""
