import { hasKey, useKey } from "./api.js";
import * as asking from "./ask.js";
import { clearProblems, find, showProblem } from "./dom.js";
import * as full from "./full.js";
import * as gallery from "./gallery.js";
import * as path from "./path.js";
import * as stage from "./stage.js";
import * as teaching from "./teach.js";
import * as theme from "./theme.js";
import * as traffic from "./traffic.js";

async function start() {
  try {
    await Promise.all([teaching.readProfile(), teaching.start()]); // first: a profile may have other prompts
  } catch (error) {
    find("#teach-status").textContent = error.message;
    if (error.status === 401) {
      find("#key-form").hidden = false;
      return;
    }
  }
  await asking.open();
}

find("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const [form, status] = [find("#key-form"), find("#key-status")];
  clearProblems(form, status);
  try {
    useKey(find("#key").value);
  } catch (error) {
    return showProblem(error, form, status);
  }
  location.reload();
});
find("#menu").addEventListener("click", ({ currentTarget }) => currentTarget.hidePopover?.());
if (hasKey()) find("#curve-on").checked = false; // its requests are more than a key may send in a minute
for (const part of [theme, stage, full, path, gallery, asking, traffic]) part.start();
start();
