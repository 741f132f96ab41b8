// Elements without markup: what a user or the server wrote becomes text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `attributes` are set as they are; `on` maps events to handlers; false and null are left out. */
export function h(tag, { on = {}, ...attributes } = {}, ...children) {
  return fill(document.createElement(tag), on, attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), {}, attributes, children);
}

function fill(node, on, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  for (const [name, handler] of Object.entries(on)) node.addEventListener(name, handler);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const find = (id) => document.getElementById(id);

/** Sets a width as a property: a style attribute is what the content security policy forbids. */
export function widen(node, share) {
  node.style.setProperty("inline-size", `${Math.max(0, Math.min(1, share)) * 100}%`);
  return node;
}
