"""The page's style sheet."""

CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2430; --muted: #6b7280; --line: #e5e7eb; --edge: #cfd3da;
  --soft: #f6f7f9; --ground: #eff4ff; --loss: #b42318; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171d; --ink: #e6e8ec; --muted: #9aa1ad; --line: #2c313b; --edge: #434a57; --soft: #1c2028;
    --ground: #1a2338; --loss: #f97066; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--page); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; -webkit-print-color-adjust: exact;
  print-color-adjust: exact; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 10px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 52px 0 6px; padding-top: 18px; border-top: 1px solid var(--line); break-after: avoid;
  }
h3 { font-size: 15px; margin: 26px 0 6px; break-after: avoid; }
h1, h3 { overflow-wrap: anywhere; }
p { margin: 0 0 14px; max-width: 78ch; }
.muted { color: var(--muted); }
.small { font-size: 13.5px; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
td code { white-space: nowrap; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.note { background: var(--soft); border-left: 3px solid var(--edge); padding: 8px 14px; border-radius: 0 6px 6px 0; }
.dot, .chip i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px;
  border: 1px solid rgb(127 127 127 / 40%); }

.tiles { display: flex; flex-wrap: wrap; gap: 16px; margin: 18px 0 8px; }
.tile { flex: 1 1 260px; max-width: 544px; border: 1px solid var(--line); border-top: 4px solid var(--run);
  border-radius: 10px; padding: 14px 18px 12px; break-inside: avoid; }
.tile b { font-size: 17px; }
.tile p { margin: 2px 0 10px; font-size: 13.5px; line-height: 1.4; color: var(--muted); }
.meter { display: grid; grid-template-columns: 3em 1fr 3.2em; align-items: center; gap: 10px; font-size: 14px;
  margin: 5px 0; }
.meter span { position: relative; height: 9px; border-radius: 5px; background: var(--line); }
.meter u { position: absolute; top: -4px; width: 3px; height: 17px; margin-left: -1px; border-radius: 1px;
  background: var(--ink); }
.meter span i { display: block; height: 100%; border-radius: 5px; background: var(--run); }
.meter b { font-size: 15px; text-align: right; font-variant-numeric: tabular-nums; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 15px; }
table.data { width: 100%; margin: 10px 0 12px; }
.data th { text-align: left; font-weight: 600; font-size: 13px; color: var(--muted); padding: 6px 12px;
  vertical-align: bottom;
  border-bottom: 1px solid var(--edge); }
.data td:first-child { white-space: nowrap; }
.data td { padding: 7px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
.data .figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.data tbody th { background: var(--soft); color: var(--ink); font-size: 13.5px; padding: 8px 12px;
  border-bottom: 1px solid var(--line); }
.course th span { display: block; font-weight: 400; white-space: normal; }
.means .figure:nth-child(3n+2), .means th[colspan] { border-left: 1px solid var(--line); }
.means th[colspan] { text-align: center; }
.data tbody th span { font-weight: 400; color: var(--muted); }
.data tbody { break-inside: avoid; }
.loss { color: var(--loss); }

.chips { display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 8px 0 14px; font-size: 13.5px; align-items: center; }
.chip { display: inline-flex; align-items: center; border: 1px solid var(--line); border-radius: 999px;
  padding: 2px 11px 2px 8px; }
.chip.apart { margin-left: 14px; }
.chip i { width: 13px; height: 13px; border-radius: 4px; }
.chips strong { font-size: 13px; color: var(--muted); font-weight: 600; margin: 0 2px 0 6px; }
.chips strong:first-child { margin-left: 0; }
.panels { width: calc(100% + 12px); table-layout: fixed; border-spacing: 6px 2px; border-collapse: separate;
  margin: 0 -6px; }
.panels th { font-size: 13px; font-weight: 600; line-height: 1.3; text-align: center; vertical-align: bottom;
  padding: 0 0 4px; }
.panels th span { display: block; font-weight: 400; color: var(--muted); }
.panels tr { break-inside: avoid; }
.panels td { padding: 0; text-align: center; vertical-align: middle; }
.panels td.none { color: var(--muted); background: var(--soft); border-radius: 4px; }
.panels img { display: block; width: 100%; border-radius: 4px; }
.panels img.map { image-rendering: pixelated; }
.panels .name { font-size: 11px; color: var(--muted); padding: 2px 0 4px; text-align: left; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }

.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart svg text, .matrix svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial,
  sans-serif !important; }
.matrices { display: flex; flex-wrap: wrap; gap: 12px 28px; align-items: flex-start; }
.matrix { flex-shrink: 1; max-width: 100%; margin: 6px 0; break-inside: avoid; }
.matrix figcaption { font-size: 15px; font-weight: 600; margin-bottom: 4px; }
.matrix svg { display: block; width: 100%; height: auto; }
.matrix svg image { image-rendering: pixelated; }
.chart { break-inside: avoid; margin: 8px 0 4px; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line); font-size: 13px;
  color: var(--muted); }
@media print {
  @page { margin: 14mm; }
  body { font-size: 12px; }
  h1 { font-size: 22px; }
  h2 { font-size: 17px; }
  table, .panels th, .data th, .data tbody th { font-size: 11.5px; }
  h2 + p, h3 + p { break-after: avoid; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 28px; }
  .scroll { overflow: visible; }
  thead { display: table-header-group; }
  .tile { flex-basis: 30%; }
}
"""
