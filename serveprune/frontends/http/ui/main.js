import { operate, Refused, state, tokens } from "./api.js";
import { Compare } from "./compare.js";
import { drawConfig } from "./config.js";
import { byId, chip, drawer, h, say } from "./dom.js";
import { milliseconds, percent, rate } from "./format.js";
import { added, History, keyOf, KEPT_SECONDS, quantile } from "./live.js";
import { detailOf, metricOf, pareto, placed, rates } from "./picture.js";
import { drawRollout } from "./rollout.js";
import { TierTable } from "./tiers.js";

const POLL_MS = 2000;

const history = new History();
const table = new TierTable(byId("tiers"));
const compare = new Compare(byId("try"), byId("answers"));
const showRollout = drawer(byId("rollout"), (shown) => drawRollout(shown, (name) => confirmAct(shown.rollout.model, name)));
const showConfig = drawer(byId("config"), (shown) => drawConfig(shown, reload));
const showLegend = drawer(byId("rates-legend"), (names) => names.map((name, index) => h("span", {}, chip(index), name)));
const showModels = drawer(byId("models"), drawModels);

let latest = null;
let chosen = namedInAddress();
let timer = 0;
let asking = false;
let reloadFailure = null;

function namedInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // it is no text, so it names no model
  }
}

function nameOf(model) {
  const others = latest.models.filter((each) => each.name === model.name);
  return others.length > 1 ? `${model.name} v${model.version}` : model.name;
}

function current() {
  const found = (holds) => latest.models.find(holds);
  // Versions come and go, and with them the need to name them.
  return found((model) => nameOf(model) === chosen) ?? found((model) => `${model.name} v${model.version}` === chosen) ??
    found((model) => model.name === chosen && model.is_current) ?? latest.models[0];
}

// Polling: one question at a time, none while nobody looks.

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  timer = setTimeout(poll, POLL_MS);
  try {
    latest = await state();
  } catch (error) {
    unanswered(error);
    return;
  } finally {
    asking = false;
  }
  history.add(latest.live);
  render();
}

function unanswered(error) {
  const isRefused = error instanceof Refused && error.status === 401;
  byId("status").className = `status ${isRefused ? "warn" : "bad"}`;
  say(byId("status").querySelector("b"), isRefused ? "needs a token" : "no answer");
  if (!isRefused) {
    problem(error instanceof Refused ? error.message : "The server does not answer; it is asked again every two seconds.");
    return;
  }
  clearTimeout(timer);
  problem("Without a token this server shows nothing. Reload the page to enter one.");
  // Whoever comes back to this tab with a token has perhaps begun to enter it.
  if (!byId("dialog").open) askToken(tokens.client ? error.message : "");
}

document.addEventListener("visibilitychange", poll);
window.addEventListener("hashchange", () => {
  chosen = namedInAddress();
  if (latest) render();
});

function problem(text) {
  byId("problem").hidden = text === null;
  say(byId("problem"), text ?? "");
}

// Drawing

function render() {
  byId("main").hidden = latest.models.length === 0;
  say(byId("version"), latest.server.version);
  const status = byId("status");
  status.className = `status ${latest.ready ? "good" : "warn"}`;
  say(status.querySelector("b"), (latest.ready ? "ready" : "not ready") + (latest.processes > 1 ? `, ${latest.processes} processes` : ""));
  byId("operate").hidden = !latest.operators;
  say(byId("operate"), tokens.operator ? `Operator: ${tokens.who}` : "Operator");
  problem(latest.models.length ? null : "No model is served.");
  if (!latest.models.length) return;
  const model = current();
  showModels({ names: latest.models.map(nameOf), chosen: nameOf(model) });
  say(byId("model"), nameOf(model));
  document.title = `${nameOf(model)} · serveprune`;
  say(byId("about"), about(model));
  const dense = model.tiers.find((tier) => tier.tier === "dense");
  if (dense) dense.measuredDenseSeconds = measuredDense(model);
  const windows = new Map(model.tiers.map((tier) => [tier.tier, history.length > 1 ? history.recent(keyFor(model, tier)) : null]));
  table.show(model, windows);
  say(byId("tiers-sub"), tiersText(model));
  figures(added([...windows.values()]));
  drawPlots(model);
  compare.show(model);
  rollout(model);
  showConfig({ config: latest.config, mayAct: mayAct(), failure: reloadFailure });
}

