"""A receiver of OpenTelemetry spans, as a collector is one: OTLP over gRPC, on loopback."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

WAIT_SECONDS = 60


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """Keeps every span that it is sent.

    Attributes:
        spans: in the order in which they came.
        address: where it listens.
    """

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.address = ""

    def Export(self, request: Any, context: Any) -> Any:
        """Of the service ``TraceService``."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str, count: int) -> list[Any]:
        """The spans of this name, once there are so many."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = [span for span in self.spans if span.name == name]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} spans {name} of {count} came"
            time.sleep(0.1)


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Start a receiver on a free port and stop it."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(grace=None).wait()


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value"))
        for attribute in span.attributes
    }
