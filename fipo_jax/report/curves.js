// Draws the figures with Bokeh, each when it comes into view; one cursor and one zoom for all that share an axis.
"use strict";
(() => {
const source = document.getElementById("figures");
const groups = document.getElementById("groups");
const data = JSON.parse(source.textContent);
const $ = id => document.getElementById(id);
const element = (tag, kind, text) => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};

// ---- what stays when a watched page loads itself again ----

const state = {axis: "step", smooth: 1, marks: true, hidden: {}};
const remember = () => { try { sessionStorage.setItem("report", JSON.stringify(state)); } catch { /* not from a disk */ } };
try { Object.assign(state, JSON.parse(sessionStorage.getItem("report") || "{}")); } catch { /* as it was */ }
const wait_s = Number(document.body.dataset.reload);
if (wait_s) {
  $("reload").textContent = `under way: loads again every ${wait_s} s`;
  setInterval(() => { if (!document.hidden) { remember(); location.reload(); } }, 1000 * wait_s);
}
if (!groups) return;

// ---- numbers ----

const colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["text", "muted", "line", "grid", "card", "alarm", "rollback", "restart", "changed", "skipped"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  for (const name of ["series", "ramp"]) colours[name] = style.getPropertyValue(`--${name}`).trim().split(/\s+/);
}
readColours();
const colour = n => colours.series[n % colours.series.length];

function ramp(share) {  // from the first mini-batch of a step to its last
  const channels = colours.ramp.map(hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)));
  return `rgb(${channels[0].map((low, i) => Math.round(low + share * (channels[1][i] - low))).join(",")})`;
}

function said(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

const longest = Math.max(...data.tracks.flatMap(t => t.seconds ? t.seconds.slice(-1) : []), 0);
const clock = longest > 7200 ? ["hours", 3600] : longest > 120 ? ["minutes", 60] : ["seconds", 1];
const axisName = () => ({step: "step", tokens: "tokens sampled", seconds: `${clock[0]} since the first start`})[state.axis];
const scaled = new Map();
function axisOf(track) {  // one number a row, or null
  const values = track[state.axis];
  if (state.axis !== "seconds" || !values) return values;
  if (!scaled.has(track)) scaled.set(track, values.map(v => v / clock[1]));
  return scaled.get(track);
}
const some = (values, at) => at ? at.map(n => values[n]) : values;

function smoothed(values, width) {  // the mean of a window around each
  const half = (width - 1) / 2, sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, n) => {
    const low = Math.max(0, n - half), high = Math.min(values.length, n + half + 1);
    return (sums[high] - sums[low]) / (high - low);
  });
}

// ---- lines of a panel: {label, colour, x, y, bands, dash, points} ----

const several = data.arms.length > 1;
function labelOf(key, track, panel) {
  if (several) return `${data.arms[track.arm]}${track.rolled_back ? ", rolled back" : ""}`;
  if (track.rolled_back) return "rolled back";
  const [name, place] = key.split("#"), folder = name.slice(0, name.indexOf("/") + 1);
  const alike = panel.keys.length > 1 && panel.keys.every(other => other.startsWith(folder));
  return place ? `mini-batch ${place}` : alike ? name.slice(folder.length) : name;
}

function colourOf(key, n, track, panel) {
  if (track.rolled_back) return colours.muted;
  if (several) return colour(track.arm);
  return key.includes("#") && panel.keys.length > 1 ? ramp(n / (panel.keys.length - 1)) : colour(n);
}

function linesOf(panel) {
  if (panel.kind === "own") return panel.keys.map((label, n) => ({label, colour: colour(n), x: panel.x, y: panel.y[n]}));
  if (panel.kind === "path") return paths(panel);
  const lines = [];
  for (const track of data.tracks) {
    const x = axisOf(track);
    panel.keys.forEach((key, n) => {
      const column = track.columns[key];
      if (!x || !column || (track.rolled_back && panel.kind === "stack")) return;
      lines.push({
        label: labelOf(key, track, panel), colour: colourOf(key, n, track, panel),
        x: some(x, column.at), y: column.y, bands: column.bands || [], dash: track.rolled_back ? "dotted" : "solid",
        points: key.startsWith("eval/") || column.y.length < 3,
      });
    });
  }
  if (panel.kind === "stack") stack(lines);
  return lines.filter(line => line.y.some(v => v !== null));
}

