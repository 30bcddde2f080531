/** Where the servers are, checked before anything is sent. */

import { DEFAULT_ATTEMPTS, DEFAULT_HEDGE_BUDGET, MAX_ATTEMPTS } from "./constants.js";
import { ConfigError } from "./errors.js";
import { checkFlag, checkNames, checkTimeout, checkWhole, shown, typeName } from "./given.js";

/** A secret that a server asks for: the text, or a function that gives the present one. */
export type TokenValue = string | (() => string);

/** A token that goes in another header than "authorization", such as one of Triton's --http-restricted-api. */
export interface Token {
  readonly value: TokenValue;
  readonly header: string;
}

/** How TLS is set up, where the platform lets one: in Node. PEM texts, as `tls.connect` takes them. */
export interface TlsOptions {
  /** Certificates that are trusted instead of the system's authorities; one server's own pins it. */
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
}

/** One party: one trust domain that holds one branch, at one or more addresses (its replicas). */
export interface Server {
  /** "https://host" or "http://host:port", without a path; all of them belong to this party and may see its share. */
  readonly url: string | readonly string[];
  readonly token?: TokenValue | Token;
  /** Allow plaintext beyond this machine. Anybody on the way can then read the share. */
  readonly insecure?: boolean;
  /** Of Node's client alone. */
  readonly tls?: TlsOptions;
}

export interface Retries {
  /** How often one share may be sent to its server in all, 1 to 10. Default 3. */
  readonly attempts?: number;
  /** Milliseconds without an answer after which the share is sent once more, to another replica. Default: never. */
  readonly hedgeAfter?: number;
  /** Hedges for each call, in the long run, 0 to 1. Default 0.1. */
  readonly hedgeBudget?: number;
}

export type Wait = "all" | "quorum";

export interface CheckedServer {
  readonly endpoints: readonly string[];
  readonly tls: TlsOptions | undefined;
  /** Further headers of every request. */
  headers(): readonly (readonly [string, string])[];
  readonly hasToken: boolean;
}

export interface CheckedRetries {
  readonly attempts: number;
  readonly hedgeAfter: number | null;
  readonly hedgeBudget: number;
}

const HOST = "\\[[0-9A-Fa-f:.]+\\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?";
const ENDPOINT = new RegExp(`^(https?)://(${HOST})(?::([0-9]{1,5}))?/?$`);
const TOKEN = /^[\x21-\x7e](?:[\x20-\x7e]{0,8190}[\x21-\x7e])?$/;
const HEADER = /^[a-z0-9_.-]{1,128}$/;
/** Headers that HTTP itself needs. */
const OWN =
  /^(?:accept.*|connection|content-.*|cookie|date|expect|host|inference-.*|keep-alive|origin|proxy-.*|referer|sec-.*|te|trailer|transfer-encoding|upgrade|user-agent|via)$/;

export interface Place {
  readonly secure: boolean;
  readonly host: string;
  readonly port: number;
}

/** Host (without brackets, lower case) and port of an address. */
export function splitEndpoint(endpoint: unknown): Place {
  const match = typeof endpoint === "string" ? ENDPOINT.exec(endpoint) : null;
  const [, scheme = "", host = "", digits] = match ?? [];
  const port = digits === undefined ? { http: 80, https: 443 }[scheme] : Number(digits);
  if (!match || port === undefined || port < 1 || port > 65_535)
    throw new ConfigError(
      `the address ${shown(endpoint)} is not of the form https://host or http://host:port, without a path: write it as ` +
        "in https://a.example or http://127.0.0.1:8000",
    );
  return { secure: scheme === "https", host: host.replace(/^\[|\]$/g, "").toLowerCase(), port };
}

export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host);

/** The servers of a client, in the order of the release. `count`: how many the release has; null: any number. */
export function checkServers(
  servers: unknown,
  count: number | null,
  options: { readonly allowSharedHosts: boolean; readonly checkTls: (tls: TlsOptions) => TlsOptions },
): CheckedServer[] {
  if (!Array.isArray(servers))
    throw new ConfigError("the servers are not a list: pass [{ url: … }, …] in the release's order");
  if (servers.length === 0)
    throw new ConfigError("no servers were given: pass [{ url: … }, …], one for each of the release, in its order");
  const checked = servers.map((server: unknown) => checkServer(server, options.checkTls));
  if (count !== null && checked.length !== count)
    throw new ConfigError(
      `the release has ${count} servers, ${checked.length} were given: pass one for each, in the release's order`,
    );
  const places = new Map<string, string>();
  const hosts = new Map<string, number>();
  checked.forEach((server, index) => {
    for (const endpoint of server.endpoints) {
      const { host, port } = splitEndpoint(endpoint);
      const name = isLoopback(host) ? "127.0.0.1" : canonical(host);
      const before = places.get(`${name}:${port}`);
      if (before !== undefined)
        throw new ConfigError(
          `${endpoint} is named twice (first as ${before}): every server is another party and must not get the share ` +
            "of a second one; correct the list of servers",
        );
      places.set(`${name}:${port}`, endpoint);
      // This machine does not count: servers on loopback are a test, or proxies to somewhere else.
      const other = isLoopback(host) ? index : (hosts.get(name) ?? index);
      hosts.set(name, other);
      if (other !== index && !options.allowSharedHosts)
        throw new ConfigError(
          `servers ${other} and ${index} are both at ${name}, where one host sees the shares of both: name hosts of ` +
            "different parties, or pass allowSharedHosts: true for development",
        );
    }
  });
  return checked;
}

