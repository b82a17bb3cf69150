// The service as this page sees it. Addresses are relative, so that the page works below any prefix.

/** An answer that is not a success: RFC 9457 problem+json, or what stands for it where none came. */
export class Problem extends Error {
  constructor({ title, detail, status = 0, requestId = null, retryAfterS = null }) {
    super(detail);
    this.title = title;
    this.status = status;
    this.requestId = requestId;
    this.retryAfterS = retryAfterS;
  }
}

let key = "";

/** Use an API key for what follows. It lives in this variable and nowhere else. */
export function useKey(value) {
  key = value.trim();
}

export function hasKey() {
  return key !== "";
}

async function ask(address, { accept, ...options } = {}) {
  const headers = { ...(accept && { Accept: accept }), ...(key && { "X-API-Key": key }) };
  let response;
  try {
    response = await fetch(address, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The service cannot be reached", detail: "Is it running? The request got no answer." });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const retryAfterS = Number(response.headers.get("Retry-After"));
  throw new Problem({
    title: told.title ?? `The service answered ${response.status}`,
    detail: told.detail ?? response.statusText,
    status: response.status,
    requestId: told.request_id ?? null,
    retryAfterS: retryAfterS > 0 ? retryAfterS : null,
  });
}

export async function listModels() {
  return (await ask("v1/models")).json();
}

export async function describeModel(name) {
  return (await ask(`v1/models/${encodeURIComponent(name)}`)).json();
}

/** What is where in this service: name, version, links. */
export async function index() {
  return (await ask(".", { accept: "application/json" })).json();
}

/** The route that answers for a model and what to ask it for: the same for this page and for the command it shows. */
export function question(card, { topK, boxes }) {
  if (card.task === "classification") return { path: "v1/classify", fields: { model: card.name, top_k: String(topK) } };
  const rounded = JSON.stringify(boxes.map((box) => box.map(Math.round)));
  return { path: "v1/pose", fields: { model: card.name, ...(boxes.length && { boxes: rounded }) } };
}

/** Ask for the answer to a picture; `roundTripMs` is what it took as seen from here. */
export async function predict(card, picture, parameters, signal) {
  const { path, fields } = question(card, parameters);
  const body = new FormData();
  body.append("image", picture, picture.name);
  const begun = performance.now();
  const response = await ask(`${path}?${new URLSearchParams(fields)}`, { method: "POST", body, signal });
  const answer = await response.json();
  return { answer, roundTripMs: performance.now() - begun };
}

/** Resident memory of the service in bytes and its instruction set; null for what its metrics do not tell. */
export async function processFacts() {
  const text = await fetch("metrics", { cache: "no-store" }).then((r) => (r.ok ? r.text() : ""), () => "");
  const resident = /^process_resident_memory_bytes (\S+)/m.exec(text);
  const build = /^signet_build_info\{[^}]*isa="([^"]*)"/m.exec(text);
  return { residentBytes: resident ? Number(resident[1]) : null, isa: build ? build[1] : null };
}
