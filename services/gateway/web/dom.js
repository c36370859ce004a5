// Functions for the document, used by every part of the page.

export const find = (selector, within = document) => within.querySelector(selector);

/** A new element with attributes and children, which are texts or elements. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A table row; the first cell names it. Children are texts or elements. */
export function row(name, ...cells) {
  return make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell)));
}

export const number = (value, digits = 0) =>
  value === null || value === undefined
    ? "–"
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A number with the digits that it has. */
export const exact = (value) => value.toLocaleString("en", { maximumFractionDigits: 6 });

/** The source of a PNG in base64; null without one. */
export const png = (base64) => (base64 ? `data:image/png;base64,${base64}` : null);

/** Removes what `showProblem` showed in `form`. */
export function clearProblems(form, status) {
  status.replaceChildren();
  for (const note of form.querySelectorAll(".problem")) note.remove();
  for (const field of form.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
}

/**
 * Shows an error: beside the invalid fields if the form has them, otherwise below the form. `idOf` returns the id of
 * the element for a field that the gateway named.
 */
export function showProblem(error, form, status, idOf = (field) => field) {
  const rest = [];
  for (const { field, detail } of error.fields?.length ? error.fields : [{ field: "", detail: error.message }]) {
    const input = document.getElementById(idOf(field));
    if (!input || !form.contains(input)) {
      rest.push(detail);
      continue;
    }
    const note = make("p", { class: "problem", id: `${input.id}-problem` }, detail);
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", note.id);
    input.closest("details")?.setAttribute("open", "");
    input.parentElement.append(note);
    input.focus();
  }
  const said = rest.length ? rest.join(" ") : "Not sent: correct the marked field.";
  status.replaceChildren(make("span", { class: "problem" }, said));
}
