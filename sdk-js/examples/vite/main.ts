// settings.json, beside the page, says where everything is: { "bundle": "/bundle/", "trust": "-----BEGIN PUBLIC KEY…",
// "servers": ["https://a.example", …] }. Ship `trust` with the app instead where others may write to that place.

import * as ort from "onnxruntime-web/wasm";
import { Bundle, Client, fromUrl, PrivdfsError } from "privdfs";
import { decodeImage } from "privdfs/image";

ort.env.wasm.numThreads = 1;

const input = document.querySelector("input") as HTMLInputElement;
const status = document.querySelector("[role=status]") as HTMLElement;

async function open(): Promise<Client> {
  const { bundle, trust, servers } = await (await fetch("settings.json")).json();
  return new Client(await Bundle.open(fromUrl(bundle), { runtime: ort, trust }), servers, { timeout: 5000 });
}

const client = open(); // once, for all pictures

input.addEventListener("change", async () => {
  const file = input.files?.[0];
  if (!file) return;
  try {
    const { label, probability } = await (await client).predict(await decodeImage(file));
    status.textContent = `${label}, ${Math.round(100 * probability)} % sure`;
  } catch (error) {
    status.textContent = error instanceof PrivdfsError ? error.message : `Something unexpected: ${error}`;
  }
});
