// @ts-check
/**
 * The page of `make web`: choose a picture, and see the answer, and what each server received for it.
 *
 * `open` and `ask` are what an app does with the SDK; the rest is for show.
 */

import * as ort from "onnxruntime-web/wasm";
import { Bundle, Client, fromUrl, NotEnoughAnswersError, PrivdfsError } from "privdfs";
import { decodeImage, loadPixels } from "privdfs/image";
import { withCamera } from "./camera.js";
import { bar, drawPixels, drawShare, element, find, ms, percent } from "./draw.js";
import { takeSent, watch } from "./wire.js";

/** @typedef {{ name: string, title: string, about: string, grey: boolean, samples: string[], options: import("privdfs").ClientOptions }} Release */
/** @typedef {{ url: string, on: boolean }} Server */
/** @typedef {"on" | "off" | "lies"} Mode */

/** Generous: the servers may share a slow machine with the browser. */
const TIMEOUT_MS = 8000;
const MODES = /** @type {const} */ ({ on: "on", off: "off", lies: "lies" });

ort.env.wasm.numThreads = 1;

/** What the server of this page says: JSON, or an error. */
async function api(/** @type {string} */ path, /** @type {unknown} */ body = undefined) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(`api/${path}`, options).catch(() => {
    throw new PrivdfsError("The program behind this page does not answer: start it again with `make web`.");
  });
  const said = await answer.json();
  if (!answer.ok) throw new PrivdfsError(said.error);
  return said;
}

class Page {
  /** @type {Release | undefined} */
  release;
  /** @type {Bundle | undefined} */
  bundle;
  /** @type {Client | undefined} */
  client;
  /** @type {Server[]} */
  servers = [];
  /** @type {Mode[]} */
  modes = [];
  /** The picture chosen, upright and whole. @type {import("privdfs").Pixels | undefined} */
  pixels;
  name = "";
  /** Milliseconds that decoding its file took. */
  decodeMs = 0;
  /** Ends what runs when something newer is asked for. */
  running = new AbortController();

  /** @param {string} trust the public key of the signer, PEM */
  constructor(trust) {
    this.trust = trust;
  }

  /** Open the bundle of a release, and have its servers started. */
  async open(/** @type {Release} */ release) {
    const signal = this.renew();
    status(`Opening ${release.title.toLowerCase()}, and starting its servers: some seconds the first time …`);
    this.release = release;
    this.bundle = undefined;
    find("#cards").replaceChildren();
    const [bundle, servers] = await Promise.all([
      Bundle.open(fromUrl(`releases/${release.name}/`), { runtime: ort, trust: this.trust }),
      api(`servers/${release.name}`),
    ]);
    if (signal.aborted) return;
    this.bundle = bundle;
    this.modes = servers.map((/** @type {Server} */ { on }) => (on ? "on" : "off"));
    this.connect(servers);
    showSamples(release, (name) => void act(() => this.sample(name)));
    press(this.name);
    find("#invert-label").hidden = !release.grey;
    find("#explanation").textContent = explain(bundle.manifest);
    showCards(this.modes, (server, mode) => void act(() => this.turn(server, mode)));
    await this.client?.warmup();
    if (signal.aborted) return;
    status("Choose a picture.");
    if (this.pixels) await this.ask();
  }

  /** A client for the servers as they are now. */
  connect(/** @type {Server[]} */ servers) {
    if (!this.bundle || !this.release) return;
    this.client?.close();
    const urls = servers.map(({ url }) => url);
    const liars = this.modes.flatMap((mode, server) => (mode === "lies" ? [server] : []));
    watch(urls, new Set(liars));
    this.client = new Client(this.bundle, urls, { timeout: TIMEOUT_MS, ...this.release.options });
  }

  /** Switch a server on or off, or have it lie, and ask again. */
  async turn(/** @type {number} */ server, /** @type {Mode} */ mode) {
    if (!this.release) return;
    this.renew();
    this.modes[server] = mode;
    this.connect(await api("switch", { release: this.release.name, server, on: mode !== "off" }));
    if (this.pixels) await this.ask();
  }

  async sample(/** @type {string} */ name) {
    const answer = await fetch(`images/${name}`);
    await this.show(await answer.blob(), name.replace(/\.\w+$/, ""));
  }

