/** The SDK in a real browser: the same pixels, shares and answers as Python's, from real tritonservers behind nginx. */

import { writeFileSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { given, type ImageFile } from "./given.js";
import { type Browsing, until, type Visit } from "./visit.js";

// biome-ignore lint/suspicious/noExplicitAny: what the page keeps for later calls
declare const kept: any;

let browser: Browsing;
let page: Visit;

beforeAll(async () => {
  const { browse } = await (given.browser === "firefox" ? import("./firefox.js") : import("./chromium.js"));
  // The page's policy allows what it needs, which is less than these tests do: other servers, and scripts from here.
  browser = await browse();
  page = browser.page;
  // As text: the test runner rewrites imports of its own.
  await page.evaluate(`(async () => {
    const modules = ["privdfs", "privdfs/image", "privdfs/indexeddb", "onnxruntime-web/wasm"].map((name) => import(name));
    const [sdk, image, { shelfIn }, ort] = await Promise.all(modules);
    globalThis.kept = { ...sdk, ...image, shelfIn, ort };
  })()`);
  await page.evaluate(async ({ https, release, trust }) => {
    kept.trust = trust;
    kept.bundle = await kept.Bundle.open(kept.fromUrl(`releases/${release}/`), { runtime: kept.ort, trust });
    kept.client = new kept.Client(kept.bundle, https, { timeout: 60_000 });
    kept.bytes = (text: string) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    kept.digest = async (data: Uint8Array<ArrayBuffer>) =>
      [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))]
        .map((byte) => byte.toString(16).padStart(2, "0"))
        .join("");
  }, given);
});

afterAll(() => browser?.close());

test("shares equal Python's, byte for byte", async () => {
  const differ = await page.evaluate(async ({ images, shares }) => {
    const { height, width, channels } = kept.bundle.image;
    const pixels: Uint8Array = kept.bytes(images);
    const expected: Uint8Array[] = shares.map(kept.bytes);
    const size = height * width * channels;
    let wrong = 0;
    for (let i = 0; i < pixels.length / size; i++) {
      const found = await kept.client.encode({ data: pixels.subarray(i * size, (i + 1) * size), width, height });
      found.forEach((share: Int8Array, server: number) => {
        share.forEach((value, k) => {
          const wanted = ((expected[server]?.[i * share.length + k] ?? 0) << 24) >> 24;
          if (value !== wanted) wrong++;
        });
      });
    }
    return wrong;
  }, given);
  expect(differ).toBe(0);
});

test("real servers behind TLS and HTTP/2 give Python's labels and probabilities", async () => {
  const protocols = await browser.protocols?.();
  const found = await page.evaluate(
    async ({ images, labels }) => {
      const { height, width, channels } = kept.bundle.image;
      const size = height * width * channels;
      const pixels: Uint8Array = kept.bytes(images);
      const list = labels.map((_, i) => ({ data: pixels.subarray(i * size, (i + 1) * size), width, height }));
      const results = await kept.client.predictBatch(list);
      return {
        labels: results.map((result: { label: string }) => result.label),
        probabilities: results.map((result: { probability: number }) => result.probability),
      };
    },
    { images: given.images, labels: given.labels },
  );
  if (protocols) expect([...protocols]).toEqual(["h2"]);
  expect(found.labels).toEqual(given.labels);
  found.probabilities.forEach((probability: number, i: number) => {
    expect(Math.abs(probability - (given.probabilities[i] as number))).toBeLessThanOrEqual(1e-5);
  });
});

/** Ways to pixels: Firefox copies them where it can, all other browsers draw. */
const WAYS = given.browser === "firefox" ? ["copied", "drawn"] : ["drawn"];

test.each(WAYS)("image files, %s, have Pillow's pixels, upright, before and after the resize", async (way) => {
  await go(way);
  const wrong: string[] = [];
  for (let start = 0; start < given.files.length; start += 50)
    wrong.push(...(await page.evaluate(wrongFiles, given.files.slice(start, start + 50))));
  expect(wrong).toEqual([]);
});

/** Let the page have what a way needs. */
async function go(way: string): Promise<void> {
  await page.evaluate((way) => {
    kept.copies ??= globalThis.VideoFrame;
    Object.assign(globalThis, { VideoFrame: way === "copied" ? kept.copies : undefined });
  }, way);
}

