// Requests to the API that served this page, and the key, which stays in this tab.

/** The address below which the server answers: the folder above this file, whatever the prefix of a proxy. */
export const ROOT = new URL("..", import.meta.url);
const STORED = "erlangshen.key";

let memory = "";

export const key = {
  get: () => memory || stored(() => sessionStorage.getItem(STORED)) || "",
  set(secret) {
    memory = secret;
    stored(() => (secret ? sessionStorage.setItem(STORED, secret) : sessionStorage.removeItem(STORED)));
  },
};

/** A browser may forbid storage: then the key lasts until the page is left. */
function stored(call) {
  try {
    return call();
  } catch {
    return null;
  }
}

/** An answer that is an error: `status` 0 where there was none. `fields` are {field, message}. */
export class Problem extends Error {
  constructor(status, code, detail = "", fields = [], retryS = 0) {
    super(detail);
    Object.assign(this, { status, code, detail, fields, retryS });
  }
}

/** `{reply, timing, ms}` of a request. Throws Problem, and AbortError where `signal` says so. */
export async function call(path, { body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const options = { headers, signal, credentials: "omit", cache: "no-store" };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const began = performance.now();
  let response, text;
  try {
    response = await fetch(new URL(path, ROOT), options);
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable");
  }
  const reply = parse(text);
  if (!response.ok) throw problem(response, reply);
  if (reply === null) throw new Problem(response.status, "not_json");
  return { reply, timing: timing(response.headers.get("Server-Timing") ?? ""), ms: performance.now() - began };
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function problem(response, reply) {
  const retryS = Number(response.headers.get("Retry-After") ?? 0);
  if (!reply?.code) return new Problem(response.status, "not_json", response.statusText, [], retryS);
  return new Problem(response.status, reply.code, reply.detail, reply.errors ?? [], retryS);
}

/** "tokenize;dur=0.4, queue;dur=1.2" -> {tokenize: 0.4, queue: 1.2}, in milliseconds. */
export function timing(header) {
  const found = [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)];
  return Object.fromEntries(found.map(([, stage, ms]) => [stage, Number(ms)]));
}
