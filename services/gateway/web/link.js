// A request in the form: as a link to this page, and as it was written into a file.

const LEFT_OUT = new Set(["picture", "delivery"]);
// what the page asks for in its own way
const OWN = new Set(["delivery", "output_format", "output_compression"]);

/** The value of a control as the page opens. */
export const defaultOf = (control) =>
  control instanceof HTMLSelectElement
    ? [...control.options].find((option) => option.defaultSelected)?.value ?? control.options[0].value
    : control.defaultValue;

/** Sets a control; a topic that is not listed yet becomes an option, and a slider may stand between its steps. */
function set(control, value) {
  if (control.name === "knowledge" && ![...control.options].some((option) => option.value === value))
    control.add(new Option(value, value));
  if (control.name === "snr_db") control.step = Number.isInteger(Number(value)) ? "1" : "any";
  control.value = value;
}

/** The link of what `form` asks for. The prompt is always part of it, so that it differs from links within the page. */
export function linkOf(form) {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form))
    if (!LEFT_OUT.has(name) && (name === "prompt" || value !== defaultOf(form.elements[name]))) query.set(name, value);
  return `#${query}`;
}

/** Sets the controls of `form` as a link says; whether it is the link of a request. */
export function readLink(form, hash) {
  const query = new URLSearchParams(hash.slice(1));
  if (!query.has("prompt")) return false;
  for (const control of form.elements)
    if (control.name && !LEFT_OUT.has(control.name)) set(control, query.get(control.name) ?? defaultOf(control));
  return true;
}

/** Sets the controls of `form` to a request as REST takes it, as far as there are controls for it. */
export function setRequest(form, { link = {}, ...request }, rates) {
  const values = { ...request, ...link, knowledge: [request.knowledge ?? "auto"].flat()[0] };
  for (const control of form.elements) {
    if (!control.name || LEFT_OUT.has(control.name)) continue;
    const value = values[control.name] ?? defaultOf(control);
    set(control, value === Number(defaultOf(control)) ? defaultOf(control) : String(value));
  }
  const nearest = rates.map((rate) => Math.abs(rate - link.cbr));
  const rate = link.cbr === "auto" ? rates.indexOf("auto") : nearest.indexOf(Math.min(...nearest.filter(Number.isFinite)));
  if (rate >= 0) form.rate.value = rate;
  for (const box of form.querySelectorAll("[name=delivery]")) if (box.value === (request.delivery ?? "semantic")) box.checked = true;
}

const same = (one, other) => JSON.stringify([one].flat()) === JSON.stringify([other].flat()); // a topic is a list of one

/**
 * What of a request `body` lacks, so that both together ask for the same: {link, ...}. The gateway's defaults are not
 * needed; `schemas` are those of its OpenAPI document.
 */
export function lacking({ link = {}, ...request }, body, { ImagesRequest, LinkRequest }) {
  const rest = (wanted, there, { properties }) =>
    Object.fromEntries(Object.entries(wanted).filter(([name, value]) =>
      !OWN.has(name) && !same(there[name] ?? properties[name]?.default, value)));
  const found = rest(request, body, ImagesRequest);
  const more = rest(link, body.link, LinkRequest);
  return { ...found, ...(Object.keys(more).length ? { link: more } : {}) };
}
