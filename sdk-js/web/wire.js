// @ts-check
/**
 * The page's window on the wire: every request passes here on its way to `fetch`, so what is drawn is what was sent. It
 * is also where a server "lies": its answer is altered on its way in.
 */

/** @typedef {{ server: number, share: Int8Array }} Sent */

/** @type {Sent[]} */
let sent = [];
/** @type {readonly string[]} */
let addresses = [];
/** @type {ReadonlySet<number>} */
let lying = new Set();

/** Watch calls to these servers; `liars` are those whose answers are altered. */
export function watch(/** @type {readonly string[]} */ servers, /** @type {ReadonlySet<number>} */ liars) {
  addresses = servers;
  lying = liars;
}

/** What was sent since this was last asked, in order. */
export function takeSent() {
  const taken = sent;
  sent = [];
  return taken;
}

const send = globalThis.fetch;

globalThis.fetch = async (input, options) => {
  const server = addresses.findIndex((address) => String(input).startsWith(`${address}/`));
  const body = options?.body;
  if (server < 0 || !(body instanceof Uint8Array)) return send(input, options);
  const json = Number(new Headers(options?.headers).get("inference-header-content-length"));
  sent.push({ server, share: Int8Array.from(body.subarray(json)) });
  const answer = await send(input, options);
  return lying.has(server) && answer.ok ? altered(answer) : answer;
};

/** The same answer with other numbers in it: logits that favour a class at random, or residues that are off by one. */
async function altered(/** @type {Response} */ answer) {
  const body = new Uint8Array(await answer.arrayBuffer());
  const json = Number(answer.headers.get("inference-header-content-length"));
  const tensor = body.subarray(json);
  if (new TextDecoder().decode(body.subarray(0, json)).includes("FP32")) {
    const logits = new DataView(tensor.buffer, tensor.byteOffset);
    const liked = Math.floor((Math.random() * tensor.length) / 4);
    for (let i = 0; i < tensor.length / 4; i++) logits.setFloat32(4 * i, i === liked ? 20 : -20, true);
  } else {
    for (let i = 0; i < tensor.length; i++) tensor[i] = tensor[i] === 0 ? 1 : 0;
  }
  return new Response(body, { status: answer.status, headers: answer.headers });
}
