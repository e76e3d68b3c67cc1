// What every page has: the reviewer's name, requests, drafts, the line that says what was saved.

const body = document.body;
export const root = body.dataset.root;
export const byId = (id) => document.getElementById(id);
const who = byId("reviewer");
const status = byId("status");
const NAME = "semprobe reviewer";
const DRAFT = "semprobe draft ";

/** The browser's storage, which may be full or forbidden: what is kept there is only a second copy. */
function storage(kind) {
  try {
    return window[kind];
  } catch {
    return {getItem: () => null, setItem() {}, removeItem() {}};
  }
}

const [session, local] = [storage("sessionStorage"), storage("localStorage")];

function keep(where, name, value) {
  try {
    where.setItem(name, value);
  } catch {
    // the server has it, or the status says that it was not saved
  }
}

// the name: a window's own first, so that two people can share a browser

who.value = session.getItem(NAME) || local.getItem(NAME) || body.dataset.by;
let name = who.value.trim();
who.addEventListener("change", () => {
  name = who.value.trim();
  keep(session, NAME, name);
  keep(local, NAME, name);
});

window.addEventListener("focus", () => { if (name) keep(local, NAME, name); }); // a tab that is opened from here is for the same person

/** Who sits here; a name that is still being typed does not count. */
export const reviewer = () => name;

/** Asks for a name where there is none yet. */
export function named() {
  if (name) return true;
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

// drafts: words that are not known to be saved

export const draftKey = (path, by, field) => DRAFT + JSON.stringify([path, by, field]);

export function readDraft(key) {
  try {
    return JSON.parse(local.getItem(key));
  } catch {
    return null;
  }
}

export const writeDraft = (key, value) => keep(local, key, JSON.stringify(value));

export const dropDraft = (key) => local.removeItem(key);

/** Says on every page where unsaved words are waiting: of other latents, or of somebody else. */
export function tellDrafts() {
  const found = Object.keys(local).filter((key) => key.startsWith(DRAFT))
    .map((key) => JSON.parse(key.slice(DRAFT.length)))
    .filter(([path, by]) => path !== location.pathname || by !== name);
  byId("unsaved").hidden = found.length === 0;
  byId("unsaved").replaceChildren(...found.map(([path, by, field]) => {
    const place = decodeURIComponent(path.split("/").slice(-2).join(", "));
    return el("p", {}, `Words of ${by} may not be saved yet (${field.replaceAll("_", " ")}): `, el("a", {href: path, textContent: place}));
  }));
}

// requests

/** An answer of the server, or an Error with its words; `down` where it may answer later, `heard` where it did answer. */
export async function ask(path, value) {
  const text = value === undefined ? null : JSON.stringify(value);
  let answer;
  try {
    answer = await fetch(root + "api/" + path, text === null ? {} : {
      method: "POST", headers: {"content-type": "application/json"}, body: text, keepalive: new Blob([text]).size < 60000,
    });
  } catch {
    throw Object.assign(new Error("semprobe review does not answer; is it still running?"), {down: true});
  }
  const found = await answer.json().catch(() => (answer.ok ? null : {error: `the server answered ${answer.status}`}));
  if (!found) throw Object.assign(new Error("semprobe review broke off its answer; is it still running?"), {down: true});
  if (!answer.ok) throw Object.assign(new Error(found.error), {down: answer.status === 503, heard: true});
  return found;
}

/** An element with properties, attributes (as `attrs`) and children; text is only ever text. */
export function el(tag, {attrs = {}, ...properties} = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [key, value] of Object.entries(attrs)) made.setAttribute(key, value);
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

export const picture = (path, edge) => `${root}picture/${encodeURIComponent(path.split("/").pop())}?edge=${edge}`;

/** Runs a function by key, unless somebody is typing; a key that is held counts once, but for arrows. */
export function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox], [type=radio], [type=range]), textarea, dialog");
    const arrow = event.key.startsWith("Arrow");
    const run = keys[event.key];
    if (!run || typing || event.ctrlKey || event.metaKey || event.altKey || (arrow && event.target.closest("input"))) return;
    event.preventDefault();
    if (!event.repeat || arrow) run();
  });
}

export const time = (at) => new Date(at).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});

onReviewer(tellDrafts);
window.addEventListener("storage", () => { if (!byId("unsaved").hidden) tellDrafts(); }); // another window has saved them
tellDrafts();