/** In the page: names of the files whose pixels differ. */
async function wrongFiles(files: readonly ImageFile[]): Promise<string[]> {
  const wrong: string[] = [];
  for (const file of files) {
    const pixels = await kept.decodeImage(new Blob([kept.bytes(file.data)]));
    const rgb = new Uint8Array((pixels.data.length / 4) * 3);
    for (let i = 0; i < rgb.length; i++) rgb[i] = pixels.data[Math.floor(i / 3) * 4 + (i % 3)];
    const resized = kept.loadPixels(pixels, { height: 32, width: 32, channels: 3 });
    const same =
      pixels.width === file.size[0] &&
      pixels.height === file.size[1] &&
      (await kept.digest(rgb)) === file.whole &&
      (await kept.digest(resized)) === file.resized;
    if (!same) wrong.push(file.name);
  }
  return wrong;
}

test.each(WAYS)("other files, %s, are read as the guide says", async (way) => {
  await go(way);
  const found: Record<string, string> = {};
  for (const { name, data, pixels } of given.odd)
    found[name] = await page.evaluate(
      async ({ data, pixels }) => {
        const expected: Uint8Array = kept.bytes(pixels);
        const decoded = await kept.decodeImage(new Blob([kept.bytes(data)])).catch((error: Error) => error);
        if (decoded instanceof Error) return decoded.name;
        const resized: Uint8Array = kept.loadPixels(decoded, { height: 32, width: 32, channels: 3 });
        const most = resized.reduce((most, value, i) => Math.max(most, Math.abs(value - (expected[i] ?? 0))), 0);
        return `off by ${most}`;
      },
      { data, pixels },
    );
  const firefox = given.browser === "firefox";
  expect(found).toEqual({
    "transparent PNG": firefox && way === "drawn" ? "off by 1" : "off by 0",
    "transparent WebP": firefox && way === "drawn" ? "off by 1" : "off by 0",
    "PNG of 16 bits": firefox ? "off by 0" : "off by 1",
    "turned PNG": firefox ? "off by 255" : "off by 0", // it stays as it lies
    "turned WebP": "off by 255",
    "JPEG turned by XMP": "off by 252",
    "JPEG in CMYK": "off by 0",
    "animation after a picture": "off by 255", // Python takes the picture before it
    "GIF of a larger canvas": firefox ? "off by 250" : "off by 136",
    "very wide": "ImageError",
    icon: firefox ? "ImageError" : "off by 255",
    TIFF: "ImageError",
    PPM: "ImageError",
    ...Object.fromEntries(["JPEG", "PNG", "WEBP", "GIF", "BMP"].map((form) => [`${form}, cut off`, "ImageError"])),
  });
});

test("what is no image is refused, and what is damaged", async () => {
  const found = await page.evaluate(
    async (jpeg) => {
      const errors: string[] = [];
      const whole: Uint8Array = kept.bytes(jpeg);
      for (const bytes of [new Uint8Array(), new TextEncoder().encode("<svg/>"), whole.slice(0, 40)])
        errors.push(await kept.decodeImage(new Blob([bytes])).then(String, (error: Error) => error.name));
      return errors;
    },
    (given.files[0] as ImageFile).data,
  );
  expect(found).toEqual(["ImageError", "ImageError", "ImageError"]);
});

test("the golden examples of every release give what was recorded", async () => {
  for (const release of [given.release, ...given.others]) {
    const found = await page.evaluate(async (name) => {
      const { Bundle, fromUrl, ort, trust } = kept;
      const bundle = await Bundle.open(fromUrl(`releases/${name}/`), { runtime: ort, trust });
      await bundle.selftest();
      return bundle.release;
    }, release);
    expect(found).toContain(release);
  }
});

