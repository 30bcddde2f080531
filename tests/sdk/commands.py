"""The command line in this process."""

import pytest

from privdfs._cli import main


def options(endpoints: list[str]) -> list[str]:
    """Words that name unsigned servers."""
    return ["--allow-unsigned", *(word for endpoint in endpoints for word in ("--server", endpoint))]


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail cleanly; its line on standard error."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("privdfs: ")
    return captured.err
