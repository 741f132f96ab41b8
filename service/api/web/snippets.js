// The request as code. The key is never in it: a placeholder stands in its place.

import { ROOT } from "./api.js";
import { h } from "./dom.js";
import { say } from "./words.js";

export const PLACEHOLDER = "erl_...";

/** JSON as a Python literal. */
export function python(value, indent = 0) {
  const inner = " ".repeat(indent + 4);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map((one) => python(one, indent + 4))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, indent + 4)}`);
  const [open, close] = isList ? "[]" : "{}";
  const short = parts.join(", ");
  if (short.length < 72 && !short.includes("\n")) return `${open}${short}${close}`;
  return `${open}\n${inner}${parts.join(`,\n${inner}`)},\n${" ".repeat(indent)}${close}`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const address = (path) => new URL(path, ROOT).href;

function curl(task, body, withKey) {
  const header = withKey ? ` \\\n  -H "Authorization: Bearer ${PLACEHOLDER}"` : "";
  return `curl ${quoted(address(task.path))}${header} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body, null, 2))}`;
}

function httpx(task, body, withKey) {
  const header = withKey ? `\n    headers={"Authorization": "Bearer ${PLACEHOLDER}"},` : "";
  return `import httpx

reply = httpx.post(
    ${JSON.stringify(address(task.path))},${header}
    json=${python(body, 4)},
    timeout=60,
)
print(reply.raise_for_status().json())`;
}

function openai(task, body, withKey, model) {
  if (task.id !== "embed" || body.truncation) return null;
  return `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(address("openai/v1"))}, api_key="${PLACEHOLDER}")
reply = client.embeddings.create(
    model=${JSON.stringify(model)},
    input=${python(body.inputs, 4)},
)
print([len(one.embedding) for one in reply.data])`;
}

function cohere(task, body, withKey, model) {
  if (task.id !== "similarity" || body.truncation || body.method) return null;
  return `import cohere

client = cohere.ClientV2(base_url=${JSON.stringify(address("cohere"))}, api_key="${PLACEHOLDER}")
reply = client.rerank(
    model=${JSON.stringify(model)},
    query=${JSON.stringify(body.source)},
    documents=${python(body.candidates, 4)},
)
print([(one.index, one.relevance_score) for one in reply.results])`;
}

/** Calls of huggingface_hub that mean the same; what they cannot say, as descriptions of labels, has none. */
function hub(task, body, withKey, model) {
  const { inputs } = body;
  const isPlain = body.labels?.every((label) => typeof label === "string");
  const extra = ["question", "method", "min_score", "none_label", "truncation"].some((name) => body[name] !== undefined);
  const several = body.multi_label ? ", multi_label=True" : "";
  const made = {
    classify: isPlain && `zero_shot_classification(${JSON.stringify(inputs)}, ${python(body.labels)}${several})`,
    similarity: `sentence_similarity(${JSON.stringify(body.source)}, ${python(body.candidates ?? [])})`,
    extract: `question_answering(question=${JSON.stringify(inputs?.[0]?.question)}, context=${JSON.stringify(inputs?.[0]?.passage)}, top_k=${body.top_k ?? 1})`,
    "fill-mask": `fill_mask(${JSON.stringify(inputs)}, top_k=${body.top_k ?? 5})`,
    embed: "feature_extraction(text)",
  }[task.id];
  if (!made || extra) return null;
  const path = body.model ? `huggingface/models/${encodeURIComponent(model)}` : "huggingface";
  return `from huggingface_hub import InferenceClient

client = InferenceClient(model=${JSON.stringify(address(path))}, token="${PLACEHOLDER}")
${task.id === "embed" ? `for text in ${python(inputs)}:\n    ` : ""}print(client.${made})`;
}

/** The clients: their name, their code, and the protocol that the server must speak. */
const KINDS = [
  ["curl", curl, null],
  ["httpx", httpx, null],
  ["openai", openai, "openai"],
  ["huggingface_hub", hub, "huggingface"],
  ["cohere", cohere, "cohere"],
];
let chosen = "curl";

/** Shows the request in `node`, as a tab for each client that can send it. */
export function showSnippets(node, task, body, { about, model }) {
  const withKey = about.needs_key;
  const spoken = KINDS.filter(([, , protocol]) => protocol === null || about.protocols.includes(protocol));
  const made = spoken.map(([name, make]) => [name, make(task, body, withKey, model)]).filter(([, text]) => text);
  if (!made.some(([name]) => name === chosen)) chosen = "curl";
  const code = h("code");
  const hint = h("p", { class: "muted" });
  const draw = () => {
    code.textContent = made.find(([name]) => name === chosen)[1];
    hint.textContent = code.textContent.includes(PLACEHOLDER) && withKey ? say("keyPlaceholder") : "";
  };
  const tabs = made.map(([name]) =>
    h("label", {}, h("input", { type: "radio", name: "client", value: name, checked: name === chosen, on: { change: () => (chosen = name, draw()) } }), h("span", {}, name)),
  );
  const copy = h("button", { type: "button", class: "quiet small", on: { click: () => put(code, copy) } }, say("copy"));
  const focused = node.contains(document.activeElement) && document.activeElement.value;
  node.replaceChildren(
    h("div", { class: "between" }, h("fieldset", { class: "tabs" }, h("legend", { class: "hidden" }, say("language")), tabs), copy),
    h("pre", { tabindex: "0", role: "group", "aria-label": say("request") }, code),
    hint,
  );
  if (focused) node.querySelector(`[value="${focused}"]`)?.focus();
  draw();
}

/** Without a clipboard, as on a page that came by plain HTTP, the code is selected. */
async function put(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = say("copied");
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = say("copyFailed");
  }
  setTimeout(() => (button.textContent = say("copy")), 2000);
}
