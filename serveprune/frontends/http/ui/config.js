// What became of the config file when it was last read.

import { h } from "./dom.js";
import { clock } from "./format.js";

const WORDS = { applied: "applied", unchanged: "unchanged", rejected: "rejected; what was served before goes on" };

export function drawConfig({ config, mayAct, failure }, reload) {
  const head = h("div", { class: "head" },
    h("h2", { id: "config-h" }, "Config", config ? h("span", { class: `phase ${config.outcome === "rejected" ? "aborted" : ""}`, "data-outcome": config.outcome }, config.outcome) : null),
    mayAct ? h("div", { class: "acts" }, h("button", { type: "button", "data-act": "reload", onclick: reload }, "Reload now")) : null);
  const unread = failure ? h("p", { class: "reason state failed", role: "alert" }, `It could not be read again: ${failure}`) : null;
  if (!config) return [head, unread, h("p", { class: "sub" }, "Nothing is known of a config file here.")].filter(Boolean);
  return [
    head,
    unread,
    h("p", { class: "sub" }, `Last read ${clock(config.ended)}: ${WORDS[config.outcome] ?? config.outcome}.`),
    config.problems.length ? h("ul", { class: "lines problems" }, config.problems.map((problem) => h("li", {}, problem))) : null,
    config.changes.length ? h("ul", { class: "lines" }, config.changes.map((change) => h("li", {}, h("code", {}, change.text), ` — ${change.consequence}`, change.note ? ` (${change.note})` : ""))) : null,
  ].filter(Boolean);
}