function paths(panel) {
  const lines = [];
  for (const track of data.tracks) {
    for (let n = 0; n < panel.keys.length; n += 2) {
      const [a, b] = [panel.keys[n], panel.keys[n + 1]].map(key => track.columns[key]);
      if (!a || !b) continue;
      const rows = track.step.map((_, row) => row);
      const of = column => new Map(some(rows, column.at).map((row, i) => [row, column.y[i]]));
      const [xs, ys] = [of(a), of(b)], both = rows.filter(row => xs.has(row) && ys.has(row));
      const held_out = several && panel.keys[n + 1].startsWith("eval/") ? ", held out" : "";
      lines.push({
        label: labelOf(panel.keys[n + 1], track, panel) + held_out,
        colour: colourOf(panel.keys[n + 1], n / 2, track, panel),
        x: both.map(r => xs.get(r)), y: both.map(r => ys.get(r)), steps: both.map(r => track.step[r]), points: true,
      });
    }
  }
  return lines.filter(line => line.x.length);
}

function stack(lines) {  // areas, one upon the other, 0 where one is missing; each keeps its own numbers for the cursor
  const below = new Map(), all = [...new Set(lines.flatMap(line => line.x))].sort((a, b) => a - b);
  for (const line of lines) {
    const own = new Map(line.x.map((x, n) => [x, line.y[n]]));
    Object.assign(line, {x: all, y: all.map(x => own.get(x) || 0)});
    const low = line.x.map(x => below.get(x) || 0), high = line.y.map((v, n) => low[n] + v);
    line.x.forEach((x, n) => below.set(x, high[n]));
    Object.assign(line, {area: [low, high]});
  }
}

// ---- marks: what happened at a step ----

function marksOf(panel) {
  if (!state.marks || panel.kind === "own" || panel.kind === "path") return [];
  return data.events.flatMap(event => {
    const own = data.tracks.filter(track => track.arm === event.arm);  // the run's, then attempts
    const track = own.find(t => t.rolled_back && t.step.includes(event.step) && event.kind !== "restart") || own[0];
    const x = axisOf(track), row = track.step.findIndex(step => step >= event.step);
    return x && row >= 0 ? [{x: x[row], kind: event.kind, said: `${event.kind}: ${event.said}`}] : [];
  });
}

// ---- one panel ----

const drawn = new Map();  // element of a panel -> what is drawn in it
const shared = panel => panel.kind !== "own" && panel.kind !== "path";
let zoom = null, cursor = null;  // in units of the axis

