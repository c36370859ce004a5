import { useKey } from "./api.js";
import * as asking from "./ask.js";
import { find } from "./dom.js";
import * as teaching from "./teach.js";
import * as traffic from "./traffic.js";

async function start() {
  await teaching.start().catch((error) => {
    find("#teach-status").textContent = error.message;
    if (error.status === 401) find("#key-form").hidden = false;
  });
}

find("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("#key").value);
  location.reload();
});
asking.start();
traffic.start();
start();
