// Responses as text, each token coloured by one of its numbers. What a model has said is put into the page as text
// alone, never as HTML; what would turn the direction of text around it is shown as its number.
"use strict";
(() => {
const form = document.getElementById("filters");
if (!form) return;
const data = JSON.parse(document.getElementById("responses").textContent);
const $ = id => document.getElementById(id);
const samples = data.samples;
const element = (tag, kind, text) => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};

const CHUNK = 400;  // tokens that are drawn at once
const LISTED = 100, BESIDE = 8, TOP = 20;

// ---- numbers of a token ----

const FIELDS = {
  future_kl: {label: "Future-KL F", unit: "nats", of: s => s.future_kl},
  weight: {label: "weight f", unit: "", middle: 1, of: s => s.weight},
  weighted: {label: "weighted advantage A·f", unit: "deviations", of: weighted},
  shift: {label: "log-prob shift", unit: "nats", of: s => s.shift},
  entropy: {label: "entropy", unit: "nats", amount: true, of: s => s.entropy},
  gap: {label: "sampler gap", unit: "nats", of: s => s.gap},
  mask: {label: "mask: in the loss", unit: "", mask: true, of: s => s.mask},
};
const READ = [["F", "future_kl"], ["f", "weight"], ["A·f", "weighted"], ["shift", "shift"], ["entropy", "entropy"],
              ["sampler gap", "gap"]];

function weighted(s) {  // A·f of tokens in the loss, 0 of others; runs of earlier versions have not written it
  if (s.advantage === undefined && !s.weighted_advantage) return undefined;
  return s.tokens.map((_, i) => {
    const f = s.weight ? s.weight[i] : 1;
    const product = s.weighted_advantage ? s.weighted_advantage[i] : f === null ? null : s.advantage * f;
    return product === null ? null : product * (s.mask ? s.mask[i] : 1);
  });
}

const made = new Map();  // sample -> values by field, made once
function values(s, name) {
  if (!made.has(s)) made.set(s, {});
  const own = made.get(s);
  if (!(name in own)) own[name] = FIELDS[name].of(s) || null;
  return own[name];
}

const scales = {};
function scale(name) {  // what gets the full colour: nearly the greatest of all
  if (!(name in scales)) {
    const found = [];
    for (const s of samples) for (const v of values(s, name) || []) if (v !== null) found.push(Math.abs(v - (FIELDS[name].middle || 0)));
    found.sort((a, b) => a - b);
    scales[name] = found[Math.floor(0.97 * (found.length - 1))] || found[found.length - 1] || 1;
  }
  return scales[name];
}

function said(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}

// ---- text that is safe to look at ----

// Controls, marks of direction, what has no width, halves of characters, tags; a line feed and a tab may stand.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g;
const visible = text => text.replace(UNSEEN, c => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
const shownToken = text => visible(text).replace(/\n/g, "⏎\n");
const inLine = text => visible(text).replace(/\n/g, "⏎");

// ---- filters ----

const rejected = s => s.rejected ?? (s.mask ? !s.mask.some(v => v) : null);
const truncated = s => s.truncated ?? (s.stop_reason === undefined ? null : s.stop_reason === "length");
const setOf = s => s.set || "training";
const right = s => s.accuracy === undefined ? null : s.accuracy >= 1;
const whole = new Map();
const textOf = s => {
  if (!whole.has(s)) whole.set(s, `${s.prompt || ""}\n${s.tokens.join("")}`.toLowerCase());
  return whole.get(s);
};

function passes(s) {
  const f = form.elements, set = name => f[name].value !== "";
  const between = (value, least, most) => (!set(least) || value >= Number(f[least].value)) && (!set(most) || value <= Number(f[most].value));
  const is = (name, value) => !set(name) || value === (f[name].value === "1");
  return between(s.step, "from", "to") && between(s.tokens.length, "shortest", "longest")
    && between(s.reward === undefined ? NaN : s.reward, "least", "most")
    && is("right", right(s)) && is("truncated", truncated(s)) && is("rejected", rejected(s))
    && (!set("set") || setOf(s) === f.set.value) && (!set("run") || s.run === Number(f.run.value)) && (!set("text") || textOf(s).includes(f.text.value.toLowerCase()));
}

// ---- one response ----

let colour = "future_kl";
const views = [];  // what is on the screen

function paint(span, v) {
  const field = FIELDS[colour];
  span.className = "t";
  if (v === null || v === undefined) { span.style.removeProperty("--a"); return; }
  if (field.mask) { if (v === 0) span.classList.add("out"); return; }
  const off = v - (field.middle || 0), strength = Math.min(Math.abs(off) / scale(colour), 1);
  if (field.amount) span.classList.add("amount"); else if (off < 0) span.classList.add("under");
  span.style.setProperty("--a", strength < 0.02 ? "0" : (0.08 + 0.5 * strength).toFixed(3));
}

function makeView(s) {
  const view = {s, box: element("article", "view"), strip: element("canvas"), text: element("pre", "text"), chunks: 0, here: -1};
  const numbers = [["step", s.step], ["reward", said(s.reward)], ["advantage", said(s.advantage)], ["tokens", s.tokens.length]];
  const flags = [right(s) === null ? "" : right(s) ? "right" : "wrong", truncated(s) ? "truncated" : "", rejected(s) ? "rejected" : "",
                 s.set || "", data.runs.length > 1 ? data.runs[s.run] : ""];
  view.box.append(element("h4", "", [...numbers.map(pair => pair.join(" ")), ...flags.filter(Boolean)].join(" · ")),
                  element("pre", "prompt", visible(s.prompt || "")), view.strip, view.text);
  if (s.answer !== undefined) view.box.append(element("p", "note", `answer: ${inLine(s.answer)}`));
  view.text.tabIndex = 0;
  view.text.setAttribute("role", "group");
  view.text.setAttribute("aria-label", `response of step ${s.step}, ${s.tokens.length} tokens; arrows move from token to token`);
  view.end = element("span");  // in sight when more is wanted
  view.text.append(view.end);
  view.watcher = new IntersectionObserver(entries => { if (entries.some(e => e.isIntersecting)) addChunk(view); },
                                          {root: view.text, rootMargin: "600px"});
  view.watcher.observe(view.end);
  view.text.addEventListener("pointerover", event => { if (event.target.dataset.i) read(view, Number(event.target.dataset.i)); });
  view.text.addEventListener("click", event => { if (event.target.dataset.i) stand(view, Number(event.target.dataset.i)); });
  view.text.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowLeft: -1, PageDown: 50, PageUp: -50}[event.key];
    if (!step) return;
    event.preventDefault();
    stand(view, Math.min(Math.max(view.here + step, 0), s.tokens.length - 1));
  });
  view.strip.addEventListener("click", event => {
    stand(view, Math.floor(event.offsetX / view.strip.clientWidth * s.tokens.length));
  });
  view.strip.title = "the whole response; press to go there";
  addChunk(view);
  return view;
}

