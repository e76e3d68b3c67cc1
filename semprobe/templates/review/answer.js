// The form of a latent: saved as it is typed, every change a row; what other windows wrote is never overwritten unseen.

import {ask, byId, draftKey, dropDraft, el, onReviewer, picture, readDraft, reviewer, say, tellDrafts, time, writeDraft} from "./review.js";

const TEXTS = [...document.querySelectorAll("#form textarea")].map((one) => one.id);
const FIELDS = ["verdict", ...TEXTS];
const PICTURES = ["pictures_for", "pictures_against"];
const WAIT = 300; // ms after the last key
const LONGEST = 800; // ms after the first key that is not saved
const PONDER = 1000; // ms for a verdict by a click, which may have missed
const NEVER = 2 ** 31 - 1; // ms: arrow keys pass over verdicts that are not meant, so that theirs is saved when one goes on
const AGAIN = 2000; // ms after a failure

/** Fills in and saves the form of the latent at `here`; `scored` says of which scores this page is. */
export function follow(here, concept, scored) {
  const seen = {}; // id of the last change of each field that this window knows
  const timers = new Map(); // of fields that are not saved yet
  const since = {}; // when the first of a field's unsaved keys was pressed
  const waiting = new Set(); // fields with an old draft that a person has yet to decide on
  const newest = new Map(); // the last send of each field: those before it need not go any more
  const onWay = new Map(); // the send of each field that is with the server now
  const unheard = new Map(FIELDS.map((field) => [field, new Set()])); // texts that were sent and have no answer
  const touched = {}; // how often a field was typed in or saved here
  const picked = {pictures_for: [], pictures_against: []};
  const pickers = []; // buttons on pictures
  let whose = ""; // whose answers are in the form; nobody's until they are there
  let running = Promise.resolve();
  let [asked, told] = [0, 0]; // forms asked for, and the last one that was taken: an older answer comes too late

  const key = (field, by = whose) => draftKey(location.pathname, by, field);
  const value = (field) => (field === "verdict" ? document.querySelector("[name=verdict]:checked")?.value ?? "" : byId(field).value);
  const touch = (field) => { touched[field] = (touched[field] ?? 0) + 1; };
  const fill = (field, text) => {
    if (field === "verdict") document.querySelector(`[name=verdict][value="${text}"]`).checked = true;
    else {
      byId(field).value = text;
      grow(byId(field));
    }
  };

  // saving

  function save(field, wait = WAIT) {
    touch(field);
    if (!waiting.has(field)) writeDraft(key(field), {value: value(field), seen: seen[field] ?? 0, scored});
    since[field] ??= Date.now();
    clearTimeout(timers.get(field));
    const left = wait === WAIT ? Math.max(0, Math.min(wait, since[field] + LONGEST - Date.now())) : wait;
    timers.set(field, setTimeout(() => send(field), left));
    say("…");
  }

  function send(field, before = running) {
    clearTimeout(timers.get(field));
    delete since[field];
    const [by, text] = [whose, value(field)];
    const mine = {text};
    newest.set(field, mine);
    running = before.then(async () => {
      if (newest.get(field) !== mine) return;
      onWay.set(field, mine);
      unheard.get(field).add(text);
      try {
        const found = await ask(`answers/${here}`, {by, field, value: text, seen: seen[field] ?? 0, scored});
        if (readDraft(key(field, by))?.value === text) dropDraft(key(field, by));
        if (by === whose) saved(field, text, found);
      } catch (error) {
        say(`NOT saved (${field.replaceAll("_", " ")}): ${error.message}${error.down ? " Trying again." : ""}`, true);
        if (by === whose) refused(field, text, error.down);
      } finally {
        if (onWay.get(field) === mine) onWay.delete(field);
        tellDrafts();
      }
    });
  }

  /** Tries again what can still succeed; words that can't be saved stay where they are, a verdict does not. */
  function refused(field, text, down) {
    if (value(field) !== text) return; // something newer waits for its own time
    clearTimeout(timers.get(field));
    if (down) return void timers.set(field, setTimeout(() => send(field), AGAIN));
    if (field !== "verdict") return;
    timers.delete(field);
    dropDraft(key(field));
    load();
  }

  function saved(field, text, found) {
    touch(field);
    const other = found.others.filter((one) => one.value !== text && one.id > (seen[field] ?? 0) && !unheard.get(field).has(one.value)).pop();
    seen[field] = Math.max(seen[field] ?? 0, found.id);
    unheard.get(field).delete(text);
    if (value(field) === text) {
      clearTimeout(timers.get(field));
      timers.delete(field);
    }
    if (other) offer(field, `Another window wrote meanwhile (${time(other.at)}):`, other.value);
    if (timers.size === 0) say(`Saved ${new Date(found.at).toLocaleTimeString()}`);
    if (field === "verdict") load();
  }

  /** Shows a text beside the field's own, to be added or let go; `done` when that is decided. */
  function offer(field, why, text, done = () => {}) {
    const box = byId(`${field}-conflict`);
    const decide = (label, then) => {
      const button = el("button", {type: "button", textContent: label});
      button.addEventListener("click", () => {
        box.hidden = true;
        done();
        then();
        (field === "verdict" ? document.querySelector("[name=verdict]:checked") : byId(field))?.focus();
      });
      return button;
    };
    const take = () => (field === "verdict" ? text : [value(field), text].filter(Boolean).join("\n"));
    box.replaceChildren(el("p", {textContent: why}), el("blockquote", {textContent: text || "(nothing)"}),
      decide(field === "verdict" ? "Take that" : "Add it below", () => { fill(field, take()); save(field, 0); }), decide("Keep this", () => {}));
    box.hidden = false;
  }

  const unsent = () => [...timers.keys()].filter((field) => onWay.get(field)?.text !== value(field));
  const flush = () => { for (const field of unsent()) send(field, Promise.resolve()); }; // each at once: the page may be gone

  // pictures

  async function pick(field, image, on) {
    if (!whose) return;
    try {
      const found = await ask(`answers/${here}`, {by: whose, field, image, picked: on, seen: seen[field] ?? 0, scored});
      say(`Saved ${new Date(found.at).toLocaleTimeString()}`);
      await load();
    } catch (error) {
      say(`NOT saved: ${error.message}`, true);
    }
  }

  function picks(image, alt) {
    const buttons = PICTURES.map((field) => {
      const word = field.replace("pictures_", "");
      const button = el("button", {type: "button", textContent: word, attrs: {"aria-pressed": "false", "aria-label": `Evidence ${word}: ${alt}`}});
      button.addEventListener("click", () => pick(field, image, button.getAttribute("aria-pressed") !== "true"));
      pickers.push([button, field, image]);
      return button;
    });
    return el("span", {className: "picks", attrs: {role: "group", "aria-label": "Evidence"}}, ...buttons);
  }

  function mark() {
    for (const [button, field, image] of pickers) {
      button.setAttribute("aria-pressed", String(picked[field].includes(image)));
      button.disabled = !whose;
    }
    for (const field of PICTURES) {
      const had = byId(field).contains(document.activeElement);
      byId(field).replaceChildren(...picked[field].map((image) => {
        const away = el("button", {type: "button", textContent: "×", attrs: {"aria-label": "Take this picture away"}});
        away.addEventListener("click", () => pick(field, image, false));
        return el("li", {}, el("img", {src: picture(image, 96), alt: "Picked picture"}), away);
      }));
      if (had) (byId(field).querySelector("button") ?? byId(field.replace("pictures", "evidence"))).focus();
    }
  }

  // reading

  /** Leaves the form empty and closed until the answers of whoever sits here are there. */
  function change() {
    flush();
    timers.forEach((one) => clearTimeout(one));
    timers.clear();
    waiting.clear();
    whose = "";
    byId("fields").disabled = true;
    for (const field of FIELDS) {
      fill(field, "");
      byId(`${field}-conflict`).hidden = true;
      delete seen[field];
    }
    for (const field of PICTURES) picked[field] = [];
    byId("others").hidden = true;
    byId("unblinded").hidden = true;
    history([]);
    mark();
    say("");
    load();
  }

  async function load() {
    const by = reviewer();
    byId("nobody").hidden = by !== "";
    if (!by) return;
    const before = {...touched};
    const mine = ++asked;
    try {
      await running;
      const found = await ask(`answers/${here}?by=${encodeURIComponent(by)}`);
      if (by !== reviewer() || mine < told) return;
      told = mine;
      if (found.scored !== scored) throw new Error("this study was scored anew; copy what you need and load this page again");
      whose = by;
      byId("fields").disabled = false;
      take(found, before);
    } catch (error) {
      say(error.message, true);
      if (error.down && by === reviewer() && !whose) setTimeout(load, AGAIN);
    }
  }

  function take(found, before) {
    for (const field of FIELDS) {
      if (timers.has(field) || (touched[field] ?? 0) !== (before[field] ?? 0)) continue; // newer here
      seen[field] = found.seen[field] ?? 0;
      fill(field, found.mine[field]);
      const draft = readDraft(key(field));
      if (draft) restore(field, draft, found);
    }
    for (const field of PICTURES) {
      picked[field] = found.mine[field];
      seen[field] = found.seen[field] ?? 0;
    }
    mark();
    others(found);
    history(found.history);
    unblinded(found.unblinded);
  }

  /** Words that were typed and not known to be saved: saved already, to be saved now, or a person has to say. */
  function restore(field, draft, found) {
    const drop = () => {
      dropDraft(key(field));
      waiting.delete(field);
    };
    const mine = found.history.filter((one) => one.field === field && one.reviewer === whose && one.value !== undefined);
    if (draft.value === found.mine[field] || mine.some((one) => one.value === draft.value && one.id > draft.seen)) return drop();
    if (draft.scored === scored && (found.seen[field] ?? 0) <= draft.seen) {
      fill(field, draft.value);
      return save(field, 0);
    }
    const why = draft.scored === scored ? "Typed in this browser, and not known to be saved; there are newer words:" : "Typed in this browser before the study was scored anew, and not known to be saved:";
    waiting.add(field);
    return offer(field, why, draft.value, drop);
  }

  function others({others: all, hidden, agreement}) {
    byId("others").hidden = !all.length && !hidden;
    const words = (one) => [el("h3", {textContent: `${one.reviewer}: ${one.verdict || "no verdict"} (${time(one.at)})`}),
      ...TEXTS.filter((field) => one[field]).map((field) => el("p", {textContent: `${field.replaceAll("_", " ")}: ${one[field]}`}))];
    const kappas = agreement.map((one) => el("p", {textContent: `${one.first} and ${one.second} both judged ${one.judged} for ${concept}; Cohen’s kappa ${one.kappa === null ? "not defined" : one.kappa.toFixed(2)}.`}));
    const text = `${hidden} ${hidden === 1 ? "has" : "have"} answered; what, is shown once you have given a verdict.`;
    byId("others").querySelector("div").replaceChildren(...(hidden ? [el("p", {textContent: text})] : [...all.flatMap(words), ...kappas]));
  }

  function history(changes) {
    const told = ({add, remove, value: text}) => (add ? "picked a picture" : remove ? "took a picture away" : text || "(emptied)");
    const rows = changes.toReversed().map((one) => el("li", {}, el("b", {textContent: `${one.reviewer}, ${time(one.at)}, ${one.field.replaceAll("_", " ")}: `}), told(one)));
    byId("history").querySelector("ol").replaceChildren(...rows);
  }

  function unblinded(found) {
    const box = byId("unblinded");
    box.hidden = !found;
    for (const radio of document.querySelectorAll("[name=verdict]")) radio.disabled = Boolean(found);
    if (!found) return;
    const {best, random} = found.validated;
    const head = ["Place", "Latent", "Was", "F1", "Your verdict"].map((text) => el("th", {textContent: text, attrs: {scope: "col"}}));
    const cells = (row) => [row.place, row.latent, row.best ? "among the best" : "random", row.f1.toFixed(3), row.verdict].map((text) => el("td", {textContent: text}));
    box.replaceChildren(el("p", {textContent: `You validated ${best[0]} of the ${best[1]} best latents and ${random[0]} of ${random[1]} random ones. Blinded verdicts are final now.`}),
      el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...found.rows.map((row) => el("tr", {}, ...cells(row))))));
  }

  // events

  for (const field of TEXTS) byId(field).addEventListener("input", () => { grow(byId(field)); save(field); });
  let arrow = false;
  for (const radio of document.querySelectorAll("[name=verdict]")) {
    radio.addEventListener("keydown", (event) => {
      arrow = event.key.startsWith("Arrow");
      if ((event.key === "Enter" || event.key === " ") && unsent().includes("verdict")) send("verdict");
    });
    radio.closest("label").addEventListener("pointerdown", () => { arrow = false; });
    radio.addEventListener("change", () => {
      save("verdict", arrow ? NEVER : PONDER);
      if (arrow) say("Enter saves this verdict, and so does going on.");
    });
    radio.addEventListener("blur", (event) => {
      if (event.relatedTarget?.name !== "verdict" && unsent().includes("verdict")) send("verdict");
    });
  }
  byId("form").addEventListener("submit", (event) => event.preventDefault());
  onReviewer(change);
  document.addEventListener("visibilitychange", () => (document.hidden ? flush() : load()));
  window.addEventListener("focus", load);
  window.addEventListener("pagehide", flush);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (!link || !timers.size || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    leave(link.href);
  });
  async function leave(href) {
    for (const field of unsent()) send(field);
    await Promise.race([running, new Promise((then) => { setTimeout(then, AGAIN); })]);
    location.href = href;
  }
  byId("fields").disabled = true;
  load();
  return {picks, mark, leave};
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
