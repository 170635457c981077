"use strict";
// Every text goes into a text node or an attribute's value: nothing here is ever read as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, text, values = {}) => {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
  return node;
};

// Charts. plotly reads a few tags in texts, so that what could begin one is exchanged.
const plain = (text) => String(text).replaceAll("<", "‹").replaceAll("&", "＆");
const plain_deep = (value) =>
  typeof value === "string" ? plain(value)
    : Array.isArray(value) ? value.map(plain_deep)
      : value && typeof value === "object"
        ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain_deep(one)]))
        : value;

function draw(number) {
  const style = getComputedStyle(document.documentElement);
  const [ink, paper] = ["--ink", "--paper"].map((name) => style.getPropertyValue(name).trim());
  const figure = plain_deep(data.charts[number]);
  const axis = { gridcolor: "rgba(128,128,128,.3)", automargin: true };
  Plotly.react(at(`chart-${number}`), figure.data, {
    margin: { t: 8, r: 8, b: 48, l: 56 }, paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink },
    showlegend: figure.data.length > 1, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    ...figure.layout, xaxis: { ...axis, ...figure.layout.xaxis }, yaxis: { ...axis, ...figure.layout.yaxis },
  }, { displayModeBar: false, responsive: true });
}

data.charts.forEach((chart, number) => {
  const figure = make("figure", "");
  figure.append(make("figcaption", chart.title), make("div", "", { class: "chart", id: `chart-${number}`, role: "img", "aria-label": `${chart.title}; its numbers stand in the table below` }));
  const table = make("details", "");
  table.append(make("summary", "its numbers"));
  for (const trace of chart.data) {
    const pairs = trace.x.map((x, i) => `${x}: ${trace.y[i]}`).slice(0, 200).join("\n");
    table.append(make("pre", `${trace.name}\n${pairs}`));
  }
  figure.append(table);
  at("charts").append(figure);
});
// plotly takes a second to be read, so that it is read once the page stands; and a chart is drawn
// when it comes into view: all of them at once would hold up the page.
const nonce = document.currentScript.nonce;
function load_plotly() {
  if (window.Plotly) return;
  const script = make("script", at("plotly").textContent);
  script.nonce = nonce;
  document.head.append(script);
}
const drawn = new Set();
function draw_all() {
  load_plotly();
  data.charts.forEach((_, number) => { drawn.add(number); draw(number); });
}
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const number = Number(entry.target.id.slice("chart-".length));
    if (!entry.isIntersecting || drawn.has(number)) continue;
    drawn.add(number);
    draw(number);
  }
});
requestAnimationFrame(() => setTimeout(() => {
  load_plotly();
  for (const box of document.querySelectorAll(".chart")) watcher.observe(box);
}));
addEventListener("beforeprint", draw_all);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));

// The list of transcripts.
const link = (one) => `${data.runs[one.run]}/${one.id}`;
const place = new Map(data.transcripts.map((one, number) => [one, number]));
const last = -Infinity; // what has no gap stands behind what has one
const order = {
  gap: (a, b) => (b.gap ?? last) - (a.gap ?? last) || place.get(a) - place.get(b),
  repetition: (a, b) => b.repetition - a.repetition || place.get(a) - place.get(b),
  id: (a, b) => place.get(a) - place.get(b),
};
const judged = (one) => (one.right === null ? "not graded" : one.right ? "right" : "wrong");
const origin = (one) => (one.held_out === null ? "" : `held-out, after ${one.held_out} updates`);

function described(one) {
  const words = [link(one), origin(one), one.gap === null ? "" : `gap ${one.gap.toFixed(3)}`, judged(one)];
  words.push(`${one.turns} turn${one.turns === 1 ? "" : "s"}`, `ended by ${one.end}`);
  words.push(one.failed ? "a tool failed" : "", one.repetition > 0.2 ? `repetition ${one.repetition.toFixed(2)}` : "");
  return `${words.filter(Boolean).join(" · ")} · here for: ${one.why.join(", ")}`;
}

function list() {
  const form = new FormData(at("filters"));
  const number = (name) => (form.get(name).trim() === "" ? null : Number(form.get(name)));
  const wanted = data.transcripts.filter((one) =>
    (form.get("run") === "" || one.run === Number(form.get("run")))
    && (form.get("of") === "" || (form.get("of") === "held-out") === (one.held_out !== null))
    && (number("entry") === null || one.entry === number("entry"))
    && one.turns >= (number("turns") ?? 0)
    && (!form.get("failed") || one.failed)
    && (!form.get("wrong") || one.right === false)
    && (!form.get("favourites") || one.parts.some((part) => part.f))
    && (!form.get("unanswered") || one.end !== "answer"));
  wanted.sort(order[form.get("order")]);
  at("count").textContent = `${wanted.length} of ${data.transcripts.length} transcripts`;
  at("list").replaceChildren(...wanted.map((one) => {
    const item = make("li", "");
    item.append(make("a", described(one), { href: `#${encodeURIComponent(link(one))}`, "data-id": one.id }));
    return item;
  }));
  mark();
}
// A page that is served comes anew every so often, with what was asked of the one before.
const is_served = location.protocol.startsWith("http");
const fields = [...at("filters").elements];
if (is_served) {
  const kept = JSON.parse(sessionStorage.getItem("filters") ?? "{}");
  for (const field of fields) {
    if (!(field.name in kept)) continue;
    if (field.type === "checkbox") field.checked = kept[field.name];
    else field.value = kept[field.name];
  }
}
at("filters").addEventListener("input", () => {
  list();
  const now = fields.map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]);
  if (is_served) sessionStorage.setItem("filters", JSON.stringify(Object.fromEntries(now)));
});
at("filters").addEventListener("submit", (event) => event.preventDefault());

