// A field of the form of a latent: what is known of it, and how its words get to the server.

import {ask, draftKey, dropDraft, readDraft, say, tellDrafts, time, writeDraft} from "./review.js";

const WAIT = 300; // ms after the last key
const LONGEST = 800; // ms after the first key that is not saved
const AGAIN = 2000; // ms after a failure
const WINDOW = `${Date.now()} ${Math.random()}`; // tells this page from others
let sends = 0; // of this page: the server lets none overtake a later one
const running = new Set(); // everything that was sent and has no answer, whoever's it was

/** Until everything that was sent has an answer. */
export async function answered() {
  while (running.size) await Promise.all(running);
}

/**
 * One field as one reviewer fills it in. One text at a time goes to the server, and what is in the form by then goes after it; only a
 * page that may be gone sends at once. `form` is the page's side of it.
 */
export class Field {
  seen = 0; // id of the last change that this window knows
  saved = ""; // its value
  version = 0; // counts what happens here, so that an answer that was asked for earlier overwrites nothing
  refused = ""; // why the words that are here can't be saved
  held = false; // a verdict that arrow keys came by, which may not be meant
  #old = null; // a draft on which a person has yet to decide
  #timer = null;
  #since = null; // when the first key was pressed that is not saved
  #ways = []; // texts that are with the server now, in the order in which they went
  #unheard = new Set(); // texts that were sent and had no answer
  #unsure = false; // one of them went last, so that the server may have it
  #closed = false;

  constructor(name, by, form) {
    Object.assign(this, {name, by, form, key: draftKey(location.pathname, by, name)});
  }

  get value() { return this.form.value(this.name); }
  get dirty() { return this.#ways.length ? this.value !== this.#ways.at(-1).text : this.#unsure || this.value !== this.saved; }
  get busy() { return this.dirty || this.#ways.length > 0; }

  /** Saves what was changed here after a while. */
  changed(wait = WAIT) {
    this.#touch(false);
    this.#since ??= Date.now();
    this.#after(wait === WAIT ? Math.max(0, Math.min(wait, this.#since + LONGEST - Date.now())) : wait);
    say("…");
  }

  /** Keeps what was changed here until somebody goes on. */
  hold() {
    this.#touch(true);
  }

  #touch(held) {
    this.version += 1;
    this.refused = "";
    this.held = held;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#keep();
  }

  /** Saves it now; what is on its way already looks again when it is answered. */
  push() {
    const waited = this.#timer !== null;
    clearTimeout(this.#timer);
    this.#timer = this.#since = null;
    this.held = false;
    if (this.dirty && !this.#ways.length) this.#send();
    else if (waited) this.form.settle(); // what was changed may be what was there
  }

  /** Sends what has not gone yet, beside what is on its way: the page may be gone before that is answered. */
  flush() {
    if (this.dirty && !this.refused) this.#send();
  }

  /** The form is for somebody else now. */
  close() {
    this.flush();
    clearTimeout(this.#timer);
    this.#closed = true;
  }

  /** Takes what the server has, unless something newer is here; and what this browser kept that the server may not have. */
  take(value, seen, version, history) {
    if (this.busy || this.version !== version) return;
    this.form.fill(this.name, value);
    [this.saved, this.seen] = [this.value, seen]; // a form has other ends of lines than a file may have
    const draft = readDraft(this.key);
    if (draft) this.#restore(draft, history.filter((one) => one.field === this.name && one.reviewer === this.by));
  }

  #restore({old = null, ...draft}, history) {
    const {name, form} = this;
    const known = (one) => one.value === this.saved || history.some((change) => change.value === one.value && change.id > one.seen);
    const lost = [old, draft].filter((one) => one && !known(one));
    const newest = lost.includes(draft) && draft.scored === form.scored && this.seen <= draft.seen;
    if (newest) lost.pop();
    if (lost.length === 2 && name !== "verdict") lost.push({...draft, value: `${old.value}\n${draft.value}`});
    this.#old = lost.pop() ?? null;
    if (newest) {
      form.fill(name, draft.value);
      this.changed(0);
    } else this.#keep();
    if (!this.#old) return;
    const when = this.#old.scored === form.scored ? ", and not known to be saved; there are newer words:" : " before the study was scored anew, and not known to be saved:";
    form.offer(this, `Typed in this browser${when}`, this.#old.value, () => {
      this.#old = null;
      this.#keep();
    });
  }

  /** A second copy of what is not saved, for a window that dies. */
  #keep(busy = this.busy) {
    if (busy) writeDraft(this.key, {value: this.value, seen: this.seen, scored: this.form.scored, ...(this.#old && {old: this.#old})});
    else if (this.#old) writeDraft(this.key, this.#old);
    else dropDraft(this.key);
  }

  #after(wait) {
    this.#timer = setTimeout(() => this.push(), wait);
  }

  #send() {
    const sent = this.#put(this.value).finally(() => running.delete(sent));
    running.add(sent);
  }

  async #put(text) {
    const {name, by, form} = this;
    const way = {text};
    this.#ways.push(way);
    this.#unheard.add(text);
    try {
      const known = {by, field: name, value: text, seen: this.seen, scored: form.scored};
      const found = await ask(`answers/${form.here}`, {...known, window: WINDOW, order: ++sends});
      this.#ways.splice(0, this.#ways.indexOf(way) + 1); // those before it come too late
      this.#took(text, found);
    } catch (error) {
      this.#ways = this.#ways.filter((one) => one !== way);
      this.#failed(text, error);
    }
    tellDrafts();
    if (!this.#closed && !this.held && !this.refused && this.#timer === null) this.push();
  }

  #took(text, found) {
    this.#unheard.delete(text);
    if (this.#closed) {
      if (readDraft(this.key)?.value === text) this.#keep(false);
      return;
    }
    this.version += 1;
    const other = found.others.findLast((one) => one.value !== text && one.id > this.seen && !this.#unheard.has(one.value));
    if (found.id > this.seen) [this.seen, this.saved, this.#unsure] = [found.id, text, false]; // else something newer is there
    this.#keep();
    if (other) this.form.offer(this, `Another window wrote meanwhile (${time(other.at)}):`, other.value);
    this.form.settle(found.at);
    if (this.name === "verdict") this.form.load();
  }

  /** Tries again what can still succeed; words that can't be saved stay where they are, a verdict does not. */
  #failed(text, error) {
    if (error.heard) this.#unheard.delete(text);
    else this.#unsure = true;
    const why = `NOT saved (${this.name.replaceAll("_", " ")}): ${error.message}`;
    const again = error.down && !this.#closed;
    say(again && !this.held ? `${why} Trying again.` : why, true);
    if (this.#closed) return; // its draft stays
    if (again && !this.held && this.#timer === null) this.#after(AGAIN);
    if (again) return;
    if (this.value !== text) {
      this.form.settle();
      return;
    }
    if (this.name !== "verdict") {
      this.refused = why;
      return;
    }
    this.form.fill(this.name, this.saved);
    this.#keep();
    this.form.load();
  }
}
