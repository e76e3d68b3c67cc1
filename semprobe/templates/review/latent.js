// The desk of latents: where one fires, and the form.

import {follow} from "./answer.js";
import {paint, patchAt} from "./heat.js";
import {ask, byId, el, onKeys, picture as address, root, say} from "./review.js";

const {concept, which, place, scored} = document.body.dataset;
const blinded = place !== "0";
const here = `${encodeURIComponent(concept)}/${which}`;
const FIRST = 8; // pictures of a gallery before somebody asks for more
const painted = []; // what to do when heat is turned on, off, up or down
const answer = follow(here, concept, scored);
let largest = 0;

const strength = () => (byId("heat").checked ? byId("strength").value / 100 : 0);
const digits = (value, n = 3) => (value === null ? "–" : value.toFixed(n));
const short = (value) => (value === null ? "–" : String(Number(value.toPrecision(3))));

// numbers

function tell({numbers: one, beside}) {
  const chance = one.p_max < 0.01 ? one.p_max.toFixed(4) : one.p_max.toFixed(3);
  const range = one.f1_low === null ? "" : ` (${digits(one.f1_low)}–${digits(one.f1_high)})`;
  const rows = [
    ["F1, rank", `${digits(one.f1)}${range}, rank ${one.rank} of ${beside.latents.toLocaleString("en")}`],
    ["Floor", `${digits(beside.floor_f1)}: fires on every image`],
    ["Random latents", `${digits(beside.random.mean)} in the mean, ${digits(beside.random.p95)} at the 95th percentile`],
    ["p", `${chance}${one.significant ? ", significant" : ", not significant"}: best of all latents, labels shuffled, is as good`],
    ["Held out", `${digits(beside.held_out_f1.mean)}: chosen on one half of the images, measured on the other`],
    ["Counts", `TP ${one.tp}, FP ${one.fp}, FN ${one.fn}, TN ${one.tn}; precision ${digits(one.precision)}, recall ${digits(one.recall)}`],
    ["Label and source", beside.source.words],
  ];
  byId("numbers").replaceChildren(...rows.flatMap(([term, text]) => [el("dt", {textContent: term}), el("dd", {textContent: text})]));
}

// pictures

function frame(picture, edge) {
  const image = el("img", {src: address(picture.image, edge), alt: picture.alt, loading: "lazy"});
  const canvas = el("canvas", {attrs: {"aria-hidden": "true"}});
  const made = el("span", {className: "frame"}, image, canvas);
  if (picture.size) {
    const [wide, high] = picture.size;
    made.style.aspectRatio = `${wide} / ${high}`;
    made.style.setProperty("--ratio", wide / high);
    made.classList.toggle("tall", high > wide);
  }
  const draw = (cursor) => {
    if (!image.complete || !image.naturalWidth) return;
    canvas.hidden = strength() === 0 && !cursor;
    if (!canvas.hidden) paint(canvas, image, picture, largest, strength(), cursor);
  };
  image.addEventListener("load", () => draw());
  return [made, draw];
}

function at(picture, spot) {
  const code = picture.heat[spot[0]][spot[1]];
  return `row ${spot[0] + 1}, column ${spot[1] + 1}: code ${short(code)}`;
}

function tile(picture) {
  const [made, draw] = frame(picture, 360);
  painted.push(draw);
  const button = el("button", {type: "button", className: "look", attrs: {"aria-label": `Enlarge ${picture.alt}`}}, made);
  button.addEventListener("click", () => enlarge(picture));
  const total = picture.patch_sum === null ? "" : `patch sum ${short(picture.patch_sum)}`;
  const value = el("output", {textContent: total});
  made.addEventListener("mousemove", (event) => {
    const {left, top, width, height} = made.getBoundingClientRect();
    const spot = patchAt(picture, (event.clientX - left) / width, (event.clientY - top) / height);
    value.textContent = spot ? at(picture, spot) : picture.heat ? "not seen by the model" : total;
  });
  made.addEventListener("mouseleave", () => { value.textContent = total; });
  return el("div", {className: "tile"}, button, picture.told ? el("span", {textContent: picture.told}) : null,
    value, answer.picks(picture.image, picture.alt));
}

