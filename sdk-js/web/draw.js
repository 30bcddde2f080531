// @ts-check
/** What is drawn: pictures, and shares as little heat maps. */

/** Colours of the lowest value, of zero, and of the highest. */
const LOW = [33, 102, 172];
const ZERO = [236, 236, 236];
const HIGH = [217, 95, 14];
const MIN_COLUMNS = 16;
/** Up to so many values, cells are large and apart. */
const FEW = 64;

/** @param {string} selector */
export function find(selector) {
  const found = document.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`no ${selector}`);
  return found;
}

/**
 * An element with attributes and children.
 *
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 */
export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A bar from `from` to `to`, both of 0 to 1. */
export function bar(/** @type {number} */ from, /** @type {number} */ to) {
  const inner = document.createElement("i");
  inner.style.setProperty("--from", `${100 * from}%`);
  inner.style.setProperty("--part", `${100 * (to - from)}%`);
  return element("div", { class: "bar", "aria-hidden": "true" }, inner);
}

/** Put pixels of 1, 3 or 4 channels on a canvas. */
export function drawPixels(
  /** @type {HTMLCanvasElement} */ canvas,
  /** @type {{ data: Uint8Array | Uint8ClampedArray, width: number, height: number }} */ { data, width, height },
) {
  const channels = data.length / (width * height);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = data[i * channels + (channels === 1 ? 0 : c)] ?? 0;
    image.data[4 * i + 3] = channels === 4 ? (data[4 * i + 3] ?? 255) : 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d")?.putImageData(image, 0, 0);
}

/** A share as a heat map, a cell for each value; `levels` are those that a value can have, symmetric around zero. */
export function drawShare(/** @type {Int8Array} */ share, /** @type {number} */ levels) {
  const columns = Math.min(share.length, Math.max(MIN_COLUMNS, Math.ceil(Math.sqrt(6 * share.length))));
  const cell = share.length <= FEW ? 24 : 1;
  const gap = share.length <= FEW ? 2 : 0;
  const canvas = document.createElement("canvas");
  canvas.className = "share";
  canvas.width = columns * (cell + gap) - gap;
  canvas.height = Math.ceil(share.length / columns) * (cell + gap) - gap;
  const context = canvas.getContext("2d");
  share.forEach((value, i) => {
    const strength = Math.max(-1, Math.min(1, value / Math.floor(levels / 2)));
    const part = Math.abs(strength);
    const end = strength < 0 ? LOW : HIGH;
    const colour = ZERO.map((zero, c) => Math.round(zero * (1 - part) + (end[c] ?? 0) * part));
    if (!context) return;
    context.fillStyle = `rgb(${colour})`;
    context.fillRect((i % columns) * (cell + gap), Math.floor(i / columns) * (cell + gap), cell, cell);
  });
  return canvas;
}

/** A number with so much after the point as is worth reading. */
export const ms = (/** @type {number} */ value) => (value < 100 ? value.toFixed(1) : value.toFixed(0));
export const percent = (/** @type {number} */ value) => `${(100 * value).toFixed(1)} %`;
