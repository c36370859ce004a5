// A request as a link to this page: every control that is not at its default, behind the #.

const LEFT_OUT = new Set(["picture", "delivery"]);

const defaultOf = (control) =>
  control instanceof HTMLSelectElement
    ? [...control.options].find((option) => option.defaultSelected)?.value ?? control.options[0].value
    : control.defaultValue;

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
  for (const control of form.elements) {
    if (!control.name || LEFT_OUT.has(control.name)) continue;
    const value = query.get(control.name) ?? defaultOf(control);
    if (control.name === "knowledge" && ![...control.options].some((option) => option.value === value))
      control.add(new Option(value, value)); // a topic that is not listed yet
    control.value = value;
  }
  return true;
}
