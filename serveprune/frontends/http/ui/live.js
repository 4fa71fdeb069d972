// Rates and percentiles from what was counted at two looks. Knows nothing of the page.

export const WINDOW_SECONDS = 30;
export const KEPT_SECONDS = 120;

export function keyOf(each) {
  return `${each.model}\u0000${each.version}\u0000${each.tier}`;
}

export class History {
  #looks = [];

  // Takes what the server counted so far.
  add(live) {
    const last = this.#looks.at(-1);
    if (last && live.seconds < last.seconds) this.#looks = []; // another machine, or one that was started again
    if (last && live.seconds === last.seconds) return;
    const tiers = new Map(live.tiers.map((tier) => [keyOf(tier), tier]));
    // Counters never fall; a server that is another one begins anew.
    if (last && [...last.tiers].some(([key, tier]) => answered(tiers.get(key)) < answered(tier))) this.#looks = [];
    this.#looks.push({ seconds: live.seconds, bounds: live.bounds, tiers });
    while (this.#looks[0].seconds < live.seconds - KEPT_SECONDS - 5) this.#looks.shift();
  }

  get length() { return this.#looks.length; }

  // What a tier did in the last half minute, or as long as the page has looked.
  recent(key) {
    const now = this.#looks.at(-1);
    const before = this.#looks.find((look) => look.seconds >= now.seconds - WINDOW_SECONDS);
    if (!now || before === now) return null;
    return between(before, now, key);
  }

  // Moments of the last two minutes, each with what was answered a second since the one before.
  rates(key) {
    const points = [];
    for (let index = 1; index < this.#looks.length; index++) {
      const [one, other] = [this.#looks[index - 1], this.#looks[index]];
      points.push({ at: other.seconds, rate: between(one, other, key).rate, gap: other.seconds - one.seconds > 10 });
    }
    return points;
  }

  get now() { return this.#looks.at(-1)?.seconds ?? 0; }
}

function answered(tier) {
  return tier ? Object.values(tier.codes).reduce((sum, count) => sum + count, 0) : 0;
}

function between(before, now, key) {
  const [one, other] = [before.tiers.get(key), now.tiers.get(key)];
  const took = now.seconds - before.seconds;
  const count = answered(other) - answered(one);
  const good = (other?.codes.OK ?? 0) - (one?.codes.OK ?? 0);
  const reasons = {};
  for (const [reason, total] of Object.entries(other?.reasons ?? {})) {
    const more = total - (one?.reasons[reason] ?? 0);
    if (more > 0) reasons[reason] = more;
  }
  const buckets = difference(one?.buckets, other?.buckets);
  return { rate: count / took, count, errors: count - good, reasons, buckets, bounds: now.bounds };
}

function difference(one, other) {
  return (other ?? []).map((count, index) => count - (one?.[index] ?? 0));
}

export function added(windows) {
  const present = windows.filter(Boolean);
  if (!present.length) return null;
  const sum = { rate: 0, count: 0, errors: 0, buckets: [], bounds: present[0].bounds };
  for (const each of present) {
    for (const word of ["rate", "count", "errors"]) sum[word] += each[word];
    each.buckets.forEach((count, index) => (sum.buckets[index] = (sum.buckets[index] ?? 0) + count));
  }
  return sum;
}

// Seconds below which this share of the requests took, as Prometheus' histogram_quantile has it.
export function quantile(window, share) {
  const total = window?.buckets.at(-1) ?? 0;
  if (!total) return null;
  const rank = share * total;
  const index = window.buckets.findIndex((count) => count >= rank);
  if (index >= window.bounds.length) return window.bounds.at(-1);
  const [low, below] = index ? [window.bounds[index - 1], window.buckets[index - 1]] : [0, 0];
  const inside = window.buckets[index] - below;
  return inside ? low + ((window.bounds[index] - low) * (rank - below)) / inside : window.bounds[index];
}
