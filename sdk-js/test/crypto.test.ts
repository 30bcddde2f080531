/** Where the platform has no cryptography, a library gives the same. */

import { readFileSync } from "node:fs";
import { afterEach, describe, expect, test, vi } from "vitest";
import { toHex, utf8 } from "../src/bytes.js";
import { hmacSha256, sha256, verifyEd25519 } from "../src/crypto.js";
import { checkSignature } from "../src/signature.js";
import { fromBase64, load, releaseFolder } from "./small.js";

afterEach(() => vi.unstubAllGlobals());

const platforms: [string, object | undefined][] = [
  ["the platform's", crypto],
  ["the library's, as over plain http and in React Native", { getRandomValues: crypto.getRandomValues.bind(crypto) }],
  ["the library's, where the platform knows no Ed25519", { subtle: { ...without("importKey") } }],
];

/** The platform's own, but for one function. */
function without(name: string): Record<string, unknown> {
  const { subtle } = crypto;
  const own = Object.fromEntries(
    (["digest", "sign", "verify", "importKey"] as const).map((each) => [
      each,
      (subtle[each] as CallableFunction).bind(subtle),
    ]),
  );
  return {
    ...own,
    [name]: async (...given: unknown[]) => {
      if (given[2] === "Ed25519") throw new Error("NotSupportedError");
      return (own[name] as CallableFunction)(...given);
    },
  };
}

describe.each(platforms)("%s", (_, platform) => {
  test("SHA-256 and HMAC", async () => {
    vi.stubGlobal("crypto", platform);
    expect(toHex(await sha256(utf8("abc")))).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const keyed = await hmacSha256(utf8("key"), utf8("The quick brown fox jumps over the lazy dog"));
    expect(toHex(keyed)).toBe("f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8");
  });

  test("every vector of signatures", async () => {
    vi.stubGlobal("crypto", platform);
    for (const { name, release, signature, trusted, trusted_pem: pem, error } of load("signatures")) {
      const manifest = Uint8Array.from(readFileSync(`${releaseFolder(release)}/manifest.json`));
      const trust = pem === undefined ? trusted.map((key: string) => Uint8Array.from(Buffer.from(key, "hex"))) : [pem];
      const checked = checkSignature(manifest, signature === null ? null : fromBase64(signature), trust);
      expect(
        await checked.then(
          () => undefined,
          (caught: Error) => caught.name,
        ),
        name,
      ).toBe(error);
    }
  });

  test("what cannot be a key signs nothing", async () => {
    vi.stubGlobal("crypto", platform);
    expect(await verifyEd25519(new Uint8Array(32).fill(255), new Uint8Array(64), utf8("x"))).toBe(false);
  });
});