function keyFor(model, tier) {
  return keyOf({ model: model.name, version: model.version, tier: tier.tier });
}

function mayAct() {
  return Boolean(latest.operators && tokens.operator);
}

function measuredDense(model) {
  const tier = model.tiers.find((each) => each.latency_ms);
  return tier ? tier.latency_ms.dense / 1000 : null;
}

function about(model) {
  const takes = model.takes ? `takes ${model.takes} or tensors` : "takes tensors";
  const serves = model.adaptive ? "policy adaptive" : `${model.default_tier} serves whoever names no tier`;
  const version = model.is_current ? `version ${model.version}` : `version ${model.version}, not the current one`;
  return [version, serves, takes, model.successor ? comingText(model.successor) : null].filter(Boolean).join(" · ");
}

function comingText(successor) {
  const built = successor.tiers.find((tier) => tier.progress);
  return `version ${successor.version} is on its way${built ? `: ${built.tier} ${Math.round(built.progress.fraction * 100)} %` : ""}`;
}

function tiersText(model) {
  const counted = (tiers, state, text) => {
    const count = tiers.filter((tier) => tier.state === state).length;
    return count ? `${count} ${text}` : null;
  };
  const coming = model.tiers.map((tier) => tier.renewal ?? tier);
  return [`${model.tiers.length} tiers, from best to smallest`, counted(coming, "building", "being built"), counted(coming, "waiting", "waiting"),
    counted(model.tiers, "refused", "refused by a gate"), counted(model.tiers, "failed", "failed")].filter(Boolean).join(" · ");
}

function drawModels({ names, chosen: name }) {
  return names.map((each) => h("button", { type: "button", "aria-current": each === name ? "true" : null, onclick: () => (location.hash = encodeURIComponent(each)) }, each));
}

const FIGURES = [["rate", "requests/s"], ["p50", "p50"], ["p99", "p99"], ["errors", "errors"]];
byId("figures").append(...FIGURES.map(([name, label]) => h("div", {}, h("dt", {}, label), h("dd", { "data-figure": name }, "–"))));

function figures(window) {
  const told = {
    rate: window ? rate(window.rate) : "–", p50: milliseconds(quantile(window, 0.5)), p99: milliseconds(quantile(window, 0.99)),
    errors: window?.count ? percent(window.errors / window.count) : "–",
  };
  for (const [name, text] of Object.entries(told)) say(byId("figures").querySelector(`[data-figure=${name}]`), text);
  say(byId("live-sub"), history.length > 1 ? "All tiers, last 30 s; lines: the last two minutes" : "Figures come with the next look");
}

const showPicture = drawer(byId("picture"), ({ width, height }, model) => pareto(model, { width, height, onShow: (dot) => showDot(dot, model) }));

function showDot(dot, model) {
  const lacking = model.tiers.filter((tier, index) => !placed(model)[index]).map((tier) => `${tier.tier} (${tier.state})`);
  const nothing = lacking.length ? `Not in the picture: ${lacking.join(", ")}.` : "The larger the dot, the larger the tier; dashed line: what no other tier beats.";
  say(byId("picture-detail"), dot ? detailOf(dot, metricOf(model)) : nothing);
}

function drawPlots(model) {
  const box = byId("picture");
  const batch = model.tiers.find((tier) => tier.latency_batch_size)?.latency_batch_size;
  say(byId("picture-sub"), `${metricOf(model)} on held-out inputs${batch ? `, against the latency of a batch of ${batch}` : ""}, measured at build`);
  showPicture({ width: box.clientWidth, height: box.clientHeight, model: model.name, version: model.version, dots: placed(model) }, model);
  if (!byId("picture").contains(document.activeElement) && !box.querySelector(":hover")) showDot(null, model);
  showLegend(model.tiers.map((tier) => tier.tier));
  const plot = byId("rates");
  const lines = model.tiers.map((tier, index) => ({ tier: tier.tier, index, points: history.rates(keyFor(model, tier)) }));
  plot.replaceChildren(rates(lines.filter((line) => line.points.some((point) => point.rate > 0)), { width: plot.clientWidth, height: plot.clientHeight, now: history.now, span: KEPT_SECONDS }));
}

