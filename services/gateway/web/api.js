// The gateway's REST interface: JSON in and out, problems as exceptions.

const isKey = (text) => /^[!-~]+$/.test(text); // fetch throws for a header with other characters
const kept = sessionStorage.getItem("dekag-key") ?? "";
let key = isKey(kept) ? kept : "";

/** Uses this API key from now on, until the tab is closed; throws a Problem if it cannot be one. */
export function useKey(value) {
  const text = value.replaceAll(/[\s\u200b-\u200d\u2060\ufeff]/g, ""); // which are pasted along
  if (!isKey(text)) {
    const detail = "key must be printable ASCII characters, as dekag key shows them.";
    throw new Problem(0, detail, [{ field: "key", detail }]);
  }
  key = text;
  sessionStorage.setItem("dekag-key", text);
}

/** Whether an API key is in use, which limits the requests of a minute. */
export const hasKey = () => key !== "";

/** An error response of the gateway, with the invalid fields: [{field, allowed, detail}]. */
export class Problem extends Error {
  constructor(status, detail, fields = []) {
    super(detail);
    this.status = status;
    this.fields = fields;
  }
}

/** Returns a successful response; otherwise throws a Problem. */
export async function ask(method, path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The gateway does not respond. Is the system running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Problem(response.status, said.detail ?? `The gateway responded with status ${response.status}.`, said.errors);
}

export async function askJson(method, path, body, signal) {
  return (await ask(method, path, body, signal)).json();
}

/** The object URL of an image fetched with the API key; revoke it when it is no longer shown. */
export async function pictureUrl(path) {
  return URL.createObjectURL(await (await ask("GET", path)).blob());
}

/** Calls `onEvent` with each server-sent event of a response until it ends. EventSource cannot send an API key or a body. */
export async function follow(path, onEvent, { method = "GET", body, signal } = {}) {
  const reader = (await ask(method, path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "The connection to the gateway broke off.");
    });
    if (done) return;
    const events = (text + value).replaceAll("\r\n", "\n").split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
      if (data.length) onEvent(JSON.parse(data.join("\n")));
    }
  }
}

/** The image of a request that streams; `onPreview` gets the events of its previews. */
export async function stream(path, body, signal, onPreview) {
  let image = null;
  await follow(path, (event) => {
    if (event.type === "error") throw new Problem(0, event.error.message);
    if (event.type === "image_generation.completed") image = event;
    else onPreview(event);
  }, { method: "POST", body: { ...body, stream: true, partial_images: 3 }, signal });
  if (!image) throw new Problem(0, "The gateway stopped sending before the image was complete.");
  return image;
}
