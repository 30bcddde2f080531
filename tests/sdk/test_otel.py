"""What OpenTelemetry is told: times and counts, and nothing of an image or its class."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from privdfs import NotEnoughAnswersError, Queries
from privdfs.otel import Telemetry
from privdfs.testing import FakeServer, Fault
from tests.sdk.drivers import Driver
from tests.sdk.tiny_release import CLASSES


class Recorded:
    def __init__(self) -> None:
        self.spans, self.metrics = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.telemetry = Telemetry(
            tracer_provider=self.tracers, meter_provider=MeterProvider(metric_readers=[self.metrics])
        )

    def points(self) -> dict[str, list[Any]]:
        data: Any = self.metrics.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics
        return {metric.name: list(metric.data.data_points) for metric in found}


def test_spans_and_metrics_of_calls(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    recorded = Recorded()
    client = connect(release / "client", endpoints, telemetry=recorded.telemetry, queries=Queries())
    client.predict_batch(images[:3])
    client.predict(images[0])  # a repeat: nothing is sent, nothing to tell
    fakes[2].fault = Fault(status="INVALID_ARGUMENT")
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[4])
    spans = recorded.spans.get_finished_spans()
    calls = [span for span in spans if span.name == "privdfs.call"]
    assert [dict(span.attributes or {}) for span in calls] == [
        {"privdfs.release": "tiny-1", "privdfs.images": 3, "privdfs.answered": 3},
        {
            "privdfs.release": "tiny-1",
            "privdfs.images": 1,
            "privdfs.answered": 2,
            "error.type": "NotEnoughAnswersError",
        },
    ]
    servers = [span for span in spans if span.name == "privdfs.server"]
    assert [dict(span.attributes or {}) for span in servers[:3]] == [{"privdfs.server": i} for i in range(3)]
    assert dict(servers[5].attributes or {}) == {"privdfs.server": 2, "error.type": "ServerUnavailableError"}
    for span in servers:
        above = next(call for call in calls if call.context == span.parent)
        assert above.start_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert above.start_time <= span.start_time <= span.end_time
    points = recorded.points()
    assert set(points) == {"privdfs.call.duration", "privdfs.server.duration", "privdfs.images"}
    assert {point.attributes.get("error.type"): point.value for point in points["privdfs.images"]} == {
        None: 3,
        "NotEnoughAnswersError": 1,
    }


def test_spans_hang_below_that_of_the_application(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    recorded = Recorded()
    client = connect(release / "client", endpoints, telemetry=recorded.telemetry)
    with recorded.tracers.get_tracer("application").start_as_current_span("photo") as outer:
        client.predict(images[0])
    call = next(span for span in recorded.spans.get_finished_spans() if span.name == "privdfs.call")
    assert call.parent == outer.get_span_context()
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_no_image_class_or_place_is_told(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    recorded = Recorded()
    client = connect(release / "client", endpoints, telemetry=recorded.telemetry)
    results = client.predict_batch(images[:2])
    told = "".join(span.to_json() for span in recorded.spans.get_finished_spans())
    metrics: Any = recorded.metrics.get_metrics_data()
    told += metrics.to_json()
    secrets = [*CLASSES, *endpoints, *(f"{result.probability:.6}" for result in results)]
    assert [secret for secret in secrets if secret in told] == []


def test_there_is_none_by_default_and_a_missing_library_is_named(release: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import privdfs, privdfs.otel\n"
        "privdfs.Client.local(sys.argv[1])\n"
        "try: privdfs.otel.Telemetry()\n"
        "except privdfs.ConfigError as error: print(error)\n"
    )
    line = [sys.executable, "-c", code, str(release)]
    shown = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "pip install" in shown
