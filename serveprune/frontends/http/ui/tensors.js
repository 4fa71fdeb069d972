// Plausible values for what a model takes, and how far two answers differ. Knows nothing of the page.

const SPELT_OUT = 256;
const FLOATS = ["FP32", "FP64"];
const WITHOUT_JSON = ["FP16", "BF16"];

function elements(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

// Sizes that are not fixed: one row, and a short sequence.
export function plausibleShape(shape) {
  return shape.map((size, axis) => (size > 0 ? size : axis === 0 ? 1 : 8));
}

function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

function values(input, count) {
  const next = random(count + input.name.length);
  return Array.from({ length: count }, (_, index) => {
    if (input.datatype === "BYTES") return "a gripping, funny film";
    if (input.datatype === "BOOL") return true;
    if (FLOATS.includes(input.datatype)) return Number((next() * 2 - 1).toFixed(3));
    if (/mask/.test(input.name)) return 1;
    if (/type|segment/.test(input.name)) return 0;
    return 1 + (index % 100);
  });
}

// The inputs of a request as JSON text; long ones by a word that `expand` understands.
export function prefilled(inputs) {
  const lines = inputs.map((input) => {
    const shape = plausibleShape(input.shape);
    const count = elements(shape);
    const data = count <= SPELT_OUT || !FLOATS.includes(input.datatype) ? JSON.stringify(values(input, count)) : '"random"';
    return `  {"name": ${JSON.stringify(input.name)}, "datatype": "${input.datatype}", "shape": ${JSON.stringify(shape)},\n   "data": ${data}}`;
  });
  return `[\n${lines.join(",\n")}\n]`;
}

export function expand(text) {
  let inputs;
  try {
    inputs = JSON.parse(text);
  } catch (error) {
    throw new Error(`expected the inputs as a JSON list: ${error.message}`);
  }
  if (!Array.isArray(inputs)) throw new Error("expected the inputs as a JSON list, got something else");
  return inputs.map((input) => {
    if (WITHOUT_JSON.includes(input?.datatype)) throw new Error(`${input.name}: ${input.datatype} has no form in JSON; ask with a client that sends binary tensors`);
    return input?.data === "random" && Array.isArray(input.shape) ? { ...input, data: values(input, elements(input.shape)) } : input;
  });
}

function numeric(data) {
  return data.every((value) => typeof value === "number");
}

// How far two outputs differ; null where that cannot be said in numbers.
export function difference(one, other) {
  if (JSON.stringify(one.shape) !== JSON.stringify(other.shape)) return null;
  const [a, b] = [one.data.flat(Infinity), other.data.flat(Infinity)];
  if (!a.length || !numeric(a) || !numeric(b)) return a.length ? { identical: JSON.stringify(a) === JSON.stringify(b) } : null;
  let [largest, sum, dot, ofA, ofB] = [0, 0, 0, 0, 0];
  a.forEach((value, index) => {
    const apart = Math.abs(value - b[index]);
    largest = Math.max(largest, apart);
    sum += apart;
    dot += value * b[index];
    ofA += value * value;
    ofB += b[index] * b[index];
  });
  const width = one.shape.at(-1) ?? 1;
  const rows = one.shape.length > 1 && width > 1 ? a.length / width : 0;
  let same = 0;
  for (let row = 0; row < rows; row++) same += best(a, row, width) === best(b, row, width);
  return { largest, mean: sum / a.length, cosine: ofA && ofB ? dot / Math.sqrt(ofA * ofB) : null, rows, same, identical: largest === 0 };
}

function best(data, row, width) {
  let found = 0;
  for (let index = 1; index < width; index++) if (data[row * width + index] > data[row * width + found]) found = index;
  return found;
}

export function median(numbers) {
  const sorted = [...numbers].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