test("a tampered bundle is refused, and one signed by somebody else", async () => {
  const tampered = (name: string) =>
    page.evaluate(
      async ({ release, name }) => {
        const { Bundle, fromUrl, ort, trust } = kept;
        const honest = fromUrl(`releases/${release}/`);
        const source = async (file: string, limit: number) => {
          const data = await honest(file, limit);
          if (file !== name || !data) return data;
          const changed = data.slice();
          changed[changed.length - 3] ^= 1;
          return changed;
        };
        return Bundle.open(source, { runtime: ort, trust }).then(
          () => "opened",
          (error: Error) => error.name,
        );
      },
      { release: given.release, name },
    );
  expect(await tampered("manifest.json")).toBe("BundleSignatureError");
  expect(await tampered("encoder.onnx")).toBe("BundleIntegrityError");
  expect(await tampered("fusion.onnx")).toBe("BundleIntegrityError");
  expect(await tampered("nothing")).toBe("opened");
  const stranger = await page.evaluate(async (release) => {
    const { Bundle, fromUrl, ort } = kept;
    const trust = new Uint8Array(32).fill(7);
    return Bundle.open(fromUrl(`releases/${release}/`), { runtime: ort, trust }).then(
      String,
      (error: Error) => error.name,
    );
  }, given.release);
  expect(stranger).toBe("BundleSignatureError");
});

test("a store in IndexedDB: installed, opened after a reload, changed by a script of the page, rolled back", async () => {
  const visit = await browser.visit();
  const inStore = async (what: string): Promise<unknown> => {
    await visit.goto(`${given.origin}/style.css`); // nothing of the page before is left, and no script runs
    await visit.goto(`${given.origin}/`);
    return visit.evaluate(`(async () => {
      const modules = ["privdfs", "privdfs/indexeddb", "onnxruntime-web/wasm"].map((name) => import(name));
      const [{ BundleStore, fromUrl }, { shelfIn }, ort] = await Promise.all(modules);
      const trust = ${JSON.stringify(given.trust)};
      const shelf = shelfIn("bundles");
      const store = new BundleStore(shelf, { runtime: ort, trust });
      const release = (name) => fromUrl("releases/" + name + "/");
      const found = await (async () => ${what})().catch((error) => error);
      return found?.release ?? found?.name ?? String(found);
    })()`);
  };
  const [other] = given.others;
  expect(await inStore(`store.open()`)).toBe("BundleStoreError");
  expect(await inStore(`store.install(release("${given.release}"))`)).toContain(given.release);
  expect(await inStore(`store.open()`)).toContain(given.release);
  expect(await inStore(`store.install(release("nothing"))`)).toBe("BundleIntegrityError");
  expect(await inStore(`store.install(release("${other}"))`)).toContain(other);
  expect(await inStore(`store.open()`)).toContain(other);
  expect(await inStore(`(await shelf.folders()).length`)).toBe("3"); // two bundles, and state.json
  expect(await inStore(`store.rollback()`)).toContain(given.release);
  expect(await inStore(`(await shelf.folders()).length`)).toBe("2");
  const folder = await inStore(`(await shelf.folders()).find((name) => name.startsWith("bundle-"))`);
  await inStore(`shelf.write("${folder}/encoder.onnx", new Uint8Array(9))`);
  expect(await inStore(`store.open()`)).toBe("BundleIntegrityError");
  expect(await inStore(`store.install(release("${given.release}"))`)).toContain(given.release);
  expect(await inStore(`store.open()`)).toContain(given.release);
  await visit.close();
});