function addChunk(view) {
  const begin = view.chunks * CHUNK, end = Math.min(begin + CHUNK, view.s.tokens.length);
  if (begin >= end) { view.watcher.disconnect(); return; }
  const chunk = element("span", "chunk"), numbers = values(view.s, colour) || [];
  for (let i = begin; i < end; i++) {
    const span = element("span", "t", shownToken(view.s.tokens[i]));
    span.dataset.i = i;
    paint(span, numbers[i]);
    chunk.append(span);
  }
  view.text.insertBefore(chunk, view.end);
  view.chunks += 1;
  view.watcher.unobserve(view.end);  // observed anew it says at once whether it is still in sight
  if (end < view.s.tokens.length) view.watcher.observe(view.end);
}

const tokenAt = (view, i) => view.text.querySelector(`[data-i="${i}"]`);

function stand(view, i) {  // moves the cursor to a token, drawing up to it
  while (view.chunks * CHUNK <= i) addChunk(view);
  if (view.here >= 0) tokenAt(view, view.here)?.classList.remove("here");
  view.here = i;
  const span = tokenAt(view, i);
  span.classList.add("here");
  span.scrollIntoView({block: "nearest"});
  read(view, i);
}

function read(view, i) {
  const s = view.s, parts = [element("span", "", `token ${i + 1} of ${s.tokens.length} `)];
  parts[0].append(element("b", "", `“${inLine(s.tokens[i])}”`));
  const say = (name, value) => { const part = element("span", "", `${name} `); part.append(element("b", "", value)); parts.push(part); };
  for (const [name, field] of READ) { const own = values(s, field); if (own) say(name, said(own[i])); }
  const old = s.old_logp && s.old_logp[i], off = (own, sign) => own && s.old_logp && own[i] !== null ? old + sign * own[i] : null;
  for (const [name, v] of [["log p", s.logp ? s.logp[i] : off(s.shift, 1)], ["before", old],
                           ["sampler", s.sampler_logp ? s.sampler_logp[i] : off(s.gap, -1)]]) {
    if (typeof v === "number") say(name, said(v));
  }
  if (s.mask) say("in the loss", s.mask[i] ? "yes" : "no");
  $("readout").replaceChildren(...parts);
}