function checkServer(given: unknown, checkTls: (tls: TlsOptions) => TlsOptions): CheckedServer {
  const server = (typeof given === "string" ? { url: given } : given) as Server;
  if (typeof server !== "object" || server === null)
    throw new ConfigError(`a server has the type ${typeName(given)}: pass { url: … }`);
  checkNames(server, ["url", "token", "insecure", "tls"], "a server");
  const listed: readonly string[] = typeof server.url === "string" ? [server.url] : server.url;
  if (!Array.isArray(listed) || !listed.length)
    throw new ConfigError("a server has no address: pass { url: 'https://a.example' }");
  const insecure = checkFlag(server.insecure, "insecure");
  for (const endpoint of listed) {
    const { secure, host } = splitEndpoint(endpoint);
    if (!secure && !insecure && !isLoopback(host))
      throw new ConfigError(
        `${endpoint} is not on this machine and has no TLS, so anyone on the network could read the share: write ` +
          "https://, or pass insecure: true for a network that you trust",
      );
    if (!secure && server.token !== undefined && !isLoopback(host))
      throw new ConfigError(`a token would be sent to ${endpoint} in plaintext: write https://`);
    if (!secure && server.tls) throw new ConfigError(`${endpoint} has no TLS to be set up: write https://`);
    if (secure && insecure) throw new ConfigError(`${endpoint} has TLS, and \`insecure\` is given: drop it`);
  }
  const tls = server.tls === undefined ? undefined : checkTls(server.tls);
  const token = server.token === undefined ? null : checkTokenOf(server.token);
  return {
    endpoints: [...listed],
    tls,
    hasToken: token !== null,
    headers: () => (token ? [headerOf(token)] : []),
  };
}

/** Refuse `tls` on platforms that set up TLS themselves. */
export function noTls(): never {
  throw new ConfigError("browsers and React Native do not let an app set up TLS: drop `tls`, or use privdfs/node");
}

function checkTokenOf(token: TokenValue | Token): Token {
  const made = typeof token === "object" ? token : { value: token, header: "authorization" };
  checkNames(made, ["value", "header"], "a token");
  if (typeof made.header !== "string" || !HEADER.test(made.header) || OWN.test(made.header))
    throw new ConfigError(
      "the token's header cannot carry a token: use lower-case letters, digits and -_., and not a header of HTTP's own",
    );
  if (typeof made.value !== "function") checkToken(made.value);
  return made;
}

function headerOf({ value, header }: Token): readonly [string, string] {
  let text: unknown = value;
  try {
    if (typeof value === "function") text = value();
  } catch {
    // What it threw may quote the token.
    throw new ConfigError("the function that gives the token failed: check it");
  }
  const token = checkToken(text);
  return [header, header === "authorization" ? `Bearer ${token}` : token];
}

function checkToken(value: unknown): string {
  if (typeof value !== "string")
    throw new ConfigError(`the token has the type ${typeName(value)}: pass text, or a function that returns text`);
  if (!TOKEN.test(value))
    throw new ConfigError(
      "the token is empty, longer than 8192 characters, begins or ends with a space, or holds a character that is not " +
        "printable ASCII: check where it comes from",
    );
  return value;
}

export function checkRetries(retries: unknown): CheckedRetries {
  const given = (retries ?? {}) as Retries;
  if (typeof given !== "object")
    throw new ConfigError(`retries has the type ${typeName(retries)}: pass { attempts: …, hedgeAfter: … }`);
  checkNames(given, ["attempts", "hedgeAfter", "hedgeBudget"], "`retries`");
  const budget = given.hedgeBudget ?? DEFAULT_HEDGE_BUDGET;
  if (typeof budget !== "number" || !(budget >= 0 && budget <= 1))
    throw new ConfigError(`hedgeBudget=${shown(budget)} is not a number from 0 to 1`);
  return {
    attempts: checkWhole(given.attempts ?? DEFAULT_ATTEMPTS, "attempts", 1, MAX_ATTEMPTS),
    hedgeAfter: given.hedgeAfter === undefined ? null : checkTimeout(given.hedgeAfter, "hedgeAfter"),
    hedgeBudget: budget,
  };
}

export function checkWait(wait: unknown): Wait {
  if (wait !== "all" && wait !== "quorum") throw new ConfigError(`wait=${shown(wait)} is neither "all" nor "quorum"`);
  return wait;
}

/** One spelling for each host, as far as possible without asking the network. */
function canonical(host: string): string {
  try {
    const { hostname } = new URL(`http://${host.includes(":") ? `[${host}]` : host}/`);
    // An IPv4 address has a spelling as IPv6, and numbers have many.
    const mapped = /^\[::ffff:([0-9a-f]+):([0-9a-f]+)\]$/.exec(hostname);
    if (!mapped) return hostname;
    const [high, low] = mapped.slice(1).map((digits) => Number.parseInt(digits, 16)) as [number, number];
    return new URL(`http://${high * 65_536 + low}/`).hostname;
  } catch {
    return host;
  }
}