test("tabs that install into one store take turns, and a tab that is closed lets go", async () => {
  const names = [given.release, given.others[0] as string, given.release]; // the same bundle, and another
  const visits = await Promise.all(names.map(() => browser.visit()));
  await Promise.all(
    visits.map(async (visit) => {
      await visit.goto(`${given.origin}/`);
      await visit.evaluate(`(async () => {
        const modules = ["privdfs", "privdfs/indexeddb", "onnxruntime-web/wasm"].map((name) => import(name));
        const [{ BundleStore, fromUrl }, { shelfIn }, ort] = await Promise.all(modules);
        const trust = ${JSON.stringify(given.trust)};
        globalThis.sourceOf = (name) => fromUrl("releases/" + name + "/");
        globalThis.storeOf = () => new BundleStore(shelfIn("shared"), { runtime: ort, trust });
        globalThis.shelf = shelfIn("shared");
      })()`);
    }),
  );
  const install = (visit: Visit, name: string): Promise<unknown> =>
    visit.evaluate(`storeOf().install(sourceOf("${name}")).then(({ release }) => release, (error) => error.message)`);
  const [first, second, third] = visits as [Visit, Visit, Visit];
  const found = await Promise.all(visits.map((visit, i) => install(visit, names[i] as string)));
  expect(found).toEqual(names.map((name) => expect.stringContaining(name)));
  const whole = `storeOf().open().then((bundle) => bundle.selftest()).then(({ images }) => images > 0)`;
  expect(await first.evaluate(whole)).toBe(true);
  expect(await first.evaluate(`shelf.folders().then((names) => names.length)`)).toBe(3);

  // The first tab never ends its download; the second waits for it.
  await first.evaluate(`void storeOf().install((name, limit) =>
    name === "fusion.onnx" ? new Promise(() => {}) : sourceOf("${given.release}")(name, limit))`);
  await until(first, `shelf.folders().then((names) => names.length > 3)`);
  await second.evaluate(`void (globalThis.waiting = storeOf().install(sourceOf("${given.others[0]}")))`);
  await until(second, `navigator.locks.query().then(({ pending }) => pending.length === 1)`);
  await first.close();
  expect(await second.evaluate(`waiting.then(({ release }) => release)`)).toContain(given.others[0]);
  expect(await second.evaluate(whole)).toBe(true);
  expect(await second.evaluate(`shelf.folders().then((names) => names.length)`)).toBe(3);

  // Plain http has no such locks: a page's own calls take turns all the same.
  const alone = await third.evaluate(`(async () => {
    Object.defineProperty(navigator, "locks", { value: undefined });
    const order = [];
    const work = (name) => shelf.lock(async () => {
      order.push(name);
      await new Promise((resolve) => setTimeout(resolve, 5));
      order.push(name);
      if (name === 1) throw new Error("one that fails holds up nobody");
    }).catch(() => {});
    await Promise.all([1, 2, 3].map(work));
    return order.join("");
  })()`);
  expect(alone).toBe("112233");
  await Promise.all([second, third].map((visit) => visit.close()));
});

test("a server that cannot be reached leaves an answer of the others, and is named", async () => {
  const found = await page.evaluate(
    async ({ https, images }) => {
      const { Client, bundle, bytes } = kept;
      const { height, width, channels } = bundle.image;
      const image = { data: bytes(images).subarray(0, height * width * channels), width, height };
      const servers = [https[0], "https://127.0.0.1:9", https[2]];
      const quorum = new Client(bundle, servers, { timeout: 20_000, minAnswers: 2 });
      const strict = new Client(bundle, servers, { timeout: 20_000 });
      const result = await quorum.predict(image);
      const error = await strict.predict(image).catch((caught: unknown) => caught);
      return {
        answered: result.answered,
        label: result.label,
        name: error.name,
        causes: [...error.causes].map(([server, cause]: [number, Error]) => [server, cause.name]),
      };
    },
    { https: given.https, images: given.images },
  );
  expect(found.answered).toEqual([true, false, true]);
  expect(found.label).toBe(given.labels[0]);
  expect(found.name).toBe("NotEnoughAnswersError");
  expect(found.causes).toEqual([[1, "ServerUnavailableError"]]);
});

test.runIf(given.measured)("a call beside bare fetches of the same bytes", async () => {
  const measured = await page.evaluate(
    async ({ images, https, calls }) => {
      const { client, bundle, bytes } = kept;
      const { height, width, channels } = bundle.image;
      const image = { data: bytes(images).subarray(0, height * width * channels), width, height };
      const send = globalThis.fetch;
      const requests: [RequestInfo | URL, RequestInit | undefined][] = [];
      globalThis.fetch = (input, init) => {
        if (String(input).endsWith("/infer")) requests.push([input, { ...init, signal: null }]);
        return send(input, init);
      };
      await client.predict(image);
      globalThis.fetch = send;
      const timed = async (work: () => Promise<unknown>) => {
        const since = performance.now();
        await work();
        return performance.now() - since;
      };
      const predict: number[] = [];
      const bare: number[] = [];
      for (let i = 0; i < calls; i++) {
        predict.push(await timed(() => client.predict(image)));
        bare.push(
          await timed(() =>
            Promise.all(requests.map(async ([input, init]) => (await send(input, init)).arrayBuffer())),
          ),
        );
      }
      const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
      return { predict_ms: median(predict), bare_ms: median(bare), calls, servers: https.length };
    },
    { images: given.images, https: given.https, calls: 300 },
  );
  writeFileSync(given.measured as string, JSON.stringify(measured));
});