function drawStrip(view) {
  const {strip, s} = view, numbers = values(s, colour), width = strip.width = strip.clientWidth || 300, field = FIELDS[colour];
  strip.height = 22;
  strip.hidden = !numbers || s.tokens.length < 60;
  if (strip.hidden) return;
  const style = getComputedStyle(document.documentElement), pen = strip.getContext("2d");
  const rgb = name => style.getPropertyValue(`--${name}`).trim().split(/\s+/).join(" ");
  const [warm, cool, plain] = ["warm", "cool", "plain"].map(rgb);
  for (let x = 0; x < width; x++) {  // of the tokens of a pixel, the one farthest from the middle
    const begin = Math.floor(x * s.tokens.length / width), end = Math.max(begin + 1, Math.floor((x + 1) * s.tokens.length / width));
    let most = 0;
    for (let i = begin; i < end; i++) {
      const off = numbers[i] === null ? 0 : field.mask ? 1 - numbers[i] : numbers[i] - (field.middle || 0);
      if (Math.abs(off) > Math.abs(most)) most = off;
    }
    const strength = Math.min(Math.abs(most) / (field.mask ? 1 : scale(colour)), 1);
    pen.fillStyle = `rgb(${field.amount ? plain : most < 0 ? cool : warm} / ${0.9 * strength})`;
    pen.fillRect(x, 0, 1, 22);
  }
}

// ---- the list, and what is shown ----

let found = [], chosen = null, listed = LISTED;

function list() {
  $("list").replaceChildren(...found.slice(0, listed).map(s => {
    const item = element("li"), button = element("button");
    button.type = "button";
    const mark = right(s) === null ? "" : right(s) ? "✓" : "✗";
    const set = s.set ? ` · ${inLine(s.set)}` : "";
    button.append(`${mark} step ${s.step} · ${said(s.reward)} · ${s.tokens.length} tokens${set}`, element("small", "", inLine(s.prompt || "").slice(0, 80)));
    button.addEventListener("click", () => choose(s));
    button.setAttribute("aria-current", String(s === chosen));
    item.append(button);
    return item;
  }));
  $("more").hidden = found.length <= listed;
}

function choose(s, at) {
  chosen = s;
  views.length = 0;
  const same = s && $("beside").checked ? samples.filter(o => o === s || (o.prompt !== undefined && o.prompt === s.prompt)) : [s];
  const first = Math.max(0, Math.min(same.indexOf(s) - BESIDE / 2, same.length - BESIDE));
  if (s) views.push(...same.slice(first, first + BESIDE).map(makeView));
  $("texts").replaceChildren(...views.map(view => view.box));
  views.forEach(drawStrip);
  $("previous").disabled = !s || found.indexOf(s) <= 0;
  $("next").disabled = !s || found.indexOf(s) >= found.length - 1;
  document.querySelectorAll("#list button").forEach((button, n) => button.setAttribute("aria-current", String(found[n] === s)));
  const own = views.find(view => view.s === s);
  if (at !== undefined) stand(own, at);
  else if (own) $("texts").scrollLeft = own.box.offsetLeft - $("texts").offsetLeft;
}

function filter() {
  found = samples.filter(passes).reverse();
  listed = LISTED;
  const all = data.total > samples.length ? `${samples.length} that are in this page, of ${data.total}` : samples.length;
  $("count").textContent = `${found.length} of ${all} responses.`;
  if (!found.includes(chosen)) { list(); choose(found[0] || null); } else { list(); choose(chosen); }
  top();
}

