// What the page asks the server. Tokens live in this tab only, and go nowhere but to this origin.

const CLIENT = "serveprune.token";
const OPERATOR = "serveprune.operator-token";
const WHO = "serveprune.operator";
const PATIENCE_MS = 15000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const tokens = {
  get client() { return sessionStorage.getItem(CLIENT); },
  set client(value) { keep(CLIENT, value); },
  get operator() { return sessionStorage.getItem(OPERATOR); },
  set operator(value) { keep(OPERATOR, value); },
  get who() { return sessionStorage.getItem(WHO) ?? ""; },
  set who(value) { keep(WHO, value); },
};

function keep(name, value) {
  if (value) sessionStorage.setItem(name, value);
  else sessionStorage.removeItem(name);
}

async function ask(path, token, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
  const text = await answer.text();
  let document = null;
  try {
    document = JSON.parse(text);
  } catch { /* what is no JSON is told as it is */ }
  if (!answer.ok) throw new Refused(answer.status, document?.error ?? `HTTP ${answer.status}: ${text.slice(0, 300)}`);
  return { document, answer };
}

export async function state() {
  // A server that has taken the question and hangs must not pass for one that answers.
  return (await ask("state", tokens.client, { signal: AbortSignal.timeout(PATIENCE_MS) })).document;
}

export async function operate(path, { token = tokens.operator, body = null } = {}) {
  const options = body === null ? {} : { method: "POST", body: JSON.stringify(body) };
  return (await ask(`admin/${path}`, token, options)).document;
}

// Returns what a tier answers, and how long that took as this browser sees it.
export async function infer(model, version, tier, { body, headers }) {
  const path = `../v2/models/${encodeURIComponent(model)}/versions/${encodeURIComponent(version)}/infer`;
  const asked = tier ? { "x-compression-tier": tier } : {};
  const begun = performance.now();
  const { document } = await ask(path, tokens.client, { method: "POST", body, headers: { ...headers, ...asked } });
  const took = (performance.now() - begun) / 1000;
  return { outputs: document.outputs ?? [], tier: document.parameters?.tier ?? "", reason: document.parameters?.tier_reason ?? "", seconds: took };
}
