"use strict";
// What all parts of the page use. Texts of models and data reach the page through `element` alone, as text nodes:
// nothing here, nor in the other files, writes HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "line", "circle", "polygon", "text", "title"]);

// element("p", {class: "note"}, "text", other) makes <p class="note">text<other></p>. A function is a listener.
function element(tag, attributes = {}, ...children) {
  const made = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "style") for (const [key, own] of Object.entries(value)) made.style.setProperty(key, own);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...present(children));
  return made;
}

// What is there of a list in lists: without null, undefined and empty texts.
function present(children) {
  return [children].flat(Infinity).filter((child) => child !== null && child !== undefined && child !== "");
}

// ---------------------------------------------------------------------------------------------------------------------
// Figures as text
// ---------------------------------------------------------------------------------------------------------------------

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

const percent = (share, digits = 1) => (isNumber(share) ? (100 * share).toFixed(digits) + " %" : "–");

function number(value) {
  if (!isNumber(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
}

// A share as percent, a reward as it is.
const score = (value, isShare) => (isShare ? percent(value) : number(value));

function signed(value, isShare) {
  if (!isNumber(value)) return "–";
  return (value > 0 ? "+" : "") + (isShare ? (100 * value).toFixed(1) : number(value)).replace("-", "−");
}

// 1 question, 2 questions
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

// ---------------------------------------------------------------------------------------------------------------------
// Parts of pages
// ---------------------------------------------------------------------------------------------------------------------

// A table that scrolls by itself where the screen is narrow. Cells are texts or nodes; the first of a row names it.
function table(heads, rows, kind = "") {
  const head = element(
    "thead",
    {},
    element(
      "tr",
      {},
      heads.map((text) => element("th", {scope: "col"}, text)),
    ),
  );
  const body = rows.map((row) => {
    const cells = row.map((cell, n) => element(n === 0 ? "th" : "td", n === 0 ? {scope: "row"} : {}, cell));
    return element("tr", {}, cells);
  });
  const made = element("table", {class: kind}, head, element("tbody", {}, body));
  return element("div", {class: "wide", tabindex: "0", role: "region", "aria-label": "table"}, made);
}

// What is folded away is drawn when it is first opened.
function folded(summary, draw, open = false) {
  const made = element("details", {}, element("summary", {}, summary));
  let drawn = false;
  const show = () => {
    if (made.open && !drawn) made.append(...present(draw()));
    drawn = drawn || made.open;
  };
  made.addEventListener("toggle", show);
  made.open = open;
  if (open) show();
  return made;
}

function labelled(text, control) {
  return element("label", {class: "control"}, element("span", {}, text), control);
}

function choice(options, chosen, changed) {
  const made = element("select", {change: () => changed(made.value)});
  made.append(...options.map(([value, text]) => element("option", {value, selected: value === chosen}, text)));
  return made;
}

// Bars beside their labels: [label, shares or rewards of each side, note] each; `most` is as long as the place.
function bars(rows, isShare, most) {
  const lines = rows.map(([label, values, note]) => {
    const drawn = values.map((value, side) => {
      const width = isNumber(value) && most > 0 ? Math.max(0, Math.min(1, value / most)) : 0;
      const bar = element("div", {class: `bar side-${side}`, style: {width: `${100 * width}%`}});
      return element(
        "div",
        {class: "bar-line"},
        element("div", {class: "track"}, bar),
        element("span", {}, score(value, isShare)),
      );
    });
    return element(
      "tr",
      {},
      element("th", {scope: "row"}, label),
      element("td", {}, drawn),
      element("td", {class: "note"}, note),
    );
  });
  return element("table", {class: "bars"}, element("tbody", {}, lines));
}

// The last words of an answer, where its result is.
function ending(text) {
  const words = text.trim().replace(/\s+/g, " ");
  return readable(words.length > 70 ? `…${words.slice(-70)}` : words);
}

// What colour is which side.
function legend(names) {
  if (names.length < 2) return null;
  const parts = names.map((name, side) => element("span", {}, element("i", {class: `swatch side-${side}`}), name));
  return element("p", {class: "legend"}, parts);
}

// ---------------------------------------------------------------------------------------------------------------------
// Blocks
// ---------------------------------------------------------------------------------------------------------------------

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // newer browsers, and faster
  const packed = atob(base64);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  return bytes;
}

const KEPT = 8; // unpacked blocks that stay in memory

class Blocks {
  constructor() {
    this.unpacked = new Map();
  }

  // The JSON of a block.
  async text(number) {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("This browser cannot unpack the texts: it takes Chrome 105, Firefox 121, Safari 16.4, or newer.");
    }
    const bytes = bytesOf(document.getElementById(`block-${number}`).textContent);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  }

  async list(number) {
    if (!this.unpacked.has(number)) {
      this.unpacked.set(number, JSON.parse(await this.text(number)));
      if (this.unpacked.size > KEPT) this.unpacked.delete(this.unpacked.keys().next().value);
    }
    return this.unpacked.get(number);
  }

  // One item of a list that `where` says the blocks of.
  async item(where, index) {
    let block = where.starts.length - 1;
    while (where.starts[block] > index) block--;
    return (await this.list(where.first + block))[index - where.starts[block]];
  }
}