  /** Decode a file, draw it, and ask what it is. */
  async show(/** @type {Blob} */ file, /** @type {string} */ name) {
    const since = performance.now();
    const pixels = await decodeImage(file);
    await this.take(pixels, name, performance.now() - since);
  }

  async take(/** @type {import("privdfs").Pixels} */ pixels, /** @type {string} */ name, decodeMs = 0) {
    this.pixels = pixels;
    this.decodeMs = decodeMs;
    this.name = name;
    press(name);
    const canvas = canvasOf("#original");
    drawPixels(canvas, pixels);
    canvas.setAttribute("aria-label", `The picture ${name}`);
    find("#name").textContent = `${name}, ${pixels.width} × ${pixels.height}`;
    await this.ask();
  }

  /** Ask the servers what the picture is. */
  async ask() {
    const { bundle, client, pixels } = this;
    if (!bundle || !client || !pixels) return;
    const signal = this.renew();
    buttonOf("#again").disabled = false;
    const image = this.release?.grey && inputOf("#invert").checked ? inverted(pixels) : pixels;
    drawPixels(canvasOf("#seen"), { ...bundle.image, data: loadPixels(image, bundle.image) });
    status("Asking …");
    takeSent();
    /** @type {import("privdfs").Result | undefined} */
    let result;
    try {
      result = await client.predict(image, { signal });
      showResult(result, this.decodeMs);
    } catch (error) {
      if (signal.aborted) return;
      showNothing();
      throw error;
    } finally {
      if (!signal.aborted) this.showServers(takeSent(), result);
    }
  }

  /** What was sent to each server, and how each did. */
  showServers(
    /** @type {import("./wire.js").Sent[]} */ sent,
    /** @type {import("privdfs").Result | undefined} */ result,
  ) {
    const manifest = this.bundle?.manifest;
    if (!manifest) return;
    this.modes.forEach((mode, server) => {
      const shares = sent.filter((each) => each.server === server).map((each) => each.share);
      const card = find(`#server-${server}`);
      const drawn = find(`#server-${server} .shares`);
      drawn.replaceChildren(
        ...distinct(shares).map((share, round) => drawShare(share, levelsOf(manifest, server, round))),
      );
      if (!shares.length) drawn.append(element("p", { class: "hint" }, "Nothing was sent to it."));
      find(`#server-${server} .values`).textContent = describe(manifest, shares);
      if (result?.bytesDown[server])
        find(`#server-${server} .values`).append(
          element("br", {}),
          `${count(result.bytesUp[server])} bytes up, ${count(result.bytesDown[server])} down`,
        );
      const took = result?.timings.serversMs[server];
      const told = result?.corrected.includes(server)
        ? "wrong answer, left out"
        : result?.suspects.includes(server)
          ? "suspected of lying"
          : took != null
            ? `answered in ${ms(took)} ms`
            : mode === "off"
              ? "switched off"
              : shares.length
                ? "no answer used"
                : "not asked";
      find(`#server-${server} h3 span`).textContent = told;
      card.classList.toggle("bad", !!result && (result.suspects.includes(server) || result.corrected.includes(server)));
    });
  }

  renew() {
    this.running.abort();
    this.running = new AbortController();
    return this.running.signal;
  }
}

const canvasOf = (/** @type {string} */ selector) => /** @type {HTMLCanvasElement} */ (find(selector));
const buttonOf = (/** @type {string} */ selector) => /** @type {HTMLButtonElement} */ (find(selector));
const inputOf = (/** @type {string} */ selector) => /** @type {HTMLInputElement} */ (find(selector));

const count = (/** @type {number | undefined} */ value) => (value ?? 0).toLocaleString("en");

/** Retries send the same bytes again. */
const distinct = (/** @type {Int8Array[]} */ shares) =>
  shares.filter((share, i) => !i || String(share) !== String(shares[i - 1]));

/** @param {import("privdfs").Manifest} manifest */
const levelsOf = (manifest, /** @type {number} */ server, /** @type {number} */ round) =>
  (manifest.format_version === 1 ? manifest.servers[server]?.levels : manifest.rounds[round]?.moduli[0]) ?? 3;

