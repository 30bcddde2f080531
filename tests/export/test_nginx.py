"""nginx's configuration: what decides it, and what it refuses. tests/e2e/test_gateway.py runs it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from privdfs_export.cli import main
from privdfs_export.errors import ServeError
from privdfs_export.repository import read_repository
from privdfs_export.serve.nginx import TEMPLATE, NginxSettings, longest_message, nginx_config, secret_line

ROOT = Path(__file__).parents[2]
RELEASES = sorted(path.parent for path in (ROOT / "model_repository").glob("*/server-0"))
SETTINGS = NginxSettings(
    listen="127.0.0.1:8443", certificate="c.pem", key="k.pem", upstream="127.0.0.1:8000", secret_file="s.conf"
)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_paths_and_lengths_are_those_of_the_release(release: Path) -> None:
    repository = read_repository(release / "server-0")
    text = nginx_config(repository, SETTINGS)
    assert "${" not in text
    names = re.findall(r"\(\?<model>([^)]*)\)", text)
    assert names == ["|".join(model.name for model in repository.models)] * 2
    assert f"client_max_body_size {longest_message(repository)};" in text


def test_every_placeholder_is_filled_in_by_its_setting() -> None:
    settings = replace(SETTINGS, origins=("https://a.example", "capacitor://localhost"), rate=7, access_log="calls")
    text = nginx_config(read_repository(RELEASES[0] / "server-0"), settings)
    for line in (
        "listen 127.0.0.1:8443 ssl http2;",
        'ssl_certificate "c.pem";',
        'ssl_certificate_key "k.pem";',
        "server 127.0.0.1:8000;",
        'include "s.conf";',
        '"capacitor://localhost" "capacitor://localhost";',
        "rate=7r/s;",
        "burst=7 nodelay;",
        'access_log "calls" calls;',
        "listen 127.0.0.1:9113;",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"listen": "8443"}, "HOST:PORT"),
        ({"listen": "a:1; x"}, "HOST:PORT"),
        ({"upstream": "http://a:1"}, "HOST:PORT"),
        ({"status": "a b:1"}, "HOST:PORT"),
        ({"listen": "0.0.0.0:99999"}, "no port from 1 to 65535"),
        ({"upstream": "127.0.0.1:0"}, "no port from 1 to 65535"),
        ({"upstream": "127.0.0.1:8443"}, "three addresses"),
        ({"status": "127.0.0.1:8443"}, "three addresses"),
        ({"certificate": 'a";'}, "another name"),
        ({"key": "a\nb"}, "another name"),
        ({"secret_file": "$a"}, "another name"),
        ({"secret_file": "secrets/*.conf"}, "pattern"),
        ({"secret_file": "a[1]/s.conf"}, "pattern"),
        ({"upstream": "unix:/tmp/a\\"}, "HOST:PORT"),
        ({"upstream": "unix:/tmp/$a"}, "HOST:PORT"),
        ({"status": "unix:/" + "a" * 107}, "TMPDIR"),
        ({"access_log": ""}, "another name"),
        ({"origins": ("*",)}, "not an origin"),
        ({"origins": ("https://a.example:443",)}, "leave it out"),
        ({"origins": ("http://[::1]:80",)}, "leave it out"),
    ],
)
def test_a_setting_that_nginx_would_read_otherwise_is_refused(change: dict[str, str], reason: str) -> None:
    with pytest.raises(ServeError, match=reason):
        nginx_config(read_repository(RELEASES[0] / "server-0"), replace(SETTINGS, **change))


def test_an_origin_that_is_named_twice_stands_there_once() -> None:
    settings = replace(SETTINGS, origins=("https://a.example", "https://a.example", "https://a.example:80"))
    text = nginx_config(read_repository(RELEASES[0] / "server-0"), settings)
    assert text.count('"https://a.example" "https://a.example";') == 1


@pytest.mark.parametrize("secret", ["", "a b", 'a"', "a$b", "a\\", "a\n", "ä"])
def test_a_secret_that_a_header_cannot_have_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ServeError, match="openssl rand") as refused:
        secret_line(secret)
    assert not secret or repr(secret) not in str(refused.value)


def test_the_template_writes_no_body_anywhere() -> None:
    text = TEMPLATE.read_text()
    assert not re.search(r"\$request_body|client_body_in_file_only (on|clean)|proxy_store|mirror|debug", text)
    assert "proxy_max_temp_file_size 0;" in text


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["gateway", str(RELEASES[0] / "server-0"), "--listen", "0.0.0.0:443", "--upstream", "127.0.0.1:8000"]
    line += ["--cert", "c.pem", "--key", "k.pem", "--secret-file", "s.conf"]
    assert main([*line, "--origin", "https://a.example"]) == 0
    text = capsys.readouterr().out
    assert "listen 0.0.0.0:443 ssl http2;" in text
    assert 'access_log "/dev/stdout" calls;' in text
    assert main([*line, "--origin", "a.example"]) == 2
    assert "not an origin" in capsys.readouterr().err
