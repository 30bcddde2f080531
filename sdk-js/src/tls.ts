/** How TLS is set up, checked before anything is sent; for Node alone. */

import type { TlsOptions } from "./config.js";
import { ConfigError } from "./errors.js";
import { checkNames, typeName } from "./given.js";

const PEM: Readonly<Record<keyof TlsOptions, RegExp>> = {
  ca: /-----BEGIN CERTIFICATE-----/,
  cert: /-----BEGIN CERTIFICATE-----/,
  key: /-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----/,
};

/** Instead of an empty `ca`, Node would trust the system's authorities. */
export function checkTls(tls: TlsOptions): TlsOptions {
  if (typeof tls !== "object" || tls === null)
    throw new ConfigError(`\`tls\` has the type ${typeName(tls)}: pass { ca: … }`);
  checkNames(tls, Object.keys(PEM), "`tls`");
  for (const [name, text] of Object.entries(tls))
    if (typeof text !== "string" || !PEM[name as keyof TlsOptions].test(text))
      throw new ConfigError(
        `\`tls.${name}\` is not the text of a PEM file: pass what is in the file, not its name, or leave it out`,
      );
  if ((tls.cert === undefined) !== (tls.key === undefined))
    throw new ConfigError("`tls` has `cert` or `key` alone: a device that shows a certificate needs both");
  return { ...tls };
}
