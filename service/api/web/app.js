// The page: which task, its form, one request at a time, its answer or its error, the key and the language.

import { call, key, Problem } from "./api.js";
import { find, h } from "./dom.js";
import { makeForm } from "./form.js";
import { drawLoad, watchLoad } from "./load.js";
import { resultOf } from "./results.js";
import { showSnippets } from "./snippets.js";
import { bodyOf, TASKS } from "./tasks.js";
import { language, say, switchLanguage } from "./words.js";

const context = { about: { needs_key: false, docs: true, protocols: [] }, models: [], replicas: [], sets: [], hasHead: false };
const values = {};
const answers = {};
let task = null;
let form = null;
let running = null;

const isNarrow = matchMedia("(max-width: 899px)");
const WAYS = {
  invalid_request: "wayInvalid", model_not_found: "wayModel", label_set_not_found: "wayLabelSet",
  body_too_large: "wayLarge", memory_full: "wayBusy", out_of_memory: "wayLarge", queue_full: "wayBusy",
  deadline_unreachable: "wayBusy", rate_limited: "wayLimit", unavailable: "wayStarting", deadline_exceeded: "wayDeadline",
  unreachable: "wayUnreachable", not_json: "wayProxy", too_many_connections: "wayBusy", replica_lost: "wayBusy",
};

// The served models, at the start and after a key was entered.

async function connect() {
  find("notice").hidden = true;
  find("status").textContent = say("connecting");
  busy(true);
  try {
    context.about = (await call("playground/about.json")).reply;
    if (context.about.needs_key && !key.get()) throw new Problem(401, "unauthorized");
    const { reply } = await call("v1/models");
    context.models = reply.models;
    context.replicas = reply.replicas;
    context.hasHead = reply.models.some((model) => model.kind === "sequence-classification");
    context.sets = context.about.label_sets ? (await call("v1/label-sets")).reply.label_sets : [];
  } catch (problem) {
    find("status").textContent = "";
    return report(problem, connect);
  } finally {
    busy(false);
  }
  watchLoad(find("load"));
  const possible = TASKS.filter((one) => one.models(context.models).length);
  task = possible.find(({ id }) => id === task?.id) ?? possible[0] ?? null;
  draw();
  return null;
}

// What is shown, in the language of the page.

function draw() {
  document.documentElement.lang = language();
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = say(node.dataset.word);
  find("docs").textContent = say("api");
  find("docs").hidden = !context.about.docs;
  find("language").textContent = say("other");
  find("language").lang = language() === "en" ? "zh-CN" : "en";
  find("key").textContent = say("keyButton");
  find("key").hidden = !context.about.needs_key;
  drawLoad(find("load"));
  if (!context.models.length) return;
  const devices = [...new Set(context.replicas.map(({ device }) => device))].join(", ");
  find("serving").textContent = say("serving", context.models.map(({ name }) => name).join(" + "), devices);
  drawTasks();
  if (task === null) find("status").textContent = say("noTasks");
  else drawTask();
}

function drawTasks() {
  const possible = TASKS.filter((one) => one.models(context.models).length);
  const radio = ({ id }) => h("input", { type: "radio", name: "task", value: id, checked: id === task?.id, on: { change: () => choose(id) } });
  const tabs = possible.map((one) => h("label", {}, radio(one), h("span", {}, say(one.id))));
  find("tasks").replaceChildren(find("tasks").querySelector("legend"), ...tabs);
}

function choose(id) {
  running?.abort();
  task = TASKS.find((one) => one.id === id);
  drawTask();
}

function drawTask() {
  values[task.id] ??= filled(task.examples[0]);
  find("hint").textContent = say(`${task.id}Hint`);
  const chip = (example) => h("button", { type: "button", class: "chip", lang: "zh-CN", on: { click: () => use(example) } }, example.title);
  find("examples").replaceChildren(h("span", { class: "muted" }, say("examples")), ...task.examples.map(chip));
  form = makeForm(find("form"), task, values[task.id], context, changed);
  find("run").disabled = running !== null;
  showAnswer();
  changed();
}

function filled({ title, ...example }) {
  const asRow = (label) => (typeof label === "string" ? { name: label, description: "", examples: "" } : { ...label });
  return { ...example, ...(example.labels ? { labels: example.labels.map(asRow), labelsFrom: "own" } : {}) };
}

function use(example) {
  values[task.id] = filled(example);
  delete answers[task.id];
  drawTask();
}