const extent = (lines, of) => {
  let low = Infinity, high = -Infinity;
  for (const line of lines) for (const values of of(line)) for (const v of values) {
    if (v === null || Number.isNaN(v)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : [0, 1];
};
const padded = ([low, high], share) => {
  const room = (high - low || Math.abs(low) * 0.2 || 1) * share;
  return [low - room, high + room];
};

let wholeRange = null;
function fullRange() {  // of the shared axis, over everything there is
  if (!wholeRange) wholeRange = padded(extent(data.tracks.filter(axisOf), t => [axisOf(t)]), 0.02);
  return wholeRange;
}

function inside(line, [from, to]) {  // values that are seen, bands included
  const columns = line.area ? line.area : [line.y, ...(line.bands || []).flat()];
  return columns.map(values => values.filter((_, n) => line.x[n] >= from && line.x[n] <= to));
}

function fitHeight(held) {
  const seen = held.lines.filter(line => !isHidden(held.panel, line));
  const [low, high] = padded(extent(seen, line => inside(line, [held.figure.x_range.start, held.figure.x_range.end])), 0.06);
  held.figure.y_range.setv({start: held.panel.kind === "stack" ? 0 : low, end: high});
}

const isHidden = (panel, line) => Boolean((state.hidden[panel.title] || {})[line.label]);

function draw(box) {
  const {panel, plot, keys} = box;
  const lines = linesOf(panel), visible = lines.filter(line => !isHidden(panel, line));
  const [from, to] = shared(panel) ? zoom || fullRange() : padded(extent(lines, line => [line.x]), 0.04);
  const figure = Bokeh.Plotting.figure({
    height: 220, sizing_mode: "stretch_width", toolbar_location: null, tools: [], min_border: 4,
    x_range: new Bokeh.Range1d({start: from, end: to}), y_range: new Bokeh.Range1d({start: 0, end: 1}),
    background_fill_alpha: 0, border_fill_alpha: 0, outline_line_color: null, lod_threshold: null,
  });
  style(figure, panel);
  if (matchMedia("(pointer: fine)").matches || !matchMedia("(pointer: coarse)").matches) {
    const tool = new Bokeh.BoxZoomTool({dimensions: shared(panel) ? "width" : "both"});
    figure.add_tools(tool);
    figure.toolbar.active_drag = tool;
  }
  for (const line of visible) drawLine(figure, line);
  for (const mark of marksOf(panel)) {
    figure.add_layout(new Bokeh.Span({location: mark.x, dimension: "height", line_color: colours[mark.kind],
                                      line_dash: [4, 3], line_width: 1.2, line_alpha: 0.9}));
  }
  const pointer = new Bokeh.Span({location: null, dimension: "height", line_color: colours.muted, line_width: 1});
  figure.add_layout(pointer);
  const held = {panel, lines, figure, pointer, box, marks: marksOf(panel)};
  drawn.set(box.element, held);
  fitHeight(held);
  listKeys(held);
  figure.on_event("mousemove", event => shared(panel) ? point(event.x) : show(held, event.x));
  figure.on_event("mouseleave", () => shared(panel) ? point(null) : show(held, null));
  figure.on_event("doubletap", () => shared(panel) ? zoomTo(null) : redraw(box));
  const moved = () => { if (shared(panel)) zoomTo([figure.x_range.start, figure.x_range.end]); };
  figure.x_range.change.connect(moved);
  Bokeh.Plotting.show(figure, plot).then(view => {
    if (drawn.get(box.element) === held) held.view = view; else view.remove();
    box.element.dataset.lines = visible.filter(line => line.x.length).length;
  });
}

function drawLine(figure, line) {
  const wide = line.bands || [];
  wide.forEach(([low, high], n) => {
    const at = line.x.map((_, i) => i).filter(i => low[i] !== null && high[i] !== null);
    const table = new Bokeh.ColumnDataSource({data: {x: some(line.x, at), low: some(low, at), high: some(high, at)}});
    figure.varea({field: "x"}, {field: "low"}, {field: "high"},
                 {source: table, fill_color: line.colour, fill_alpha: n ? 0.1 : 0.2});
  });
  if (line.area) {
    const table = new Bokeh.ColumnDataSource({data: {x: line.x, low: line.area[0], high: line.area[1]}});
    figure.varea({field: "x"}, {field: "low"}, {field: "high"}, {source: table, fill_color: line.colour, fill_alpha: 0.75});
    return;
  }
  if (line.steps) return drawPath(figure, line);
  const smooth = state.smooth > 1 && line.y.length > state.smooth;
  const table = new Bokeh.ColumnDataSource({data: {x: line.x, y: line.y, s: smooth ? smoothed(line.y, state.smooth) : line.y}});
  const options = {source: table, line_color: line.colour, line_dash: line.dash || "solid", line_join: "round"};
  if (smooth) figure.line({field: "x"}, {field: "y"}, {...options, line_alpha: 0.25, line_width: 1});
  figure.line({field: "x"}, {field: "s"}, {...options, line_width: 1.8});
  if (line.points)
    figure.scatter({field: "x"}, {field: "y"}, {source: table, size: 5, fill_color: line.colour, line_color: colours.card});
}

function drawPath(figure, line) {  // points, the later the fuller; few enough to follow have a line
  const count = line.x.length, alpha = line.x.map((_, n) => 0.2 + 0.8 * (n + 1) / count);
  const table = new Bokeh.ColumnDataSource({data: {x: line.x, y: line.y, alpha}});
  if (count <= 60) figure.line({field: "x"}, {field: "y"}, {source: table, line_color: line.colour, line_alpha: 0.35});
  figure.scatter({field: "x"}, {field: "y"}, {source: table, size: count > 60 ? 4 : 6, fill_color: line.colour,
                                              fill_alpha: {field: "alpha"}, line_color: null});
}

function style(figure, panel) {
  for (const axis of figure.axes) axis.setv({
    axis_line_color: colours.line, major_tick_line_color: null, minor_tick_line_color: null,
    major_label_text_color: colours.muted, major_label_text_font: "system-ui", major_label_text_font_size: "11px",
    axis_label_text_color: colours.muted, axis_label_text_font: "system-ui", axis_label_text_font_size: "11px",
    axis_label_text_font_style: "normal", axis_label_standoff: 2,
  });
  for (const grid of figure.grids) grid.grid_line_color = colours.grid;
  const [x, y] = [figure.xaxes[0], figure.yaxes[0]];
  x.ticker.desired_num_ticks = 5;
  y.ticker.desired_num_ticks = 4;
  y.formatter.power_limit_low = -5;
  x.axis_label = panel.kind === "own" ? "seconds" : panel.kind === "path" ? "tokens" : axisName();
  if (panel.kind !== "own" && panel.kind !== "path" && state.axis === "tokens")
    x.formatter = new Bokeh.NumeralTickFormatter({format: "0[.]0a"});
}

// ---- the keys above a plot: which lines there are, and their values under the cursor ----

function listKeys(held) {
  const {keys} = held.box;
  const firsts = held.lines.filter((line, n) => held.lines.findIndex(other => other.label === line.label) === n);
  keys.replaceChildren(...firsts.map(line => {  // lines of one name, of attempts that were rolled back, have one key
    const button = element("button"), swatch = element("i");
    button.type = "button";
    swatch.style.background = line.colour;
    line.value = held.lines.filter(other => other.label === line.label).length > 1 ? null : element("b");
    button.append(swatch, `${line.label} `, line.value || "");
    button.setAttribute("aria-pressed", String(!isHidden(held.panel, line)));
    button.addEventListener("click", () => {
      (state.hidden[held.panel.title] ||= {})[line.label] = !isHidden(held.panel, line);
      remember();
      redraw(held.box);
    });
    return button;
  }));
  show(held, null);
}

function nearest(values, x) {  // place of the value next to x; the axis rises
  let low = 0, high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] > x) high = middle; else low = middle;
  }
  return Math.abs(values[high] - x) < Math.abs(values[low] - x) ? high : low;
}