new ResizeObserver(() => latest?.models.length && drawPlots(current())).observe(byId("picture"));

function rollout(model) {
  const found = latest.rollouts.find((each) => each.model === model.name);
  byId("rollout").hidden = !found;
  if (!found) return;
  const changes = latest.changes.filter((change) => change.model === model.name);
  // The clock of a pause moves with each look, which is no reason to draw anew.
  const { step_seconds: _, figures: __, ...shown } = found;
  const wasOpen = byId("rollout").querySelector("details")?.open;
  showRollout({ rollout: shown, changes, tiers: model.tiers.map((tier) => tier.tier), mayAct: mayAct() });
  const details = byId("rollout").querySelector("details");
  if (details && wasOpen) details.open = true;
}

// Tokens and what operators do

function dialog(title, text, fields, submit, { label = "Go on", danger = false, error = "" } = {}) {
  const box = byId("dialog");
  const failure = h("p", { class: "error", role: "alert" }, error);
  const go = h("button", { class: danger ? "danger" : "main", type: "submit" }, label);
  const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-h" }, title), text ? h("p", { class: "sub" }, text) : null, fields, failure,
    h("div", { class: "acts" }, h("button", { type: "button", onclick: () => box.close() }, "Cancel"), go));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      await submit();
      box.close();
    } catch (problemFound) {
      say(failure, problemFound.message);
    }
    go.disabled = false;
  });
  box.replaceChildren(form);
  if (!box.open) box.showModal();
}

function field(id, label, attributes = {}) {
  return h("div", {}, h("label", { for: id }, label), h("input", { id, autocomplete: "off", ...attributes }));
}

function askToken(error) {
  dialog("This server asks for a token", "One that clients send. It stays in this tab, and is forgotten with it.", field("token", "Token", { type: "password", required: true }),
    async () => {
      tokens.client = byId("token").value.trim();
      setTimeout(poll);
    }, { label: "Show", error });
}

byId("operate").addEventListener("click", () => {
  if (tokens.operator) {
    dialog("Operator", "Forget the token, so that this tab only reads?", [], async () => {
      tokens.operator = null;
      render();
    }, { label: "Forget it" });
    return;
  }
  dialog("Operator", "A token of the admin API. It stays in this tab, and is forgotten with it.",
    [field("operator-token", "Token", { type: "password", required: true }), field("who", "Your name, for the audit log", { required: true, value: tokens.who, maxlength: 100 })],
    async () => {
      const token = byId("operator-token").value.trim();
      await operate("config", { token });
      tokens.operator = token;
      tokens.who = byId("who").value.trim();
      render();
    }, { label: "Show what I may do" });
});

const ASKED = {
  pause: "No step follows until it is resumed.", resume: "The steps go on.", promote: "The canary gets all requests at once, whatever its guards see.",
  abort: "The canary gets none any more. It is final until the config changes.",
};

function confirmAct(model, name) {
  const word = name[0].toUpperCase() + name.slice(1);
  dialog(`${word} the rollout of ${model}?`, ASKED[name], field("why", "Why, for the audit log (may be left out)", { maxlength: 500 }), async () => {
    await operate(`rollouts/${encodeURIComponent(model)}/${name}`, { body: { who: tokens.who, why: byId("why").value.trim() } });
    soon();
  }, { label: word, danger: name === "abort" });
}

async function reload() {
  const button = byId("config").querySelector("[data-act=reload]");
  button.disabled = true;
  try {
    await operate("config/reload", { body: { who: tokens.who } });
    reloadFailure = null;
  } catch (error) {
    // What is wrong with the file, the next look shows.
    reloadFailure = error instanceof Refused && [400, 409].includes(error.status) ? null : error.message;
  }
  button.disabled = false;
  soon();
}

// What was just done is in the document a moment later.
function soon() {
  clearTimeout(timer);
  timer = setTimeout(poll, 600);
}

poll();
