"""Errors in the words of the command line."""

from pathlib import Path

import pytest

import privdfs
from privdfs._cli_words import _OPTIONS, _PHRASES, in_options

SOURCES = "\n".join(
    path.read_text() for path in Path(privdfs.__file__).parent.glob("*.py") if path.stem != "_cli_words"
)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("pass trust=<public key of the signer>, or allow_unsigned=True", "pass --trust KEY, or --allow-unsigned"),
        ("`trust` and `allow_unsigned` contradict", "--trust and --allow-unsigned contradict"),
        ("give 5 servers, or pass colluding=1", "give 5 servers, or pass --colluding 1"),
        ("timeout=0 is not", "--timeout 0 is not"),
        ("raise `timeout`, or check", "raise --timeout, or check"),
        ("that the authorities in TLS(ca=…) did not sign", "that the authorities in --ca did not sign"),
        ("pass tls=TLS(…), or insecure=True", "pass --tls, or --insecure"),
        ("give the token that it may need, Server(…, token=…)", "give the token that it may need, --token-file or"),
    ],
)
def test_arguments_become_options(said: str, shown: str) -> None:
    assert in_options(said).startswith(shown)


def test_other_words_stay() -> None:
    text = "the servers have a timeout, server 0: /tmp/ca=x.png holds `levels`"
    assert in_options(text) == text


def test_the_library_says_what_is_translated() -> None:
    """A phrase that an error no longer has would be a line that does nothing."""
    assert [phrase for phrase in _PHRASES if phrase not in SOURCES] == []
    assert [name for name in _OPTIONS if f"{name}=" not in SOURCES and f"`{name}`" not in SOURCES] == []
