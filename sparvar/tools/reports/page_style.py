"""The style sheet of ``report.html``."""

from __future__ import annotations

STYLE = """
:root { --ink: #1c1e22; --soft: #5b616b; --line: #e3e6ea; --paper: #fff; --wash: #f6f7f9; --accent: #0f766e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a0a7b1; --line: #343940; --paper: #16181c; --wash: #1f2227; --accent: #2dd4bf; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 48px 0 6px; }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { margin: 0 0 14px; max-width: 78ch; color: var(--soft); }
.fine { font-size: 13.5px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-top: 24px; }
.cards div { background: var(--wash); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.cards strong { display: block; font-size: 30px; line-height: 1.2; color: var(--accent); }
.cards span { display: block; font-weight: 600; }
.cards small { color: var(--soft); }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; margin: 0 0 18px; }
figure { margin: 0; }
figure img { display: block; width: 100%; border-radius: 6px; }
figcaption { font-size: 13.5px; color: var(--soft); padding-top: 5px; }
svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); }
svg text.strong { fill: var(--ink); }
svg .grid { stroke: var(--line); stroke-width: 1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.map { width: 100%; font-size: 13px; }
.map th { font-weight: 600; padding: 4px 6px; text-align: center; }
.map th:first-child { text-align: left; white-space: nowrap; }
.map th small { display: block; font-weight: 400; color: var(--soft); }
.map td { height: 34px; min-width: 50px; text-align: center; border: 2px solid var(--paper); border-radius: 6px; }
.dense { background: var(--line); color: var(--soft); }
.decide { background: #f4c65a; color: #3a2b00; }
.cs4a { background: #0f766e; color: #fff; }
.csla { background: #2b6cb0; color: #fff; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13.5px; margin-top: 10px; max-width: none; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
.figures { width: 100%; font-size: 15px; }
.figures th, .figures td { text-align: right; padding: 8px 12px; border-bottom: 1px solid var(--line); }
.figures th { color: var(--soft); font-weight: 600; }
.figures td:first-child, .figures th:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; font-size: 13.5px; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 700px) { .row { grid-template-columns: 1fr; } }
"""
