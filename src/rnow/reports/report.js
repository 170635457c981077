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
    margin: { t: 8, r: 8 }, paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink },
    showlegend: figure.data.length > 1, legend: { orientation: "h", y: -0.3 },
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
// A chart is drawn when it comes into view: all of them at once would hold up the page.
const drawn = new Set();
const draw_all = () => data.charts.forEach((_, number) => { drawn.add(number); draw(number); });
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const number = Number(entry.target.id.slice("chart-".length));
    if (!entry.isIntersecting || drawn.has(number)) continue;
    drawn.add(number);
    draw(number);
  }
});
for (const box of document.querySelectorAll(".chart")) watcher.observe(box);
addEventListener("beforeprint", draw_all);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));

// The list of transcripts.
const link = (one) => `${data.runs[one.run]}/${one.id}`;
const order = { gap: (a, b) => b.gap - a.gap, id: (a, b) => data.transcripts.indexOf(a) - data.transcripts.indexOf(b) };

function list() {
  const form = new FormData(at("filters"));
  const wanted = data.transcripts.filter((one) =>
    (form.get("run") === "" || one.run === Number(form.get("run")))
    && (form.get("entry").trim() === "" || one.entry === Number(form.get("entry")))
    && one.turns >= Number(form.get("turns"))
    && (!form.get("failed") || one.failed)
    && (!form.get("unanswered") || one.end !== "answer"));
  wanted.sort(order[form.get("order")]);
  at("count").textContent = `${wanted.length} of ${data.transcripts.length} transcripts`;
  at("list").replaceChildren(...wanted.map((one) => {
    const item = make("li", "");
    const text = `${link(one)} · gap ${one.gap.toFixed(3)} · ${one.turns} turns · ended by ${one.end}${one.failed ? " · a tool failed" : ""} · here for: ${one.why.join(", ")}`;
    item.append(make("a", text, { href: `#${encodeURIComponent(link(one))}`, "data-id": one.id }));
    return item;
  }));
}
at("filters").addEventListener("input", list);
at("filters").addEventListener("submit", (event) => event.preventDefault());

// One transcript.
function tokens(part) {
  const box = make("div", "", { class: "tokens", tabindex: "0", role: "group", "aria-label": `turn ${part.turn}, token by token` });
  part.t.forEach((text, i) => {
    const gap = part.s[i] - part.q[i];
    const span = make("span", text === "" ? "▯" : text, { "data-gap": gap.toFixed(3), "data-kind": data.kinds[part.k[i]], "data-sampler": part.s[i], "data-teacher": part.q[i] });
    if (Math.abs(gap) >= 1) span.className = Math.abs(gap) >= 3 ? "huge" : "big";
    const strength = Math.min(0.75, Math.abs(gap) / 6).toFixed(2);
    if (strength > 0.02) span.style.background = `rgba(var(--${gap > 0 ? "bad" : "good"}), ${strength})`;
    box.append(span);
  });
  return box;
}

function open_transcript() {
  const name = decodeURIComponent(location.hash.slice(1));
  const one = data.transcripts.find((each) => link(each) === name);
  for (const a of at("list").querySelectorAll("a")) a.setAttribute("aria-current", String(decodeURIComponent(a.hash.slice(1)) === name));
  if (!one) return;
  const parts = [make("h3", `${name} · ended by ${one.end}`)];
  for (const part of one.parts) {
    if ("turn" in part) parts.push(make("h4", `turn ${part.turn} · ${part.t.length} tokens · ${part.stop}`), tokens(part));
    else if ("tool" in part) parts.push(make("h4", `${part.tool} · ${part.outcome}`), make("pre", part.arguments), make("pre", part.text));
    else parts.push(make("h4", "prompt"), make("pre", part.text));
  }
  at("transcript").replaceChildren(...parts);
  at("token").hidden = false;
  at("transcript").querySelector(".tokens")?.focus();
}
addEventListener("hashchange", open_transcript);

// One token, by mouse or by keys.
function tell(span) {
  at("transcript").querySelector(".at")?.classList.remove("at");
  span.classList.add("at");
  const { gap, sampler, teacher, kind } = span.dataset;
  const word = JSON.stringify(span.textContent);
  at("token").textContent = `${word} · ${kind} · gap ${gap} nats · student, as it sampled: ${sampler} (${(100 * Math.exp(sampler)).toPrecision(3)} %) · teacher: ${teacher} (${(100 * Math.exp(teacher)).toPrecision(3)} %)`;
}
at("transcript").addEventListener("mouseover", (event) => { if (event.target.dataset.gap) tell(event.target); });
at("transcript").addEventListener("keydown", (event) => {
  const box = event.target.closest(".tokens");
  if (!box) return;
  const all = [...box.children];
  const now = all.findIndex((span) => span.classList.contains("at"));
  let next = null;
  if (event.key === "ArrowRight") next = all[now + 1];
  else if (event.key === "ArrowLeft") next = all[Math.max(0, now - 1)];
  else if (event.key === "n") next = all.slice(now + 1).find((span) => span.className.includes("big") || span.className.includes("huge"));
  else return;
  event.preventDefault();
  if (next) { tell(next); next.scrollIntoView({ block: "nearest" }); }
});
list();
open_transcript();
