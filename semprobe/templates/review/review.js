// What every page has: the reviewer's name, requests, the line that says what was saved.

const body = document.body;
export const root = body.dataset.root;
export const byId = (id) => document.getElementById(id);
const who = byId("reviewer");
const status = byId("status");
const NAME = "semprobe reviewer";

who.value = localStorage.getItem(NAME) || body.dataset.by;
who.addEventListener("change", () => localStorage.setItem(NAME, reviewer()));

export const reviewer = () => who.value.trim();

/** Asks for a name where there is none yet. */
export function named() {
  if (reviewer()) return true;
  say("Say who you are first.", true);
  who.focus();
  return false;
}

export function onReviewer(then) {
  who.addEventListener("change", then);
}

export function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

/** An answer of the server, or an Error with its words; `down` where it did not answer. */
export async function ask(path, value) {
  let answer;
  try {
    answer = await fetch(root + "api/" + path, value === undefined ? {} : {
      method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(value), keepalive: JSON.stringify(value).length < 60000,
    });
  } catch {
    throw Object.assign(new Error("semprobe review does not answer; is it still running?"), {down: true});
  }
  const found = await answer.json().catch(() => ({error: `the server answered ${answer.status}`}));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

/** An element with properties, attributes (as `attrs`) and children; text is only ever text. */
export function el(tag, {attrs = {}, ...properties} = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attrs)) made.setAttribute(name, value);
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

export const picture = (path, edge) => `${root}picture/${encodeURIComponent(path.split("/").pop())}?edge=${edge}`;

/** Runs a function by key, unless somebody is typing. */
export function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox], [type=radio], [type=range]), textarea, dialog");
    const adjusts = event.key.startsWith("Arrow") && event.target.closest("input");
    const run = keys[event.key];
    if (!run || typing || adjusts || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    run();
  });
}

export const time = (at) => new Date(at).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
