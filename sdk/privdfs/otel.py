"""OpenTelemetry spans and metrics of a client: `pip install privdfs[otel]`, then `Client(..., telemetry=Telemetry())`.

Nothing is measured or sent unless a client is given a `Telemetry`, and then only through the providers that the
application has set up. What is in it: times, counts, the release, server indices, names of error classes. What is not:
images, shares, logits, labels, probabilities, keys and partitions, suspects, endpoints, messages of errors.

| span | attributes |
| --- | --- |
| `privdfs.call`, one for each part of a call | `privdfs.release`, `privdfs.images`, `privdfs.answered`, `error.type` |
| `privdfs.server`, below it, one for each server | `privdfs.server`, `error.type` |

| metric | unit | attributes |
| --- | --- | --- |
| `privdfs.call.duration`, a histogram | s | `privdfs.release`, `error.type` |
| `privdfs.server.duration`, a histogram | s | `privdfs.release`, `privdfs.server`, `error.type` |
| `privdfs.images`, a counter | images | `privdfs.release`, `error.type` |

A part is at most `max_batch` images that travel together. Calls refused before anything is sent are not counted.
"""

import time
from collections.abc import Sequence
from typing import Any

from privdfs._errors import ConfigError
from privdfs._kinds import Outcome

__all__ = ["Telemetry"]


class Telemetry:
    """Spans and metrics of one client or several.

    Args:
        tracer_provider: OpenTelemetry's; the global one when None.
        meter_provider: OpenTelemetry's; the global one when None.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, *, tracer_provider: Any = None, meter_provider: Any = None) -> None:  # noqa: ANN401 - optional dependency
        try:
            from opentelemetry import metrics, trace
        except ImportError as error:
            raise ConfigError("OpenTelemetry is not installed: pip install 'privdfs[otel]'") from error
        api: Any = trace
        self._in_context: Any = api.set_span_in_context
        self._failed: Any = api.Status(api.StatusCode.ERROR)
        self._tracer: Any = trace.get_tracer("privdfs", tracer_provider=tracer_provider)
        meter: Any = metrics.get_meter("privdfs", meter_provider=meter_provider)
        self._call_s = meter.create_histogram("privdfs.call.duration", "s", "of a part of a call, until its result")
        self._server_s = meter.create_histogram("privdfs.server.duration", "s", "from sending a share to its answer")
        self._images = meter.create_counter("privdfs.images", "{image}", "classified, or failed")

    def __repr__(self) -> str:
        return "Telemetry()"

    def note(
        self, release: str, images: int, outcomes: Sequence[Outcome], seconds: float, error: BaseException | None
    ) -> None:
        """Record a part of a call that ends now.

        Args:
            release: id of the release.
            images: how many it had.
            outcomes: of the servers.
            seconds: since the call began.
            error: what it ends with, None for results.
        """
        now = time.time_ns()
        attributes = {"privdfs.release": release, **_type_of(error)}
        answered = sum(outcome.answer is not None for outcome in outcomes)
        span = self._tracer.start_span(
            "privdfs.call",
            start_time=now - round(seconds * 1e9),
            attributes={**attributes, "privdfs.images": images, "privdfs.answered": answered},
        )
        below = self._in_context(span)
        for outcome in outcomes:
            own = {"privdfs.server": outcome.server, **_type_of(outcome.error)}
            server = self._tracer.start_span(
                "privdfs.server", below, start_time=now - round(outcome.ms * 1e6), attributes=own
            )
            if outcome.error is not None:
                server.set_status(self._failed)
            else:
                self._server_s.record(outcome.ms / 1e3, {"privdfs.release": release, **own})
            server.end(now)
        if error is not None:
            span.set_status(self._failed)
        span.end(now)
        self._call_s.record(seconds, attributes)
        self._images.add(images, attributes)


def _type_of(error: BaseException | None) -> dict[str, str]:
    return {} if error is None else {"error.type": type(error).__name__}
