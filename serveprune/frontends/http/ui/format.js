export const NONE = "–";

function digits(value, most) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? Math.min(1, most) : most);
}

export function milliseconds(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  const ms = seconds * 1000;
  return ms >= 10000 ? `${digits(ms / 1000, 1)} s` : `${digits(ms, 2)} ms`;
}

export function bytes(count) {
  if (count === null || count === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB"];
  let value = count, unit = 0;
  while (value >= 1024 && unit < 3) [value, unit] = [value / 1024, unit + 1];
  return `${unit === 0 ? value : digits(value, 1)} ${units[unit]}`;
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return NONE;
  return perSecond >= 10000 ? `${digits(perSecond / 1000, 1)}k` : digits(perSecond, perSecond === 0 ? 0 : 1);
}

export function percent(share, most = 1) {
  if (share === null || share === undefined || !Number.isFinite(share)) return NONE;
  return `${share === 0 ? "0" : digits(share * 100, most)} %`;
}

export function quality(value) {
  return value === null || value === undefined ? NONE : value.toFixed(4);
}

export function times(ratio) {
  return ratio === null || ratio === undefined ? NONE : `${ratio.toFixed(2)}×`;
}

export function number(value) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toPrecision(4);
}

export function seconds(value) {
  const minutes = Math.floor((value % 3600) / 60);
  if (value >= 3600) return `${Math.floor(value / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
  const rest = Math.floor(value % 60);
  return value >= 60 ? `${Math.floor(value / 60)} min${rest ? ` ${rest} s` : ""}` : `${rest} s`;
}

export function clock(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? String(text) : date.toLocaleString();
}
