// The desk of negatives: one picture at a time.

import {ask, byId, el, named, onKeys, picture, reviewer, say} from "./review.js";

const concept = document.body.dataset.concept;
const MARKS = {accepted: "✓", rejected: "✗", unsure: "?", "": "·"};
const WORDS = {accepted: "accepted", rejected: "rejected", unsure: "unsure", "": "not looked at"};
const done = []; // verdicts of this page that can be undone: picture, and what it had before
const pending = new Map(); // verdicts on their way
let rows = [];
let at = -1;
let queue = Promise.resolve();
let replacing = false;
let again = false;

const open = (row) => row.used && row.verdict === "";

function take(found) {
  const here = rows[at]?.path;
  rows = found.rows.map((row) => (pending.has(row.path) ? {...row, verdict: pending.get(row.path)} : row));
  byId("criteria").textContent = found.criteria || "No criteria were written down: semprobe negatives --criteria says them.";
  at = rows.findIndex((row) => row.path === here);
  const next = rows.findIndex(open);
  if (next >= 0 && (at < 0 || !byId("finished").hidden)) at = next; // a replacement came after the last one
  if (at < 0 && rows.length) at = 0;
  show();
}

function lack({missing}) {
  if (missing) note(`Pictures that are missing: ${missing}. The pool has no more, or it is not there.`);
}

function note(text) {
  if ([...byId("notes").children].every((one) => one.textContent !== text)) byId("notes").append(el("li", {textContent: text}));
}

function show() {
  const used = rows.filter((row) => row.used);
  const seen = used.filter((row) => row.verdict !== "").length;
  const rejected = rows.filter((row) => row.verdict === "rejected").length;
  Object.assign(byId("done"), {value: seen, max: Math.max(1, used.length)});
  byId("progress").textContent = `${seen} of ${used.length} looked at; ${rejected} rejected`;
  byId("finished").hidden = used.some((row) => row.verdict === "");
  const row = rows[at];
  byId("large").hidden = !row;
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.disabled = !row;
    button.setAttribute("aria-pressed", String(Boolean(row) && button.dataset.verdict === row.verdict));
  }
  byId("undo").disabled = done.length === 0;
  const had = byId("strip").contains(document.activeElement);
  byId("strip").replaceChildren(...rows.map(thumbnail));
  if (had) byId("strip").querySelector("[aria-current]")?.focus({preventScroll: true});
  if (!row) return;
  const name = row.url.split("/").pop() || "picture";
  const image = byId("picture");
  if (image.dataset.path !== row.path) {
    image.src = picture(row.path, 1200);
    image.dataset.path = row.path;
  }
  image.alt = `Picture ${at + 1} of ${rows.length}: ${name}`;
  const by = row.verdict ? ` ${WORDS[row.verdict]}${row.verified_by ? ` by ${row.verified_by}` : ""}.` : "";
  byId("about").textContent = `${at + 1} of ${rows.length}: ${name}, from ${row.source || "an unknown source"}.${by}`
    + (row.used || row.verdict === "rejected" ? "" : " Spare: not used, since enough others are.");
  const [strip, here] = [byId("strip"), byId("strip").children[at]];
  strip.scrollTop = here.offsetTop - strip.offsetTop - strip.clientHeight / 2 + here.clientHeight / 2; // and not the page
  const following = rows[(at + 1) % rows.length];
  new Image().src = picture(following.path, 1200);
}

function thumbnail(row, place) {
  const label = `Picture ${place + 1}: ${WORDS[row.verdict]}${row.used || row.verdict === "rejected" ? "" : ", spare"}`;
  const button = el("button", {type: "button", className: row.verdict || "unseen", attrs: {"aria-label": label}},
    el("img", {src: picture(row.path, 96), alt: "", loading: "lazy", width: 72, height: 72}),
    el("span", {textContent: MARKS[row.verdict], attrs: {"aria-hidden": "true"}}));
  if (place === at) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => go(place));
  return el("li", {}, button);
}

function go(place) {
  if (!rows.length) return;
  at = (place + rows.length) % rows.length;
  show();
}

/** Saves a verdict: `was` is what this window knows of the picture, `before` who gave an undone one, when and by what. */
function send(path, verdict, was, before = {}) {
  pending.set(path, verdict);
  queue = queue.then(async () => {
    try {
      const found = await ask("verdict", {concept, path, verdict, was, by: reviewer(), ...before});
      if (pending.get(path) === verdict) pending.delete(path);
      say(`Saved: ${WORDS[verdict]}`);
      take(found);
      if (verdict === "rejected") replace();
    } catch (error) {
      pending.delete(path);
      const undone = done.findLastIndex((one) => one.path === path && one.gave === verdict);
      if (undone >= 0) done.splice(undone, 1);
      say(`NOT saved: ${error.message}`, true);
      await reload();
      go(rows.findIndex((row) => row.path === path));
    }
  });
}

const reload = () => ask(`negatives/${encodeURIComponent(concept)}`).then(take, () => {});

/** Has rejected pictures replaced, while people go on; once more if another was rejected meanwhile. */
async function replace() {
  again = true;
  if (replacing) return;
  replacing = true;
  while (again) {
    again = false;
    try {
      const found = await ask("replace", {concept});
      found.notes.forEach(note);
      lack(found);
      queue = queue.then(reload); // and not what was found: verdicts may have come since
    } catch (error) {
      note(`No replacement yet: ${error.message}`);
    }
  }
  replacing = false;
}

function judge(verdict) {
  const row = rows[at];
  if (!row || !named()) return;
  const image = byId("picture");
  if (!image.complete || !image.naturalWidth) return say("The picture is not there yet.", true);
  done.push({...row, gave: verdict});
  send(row.path, verdict, row.verdict);
  Object.assign(row, {verdict, verified_by: reviewer(), verified_at: ""});
  const next = [...rows.keys()].map((k) => (at + 1 + k) % rows.length).find((k) => open(rows[k]));
  if (next !== undefined) at = next;
  show();
}

function undo() {
  if (!done.length || !named()) return;
  const {gave, ...last} = done.pop();
  at = rows.findIndex((row) => row.path === last.path);
  const before = last.verdict ? {by: last.verified_by || reviewer(), at: last.verified_at, criteria: last.criteria} : {};
  send(last.path, last.verdict, gave, before);
  Object.assign(rows[at], last);
  show();
}

for (const button of document.querySelectorAll("[data-verdict]")) button.addEventListener("click", () => judge(button.dataset.verdict));
byId("undo").addEventListener("click", undo);
byId("picture").addEventListener("error", async () => {
  const [image, path] = [byId("picture"), rows[at]?.path];
  if (!path || image.dataset.path !== path) return;
  const told = await fetch(image.src).then((answer) => (answer.ok ? "the browser can't show it" : answer.text()), () => "semprobe review does not answer");
  say(`This picture can't be shown: ${told.trim()}`, true);
  delete image.dataset.path; // to be tried again
});
byId("previous").addEventListener("click", () => go(at - 1));
byId("next").addEventListener("click", () => go(at + 1));
onKeys({
  j: () => judge("accepted"), k: () => judge("rejected"), u: () => judge("unsure"), z: undo,
  ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1),
});

window.addEventListener("beforeunload", (event) => { if (pending.size) event.preventDefault(); });
ask(`negatives/${encodeURIComponent(concept)}`).then((found) => { lack(found); take(found); }, (error) => say(error.message, true));
named();
