// The form of a latent: saved as it is typed, every change a row; what other windows wrote is never overwritten unseen.

import {ask, byId, el, onReviewer, picture, reviewer, say, time} from "./review.js";

const TEXTS = [...document.querySelectorAll("#form textarea")].map((one) => one.id);
const PICTURES = ["pictures_for", "pictures_against"];
const WAIT = 300; // ms after the last key
const AGAIN = 2000; // ms after a failure

/** Fills in and saves the form of the latent at `here`. */
export function follow(here, concept) {
  const seen = {}; // id of the last change of each field that this window knows
  const waiting = new Map(); // timers of fields that are not saved yet
  const picked = {pictures_for: [], pictures_against: []};
  const pickers = []; // buttons on pictures
  let whose = ""; // whose answers are in the form
  let running = Promise.resolve();

  const draft = (field) => `semprobe draft ${location.pathname} ${whose} ${field}`;
  const value = (field) => (field === "verdict" ? document.querySelector("[name=verdict]:checked")?.value ?? "" : byId(field).value);
  const fill = (field, text) => {
    if (field === "verdict") document.querySelector(`[name=verdict][value="${text}"]`).checked = true;
    else byId(field).value = text;
    if (field !== "verdict") grow(byId(field));
  };

  // saving

  function save(field, wait = WAIT) {
    localStorage.setItem(draft(field), value(field));
    clearTimeout(waiting.get(field));
    waiting.set(field, setTimeout(() => send(field), wait));
    say("…");
  }

  function send(field) {
    clearTimeout(waiting.get(field));
    const [by, text, key] = [whose, value(field), draft(field)];
    running = running.then(async () => {
      try {
        const found = await ask(`answers/${here}`, {by, field, value: text, seen: seen[field] ?? 0});
        if (localStorage.getItem(key) === text) localStorage.removeItem(key);
        if (by === whose) saved(field, text, found);
      } catch (error) {
        say(`NOT saved: ${error.message}${error.down ? " Trying again." : ""}`, true);
        if (error.down && by === whose) waiting.set(field, setTimeout(() => send(field), AGAIN));
      }
    });
  }

  function saved(field, text, found) {
    seen[field] = found.id;
    if (value(field) === text) waiting.delete(field);
    const other = found.others.filter((one) => one.value !== text).pop();
    if (other) conflict(field, other);
    if (waiting.size === 0) say(`Saved ${new Date(found.at).toLocaleTimeString()}`);
    if (field === "verdict") load();
  }

  function conflict(field, other) {
    const box = byId(`${field}-conflict`);
    const word = field === "verdict" ? other.value || "none" : other.value;
    const both = el("button", {type: "button", textContent: field === "verdict" ? "Take that" : "Add it below"});
    both.addEventListener("click", () => {
      fill(field, field === "verdict" ? other.value : `${value(field)}\n${other.value}`);
      save(field, 0);
      box.hidden = true;
    });
    const keep = el("button", {type: "button", textContent: "Keep this"});
    keep.addEventListener("click", () => { box.hidden = true; });
    box.replaceChildren(el("p", {textContent: `Another window wrote meanwhile (${time(other.at)}):`}), el("blockquote", {textContent: word}), both, keep);
    box.hidden = false;
  }

  // pictures

  async function pick(field, image, on) {
    if (!whose) return;
    try {
      const found = await ask(`answers/${here}`, {by: whose, field, image, picked: on, seen: seen[field] ?? 0});
      seen[field] = found.id;
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
    for (const field of PICTURES) byId(field).replaceChildren(...picked[field].map((image) => {
      const away = el("button", {type: "button", textContent: "×", attrs: {"aria-label": "Take this picture away"}});
      away.addEventListener("click", () => pick(field, image, false));
      return el("li", {}, el("img", {src: picture(image, 96), alt: "Picked picture"}), away);
    }));
  }

  // reading

  async function load() {
    whose = reviewer();
    byId("nobody").hidden = whose !== "";
    byId("fields").disabled = whose === "";
    if (!whose) return mark();
    const by = whose;
    try {
      const found = await ask(`answers/${here}?by=${encodeURIComponent(by)}`);
      if (by === whose) take(found);
    } catch (error) {
      say(error.message, true);
    }
  }

  function take(found) {
    for (const field of ["verdict", ...TEXTS]) {
      const kept = localStorage.getItem(draft(field)); // typed, and not known to be saved
      if (waiting.has(field)) continue;
      if (kept !== null && kept !== found.mine[field]) {
        if (kept.startsWith(found.mine[field])) seen[field] = found.seen[field] ?? 0;
        fill(field, kept);
        save(field, 0);
        continue;
      }
      localStorage.removeItem(draft(field));
      seen[field] = found.seen[field] ?? 0;
      if (field === "verdict" || value(field) !== found.mine[field]) fill(field, found.mine[field]);
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
    if (!found) return;
    const {best, random} = found.validated;
    const head = ["Place", "Latent", "Was", "F1", "Your verdict"].map((text) => el("th", {textContent: text, attrs: {scope: "col"}}));
    const cells = (row) => [row.place, row.latent, row.best ? "among the best" : "random", row.f1.toFixed(3), row.verdict].map((text) => el("td", {textContent: text}));
    box.replaceChildren(el("p", {textContent: `You validated ${best[0]} of the ${best[1]} best latents and ${random[0]} of ${random[1]} random ones.`}),
      el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...found.rows.map((row) => el("tr", {}, ...cells(row))))));
  }

  // events

  for (const field of TEXTS) byId(field).addEventListener("input", () => { grow(byId(field)); save(field); });
  for (const radio of document.querySelectorAll("[name=verdict]")) radio.addEventListener("change", () => save("verdict", 0));
  byId("form").addEventListener("submit", (event) => event.preventDefault());
  const flush = () => { for (const field of waiting.keys()) send(field); };
  onReviewer(() => { flush(); waiting.clear(); load(); });
  document.addEventListener("visibilitychange", () => (document.hidden ? flush() : load()));
  window.addEventListener("focus", load);
  window.addEventListener("pagehide", flush);
  load();
  return {picks, mark};
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