function changed() {
  const able = task.models(context.models);
  const usual = (task.id === "embed" && able.find(({ embedding }) => embedding)) || able[0];
  const model = values[task.id].model || answers[task.id]?.reply.model || usual.name;
  showSnippets(find("snippets"), task, bodyOf(task, values[task.id]), { about: context.about, model });
}

function showAnswer() {
  const answer = answers[task.id];
  find("result").replaceChildren(...(answer ? resultOf(task, answer.sent, answer).filter(Boolean) : []));
  find("status").textContent = answer ? say("done", Math.round(answer.ms)) : say("ready");
}

// One request at a time.

async function run() {
  if (running || task === null) return;
  const asked = task;
  const sent = bodyOf(asked, values[asked.id]);
  running = new AbortController();
  form.clear();
  find("notice").hidden = true;
  find("result").replaceChildren();
  busy(true);
  find("status").textContent = say("computing");
  try {
    answers[asked.id] = { sent, ...(await call(asked.path, { body: sent, signal: running.signal })) };
    if (asked === task) {
      showAnswer();
      if (isNarrow.matches) find("answer").scrollIntoView();
      changed();
    }
  } catch (problem) {
    delete answers[asked.id];
    find("status").textContent = problem.name === "AbortError" ? say(asked === task ? "cancelled" : "ready") : "";
    if (problem.name !== "AbortError") report(problem, run);
  } finally {
    running = null;
    busy(false);
  }
}

let ticking = 0;

/** Shows that something is waited for, and for how long. */
function busy(isBusy) {
  clearInterval(ticking);
  find("answer").setAttribute("aria-busy", String(isBusy));
  find("progress").hidden = !isBusy;
  find("run").disabled = isBusy || task === null;
  find("cancel").hidden = running === null;
  find("run").textContent = say("run");
  if (running === null) return;
  const began = performance.now();
  ticking = setInterval(() => (find("run").textContent = say("seconds", ((performance.now() - began) / 1000).toFixed(1))), 100);
}

/** Says what went wrong and the way out; the fields at fault are marked. `retry` is what to do again. */
function report(problem, retry) {
  if (!(problem instanceof Problem)) throw problem;
  if (problem.status === 401 || problem.status === 403) return askForKey(problem, retry);
  const others = task && problem.fields.length ? form.mark(problem.fields) : [];
  const way = WAYS[problem.code] ?? (problem.status >= 500 ? "wayServer" : "wayInvalid");
  const shown = others.length ? others.map(({ field, message }) => `${field}: ${message}`).join("; ") : problem.detail;
  notice(
    h("strong", {}, say("problem")),
    h("span", {}, say(way), problem.retryS ? ` ${say("retryIn", problem.retryS)}` : ""),
    shown && h("code", { lang: "en" }, shown),
    problem.status !== 422 && h("button", { type: "button", class: "quiet small", on: { click: retry } }, say("retry")),
  );
  return null;
}

function notice(...children) {
  find("notice").replaceChildren(...children.filter(Boolean));
  find("notice").hidden = false;
}

// The key.

let afterKey = connect;

function askForKey(problem, retry) {
  afterKey = retry;
  draw();
  const why = problem.status === 403 ? "keyScope" : key.get() ? "keyWrong" : null;
  openKey(why);
  notice(h("strong", {}, say("keyMissing")), h("button", { type: "button", class: "quiet small", on: { click: () => openKey(why) } }, say("keyEnter")));
}

function openKey(why = null) {
  find("key-why").hidden = why === null;
  find("key-why").textContent = why === null ? "" : say(why);
  find("key-forget").hidden = !key.get();
  find("key-input").value = "";
  if (!find("key-dialog").open) find("key-dialog").showModal();
}

function takeKey(event) {
  event.preventDefault();
  const secret = find("key-input").value.trim();
  if (!secret) return find("key-input").focus();
  closeKey();
  key.set(secret);
  const again = afterKey;
  afterKey = connect;
  if (!context.models.length) return connect();
  watchLoad(find("load"));
  return again();
}

function closeKey() {
  find("key-input").value = "";
  find("key-dialog").close();
}

find("form").addEventListener("submit", (event) => (event.preventDefault(), run()));
find("cancel").addEventListener("click", () => running?.abort());
find("language").addEventListener("click", () => (switchLanguage(), draw()));
find("key").addEventListener("click", () => openKey());
find("key-form").addEventListener("submit", takeKey);
find("key-cancel").addEventListener("click", closeKey);
find("key-forget").addEventListener("click", () => (key.set(""), closeKey()));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !find("key-dialog").open) run();
});
document.addEventListener("visibilitychange", () => document.hidden || !context.models.length || watchLoad(find("load")));

draw();
connect();
