// What the page asks the service. A refusal is an Error with the service's own sentence and its status.

let token = sessionStorage.getItem("kronos-token");

export function remember(value) {
  token = value;
  sessionStorage.setItem("kronos-token", value);
}

export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export class Unreachable extends Error {}

const PATIENCE_MS = 90_000;

export async function ask(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value != null);
  const address = given.length ? `${path}?${new URLSearchParams(given)}` : path;
  let response;
  try {
    response = await fetch(address, {
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
  } catch (error) {
    throw new Unreachable(error.name === "TimeoutError" ? "It took too long to answer." : "It does not answer.");
  }
  const text = await response.text();
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Refusal(response.status, `Something else answered (${response.status}).`);
  }
  if (!response.ok && path !== "/health") throw new Refusal(response.status, body.error ?? `Status ${response.status}.`);
  return body;
}