// One transcript.
const opened = () => decodeURIComponent(location.hash.slice(1));
let shown = []; // the parts of the open one that have tokens

function mark() {
  for (const a of at("list").querySelectorAll("a")) a.setAttribute("aria-current", String(decodeURIComponent(a.hash.slice(1)) === opened()));
}

const gap_of = (part, i) => (part.q ? (part.p ?? part.s)[i] - part.q[i] : null);

function tokens(part) {
  const box = make("div", "", { class: "tokens", tabindex: "0", role: "group", "aria-label": `turn ${part.turn}, token by token; arrows go from one to the next`, "data-part": shown.push(part) - 1 });
  part.t.forEach((text, i) => {
    const gap = gap_of(part, i);
    const known = gap === null ? {} : { "data-gap": gap.toFixed(3) };
    const span = make("span", text === "" ? "▯" : text, { "data-at": i, ...known });
    if (Math.abs(gap) >= 1) span.className = `${Math.abs(gap) >= 3 ? "huge" : "big"}${gap < 0 ? " less" : ""}`;
    const strength = Math.min(0.75, Math.abs(gap) / 6).toFixed(2);
    if (strength > 0.02) span.style.background = `rgba(var(--${gap > 0 ? "bad" : "good"}), ${strength})`;
    box.append(span);
  });
  return box;
}

function open_transcript() {
  const one = data.transcripts.find((each) => link(each) === opened());
  mark();
  if (!one) return;
  shown = [];
  const head = make("h3", "");
  head.append(make("a", link(one), { href: `#${encodeURIComponent(link(one))}` }));
  const parts = [head, make("p", [origin(one), judged(one), `ended by ${one.end}`].filter(Boolean).join(" · "))];
  if (one.expected !== null) parts.push(make("p", `expected: ${one.expected} · read from the answer: ${one.extracted ?? "nothing"}`));
  for (const part of one.parts) {
    if ("turn" in part) parts.push(make("h4", `turn ${part.turn} · ${part.t.length} tokens · ${part.stop}`), tokens(part));
    else if ("tool" in part) parts.push(make("h4", `${part.tool} · ${part.outcome}`), make("pre", part.arguments), make("pre", part.text));
    else parts.push(make("h4", "prompt"), make("pre", part.text));
  }
  at("transcript").replaceChildren(...parts);
  for (const text of at("transcript").querySelectorAll("pre")) text.tabIndex = 0; // scrolled by keys
  at("token").hidden = false;
  at("token").replaceChildren(make("span", at("token").dataset.help));
  at("transcript").querySelector(".tokens")?.focus();
}
addEventListener("hashchange", open_transcript);

// One token, by mouse or by keys.
const percent = (logprob) => `${(100 * Math.exp(logprob)).toPrecision(3)} %`;
const told = (logprob) => (logprob === undefined || logprob === null ? "not kept" : `${logprob.toFixed(3)} (${percent(logprob)})`);

function tell(span) {
  at("transcript").querySelector(".at")?.classList.remove("at");
  span.classList.add("at");
  const part = shown[span.parentNode.dataset.part], i = Number(span.dataset.at), gap = gap_of(part, i);
  const rows = [
    [JSON.stringify(span.textContent), data.kinds[part.k[i]]],
    ["gap", gap === null ? "not known: no teacher scored it" : `${gap.toFixed(3)} nats`],
    ["student, in the update", told(part.p?.[i])],
    ["sampler", told(part.s[i])],
    ["teacher", part.q ? told(part.q[i]) : "not scored"],
    ["the teacher's favourites", part.f ? part.f[i].map(([text, logprob]) => `${JSON.stringify(text)} ${percent(logprob)}`).join(", ") : "not kept"],
  ];
  at("token").replaceChildren(...rows.map(([name, value]) => {
    const cell = make("span", "");
    cell.append(make("b", name), ` ${value}`);
    return cell;
  }));
}
at("transcript").addEventListener("mouseover", (event) => { if (event.target.dataset.at) tell(event.target); });
at("transcript").addEventListener("keydown", (event) => {
  const box = event.target.closest(".tokens");
  if (!box) return;
  // One way through all turns; it begins at the turn that has the focus.
  const all = [...at("transcript").querySelectorAll(".tokens span")];
  const found = box.querySelector(".at");
  const now = found ? all.indexOf(found) : all.indexOf(box.firstChild) - 1;
  const is_large = (span) => Math.abs(Number(span.dataset.gap)) >= 1;
  const next = {
    ArrowRight: () => all[now + 1],
    ArrowLeft: () => all[Math.max(0, now - 1)],
    Home: () => all[0],
    End: () => all.at(-1),
    n: () => all.slice(now + 1).find(is_large),
    p: () => all.slice(0, Math.max(0, now)).findLast(is_large),
  }[event.key];
  if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const span = next();
  if (!span) return;
  span.parentNode.focus({ preventScroll: true });
  tell(span);
  span.scrollIntoView({ block: "nearest" });
});
list();
open_transcript();
