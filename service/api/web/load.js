// The load of the service, read every few seconds while the page is seen.

import { call } from "./api.js";
import { h, svg } from "./dom.js";
import { say } from "./words.js";

const EVERY_MS = 3000;
const KEPT = 40;
const rates = [];
let last = null;
let timer = 0;

const shown = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

/** Begins reading, or begins again; `node` shows the figures. */
export function watchLoad(node) {
  clearTimeout(timer);
  const again = () => (timer = setTimeout(() => watchLoad(node), EVERY_MS));
  if (document.hidden) return again();
  return call("v1/load")
    .then(({ reply }) => {
      rates.push(reply.requests_per_s ?? 0);
      rates.splice(0, rates.length - KEPT);
      last = reply;
      drawLoad(node);
      again();
    })
    .catch((problem) => {
      last = null;
      drawLoad(node);
      if (problem.status !== 401 && problem.status !== 403) again();
    });
}

export function drawLoad(node) {
  if (last === null) return node.replaceChildren(h("p", { class: "muted" }, say("loadGone")));
  const figures = [
    ["rate", shown(last.requests_per_s, 1)],
    ["p95", last.p95_ms === null ? "–" : say("ms", shown(last.p95_ms, 0))],
    ["queued", String(last.queue_rows)],
    ["batch", shown(last.batch_rows, 1)],
  ];
  return node.replaceChildren(
    h("dl", { class: "figures" }, figures.map(([name, value]) => h("div", {}, h("dt", {}, say(name)), h("dd", {}, value)))),
    rates.length > 1 ? line() : "",
    h("p", { class: "muted" }, last.window_s === null ? "" : say("loadWindow", Math.round(last.window_s))),
  );
}

function line() {
  const highest = Math.max(...rates, 1);
  const points = rates.map((rate, at) => `${200 - ((rates.length - 1 - at) / (KEPT - 1)) * 200},${31 - (rate / highest) * 29}`);
  const named = { role: "img", "aria-label": say("loadTrend") };
  return svg("svg", { class: "trend", viewBox: "0 0 200 32", preserveAspectRatio: "none", ...named }, svg("polyline", { points: points.join(" ") }));
}