function recolour() {
  colour = form.elements.colour.value;
  const field = FIELDS[colour], low = field.middle ? "below 1" : "below 0", high = field.middle ? "above 1" : "above 0";
  $("scale").textContent = field.mask ? "Struck out: not in the loss." : field.amount
    ? `The fuller the colour, the more; full at ${said(scale(colour))} ${field.unit}.`
    : `Orange: ${high}, blue: ${low}; full colour at ${said(scale(colour))} ${field.unit} from ${field.middle || 0}.`;
  for (const view of views) {
    const numbers = values(view.s, colour) || [];
    view.text.querySelectorAll(".t").forEach(span => paint(span, numbers[Number(span.dataset.i)]));
    drawStrip(view);
  }
}

function top() {  // tokens by mean |F|, over what the filters leave
  const by = new Map();
  for (const s of found) {
    if (!s.future_kl) continue;
    s.future_kl.forEach((F, i) => {
      if (F === null) return;
      if (!by.has(s.tokens[i])) by.set(s.tokens[i], {n: 0, size: 0, F: 0, f: 0, most: -1});
      const own = by.get(s.tokens[i]);
      own.n += 1; own.size += Math.abs(F); own.F += F; own.f += s.weight && s.weight[i] !== null ? s.weight[i] : NaN;
      if (Math.abs(F) > own.most) Object.assign(own, {most: Math.abs(F), s, i});
    });
  }
  const rows = [...by].sort(([, a], [, b]) => b.size / b.n - a.size / a.n).slice(0, TOP);
  $("top").tBodies[0].replaceChildren(...rows.map(([text, own]) => {
    const row = element("tr"), head = element("th", "", inLine(text)), button = element("button", "", said(own.s.future_kl[own.i]));
    head.scope = "row";
    button.type = "button";
    button.setAttribute("aria-label", `go to the largest F of ${inLine(text)}, step ${own.s.step}`);
    button.addEventListener("click", () => { choose(own.s, own.i); $("shown").scrollIntoView({block: "nearest"}); });
    const cells = [own.n, own.size / own.n, own.F / own.n, Number.isNaN(own.f) ? null : own.f / own.n].map(v => element("td", "", said(v)));
    const last = element("td");
    last.append(button);
    row.append(head, ...cells, last);
    return row;
  }));
  $("top-title").hidden = $("top").parentElement.hidden = !rows.length;
}

// ---- the page ----

for (const [name, field] of Object.entries(FIELDS)) {
  const option = element("option", "", field.label);
  option.value = name;
  option.disabled = !samples.some(s => values(s, name));
  if (option.disabled) option.textContent += " (absent)";
  form.elements.colour.append(option);
}
form.elements.colour.value = Object.keys(FIELDS).find(name => samples.some(s => values(s, name))) || "future_kl";
data.runs.forEach((name, n) => { const option = element("option", "", name); option.value = n; form.elements.run.append(option); });
form.querySelector("[data-runs]").hidden = data.runs.length < 2;
const sets = [...new Set(samples.map(setOf))].sort();
sets.forEach(name => { const option = element("option", "", visible(name)); option.value = name; form.elements.set.append(option); });
form.querySelector("[data-sets]").hidden = sets.length < 2;
for (const [name, known] of [["right", right], ["truncated", truncated], ["rejected", rejected]])
  form.elements[name].disabled = samples.every(s => known(s) === null);
form.addEventListener("input", event => event.target.name === "colour" ? recolour() : filter());
form.addEventListener("reset", () => setTimeout(() => { recolour(); filter(); }));
form.addEventListener("submit", event => event.preventDefault());
$("beside").addEventListener("change", () => choose(chosen));
$("more").addEventListener("click", () => { listed += LISTED; list(); });
$("previous").addEventListener("click", () => choose(found[found.indexOf(chosen) - 1]));
$("next").addEventListener("click", () => choose(found[found.indexOf(chosen) + 1]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => views.forEach(drawStrip));
addEventListener("resize", () => views.forEach(drawStrip));
filter();
recolour();
})();