/** @param {import("privdfs").Manifest} manifest */
function describe(manifest, /** @type {Int8Array[]} */ shares) {
  if (!shares.length) return "";
  if (manifest.format_version === 1 && shares[0] && shares[0].length <= 32)
    return [...shares[0]].map((value) => (value < 0 ? `−${-value}` : `${value}`)).join(" ");
  return `${distinct(shares)
    .map((share) => count(share.length))
    .join(" numbers, then ")} numbers`;
}

/** @param {import("privdfs").Manifest} manifest */
function explain(manifest) {
  const { height, width, channels } = manifest.image;
  const drawn =
    "Each square is one number: blue is negative, orange is positive. Drawn from the bytes that left this page.";
  if (manifest.format_version === 1)
    return (
      `A masked share: ${manifest.servers[0]?.share_length} numbers, where the picture has ` +
      `${count(height * width * channels)} bytes. It is always the same for the same picture. ${drawn}`
    );
  return (
    `A coded share: random numbers, other ones at every call, in ${manifest.rounds.length} rounds. One server alone ` +
    `learns nothing from them; that is proven. ${drawn}`
  );
}

/** @param {import("privdfs").Pixels} pixels */
function inverted({ data, width, height }) {
  const channels = data.length / (width * height);
  const made = data.slice();
  for (let i = 0; i < made.length; i++) if (channels !== 4 || i % 4 !== 3) made[i] = 255 - (made[i] ?? 0);
  return { data: made, width, height };
}

function status(/** @type {string} */ text) {
  find("#alert").hidden = true;
  if (text === "Asking …" && document.querySelector(".label")) return;
  find("#result").replaceChildren(element("p", { class: "hint", id: "status" }, text));
}

function showNothing() {
  find("#result").replaceChildren();
  find("#top").replaceChildren();
  find("#notes").textContent = "";
  find("#times").hidden = true;
}

function showResult(/** @type {import("privdfs").Result} */ result, /** @type {number} */ fileMs) {
  find("#result").replaceChildren(
    element("p", { class: "label" }, result.label),
    element("p", { class: "hint" }, `${percent(result.probability)} sure`),
  );
  find("#top").replaceChildren(
    ...result
      .top(5)
      .map(([label, probability]) =>
        element("li", {}, element("span", {}, label), element("span", {}, percent(probability)), bar(0, probability)),
      ),
  );
  const answered = result.answered.filter(Boolean).length;
  const all = result.answered.length;
  const accuracy =
    result.expectedAccuracy === null
      ? ""
      : ` Such answers are right for ${percent(result.expectedAccuracy)} of test pictures.`;
  const wrong = result.corrected.length ? ` A wrong answer was found and left out; the result is exact.` : "";
  find("#notes").textContent =
    `${answered === all ? `All ${all}` : `${answered} of ${all}`} servers answered.${accuracy}${wrong}`;
  showTimes(result, fileMs);
}

/** A row for every step, on one scale. */
function showTimes(
  /** @type {import("privdfs").Result} */ { timings, bytesUp, bytesDown },
  /** @type {number} */ fileMs,
) {
  const { encodeMs, serversMs, fusionMs } = timings;
  const decodeMs = fileMs + timings.decodeMs;
  const totalMs = fileMs + timings.totalMs;
  const slowest = Math.max(0, ...serversMs.map((each) => each ?? 0));
  const begin = decodeMs + encodeMs;
  /** @type {[string, number, number][]} name, begin, length */
  const steps = [
    ["Decode", 0, decodeMs],
    ["Encode", decodeMs, encodeMs],
    ...serversMs.flatMap((each, i) =>
      each === null ? [] : [/** @type {[string, number, number]} */ ([`Server ${i}`, begin, each])],
    ),
    ["Fuse", begin + slowest, fusionMs],
  ];
  const rows = steps.map(([name, from, took]) =>
    element(
      "tr",
      {},
      element("td", {}, name),
      element("td", { class: "number" }, ms(took)),
      element("td", {}, bar(from / totalMs, Math.min(1, (from + took) / totalMs))),
    ),
  );
  const total = element(
    "tr",
    { class: "total" },
    element("td", {}, "In all"),
    element("td", { class: "number" }, ms(totalMs)),
    element("td", {}),
  );
  find("#steps").replaceChildren(...rows, total);
  const sum = (/** @type {readonly number[]} */ values) => values.reduce((all, each) => all + each, 0);
  find("#bytes").textContent =
    `Tensors: ${count(sum(bytesUp))} bytes up and ${count(sum(bytesDown))} down, to and from all servers together.`;
  find("#times").hidden = false;
}

