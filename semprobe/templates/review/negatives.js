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
let last = null; // what the server told last
let why = ""; // pictures are still missing, though others were asked for
let count = 0; // of verdicts given
let trouble = ""; // what could not be saved since the last verdict

const open = (row) => row.used && row.verdict === "";

function take(found) {
  const here = rows[at]?.path;
  last = found;
  if (!found.missing) why = "";
  byId("missing").hidden = !why;
  byId("missing").textContent = `Pictures that are missing: ${found.missing}. ${why}`;
  rows = found.rows.map((row) => ({...row, ...pending.get(row.path)}));
  byId("criteria").textContent = found.criteria || "No criteria were written down: semprobe negatives --criteria says them.";
  at = rows.findIndex((row) => row.path === here);
  const next = rows.findIndex(open);
  if (next >= 0 && (at < 0 || !byId("finished").hidden)) at = next; // a replacement came after the last one
  if (at < 0 && rows.length) at = 0;
  show();
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
  byId("finished").hidden = used.length === 0 || seen < used.length;
  const row = rows[at];
  byId("large").hidden = !row;
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.disabled = !row;
    button.setAttribute("aria-pressed", String(Boolean(row) && button.dataset.verdict === row.verdict));
  }
  if (done.length === 0 && document.activeElement === byId("undo")) byId("previous").focus();
  byId("undo").disabled = done.length === 0;
  const focused = document.activeElement.closest("#strip button")?.dataset.path;
  byId("strip").replaceChildren(...rows.map(thumbnail));
  if (focused) [...byId("strip").querySelectorAll("button")].find((one) => one.dataset.path === focused)?.focus({preventScroll: true});
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
  button.dataset.path = row.path;
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
function send(path, verdict, was, failed, before = {}) {
  const by = reviewer(); // and not who sits here when its turn comes
  const mine = {verdict, verified_by: verdict && (before.by ?? by), verified_at: before.at ?? ""};
  pending.set(path, mine);
  queue = queue.then(async () => {
    try {
      const found = await ask("verdict", {concept, path, verdict, was, by, ...before});
      if (pending.get(path) === mine) pending.delete(path);
      say(trouble || `Saved: ${WORDS[verdict]}`, trouble !== "");
      take(found);
      if (verdict === "rejected") replace();
    } catch (error) {
      if (pending.get(path) === mine) pending.delete(path);
      failed(error);
      trouble = `NOT saved: ${error.message}`;
      say(trouble, true);
      await reload();
      if (!pending.size) go(rows.findIndex((row) => row.path === path)); // and not while somebody is at another
    }
  });
}

const list = () => ask(`negatives/${encodeURIComponent(concept)}`);
const reload = () => list().then(take, () => take(last));

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
      why = "The pool has no more, or it is not there.";
    } catch (error) {
      why = `No replacement yet: ${error.message}`;
    }
    queue = queue.then(reload); // and not what was found: verdicts may have come since
  }
  replacing = false;
}

function judge(verdict) {
  const row = rows[at];
  if (!row || !named()) return;
  const image = byId("picture");
  if (!image.complete || !image.naturalWidth) return say("The picture is not there yet.", true);
  const given = {...row, gave: verdict, giver: reviewer(), number: count++};
  trouble = "";
  done.push(given);
  send(row.path, verdict, row.verdict, () => {
    given.failed = true;
    if (done.includes(given)) done.splice(done.indexOf(given), 1);
  });
  Object.assign(row, {verdict, verified_by: reviewer(), verified_at: ""});
  const next = [...rows.keys()].map((k) => (at + 1 + k) % rows.length).find((k) => open(rows[k]));
  if (next !== undefined) at = next;
  show();
}

function undo() {
  if (!done.length || !named()) return;
  const given = done.pop();
  trouble = "";
  const {gave, giver, number, ...old} = given;
  const failed = ({down}) => { if (down && !given.failed) done.push(given), done.sort((a, b) => a.number - b.number); };
  at = rows.findIndex((row) => row.path === old.path);
  const before = old.verdict ? {by: old.verified_by || reviewer(), at: old.verified_at, criteria: old.criteria} : {};
  send(old.path, old.verdict, gave, failed, {was_by: giver, ...before});
  Object.assign(rows[at], old);
  show();
}

for (const button of document.querySelectorAll("[data-verdict]")) button.addEventListener("click", () => judge(button.dataset.verdict));
byId("undo").addEventListener("click", undo);
for (const keys of document.querySelectorAll(".keys:not(.small)")) keys.addEventListener("keydown", (event) => { if (event.repeat && event.key === "Enter") event.preventDefault(); }); // held, it counts once
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
list().then((found) => {
  take(found);
  if (found.missing) replace(); // whoever rejected it may have left before that was done
}, (error) => say(error.message, true));
named();
