"""The queue as Prometheus reads it: printed once by `raymsa metrics`, or served by `raymsa work --metrics PORT`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from raymsa.errors import RaymsaError, UsageError
from raymsa.store import Store, overview
from raymsa.store.states import RANKS

TEXT = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_S = 10.0  # for one who connects and says nothing


def text(store: Store) -> bytes:
    """Everything that is measured, in Prometheus' text format. Raises StoreError."""
    registry = CollectorRegistry()
    _queue(store, registry)
    _training(store, registry)
    return generate_latest(registry)


def _queue(store: Store, registry: CollectorRegistry) -> None:
    for noun, counts in (("tasks", overview.task_counts(store)), ("jobs", overview.job_counts(store))):
        gauge = Gauge(f"raymsa_{noun}", f"How many {noun} of the store are in each state", ["state"], registry=registry)
        for state in RANKS:  # also those that there are none of: a series that vanishes cannot be watched
            gauge.labels(state).set(counts.get(state, 0))
    since, now = overview.ready_since(store), store.clock()
    about = "Seconds that the task which waits longest for a driver has waited; 0 when none does"
    Gauge("raymsa_queue_wait_seconds", about, registry=registry).set(0 if since is None else max(0.0, now - since))
    failed = Gauge(
        "raymsa_failed", "How many tasks and runs stand failed, by cause", ["what", "cause"], registry=registry
    )
    for (what, cause), count in overview.failed_by_cause(store).items():
        failed.labels(what, cause).set(count)


def _training(store: Store, registry: CollectorRegistry) -> None:
    running = overview.running_runs(store)
    Gauge("raymsa_runs_running", "How many runs train now", registry=registry).set(len(running))
    rate = Gauge(
        "raymsa_run_clips_per_second", "Clips that a run trains on per second", ["job", "run"], registry=registry
    )
    for run in running:
        if run.clips_per_s is not None:
            rate.labels(run.job_id, run.id).set(run.clips_per_s)
    # No counter: it falls when a job is removed, and Prometheus would take that for a new beginning.
    about = "Seconds that the recorded runs took of GPUs, and of CPU cores where they used no GPU"
    spent = Gauge("raymsa_device_seconds", about, ["device"], registry=registry)
    for device, seconds in overview.device_seconds(store).items():
        spent.labels(device).set(seconds)


@contextmanager
def served(store: Store, host: str, port: int) -> Iterator[str]:
    """Serves `text` at /metrics inside the block; gives the address. A store that does not answer is a 503.

    Raises UsageError when the port cannot be had.
    """
    try:
        server = _Server((host, port), _handler(store))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--metrics {port}: {host}:{port} cannot be served: {reason}; give another port") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="raymsa-metrics")
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # one who does not read must not keep `raymsa work` from ending

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is said of one who hung up: that is a page of trace on the screen of `raymsa work`."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(store: Store) -> type[BaseHTTPRequestHandler]:
    class Metrics(BaseHTTPRequestHandler):
        timeout = REQUEST_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/", "/metrics"):
                self._answer(404, b"metrics are at /metrics\n")
                return
            try:
                self._answer(200, text(store))
            except RaymsaError as error:
                self._answer(503, f"{error}\n".encode())

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", TEXT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a line every 15 s is no news."""

    return Metrics