/** A card for every server, with its switch. */
function showCards(/** @type {Mode[]} */ modes, /** @type {(server: number, mode: Mode) => void} */ turn) {
  find("#cards").replaceChildren(
    ...modes.map((mode, server) => {
      const choices = Object.values(MODES).map((each) => {
        const input = /** @type {HTMLInputElement} */ (
          element("input", { type: "radio", name: `mode-${server}`, value: each })
        );
        input.checked = each === mode;
        input.addEventListener("change", () => turn(server, each));
        return element("label", {}, input, each === "on" ? "On" : each === "off" ? "Off" : "Lies");
      });
      return element(
        "article",
        { class: "server", id: `server-${server}` },
        element("h3", {}, element("b", {}, `Server ${server}`), element("span", {})),
        element("div", { class: "shares" }, element("p", { class: "hint" }, "Nothing yet.")),
        element("p", { class: "values" }),
        element("div", { class: "modes", role: "radiogroup", "aria-label": `Server ${server}` }, ...choices),
      );
    }),
  );
}

function showSamples(/** @type {Release} */ release, /** @type {(name: string) => void} */ choose) {
  find("#samples").replaceChildren(
    ...release.samples.map((name) => {
      const title = name.replace(/\.\w+$/, "");
      const button = element(
        "button",
        { type: "button", "aria-pressed": "false", "data-name": title, "aria-label": title },
        element("img", { src: `images/${name}`, alt: "" }),
      );
      button.addEventListener("click", () => choose(name));
      return button;
    }),
  );
}

/** Show which test picture is the one chosen. */
function press(/** @type {string} */ name) {
  for (const button of document.querySelectorAll("#samples button"))
    button.setAttribute("aria-pressed", String(button.getAttribute("data-name") === name));
}

/** Do it, and show what goes wrong. */
async function act(/** @type {() => Promise<unknown>} */ what) {
  try {
    await what();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") return;
    const said = error instanceof PrivdfsError ? error.message : `Something unexpected happened: ${error}`;
    const sentence = said.replace(/^[a-z]+ /, (word) => word.charAt(0).toUpperCase() + word.slice(1));
    if (error instanceof NotEnoughAnswersError) {
      const summary = `Too few servers gave a usable answer: ${error.needed} must. Switch one on again.`;
      const details = element("details", {}, element("summary", {}, "What the SDK says"), sentence);
      find("#alert").replaceChildren(summary, details);
    } else find("#alert").textContent = sentence;
    find("#alert").hidden = false;
    if (document.querySelector("#status")) find("#result").replaceChildren();
  }
}

async function start() {
  /** @type {{ trust: string, releases: Release[] }} */
  const { trust, releases } = await api("releases");
  const page = new Page(trust);
  const choices = releases.map((release, i) => {
    const input = /** @type {HTMLInputElement} */ (
      element("input", { type: "radio", name: "release", value: release.name })
    );
    input.checked = i === 0;
    input.addEventListener("change", () => void act(() => page.open(release)));
    return element("label", {}, input, element("span", {}, release.title), element("small", {}, release.about));
  });
  find("#releases .choices").replaceChildren(...choices);

  const file = inputOf("#file");
  const take = (/** @type {File | null | undefined} */ chosen) =>
    chosen && void act(() => page.show(chosen, chosen.name));
  find("#choose").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    take(file.files?.[0]);
    file.value = ""; // the same one may be chosen again
  });
  find("#again").addEventListener("click", () => void act(() => page.ask()));
  find("#invert").addEventListener("change", () => void act(() => page.ask()));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer?.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  void withCamera(
    (pixels) => void act(() => page.take(pixels, "camera")),
    (message) =>
      void act(async () => {
        throw new PrivdfsError(message);
      }),
  );

  const [first] = releases;
  if (!first) return;
  await page.open(first);
  if (first.samples[0]) await page.sample(first.samples[0]);
}

void act(start);
