// The form of a task: its fields, the values in them, and the marks of an error.

import { h } from "./dom.js";
import { labelsEditor } from "./labels.js";
import { fieldOf } from "./tasks.js";
import { has, say } from "./words.js";

const nameOf = (option) => (has(option) ? say(option) : option);

/** Shows the fields of `task` in `form`. They keep what they hold in `values` and call `changed`. */
export function makeForm(form, task, values, context, changed) {
  const controls = {};
  const write = (name, read) => ({ input: (event) => (values[name] = read(event.target), changed()) });

  function control(field) {
    const { name, kind } = field;
    const id = `field-${name}`;
    const value = (values[name] ??= kind === "check" ? false : (field.value ?? (kind === "select" ? field.options[0] : "")));
    if (kind === "text") return h("textarea", { id, rows: 3, spellcheck: "false", on: write(name, (node) => node.value) }, value);
    if (kind === "check") {
      return h("input", { id, type: "checkbox", checked: value, on: write(name, (node) => node.checked) });
    }
    if (kind === "select" || kind === "model") {
      const options = kind === "select" ? field.options.map((one) => [one, nameOf(one)]) : modelOptions();
      const node = h("select", { id, on: write(name, (one) => one.value) });
      node.append(...options.map(([each, text]) => h("option", { value: each, selected: each === value }, text)));
      return node;
    }
    const { min, max, step } = field;
    const numeric = kind === "number" ? { type: "number", inputmode: "decimal", min, max, step } : { autocomplete: "off" };
    return h("input", { id, value, ...numeric, on: write(name, (node) => node.value) });
  }

  const modelOptions = () => [["", say("automatic")], ...task.models(context.models).map(({ name }) => [name, name])];

  function block(field) {
    const word = say(field.word ?? field.name);
    const note = h("p", { class: "problem", lang: "en", id: `problem-${field.name}`, hidden: true });
    if (field.kind === "labels") {
      const editor = labelsEditor(values, context, changed);
      controls[field.name] = { find: editor.control, note };
      return h("fieldset", {}, h("legend", {}, word), editor.node, note);
    }
    const node = control(field);
    controls[field.name] = { find: () => node, note };
    const label = h("label", { for: node.id }, word);
    return field.kind === "check" ? h("div", { class: "check" }, node, label, note) : h("div", {}, label, node, note);
  }

  const main = task.fields.filter((field) => !field.more).map(block);
  const more = task.fields.filter((field) => field.more).map(block);
  const details = h("details", { class: "options" }, h("summary", {}, say("options")), h("div", { class: "grid" }, more));
  details.open = Boolean(values.optionsOpen);
  details.addEventListener("toggle", () => (values.optionsOpen = details.open));
  form.replaceChildren(...main, details);

  function clear() {
    for (const { note } of Object.values(controls)) note.hidden = true;
    for (const node of form.querySelectorAll("[aria-invalid]")) {
      node.removeAttribute("aria-invalid");
      node.removeAttribute("aria-describedby");
    }
  }

  /** Marks the fields of {field, message}; focuses the first. Those that no field is about are returned. */
  function mark(fields) {
    clear();
    const others = [];
    let first = null;
    for (const { field: path, message } of fields) {
      const name = fieldOf(task, path);
      if (name === null) {
        others.push({ field: path, message });
        continue;
      }
      const { find, note } = controls[name];
      const node = find(path);
      node.setAttribute("aria-invalid", "true");
      node.setAttribute("aria-describedby", note.id);
      note.textContent = `${path}: ${message}`;
      note.hidden = false;
      first ??= node;
    }
    for (let open = first?.closest("details:not([open])"); open; open = open.parentElement.closest("details:not([open])")) {
      open.open = true;
    }
    first?.focus();
    return others;
  }

  return { clear, mark };
}
