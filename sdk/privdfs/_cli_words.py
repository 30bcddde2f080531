"""Errors in the words of the command line: they name options where the library's name arguments."""

import re
from collections.abc import Mapping

#: Argument -> option, of all commands.
_OPTIONS = {
    "allow_unsigned": "--allow-unsigned",
    "colluding": "--colluding",
    "insecure": "--insecure",
    "max_leakage_db": "--max-leakage-db",
    "min_answers": "--min-answers",
    "servers": "--n-servers",  # a number of them, which `describe` takes
    "timeout": "--timeout",
    "trust": "--trust",
}
#: What advice quotes whole; before the names that stand in it.
_PHRASES = {
    "[Server(…), …], one for each party, in the release's order": "--server once for each party, in the release's "
    "order, or --servers FILE",
    "Server(…, token=…)": "--token-file or --token-env",
    "TLS(cert=…, key=…)": "--tls-cert and --tls-key",
    "tls=TLS(…)": "--tls",
    "TLS(ca=…)": "--ca",
    "TLS(pin=…)": "--pin",
    "key=UserKey(…)": "--user-key FILE",
    "leave `key` out": "leave --user-key out",
    "trust=<public key of the signer>": "--trust KEY",
}
_NAMES = "|".join(_OPTIONS)
_PATTERN = re.compile(
    f"(?P<phrase>{'|'.join(map(re.escape, _PHRASES))})|`(?P<quoted>{_NAMES})(=True)?`"
    rf"|\b(?P<name>{_NAMES})=(?:True\b|(?P<value>[^\s,;:]+))"
)


def in_options(message: str) -> str:
    """A message of the library for the reader of a command line."""
    return _PATTERN.sub(_option, message)


def _option(found: "re.Match[str]") -> str:
    parts: Mapping[str, str | None] = found.groupdict()
    if (phrase := parts["phrase"]) is not None:
        return _PHRASES[phrase]
    if (quoted := parts["quoted"]) is not None:
        return _OPTIONS[quoted]
    value = parts["value"]
    return _OPTIONS[found["name"]] + ("" if value is None else f" {value}")