function show(held, x) {
  const {panel, lines, box} = held;
  let place = "";
  for (const line of lines) {
    let n = line.y.length - 1;
    if (x !== null && panel.kind !== "path") n = nearest(line.x, x);
    if (x !== null && panel.kind === "path") n = line.x.reduce((b, v, i) => Math.abs(v - x) < Math.abs(line.x[b] - x) ? i : b, 0);
    if (line.value) line.value.textContent = said(line.y[n]);
    if (x !== null && !place) place = line.steps ? `step ${line.steps[n]}, ${said(line.x[n])} tokens`
      : panel.kind === "own" ? `${said(line.x[n])} s` : `${axisName().split(" ")[0]} ${said(line.x[n])}`;
  }
  const room = (held.figure.x_range.end - held.figure.x_range.start) / 60;
  const near = x === null ? [] : held.marks.filter(mark => Math.abs(mark.x - x) < room).map(mark => mark.said);
  box.at.textContent = [place || panel.note, ...near].filter(Boolean).join(" · ");
  held.pointer.location = panel.kind === "path" ? null : x;
}

let asked = false;
function point(x) {  // the cursor of all panels
  cursor = x;
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const held of drawn.values()) if (shared(held.panel)) show(held, cursor);
  });
}

// ---- zoom ----

let zooming = false;
function zoomTo(range) {
  if (zooming) return;
  zooming = true;
  zoom = range;
  $("whole").hidden = !range;
  const [start, end] = range || fullRange();
  for (const held of drawn.values()) if (shared(held.panel)) {
    held.figure.x_range.setv({start, end});
    fitHeight(held);
  }
  zooming = false;
}

