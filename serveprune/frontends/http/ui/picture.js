// Two drawings: quality against latency, and requests a second over time.

import { s } from "./dom.js";
import { bytes, milliseconds, quality, times } from "./format.js";

// Where a tier stands in the picture; null for one that was never measured.
export function placed(model) {
  const measured = model.tiers.filter((tier) => tier.latency_ms && tier.metric);
  const denseMs = measured[0]?.latency_ms.dense;
  return model.tiers.map((tier, index) => {
    const isDense = tier.tier === "dense";
    const ms = isDense ? denseMs : tier.latency_ms?.tier;
    const value = isDense ? 1 : tier.quality?.[tier.metric];
    if (!(ms > 0) || typeof value !== "number" || !["ready", "refused"].includes(tier.state)) return null;
    return { name: tier.tier, index, ms, value, bytes: tier.bytes, state: tier.state, isDense, speedup: tier.speedup ?? 1, metric: tier.metric };
  });
}

export function metricOf(model) {
  return model.tiers.find((tier) => tier.metric)?.metric ?? "quality";
}

export function detailOf(dot, metric) {
  const kind = dot.isDense ? "the reference" : `${metric} ${quality(dot.value)}`;
  const refused = dot.state === "refused" ? ", refused by its gate" : "";
  return `${dot.name}: ${kind}, ${milliseconds(dot.ms / 1000)}, ${times(dot.speedup)}, ${bytes(dot.bytes)}${refused}`;
}

