// A canary under way: its steps, its weight, what the guards see, and what an operator may do.

import { chip, h } from "./dom.js";
import { clock, seconds } from "./format.js";

const ACTS = {
  waiting: ["abort"], progressing: ["pause", "promote", "abort"], paused: ["resume", "promote", "abort"], promoted: ["abort"], aborted: [],
};
const WORDS = { pause: "Pause", resume: "Resume", promote: "Promote", abort: "Abort" };
const VERDICTS = { ok: "ok", breach: "breach", not_enough_samples: "not enough samples" };

function stepText(step) {
  if (step.pause === null || step.pause === undefined) return `${step.setWeight} %`;
  return step.pause.duration ? `pause ${seconds(step.pause.duration)}` : "until resumed";
}

export function drawRollout({ rollout, changes, tiers, mayAct }, act) {
  const [canary, stable] = [tiers.indexOf(rollout.canary), tiers.indexOf(rollout.stable)];
  const over = rollout.phase === "promoted";
  const ended = over || rollout.phase === "aborted";
  const steps = rollout.steps.map((step, index) => {
    const isNow = index === rollout.step && !ended;
    const isDone = over || index < rollout.step;
    return h("li", { class: isNow ? "now" : isDone ? `done t${canary % 8}` : "", "aria-current": isNow ? "step" : null }, stepText(step));
  });
  const buttons = mayAct
    ? (ACTS[rollout.phase] ?? []).map((name) =>
        h("button", { type: "button", class: name === "abort" ? "danger" : name === "promote" ? "main" : "", "data-act": name, onclick: () => act(name) }, WORDS[name]))
    : [];
  return [
    h("div", { class: "head" },
      h("h2", { id: "rollout-h" }, `Rollout: ${rollout.canary} takes over from ${rollout.stable}`, h("span", { class: `phase ${rollout.phase}`, "data-phase": rollout.phase }, rollout.phase)),
      buttons.length ? h("div", { class: "acts" }, buttons) : null),
    h("div", { class: "weight", role: "img", "aria-label": `${rollout.canary_percent} % to ${rollout.canary}` },
      [[canary, rollout.canary_percent], [stable, 100 - rollout.canary_percent]].filter(([, part]) => part > 0).map(([index, part]) =>
        h("i", { class: `t${Math.max(0, index) % 8}`, "--part": part }))),
    h("div", { class: "legend" },
      h("span", {}, chip(canary), `${rollout.canary_percent} % to ${rollout.canary}`),
      h("span", {}, chip(Math.max(0, stable)), `${100 - rollout.canary_percent} % to ${rollout.stable}, of the requests that name no tier`)),
    h("ol", { class: "steps", "aria-label": "Steps" }, steps),
    h("p", { class: "reason" }, rollout.reason, rollout.who ? ` (${rollout.who})` : ""),
    rollout.guards.length ? guards(rollout.guards) : h("p", { class: "sub" }, "No guards: time alone decides."),
    rollout.moved_on_by !== "this server" && rollout.moved_on_by ? h("p", { class: "sub" }, `Moved on by ${rollout.moved_on_by}.`) : null,
    changes.length ? h("details", {}, h("summary", {}, "What happened"), h("ul", { class: "lines" },
      [...changes].reverse().map((change) => h("li", {}, h("time", { datetime: change.time }, clock(change.time)), change.text)))) : null,
  ].filter(Boolean);
}

function guards(found) {
  return h("table", { class: "guards" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "guard"), h("th", { scope: "col" }, "verdict"), h("th", { scope: "col" }, "figures"))),
    h("tbody", {}, found.map((each) => h("tr", {},
      h("th", { scope: "row" }, h("code", {}, each.guard)),
      h("td", {}, h("span", { class: `verdict ${each.verdict}` }, VERDICTS[each.verdict] ?? each.verdict)),
      h("td", { class: "why" }, each.figures)))));
}
