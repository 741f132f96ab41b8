// An answer as elements: bars for scores, the decision, what was read, and where the time went.

import { h, svg, widen } from "./dom.js";
import { has, say } from "./words.js";

const SHOWN = 64;
const percent = (score) => `${(score * 100).toFixed(1)} %`;
const exact = (score) => score.toFixed(4);
const translated = (label) => (["entailment", "neutral", "contradiction"].includes(label) ? say(label) : label);

/** Everything about one answer of a task. */
export function resultOf(task, sent, { reply, timing, ms }) {
  const [first] = reply.results;
  const show = {
    classify: () => decided(first),
    nli: () => decided(first),
    similarity: () => [bars(reply.results.map(({ score }, at) => [sent.candidates[at], score]))],
    answerTask: () => [verdict(first.answer, first.score), bars(first.scores.map((score, at) => [sent.inputs[0].choices[at], score]), first.index)],
    extract: () => span(first, sent.inputs[0].passage),
    "fill-mask": () => first.masks.map(mask),
    embed: () => vectors(reply.results, sent.inputs),
  };
  return [...show[task.id](), facts(reply, textOf(sent)), stages(timing, ms)];
}

function decided({ label, score, scores, decision, chosen, calibrated }) {
  const found = { none: "decidedNone", ambiguous: "decidedAmbiguous" }[decision];
  const names = found ? say(found) : `${say("decidedLabel")}: ${(chosen ?? []).map(translated).join(", ")}`;
  const badge = decision && h("p", { class: `badge ${decision}` }, names, calibrated ? ` · ${say("calibrated")}` : "");
  const rows = scores.map((one) => [translated(one.label), one.score, one.parents?.map((parent) => parent.label).join(" › ")]);
  const marked = scores.map((one, at) => ((chosen ?? [label]).includes(one.label) ? at : -1));
  // The label for none of them has no score of its own: `score` is that of the best label. That of a regression, which
  // decides nothing, is any number.
  const isScored = decision !== null && scores.some((one) => one.label === label);
  return [verdict(translated(label), isScored ? score : null), badge, bars(rows, ...marked)];
}

function verdict(text, score) {
  return h("p", { class: "verdict" }, h("strong", {}, text), score !== null && h("span", { class: "muted" }, percent(score)));
}

/** `rows` are [label, score, small print]; `best` are the numbers of those to set off, by default the highest. */
function bars(rows, ...best) {
  const highest = rows.reduce((at, [, score], index) => (score > rows[at][1] ? index : at), 0);
  const marked = new Set(best.length ? best : [highest]);
  const line = ([label, score, small], at) =>
    h(
      "li",
      { class: marked.has(at) ? "best" : null },
      h("span", { class: "name" }, label, small && h("small", { class: "muted" }, ` ${small}`)),
      h("span", { class: "score" }, exact(score)),
      h("span", { class: "bar", "aria-hidden": "true" }, widen(h("span"), score)),
    );
  return h("ol", { class: "bars" }, rows.map(line));
}

function span({ answer, start, end, score, no_answer_score: none, candidates }, passage) {
  const points = [...passage];
  const part = (from, to) => points.slice(from, to).join("");
  const quoted = answer !== null && h("p", { class: "passage" }, part(0, start), h("mark", {}, part(start, end)), part(end));
  return [
    verdict(answer ?? say("noAnswer"), score),
    quoted,
    bars(candidates.map((one) => [one.answer, one.score])),
    h("p", { class: "muted" }, `${say("noAnswerScore")}: ${exact(none)}`),
  ];
}

function mask(tokens, at) {
  return h("div", {}, h("h3", {}, say("maskNumber", at + 1)), bars(tokens.map(({ token, score }) => [token, score])));
}

function vectors(results, texts) {
  const all = results.map(({ embedding }) => embedding);
  const strips = all.map((vector, at) => h("figure", { class: "vector" }, h("figcaption", {}, texts[at]), strip(vector, texts[at])));
  const size = h("p", { class: "verdict" }, h("strong", {}, say("dimensions", all[0].length)));
  return [size, ...strips, all.length > 1 && h("h3", {}, say("cosine")), all.length > 1 && cosines(all, texts)];
}

function strip(vector, text) {
  const shown = vector.slice(0, SHOWN);
  const largest = Math.max(...shown.map(Math.abs)) || 1;
  const columns = shown.map((value, at) => {
    const height = (Math.abs(value) / largest) * 15;
    return svg("rect", { x: at * 4, y: value > 0 ? 16 - height : 16, width: 3, height, class: value > 0 ? "up" : "down" });
  });
  const named = { role: "img", "aria-label": say("vectorOf", shown.length, text) };
  return svg("svg", { viewBox: `0 0 ${shown.length * 4} 32`, preserveAspectRatio: "none", ...named }, columns);
}

function cosines(all, texts) {
  const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
  const lengths = all.map((vector) => Math.sqrt(dot(vector, vector)) || 1);
  const cell = (row, column) => h("td", {}, (dot(all[row], all[column]) / lengths[row] / lengths[column]).toFixed(3));
  const head = h("tr", {}, h("td"), texts.map((text, at) => h("th", { scope: "col", title: text }, String(at + 1))));
  const body = texts.map((text, row) => h("tr", {}, h("th", { scope: "row" }, `${row + 1}. ${text}`), texts.map((_, column) => cell(row, column))));
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": say("cosine") }, h("table", {}, head, body));
}

/** The text that windows are of. */
function textOf({ inputs }) {
  const first = Array.isArray(inputs) ? inputs[0] : inputs;
  return first?.passage ?? first;
}

function facts({ method, models, model, usage, results, label_set: set }, text) {
  const [{ window, windows }] = results;
  const rows = [
    method && [say("method"), has(method) ? say(method) : method],
    [say("models"), (models ?? [model]).join(" + ")],
    set && [say("labelSet"), say("version", set.name, set.version)],
    [say("tokens"), usage.label_tokens ? say("tokensLabels", usage.tokens, usage.label_tokens) : String(usage.tokens)],
    windows && [say("windows"), say("windowsRead", windows)],
    window && window.index !== null && [say("windows"), say("windowOf", window.index + 1, window.of, window.start, window.end)],
  ];
  const list = h("dl", { class: "facts" }, rows.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  const quoted = window?.of > 1 && window.index !== null && h("blockquote", {}, [...text].slice(window.start, window.end).join(""));
  const isCut = results.some(({ truncated }) => truncated);
  return h("div", {}, list, quoted, isCut && h("p", { class: "badge none" }, say("truncated")));
}

function stages(timing, ms) {
  const known = ["tokenize", "queue", "compute"].map((stage) => [stage, timing[stage] ?? 0]);
  const rest = Math.max(0, ms - known.reduce((sum, [, value]) => sum + value, 0));
  const all = [...known, ["network", rest]];
  const part = ([stage, value]) => widen(h("span", { class: stage }), value / Math.max(ms, 0.001));
  const entry = ([stage, value]) => h("li", {}, h("i", { class: stage, "aria-hidden": "true" }), `${say(stage)} `, h("b", {}, say("ms", value.toFixed(1))));
  return h("div", { class: "stages" }, h("h3", {}, say("time")), h("div", { class: "track", "aria-hidden": "true" }, all.map(part)), h("ul", {}, all.map(entry)));
}