function gallery(found) {
  const title = found.total > found.pictures.length ? `${found.title}: ${found.pictures.length} of ${found.total}` : `${found.title}: ${found.total}`;
  const tiles = el("div", {className: "tiles"}, ...found.pictures.slice(0, FIRST).map(tile));
  const made = el("section", {className: "gallery", id: `gallery-${found.kind}`}, el("h2", {textContent: title}), tiles);
  if (found.pictures.length > FIRST) {
    const more = el("button", {type: "button", textContent: `Show ${found.pictures.length - FIRST} more`});
    more.addEventListener("click", () => {
      const rest = found.pictures.slice(FIRST).map(tile);
      tiles.append(...rest);
      more.remove();
      rest[0].querySelector("button").focus();
    });
    made.append(more);
  }
  return made;
}

function patch(one) {
  const name = encodeURIComponent(one.image.split("/").pop());
  const src = `${root}patch/${here}/${name}/${one.row}/${one.column}`;
  const alt = `Patch in row ${one.row + 1}, column ${one.column + 1}${one.told ? ` of ${one.told}` : ""}, code ${short(one.value)}`;
  return el("div", {className: "tile"}, el("img", {src, alt, loading: "lazy"}),
    el("span", {textContent: `code ${short(one.value)}`}), one.label ? el("span", {textContent: one.label}) : null);
}

// one picture, large

function enlarge(picture) {
  const zoom = byId("zoom");
  const [made, draw] = frame(picture, 1200);
  let spot = null;
  const move = (rows, columns) => {
    if (!picture.heat) return;
    const [high, wide] = [picture.heat.length, picture.heat[0].length];
    spot = spot ? [(spot[0] + rows + high) % high, (spot[1] + columns + wide) % wide] : peak(picture.heat);
    byId("zoom-value").textContent = at(picture, spot);
    draw(spot);
  };
  zoom.querySelector(".frame").replaceWith(made);
  made.querySelector("img").loading = "eager";
  byId("zoom-about").textContent = picture.alt;
  byId("zoom-value").textContent = "";
  zoom.onkeydown = (event) => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    move(...step);
  };
  made.addEventListener("mousemove", (event) => {
    const {left, top, width, height} = made.getBoundingClientRect();
    const found = patchAt(picture, (event.clientX - left) / width, (event.clientY - top) / height);
    if (!found) return;
    spot = found;
    move(0, 0);
  });
  zoom.showModal();
}

function peak(heat) {
  const flat = heat.flat();
  const best = flat.indexOf(Math.max(...flat));
  return [Math.floor(best / heat[0].length), best % heat[0].length];
}

// all of it

function show(found) {
  largest = found.largest_code ?? 0;
  byId("loading").hidden = true;
  const none = found.largest_code === null ? "Where it fires is not known." : "It fires on no image.";
  const range = blinded ? "0 to its largest code, called 1" : `0 to ${short(largest)}, its largest code on any image`;
  byId("largest").textContent = largest > 0 ? range : none;
  byId("notice").textContent = found.notice;
  byId("notice").hidden = !found.notice;
  if (!blinded) tell(found);
  byId("galleries").replaceChildren(...found.galleries.map(gallery));
  byId("patches").hidden = found.patches.length === 0;
  byId("patches").querySelector(".tiles").replaceChildren(...found.patches.map(patch));
  answer.mark();
}

const redraw = () => painted.forEach((draw) => draw());
byId("heat").addEventListener("change", redraw);
byId("strength").addEventListener("input", redraw);
onKeys({h: () => { byId("heat").checked = !byId("heat").checked; redraw(); }});
byId("go")?.addEventListener("submit", (event) => {
  event.preventDefault();
  answer.leave(byId("number").value.trim());
});

ask(`latents/${here}`).then(show, (error) => {
  byId("loading").textContent = error.message;
  say(error.message, true);
});