function onKey(event, box) {
  const held = drawn.get(box.element);
  if (!held || event.ctrlKey || event.metaKey) return;
  const x = held.lines[0]?.x || [], [from, to] = [held.figure.x_range.start, held.figure.x_range.end];
  const now = cursor ?? x[x.length - 1];
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step && x.length) {
    const next = x[Math.min(Math.max(nearest(x, now) + (cursor === null ? 0 : step), 0), x.length - 1)];
    cursor = next;
    if (shared(held.panel)) point(next); else show(held, next);
  } else if ("+=-".includes(event.key) && shared(held.panel)) {
    const width = (to - from) * (event.key === "-" ? 2 : 0.5) / 2, [low, high] = fullRange();
    const range = [Math.max(now - width, low), Math.min(now + width, high)];
    zoomTo(range[0] <= low && range[1] >= high ? null : range);
  } else if (event.key === "0" || event.key === "Escape") {
    zoomTo(null);
  } else return;
  event.preventDefault();
}

// ---- the page ----

function redraw(box) {
  drawn.get(box.element)?.view?.remove();
  drawn.delete(box.element);
  box.plot.replaceChildren();
  draw(box);
}

const boxes = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const {isIntersecting, target} of entries) {
    const box = boxes.get(target);
    box.seen = isIntersecting;
    if (isIntersecting && !drawn.has(target)) draw(box);
  }
}, {rootMargin: "300px"});

function redrawAll() {
  scaled.clear();
  wholeRange = null;
  for (const box of boxes.values()) {
    const held = drawn.get(box.element);
    if (!held) continue;
    if (box.seen) redraw(box);
    else {
      held.view?.remove();
      drawn.delete(box.element);
      box.plot.replaceChildren();
    }
  }
}

function makePanel(panel) {
  const box = {panel, element: element("div", "panel"), plot: element("div", "plot"), keys: element("div", "keys"),
               at: element("div", "at")};
  const title = element("h4", "", `${panel.title} `);
  title.append(element("small", "", panel.unit));
  box.plot.tabIndex = 0;
  box.plot.setAttribute("role", "group");
  box.plot.setAttribute("aria-label", `plot: ${panel.title}`);
  box.plot.addEventListener("keydown", event => onKey(event, box));
  box.at.setAttribute("role", "status");
  box.element.append(title, box.keys, box.plot, box.at);
  boxes.set(box.element, box);
  watcher.observe(box.element);
  return box.element;
}

for (const group of data.groups) {
  const rest = group === data.groups[data.groups.length - 1] && group.name === "everything else";
  const section = element(rest ? "details" : "section", "group"), panels = element("div", "panels");
  section.id = `g-${group.name.replace(/[^a-zA-Z]+/g, "-")}`;
  const title = element("h3", "", group.name);
  const head = rest ? element("summary") : title;
  if (rest) head.append(title), (title.style.display = "inline");
  section.append(head, element("p", "note", group.said), panels);
  panels.append(...group.panels.map(makePanel));
  groups.append(section);
  const link = element("a", ["The paper's figures", "evaluate", "time"].includes(group.name) ? "aside" : "", group.name);
  link.href = `#${section.id}`;
  if (rest) link.addEventListener("click", () => { section.open = true; });
  $("sentence").append(link);
}

if (several) $("arms").append(...data.arms.map((name, n) => {
  const track = data.tracks.find(t => t.arm === n), label = element("span"), swatch = element("i");
  swatch.dataset.arm = n;
  label.append(swatch, track && track.seeds > 1 ? `${name}: mean, lowest to highest` : name);
  return label;
}));
$("kinds").append(...[...new Set(data.events.map(event => event.kind))].map(kind => element("span", `kind ${kind}`, kind)));
const paintArms = () => document.querySelectorAll("#arms i").forEach(i => { i.style.background = colour(i.dataset.arm); });
paintArms();

for (const radio of document.querySelectorAll("#axis input")) {
  radio.disabled = !data.tracks.some(track => track[radio.value]);
  if (radio.disabled && state.axis === radio.value) state.axis = "step";
  radio.addEventListener("change", () => { state.axis = radio.value; cursor = null; zoom = null; $("whole").hidden = true;
                                           remember(); redrawAll(); });
}
for (const radio of document.querySelectorAll("#axis input")) radio.checked = radio.value === state.axis;
$("smooth").value = String(state.smooth);
$("smooth").addEventListener("change", event => { state.smooth = Number(event.target.value); remember(); redrawAll(); });
$("marks").checked = state.marks;
$("marks").addEventListener("change", event => { state.marks = event.target.checked; remember(); redrawAll(); });
$("whole").addEventListener("click", () => zoomTo(null));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); paintArms(); redrawAll(); });
})();
