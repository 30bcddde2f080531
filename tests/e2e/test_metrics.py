"""What operators see: the metrics of real servers and gateways, and a dashboard and alerts that ask for real names."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from privdfs import TLS, Client, Server
from privdfs_export.serve import Gateway, RunningGateway, serve_gateways
from tests.trained import IMAGES

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "model_repository" / "fashion-coded"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
ALERTS = ROOT / "deploy" / "alerts.yml"
RUNBOOK = ROOT / "docs" / "RUNBOOK.md"
#: What Prometheus itself adds.
OWN_NAMES = {"up"}
OWN_LABELS = {"job", "instance"}
_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? \S+")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningGateway]]:
    """Servers that have answered calls."""
    with serve_gateways(RELEASE, Gateway(), metrics=True, log_dir=tmp_path_factory.mktemp("logs")) as found:
        servers = [Server(door.endpoint, TLS(ca=str(door.ca))) for door in found]
        with Client(RELEASE / "client", servers, allow_unsigned=True) as client:
            for name in ("bag-1", "bag-2"):
                client.predict(IMAGES / f"{name}.png")
        yield found


def page(url: str | None) -> str:
    assert url is not None
    with _DIRECT.open(url, timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def samples(doors: list[RunningGateway]) -> dict[str, set[str]]:
    """Every name of the pages of one party, with the names of its labels."""
    found: dict[str, set[str]] = {name: set() for name in OWN_NAMES}
    for url in (doors[0].server.metrics, doors[0].metrics):
        for line in page(url).splitlines():
            if line and not line.startswith("#"):
                sample = _SAMPLE.fullmatch(line)
                assert sample is not None, line
                found.setdefault(sample[1], set()).update(re.findall(r'(\w+)="', sample[2] or ""))
    return found


class _Selectors:
    """Collects what an expression asks for: names, matchers, and the labels that it groups by."""

    def __init__(self, expression: str) -> None:
        self.names: set[str] = set()
        self.matched: dict[str, dict[str, str]] = {}
        self.grouped: set[str] = set()
        promql_parser.walk(promql_parser.parse(expression), self._visit)

    def _visit(self, node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None
            self.names.add(node.name)
            wanted = self.matched.setdefault(node.name, {})
            wanted.update({each.name: each.value for each in node.matchers.matchers})
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            self.grouped.update(node.modifier.labels)
        return True


def expressions() -> list[tuple[str, str]]:
    """Every question of the dashboard and the alerts, with its title."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [
        (panel["title"], target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*"))
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return asked + [(rule["alert"], rule["expr"]) for rule in rules]


@pytest.mark.parametrize(("title", "expression"), expressions())
def test_dashboard_and_alerts_ask_for_what_servers_say(
    samples: dict[str, set[str]], title: str, expression: str
) -> None:
    asked = _Selectors(expression)
    assert asked.names
    assert asked.names <= set(samples), title
    for name in asked.names:
        assert set(asked.matched[name]) <= samples[name] | OWN_LABELS, title
        assert asked.grouped <= samples[name] | OWN_LABELS, title


def test_a_name_that_no_server_says_is_found() -> None:
    asked = _Selectors('sum by (zone) (rate(nv_nothing{color="red"}[5m])) / up')
    assert asked.names == {"nv_nothing", "up"}
    assert asked.matched["nv_nothing"] == {"color": "red"}
    assert asked.grouped == {"zone"}


def test_the_reasons_of_failures_are_those_that_triton_knows(doors: list[RunningGateway]) -> None:
    known = set(re.findall(r'nv_inference_request_failure\{.*reason="(\w+)"', page(doors[0].server.metrics)))
    matched = [
        _Selectors(text).matched.get("nv_inference_request_failure", {}).get("reason") for _, text in expressions()
    ]
    asked = {word for text in matched if text for word in text.split("|")}
    assert asked == known


def test_the_page_counts_what_was_asked(doors: list[RunningGateway]) -> None:
    for door in doors:
        answered = re.findall(r'nv_inference_request_success\{model="(.*?)",.*\} (\d+)', page(door.server.metrics))
        rounds = len([path for path in (RELEASE / "server-0").iterdir() if path.name.startswith("branch-")])
        assert [int(count) >= 2 for _, count in answered] == [True] * rounds


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"} == variables
    taken = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken), "panels lie on each other"
    assert max(x for x, _ in taken) < 24


def test_every_alert_leads_to_its_page_of_the_runbook() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]:
        assert rule["annotations"]["runbook"].removeprefix("docs/RUNBOOK.md#") in anchors, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert f"`{rule['alert']}`" in RUNBOOK.read_text()


def test_the_gateways_page_has_no_other_paths(doors: list[RunningGateway]) -> None:
    url = doors[0].metrics
    assert url is not None
    assert "Active connections" in page(url.replace("/metrics", "/stub_status"))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page(url.replace("/metrics", "/v2"))
