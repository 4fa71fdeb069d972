// Elements from plain values: whatever a config or a client wrote becomes text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

// Leaves alone what says it already, so that selections and screen readers are not disturbed.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Draws again only when what is drawn has changed, and leaves the keyboard where it was.
export function drawer(element, draw) {
  let drawn = null;
  return (value, ...rest) => {
    const signature = JSON.stringify(value);
    if (signature === drawn) return;
    drawn = signature;
    const key = element.contains(document.activeElement) ? keyOf(document.activeElement) : null;
    element.replaceChildren(...[draw(value, ...rest)].flat());
    if (key) [...element.querySelectorAll("button, summary")].find((other) => keyOf(other) === key)?.focus();
  };
}

function keyOf(element) {
  return element.dataset?.act ?? element.textContent;
}

export function chip(index) {
  return h("i", { class: `chip t${index % 8}`, "aria-hidden": "true" });
}
