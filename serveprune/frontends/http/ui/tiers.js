// The table: what was measured of each tier, and what it does now.

import { chip, h, say } from "./dom.js";
import { bytes, milliseconds, NONE, percent, quality, rate, times } from "./format.js";
import { quantile } from "./live.js";
import { metricOf } from "./picture.js";

const WORDS = { waiting: "waiting", building: "building", ready: "ready", refused: "refused", failed: "failed" };

export class TierTable {
  #table;
  #rows = new Map();
  #of = null;

  constructor(table) {
    this.#table = table;
  }

  show(model, windows) {
    const metric = metricOf(model);
    const signature = JSON.stringify([model.name, model.version, metric, model.default_tier, model.tiers.map((tier) => tier.tier)]);
    if (signature !== this.#of) this.#build(model, metric, signature);
    const all = [...windows.values()].reduce((sum, window) => sum + (window?.count ?? 0), 0);
    for (const tier of model.tiers) this.#fill(this.#rows.get(tier.tier), tier, windows.get(tier.tier), all);
  }

  #build(model, metric, signature) {
    this.#of = signature;
    this.#rows = new Map();
    const head = (text, more = "n") => h("th", { scope: "col", class: more }, text);
    const body = h("tbody");
    model.tiers.forEach((tier, index) => {
      const cells = {};
      const cell = (name, label, more = "n") => (cells[name] = h("td", { class: more, "data-label": label, "data-figure": name }));
      cells.word = h("span");
      cells.why = h("div", { class: "why" });
      cells.bar = h("div", { class: `bar t${index % 8}`, hidden: true }, h("i"));
      const row = h("tr", { "data-tier": tier.tier },
        h("th", { scope: "row" }, chip(index), tier.tier, tier.tier === model.default_tier ? h("span", { class: "default" }, "default") : null),
        h("td", { class: "full" }, cells.word, cells.bar, cells.why),
        cell("quality", metric), cell("latency", "latency"), cell("speedup", "speedup"), cell("size", "size"),
        cell("rate", "requests/s", "n first"), cell("share", "share"), cell("p50", "p50"), cell("p99", "p99"), cell("errors", "errors"));
      body.append(row);
      this.#rows.set(tier.tier, cells);
    });
    this.#table.replaceChildren(
      h("thead", {},
        h("tr", { class: "group" }, h("td", { colspan: 2 }), h("th", { colspan: 4, scope: "colgroup", class: "n" }, "measured at build"),
          h("th", { colspan: 5, scope: "colgroup", class: "n first" }, "live, last 30 s")),
        h("tr", {}, head("tier", ""), head("state", ""), head(metric), head("latency"), head("speedup"), head("size"),
          head("requests/s", "n first"), head("share"), head("p50"), head("p99"), head("errors"))),
      body);
  }

  #fill(cells, tier, window, all) {
    const coming = tier.renewal ?? tier;
    const progress = coming.progress;
    const word = WORDS[tier.state] ?? tier.state;
    cells.word.className = `state ${tier.state}`;
    const stage = progress ? ` ${Math.round(progress.fraction * 100)} %, ${progress.message || progress.stage}` : "";
    say(cells.word, tier.renewal ? `${word}; its successor is ${tier.renewal.state}${stage}` : `${word}${stage}`);
    cells.bar.hidden = !progress;
    if (progress) cells.bar.firstChild.style.setProperty("--part", progress.fraction);
    say(cells.why, coming.reasons.join("\n"));
    const isDense = tier.tier === "dense";
    say(cells.quality, isDense ? "reference" : quality(tier.quality?.[tier.metric]));
    say(cells.latency, isDense ? milliseconds(this.#dense(tier)) : milliseconds(tier.latency_ms ? tier.latency_ms.tier / 1000 : null));
    say(cells.speedup, isDense ? times(1) : times(tier.speedup));
    say(cells.size, bytes(tier.bytes));
    say(cells.rate, window ? rate(window.rate) : NONE);
    say(cells.share, window && all ? percent(window.count / all, 0) : NONE);
    say(cells.p50, milliseconds(quantile(window, 0.5)));
    say(cells.p99, milliseconds(quantile(window, 0.99)));
    say(cells.errors, window?.count ? percent(window.errors / window.count) : NONE);
  }

  #dense(tier) {
    return tier.measuredDenseSeconds ?? null;
  }
}
