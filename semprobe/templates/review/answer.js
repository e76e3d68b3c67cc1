// The form of a latent: saved as it is typed, every change a row; what other windows wrote is never overwritten unseen.

import {Field, answered} from "./field.js";
import {ask, byId, el, onReviewer, picture, reviewer, say, time} from "./review.js";

const TEXTS = [...document.querySelectorAll("#form textarea")].map((one) => one.id);
const FIELDS = ["verdict", ...TEXTS];
const PICTURES = ["pictures_for", "pictures_against"];
const PONDER = 1000; // ms for a verdict by a click, which may have missed
const PATIENCE = 2000; // ms that leaving waits for an answer, and a form that could not be had before it is asked for again
const HELD = "Enter saves this verdict, and so does going on.";

/** Fills in and saves the form of the latent at `here`; `scored` says of which scores this page is. */
export function follow(here, concept, scored) {
  const picked = {pictures_for: [], pictures_against: []};
  const seen = {}; // id of the last change of each of these that this window knows
  const pickers = []; // buttons on pictures
  let fields = new Map(); // of whoever's answers are in the form
  let whose = ""; // nobody's, until they are there
  let savedAt = ""; // when something was saved last
  let complaint = ""; // of a form that could not be had
  let [asked, told] = [0, 0]; // forms asked for, and the last one that was taken: an older answer comes too late

  const all = () => [...fields.values()];
  const value = (name) => (name === "verdict" ? document.querySelector("[name=verdict]:checked")?.value ?? "" : byId(name).value);
  const fill = (name, text) => {
    if (name === "verdict") document.querySelector(`[name=verdict][value="${text}"]`).checked = true;
    else {
      byId(name).value = text;
      grow(byId(name));
    }
  };
  const form = {here, scored, value, fill, offer, settle, load};

  /** Says where all fields are once nothing is on its way; `at` is when one was saved just now. */
  function settle(at) {
    const refused = all().map((one) => one.refused).findLast(Boolean);
    savedAt = at ?? savedAt;
    if (refused) say(refused, true);
    else if (all().some((one) => one.held && one.dirty)) say(HELD);
    else if (!all().some((one) => one.busy)) say(savedAt && `Saved ${new Date(savedAt).toLocaleTimeString()}`);
  }

  /** Shows a text beside the field's own, to be added or let go; `done` when that is decided. */
  function offer(field, why, text, done = null) {
    const verdict = field.name === "verdict";
    const box = byId(`${field.name}-conflict`);
    const kind = done ? "old" : "new"; // one of each may wait for a decision
    const shown = [...box.children].find((one) => one.className === kind);
    if (shown?.querySelector("blockquote").textContent === (text || "(nothing)")) return; // and may be being clicked
    shown?.remove();
    const decide = (label, then) => {
      const button = el("button", {type: "button", textContent: label});
      button.addEventListener("click", () => {
        made.remove();
        box.hidden = !box.children.length;
        done?.();
        then();
        (verdict ? document.querySelector("[name=verdict]:checked") : byId(field.name))?.focus();
      });
      return button;
    };
    const take = () => {
      fill(field.name, verdict ? text : [field.value, text].filter(Boolean).join("\n"));
      field.changed(0);
    };
    const made = el("div", {className: kind}, el("p", {textContent: why}), el("blockquote", {textContent: text || "(nothing)"}),
      decide(verdict ? "Take that" : "Add it below", take), decide("Keep this", () => {}));
    box.append(made);
    box.hidden = false;
  }

  const flush = () => all().forEach((one) => one.flush());

  // pictures

  async function pick(field, image, on) {
    if (!whose) return;
    try {
      const found = await ask(`answers/${here}`, {by: whose, field, image, picked: on, seen: seen[field] ?? 0, scored});
      settle(found.at);
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
    for (const one of all()) one.close();
    fields = new Map();
    whose = savedAt = "";
    told = asked + 1; // what was asked for until now is of before
    byId("fields").disabled = true;
    for (const name of FIELDS) {
      fill(name, "");
      byId(`${name}-conflict`).hidden = true;
      byId(`${name}-conflict`).replaceChildren();
    }
    for (const name of PICTURES) picked[name] = [];
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
    const before = new Map(all().map((one) => [one.name, one.version]));
    const mine = ++asked;
    try {
      await answered();
      const found = await ask(`answers/${here}?by=${encodeURIComponent(by)}`);
      if (by !== reviewer() || mine < told) return;
      told = mine;
      if (byId("status").textContent === complaint) {
        say("");
        settle();
      }
      if (found.scored !== scored) throw new Error("this study was scored anew; copy what you need and load this page again");
      take(by, found, before);
    } catch (error) {
      say(complaint = error.message, true);
      if (error.down && by === reviewer() && !whose) setTimeout(load, PATIENCE);
    }
  }

  function take(by, found, before) {
    if (whose !== by) {
      for (const name of FIELDS) fill(name, ""); // a browser may have filled them in
      fields = new Map(FIELDS.map((name) => [name, new Field(name, by, form)]));
    }
    whose = by;
    byId("fields").disabled = false;
    for (const one of all()) one.take(found.mine[one.name], found.seen[one.name] ?? 0, before.get(one.name) ?? 0, found.history);
    for (const name of PICTURES) {
      picked[name] = found.mine[name];
      seen[name] = found.seen[name] ?? 0;
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
    const had = document.activeElement.name === "verdict";
    box.hidden = !found;
    for (const radio of document.querySelectorAll("[name=verdict]")) radio.disabled = Boolean(found);
    if (!found) return;
    if (had) box.focus();
    const {best, random} = found.validated;
    const head = ["Place", "Latent", "Was", "F1", "Your verdict"].map((text) => el("th", {textContent: text, attrs: {scope: "col"}}));
    const cells = (row) => [row.place, row.latent, row.best ? "among the best" : "random", row.f1.toFixed(3), row.verdict].map((text) => el("td", {textContent: text}));
    box.replaceChildren(el("p", {textContent: `You validated ${best[0]} of the ${best[1]} best latents and ${random[0]} of ${random[1]} random ones. Blinded verdicts are final now.`}),
      el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...found.rows.map((row) => el("tr", {}, ...cells(row))))));
  }

  // events

  for (const name of TEXTS) {
    byId(name).addEventListener("input", () => {
      grow(byId(name));
      fields.get(name)?.changed();
    });
  }
  const meant = () => fields.get("verdict")?.push();
  let arrow = false; // the last key: arrow keys pass over verdicts that are not meant
  for (const radio of document.querySelectorAll("[name=verdict]")) {
    radio.addEventListener("keydown", (event) => {
      arrow = event.key.startsWith("Arrow");
      if (event.key === "Enter" || event.key === " ") meant();
    });
    radio.closest("label").addEventListener("pointerdown", () => { arrow = false; });
    radio.addEventListener("change", () => {
      if (!arrow) return fields.get("verdict")?.changed(PONDER);
      fields.get("verdict")?.hold();
      return settle();
    });
    radio.addEventListener("blur", (event) => {
      if (event.relatedTarget?.name !== "verdict") meant();
    });
  }
  byId("form").addEventListener("submit", (event) => event.preventDefault());
  onReviewer(change);
  document.addEventListener("visibilitychange", () => (document.hidden ? flush() : load()));
  window.addEventListener("focus", load);
  window.addEventListener("pagehide", flush);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (!link || !all().some((one) => one.busy) || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    leave(link.href);
  });
  async function leave(href) {
    for (const one of all()) one.push();
    await Promise.race([answered(), new Promise((then) => { setTimeout(then, PATIENCE); })]);
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