export function pareto(model, { width, height, onShow }) {
  const dots = placed(model).filter(Boolean);
  const metric = metricOf(model);
  if (!dots.length) {
    return s("svg", { height, role: "img", "aria-label": "nothing was measured yet" },
      s("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing was measured yet"));
  }
  const box = { left: 52, right: width - 18, top: 24, bottom: height - 44 };
  const worst = Math.min(...dots.map((dot) => dot.value));
  const room = Math.max(1 - worst, 0.002);
  const [low, high] = [worst - room * 0.22, 1 + room * 0.12];
  const [fast, slow] = [Math.min(...dots.map((dot) => dot.ms)) / 1.45, Math.max(...dots.map((dot) => dot.ms)) * 1.45];
  const x = (ms) => box.left + ((box.right - box.left) * Math.log(ms / fast)) / Math.log(slow / fast);
  const y = (value) => box.bottom - ((box.bottom - box.top) * (value - low)) / (high - low);
  const largest = Math.max(...dots.map((dot) => dot.bytes ?? 0)) || 1;
  const radius = (dot) => 5 + 13 * Math.sqrt((dot.bytes ?? 0) / largest);

  const lines = [];
  for (const value of linear(low, Math.min(high, 1), 5)) {
    lines.push(s("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      s("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, trimmed(value)));
  }
  for (const ms of logarithmic(fast, slow, width < 420 ? 4 : 7)) {
    lines.push(s("line", { class: "grid", x1: x(ms), x2: x(ms), y1: box.top, y2: box.bottom }),
      s("text", { x: x(ms), y: box.bottom + 18, "text-anchor": "middle" }, String(ms)));
  }
  lines.push(s("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    s("text", { x: box.right, y: box.bottom + 38, "text-anchor": "end" }, "latency, ms → slower"),
    s("text", { x: box.left, y: 12 }, "↑ nearer to dense"));

  const front = frontOf(dots).map((dot) => `${x(dot.ms).toFixed(1)},${y(dot.value).toFixed(1)}`);
  const taken = dots.map((dot) => around(x(dot.ms), y(dot.value), radius(dot)));
  const groups = [...dots].sort((one, other) => radius(other) - radius(one)).map((dot) => {
    const [cx, cy, r] = [x(dot.ms), y(dot.value), radius(dot)];
    const at = labelPlace(dot, cx, cy, r, taken, box);
    taken.push(at.box);
    const show = () => onShow(dot);
    return s("g", { class: `dot t${dot.index % 8} ${dot.state}`, tabindex: 0, role: "img", "data-tier": dot.name,
      "aria-label": detailOf(dot, metric), onpointerenter: show, onfocus: show, onpointerleave: () => onShow(null), onblur: () => onShow(null) },
      s("circle", { class: "halo", cx, cy, r: r + 6 }),
      s("circle", { class: "body", cx, cy, r }),
      dot.isDense ? s("circle", { class: "ring", cx, cy, r: r + 3 }) : null,
      dot.state === "refused" ? s("path", { d: `M${cx - 4} ${cy - 4}l8 8m0 -8l-8 8` }) : null,
      s("text", { class: "name", x: at.x, y: at.y, "text-anchor": at.anchor }, dot.name));
  });
  return s("svg", { width, height, role: "group", "aria-label": `Quality (${metric}) against latency of ${dots.length} tiers; the table below has the figures` },
    ...lines, s("polyline", { class: "front", points: front.join(" ") }), ...groups);
}

// The tiers that no ready one beats in both.
function frontOf(dots) {
  const ready = dots.filter((dot) => dot.state === "ready");
  const best = ready.filter((dot) => !ready.some((other) => other !== dot && other.ms <= dot.ms && other.value >= dot.value));
  return best.sort((one, other) => one.ms - other.ms);
}

function around(x, y, r) {
  return { left: x - r, right: x + r, top: y - r, bottom: y + r };
}

function labelPlace(dot, cx, cy, r, taken, box) {
  const width = dot.name.length * 7.4;
  const places = [
    { x: cx + r + 7, y: cy + 4, anchor: "start" },
    { x: cx - r - 7, y: cy + 4, anchor: "end" },
    { x: cx, y: cy - r - 8, anchor: "middle" },
    { x: cx, y: cy + r + 16, anchor: "middle" },
  ].map((place) => {
    const left = { start: place.x, end: place.x - width, middle: place.x - width / 2 }[place.anchor];
    return { ...place, box: { left, right: left + width, top: place.y - 11, bottom: place.y + 4 } };
  });
  const isFree = ({ box: mine }) => mine.left >= box.left - 4 && mine.right <= box.right + 16 && mine.top >= 0 &&
    !taken.some((other) => other.left < mine.right && mine.left < other.right && other.top < mine.bottom && mine.top < other.bottom);
  return places.find(isFree) ?? places[2];
}

export function linear(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

function logarithmic(low, high, most) {
  const found = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    for (const each of [1, 2, 5]) {
      const value = Number((each * power).toPrecision(3));
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found.slice(0, Math.max(most, 2));
}

function trimmed(value) {
  return String(Number(value.toFixed(6)));
}

// Lines of requests a second over the last two minutes, one a tier.
export function rates(lines, { width, height, now, span }) {
  const box = { left: 44, right: width - 10, top: 10, bottom: height - 26 };
  const most = Math.max(1, ...lines.flatMap((line) => line.points.map((point) => point.rate)));
  const ticks = linear(0, most * 1.1, 4);
  const top = Math.max(ticks.at(-1), most * 1.05);
  const x = (at) => box.right - ((box.right - box.left) * (now - at)) / span;
  const y = (value) => box.bottom - ((box.bottom - box.top) * value) / top;
  const drawn = ticks.flatMap((value) => [
    s("line", { class: value ? "grid" : "axis", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
    s("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, trimmed(value)),
  ]);
  for (const back of [120, 60, 0]) {
    drawn.push(s("text", { x: x(now - back), y: box.bottom + 18, "text-anchor": { 120: "start", 60: "middle", 0: "end" }[back] },
      back ? `${back} s ago` : "now"));
  }
  for (const line of lines) {
    let path = "";
    for (const point of line.points) {
      if (now - point.at > span) continue;
      path += `${path && !point.gap ? "L" : "M"}${x(point.at).toFixed(1)} ${y(point.rate).toFixed(1)}`;
    }
    if (path) drawn.push(s("path", { class: `rate t${line.index % 8}`, d: path, "data-tier": line.tier }));
  }
  return s("svg", { width, height, role: "img", "aria-label": "Requests a second of each tier over the last two minutes; the table has the figures of now" }, ...drawn);
}
