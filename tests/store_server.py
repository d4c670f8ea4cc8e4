"""moto's S3 server on loopback, which can be stopped and started again with what it holds."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="pools in object stores need the extra store")
pytest.importorskip("moto", reason="the S3 server of the tests needs moto[server]")

import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

BUCKET = "pools"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class _QuietHandler(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class StoreServer:
    """A server; `requests` counts (method, path) since it was last cleared.

    moto looks at a condition and then writes, in two steps, and reads what is just being replaced. S3 does
    neither, and nor does this: one request after the other.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._answering = threading.Lock()
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes clients find it."""
        return ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}"}

    def fetched(self, folder: str) -> int:
        """How many files of a folder were asked for."""
        return sum(
            n for (method, path), n in self.requests.items() if method == "GET" and f"/{folder}/" in path
        )

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self._port, self._answer, True, request_handler=_QuietHandler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        assert self._server is not None and self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # First, for a client may be stopped in the middle of its request.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        with self._answering:
            self.requests[environ["REQUEST_METHOD"], environ["PATH_INFO"]] += 1
            return list(self._app(environ, start_response))


@contextmanager
def running_store() -> Iterator[StoreServer]:
    """A server with an empty bucket, which this process and those that it starts find."""
    server = StoreServer()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # which would know another server's address
        s3fs.S3FileSystem().call_s3("create_bucket", Bucket=BUCKET)
        yield server
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
