"""The looks of the report page: one style sheet, light and dark, screen and paper; pure.

Owns colours, type and layout. Text has a contrast of at least 4.5 to 1 with what is behind it,
marks of charts at least 3 to 1, in both colour schemes.
"""

STYLE = """
:root {
  --bg: #fff; --panel: #f6f7f9; --ink: #1c2128; --soft: #57606a; --line: #d9dee4; --grid: #e8ebef;
  --ok: #1a7f37; --ok-bg: #e7f5ea; --bad: #b42318; --bad-bg: #fdecea; --warn: #8a5700;
  --warn-bg: #fdf3dc; --copy: #2f6fd0; --prove: #12867a; --dull: #87919c; --freeze: #c2410c;
  --area: #dbe7fa; --write: #0f766e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #101418; --panel: #181d23; --ink: #e4e8ec; --soft: #9ba6b2; --line: #2d353e;
    --grid: #20272e; --ok: #5bc47c; --ok-bg: #14301e; --bad: #ff8a80; --bad-bg: #3b1917;
    --warn: #e6b450; --warn-bg: #35290f; --copy: #5b98f0; --prove: #35b5a5; --dull: #76828e;
    --freeze: #ff9052; --area: #1b3152; --write: #4cc9b8;
  }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body {
  margin: 0 auto; padding: 40px 32px 48px; max-width: 1200px; background: var(--bg);
  color: var(--ink); font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
h1, h2, h3, p, ul, dl, dd, figure { margin: 0; padding: 0 }
ul { list-style: none }
h1 {
  display: flex; gap: 14px; align-items: center; font-size: 30px; line-height: 1.2;
  font-weight: 650; letter-spacing: -.015em; text-wrap: balance;
}
h2 { font-size: 17px; font-weight: 650; letter-spacing: -.005em }
h3 { font-size: 14px; font-weight: 600 }
small { font-size: 13px; font-weight: 400; color: var(--soft) }
code, .place { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace }
section { margin-top: 44px }
.head {
  display: flex; flex-wrap: wrap; gap: 4px 24px; align-items: baseline;
  justify-content: space-between; margin-bottom: 12px;
}
.aside, .when, .kind, .note, .none, .hint, figcaption, footer { color: var(--soft) }
.icon {
  width: 12px; height: 12px; flex: none; fill: none; stroke: currentColor; stroke-width: 1.8;
  stroke-linecap: round; stroke-linejoin: round;
}
.badge {
  display: grid; place-items: center; flex: none; width: 22px; height: 22px; border-radius: 50%;
}
h1 .badge { width: 38px; height: 38px } h1 .icon { width: 22px; height: 22px }
.ok .badge { background: var(--ok-bg); color: var(--ok) }
.bad .badge { background: var(--bad-bg); color: var(--bad) }
.warn .badge { background: var(--warn-bg); color: var(--warn) }
.todo .badge { background: var(--panel); color: var(--soft) }
.kind { margin-bottom: 10px; font-size: 13px } .kind span { font-weight: 600; color: var(--ink) }
.kind span::before { content: "·"; margin: 0 6px; color: var(--soft); font-weight: 400 }
.when { margin: 6px 0 0 52px }
.figures {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); margin-top: 28px;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
}
.figures div { padding: 14px 16px 14px 0 }
.figures dt { font-size: 13px; color: var(--soft) }
.figures dd { font-size: 21px; font-weight: 600; letter-spacing: -.01em; line-height: 1.3 }
.figures small { display: block; letter-spacing: 0; min-height: 1.3em }
a { color: inherit; text-decoration: none }
a:hover, a:focus-visible { text-decoration: underline; text-underline-offset: 3px }
.vmid { font-weight: 600 } .name { color: var(--soft); font-weight: 400 }
.problems { border: 1px solid var(--line); border-radius: 8px }
.problems li { display: flex; gap: 12px; padding: 14px 16px }
.problems li + li { border-top: 1px solid var(--line) }
.problems div { min-width: 0 } .problems p { max-width: 86ch }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--soft) }
.legend li { display: flex; gap: 6px; align-items: center }
.timeline, .chart { --who: minmax(90px, 190px); --len: 76px }
.row, .axis, .plot {
  display: grid; grid-template-columns: var(--who) minmax(0, 1fr) var(--len); gap: 0 14px;
  align-items: center;
}
.plot { align-items: start }
.axis svg { grid-column: 2 }
.who { white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.len { text-align: right; font-size: 13px; color: var(--soft); white-space: nowrap }
.dense .row { font-size: 12px; line-height: 18px } .dense .len { font-size: 12px }
.track svg, .axis svg, .chart svg, .bars { display: block; overflow: visible }
.missed .track {
  font-size: 13px; color: var(--soft); display: flex; align-items: center; gap: 10px;
}
.missed .track::after { content: ""; flex: 1; border-top: 1px dashed var(--line) }
svg text { font-size: 11px; fill: var(--soft) }
#grid line, .grid line { stroke: var(--grid) }
.grid .base { stroke: var(--line) }
.p-copy { fill: var(--copy) } .p-prove { fill: var(--prove) }
.p-wait, .p-prep, .p-frz, .p-publ, .p-keep, .p-back { fill: var(--dull) }
.m-frz { fill: var(--freeze); stroke: var(--bg); stroke-width: 1; paint-order: stroke }
.m-bad { stroke: var(--bad); stroke-width: 2.4; stroke-linecap: round }
.m-ring { fill: var(--bg) }
.c-read { fill: var(--area) }
.c-read-line, .c-write { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke }
.c-read-line { stroke: var(--copy) }
.c-write { stroke: var(--write); stroke-width: 2 }
figcaption { margin-top: 4px; font-size: 13px }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal }
th, td { padding: 8px 0 8px 16px; text-align: left; vertical-align: baseline }
th:first-child, td:first-child { padding-left: 0 }
thead th {
  font-size: 12px; line-height: 1.3; font-weight: 500; color: var(--soft); vertical-align: bottom;
  border-bottom: 1px solid var(--line);
}
tbody th { font-weight: 400 }
.vms tbody tr + tr > * { border-top: 1px solid var(--grid) }
.wide { overflow-x: auto }
.vms td, .vms thead th { white-space: nowrap } .vms .none { white-space: normal }
.vms tbody th { overflow-wrap: anywhere; min-width: 110px }
.num { text-align: right }
.state { display: inline-flex; gap: 6px; align-items: baseline; font-weight: 500 }
.state .icon { position: relative; top: 1px }
.ok .state, .state.ok { color: var(--ok) } .bad .state, .state.bad { color: var(--bad) }
.todo .state, .state.todo { color: var(--soft) }
.backups {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 32px 28px;
}
.backups li { min-width: 0; border-top: 1px solid var(--line); padding-top: 10px }
.backups strong { font-size: 17px; font-weight: 600 }
.note { display: block; font-size: 13px }
.title { display: flex; gap: 8px; align-items: baseline }
.delta { margin-left: 4px; color: var(--soft) }
.bars { margin: 10px 0 4px } .bars rect { fill: var(--dull); opacity: .55 }
.bars .own { fill: var(--copy); opacity: 1 }
.place { margin-top: 6px; font-size: 11px; line-height: 1.45; color: var(--soft) }
.details { border-top: 1px solid var(--line) }
details { border-bottom: 1px solid var(--line) }
summary { padding: 9px 0; cursor: pointer } summary .state { margin: 0 8px 0 4px }
.inside {
  display: grid; grid-template-columns: minmax(0, 4fr) minmax(0, 7fr); gap: 24px 48px;
  padding: 4px 0 20px; align-items: start;
}
.phases { font-size: 13px } .phases .num { white-space: nowrap; width: 1% }
.phases td, .phases th { padding-top: 3px; padding-bottom: 3px }
.details dl {
  display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 20px; font-size: 13px;
}
.details dt { color: var(--soft) } .details code { font-size: 12px }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line); font-size: 12px }
footer code { color: var(--ink) }
@media (max-width: 1180px) {
  .vms, .vms tbody { display: block }
  .vms thead {
    position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  }
  .vms tr {
    display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px 14px;
    padding: 14px 0; border-top: 1px solid var(--line);
  }
  .vms tbody tr + tr > * { border: 0 }
  .vms tbody th { grid-column: 1 / -2; font-size: 15px; padding: 0 }
  .vms td { display: block; padding: 0; text-align: left }
  .vms td:nth-child(2) { grid-row: 1; grid-column: -2; justify-self: end }
  .vms td:nth-child(2)::before { display: none }
  .vms td::before {
    content: attr(data-label); display: block; font-size: 12px; color: var(--soft);
    font-weight: 400; white-space: nowrap;
  }
  .vms .bad td.empty, .vms .todo td.empty { display: none }
  .inside { grid-template-columns: minmax(0, 1fr) }
}
@media (max-width: 640px) {
  body { padding: 24px 16px 32px }
  h1 { font-size: 23px; gap: 12px; align-items: flex-start }
  h1 .badge { width: 30px; height: 30px } h1 .icon { width: 17px; height: 17px }
  .when { margin-left: 0; margin-top: 10px }
  .figures { grid-template-columns: 1fr 1fr }
  section { margin-top: 36px }
  .vms tr { grid-template-columns: repeat(3, minmax(0, 1fr)) }
  .plot { grid-template-columns: 62px minmax(0, 1fr); gap: 0 8px } .plot .ylab { grid-column: 1 }
  .row { grid-template-columns: minmax(0, 1fr) auto; margin-bottom: 8px }
  .row .track { grid-column: 1 / -1; grid-row: 2 } .axis { display: block }
  .backups { grid-template-columns: minmax(0, 1fr) }
  .details dl { grid-template-columns: minmax(0, 1fr); gap: 0 }
  .details dd { margin-bottom: 8px }
}
@media print {
  :root {
    --bg: #fff; --panel: #f6f7f9; --ink: #000; --soft: #444; --line: #bbb; --grid: #ddd;
    --ok: #1a7f37; --ok-bg: #e7f5ea; --bad: #b42318; --bad-bg: #fdecea; --warn: #8a5700;
    --warn-bg: #fdf3dc; --copy: #2f6fd0; --prove: #12867a; --dull: #87919c; --freeze: #c2410c;
    --area: #dbe7fa; --write: #0f766e;
  }
  body { padding: 0; max-width: none; font-size: 10pt }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact }
  .row, .vms tr, .backups li, .problems li, .chart, details { break-inside: avoid }
  h2 { break-after: avoid }
  details:not([open]) { display: none }
  section:has(> .details):not(:has(details[open])) { display: none }
}
"""
