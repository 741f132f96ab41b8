// The editor of own labels: a row for each, with a description and examples that open on demand.

import { call } from "./api.js";
import { h } from "./dom.js";
import { isUsed } from "./tasks.js";
import { say } from "./words.js";

const SHOWN = 24;
let serial = 0;

/** `values.labels` is a list of {name, description, examples}; the editor changes it in place and calls `changed`. */
export function labelsEditor(values, { sets, hasHead }, changed) {
  values.labels ??= [];
  values.labelsFrom ??= hasHead && !values.labels.length ? "head" : "own";
  const rows = h("ol", { class: "labels" });
  const shown = h("p", { class: "muted" });
  const add = h("button", { type: "button", class: "quiet small", on: { click: () => insert(values.labels.length) } }, say("labelAdd"));
  const own = h("div", {}, rows, add);

  const options = [["own", say("labelsOwn")], ...sets.map((set) => [`set:${set.name}`, say("labelsSet", set.name, set.num_labels)])];
  if (hasHead) options.push(["head", say("labelsHead")]);
  const source = h("select", { "aria-label": say("labelsFrom"), on: { change: () => (values.labelsFrom = source.value, turn(), changed()) } });
  source.append(...options.map(([value, text]) => h("option", { value, selected: value === values.labelsFrom }, text)));

  function insert(at) {
    values.labels.splice(at, 0, { name: "", description: "", examples: "" });
    draw();
    rows.children[at].querySelector("input").focus();
    changed();
  }

  function remove(at) {
    values.labels.splice(at, 1);
    draw();
    (rows.children[Math.min(at, rows.children.length - 1)]?.querySelector("input") ?? add).focus();
    changed();
  }

  function row(label, at) {
    const id = `label${++serial}`;
    const write = (name) => ({ input: (event) => (label[name] = event.target.value, changed()) });
    const name = h("input", { value: label.name, "aria-label": say("labelName", at + 1), autocomplete: "off", on: write("name") });
    name.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey || event.isComposing) return;
      event.preventDefault();
      insert(at + 1);
    });
    const more = h(
      "details",
      { open: Boolean(label.description || label.examples) },
      h("summary", {}, say("labelMore"), h("span", { class: "hidden" }, ` (${say("labelName", at + 1)})`)),
      h("label", { for: `${id}d` }, say("labelDescription")),
      h("input", { id: `${id}d`, value: label.description ?? "", autocomplete: "off", on: write("description") }),
      h("label", { for: `${id}e` }, say("labelExamples")),
      h("textarea", { id: `${id}e`, rows: 2, on: write("examples") }, label.examples ?? ""),
    );
    const away = h("button", { type: "button", class: "quiet icon", "aria-label": say("labelRemove", at + 1), on: { click: () => remove(at) } }, "×");
    return h("li", {}, h("div", { class: "line" }, name, away), more);
  }

  const draw = () => rows.replaceChildren(...values.labels.map(row));

  async function turn() {
    const isOwn = values.labelsFrom === "own";
    own.hidden = !isOwn;
    shown.hidden = isOwn;
    shown.textContent = "";
    if (!values.labelsFrom.startsWith("set:")) return;
    const from = values.labelsFrom;
    try {
      const { reply } = await call(`v1/label-sets/${encodeURIComponent(from.slice(4))}`);
      const names = reply.labels.map((label) => label.name ?? label);
      const tail = names.length > SHOWN ? ` ${say("andMore", names.length)}` : "";
      if (from === values.labelsFrom) shown.textContent = names.slice(0, SHOWN).join(" · ") + tail;
    } catch {
      // The labels are for information: the request itself says what is wrong.
    }
  }

  draw();
  turn();
  const node = h("div", { class: "label-editor" }, options.length > 1 && source, own, shown);
  return { node, control: (path) => controlOf(path, rows, values, options.length > 1 ? source : add) };
}

/** The input that `labels[2]` is about: the third row that is sent. */
function controlOf(path, rows, values, otherwise) {
  const sent = values.labels.map((label, at) => (isUsed(label) ? at : -1)).filter((at) => at >= 0);
  const found = rows.children[sent[Number(/^labels\[(\d+)\]/.exec(path)?.[1] ?? 0)]];
  return found?.querySelector("input") ?? rows.querySelector("input") ?? otherwise;
}
