"""`mtl-re demo`: a web page on this machine to try a checkpoint on a sentence, a whole text or a file.

Enters: a CKPT. Leaves: a Gradio page on 127.0.0.1. The design decision is that no data leaves the machine: no
analytics, no share link, system fonts only, a content security policy that lets the browser contact no other host, a
check of the Host header, and no file served but those of this server's own temporary directory, which is removed when
it stops.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtl_re.config import DemoConfig
from mtl_re.errors import MtlReError
from mtl_re.page.backend import PageBackend
from mtl_re.page.components import build_page
from mtl_re.page.document import DocumentBackend
from mtl_re.predict.document_triples import load_finder
from mtl_re.predict.predictor import Predictor

LOCAL = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Gradio needs inline and evaluated scripts; what matters is that no other host is ever contacted."""
FONTS = ("system-ui", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "sans-serif")


class SecurityHeaders:
    """ASGI middleware that adds headers: the browser contacts no other host, and no other page can frame this one."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
                extra |= {"referrer-policy": "no-referrer", "x-frame-options": "DENY"}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        await self.app(scope, receive, guarded)


def free_port(host: str, port: int) -> int:
    """Return the port if it is free, or any free port for 0.

    Raises:
        MtlReError: the address cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        what = f"{host}:{port}: cannot listen on this address ({error.strerror or error})"
        raise MtlReError(f"{what}; choose another --port (0 takes any free one) or --host") from error


@contextmanager
def serving(ckpt: str, options: DemoConfig) -> Iterator[str]:
    """Load a checkpoint, serve its page, and yield the page's address; on exit, stop and remove all temporary files."""
    port = free_port(options.host, options.port)
    with tempfile.TemporaryDirectory(prefix="mtl-re-demo-") as directory:
        # Gradio reads these when it is first imported; an inherited setting must not open what is closed here.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": directory, "GRADIO_SHARE": "False"}
        os.environ.pop("GRADIO_ALLOWED_PATHS", None)
        try:
            import gradio as gr
        except ImportError as error:
            raise MtlReError(
                "mtl-re demo needs gradio; install it with: pip install -e '.[demo]' in the checkout"
            ) from error
        from gradio.themes.utils.fonts import Font
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        predictor = Predictor.from_pretrained(ckpt, batch_size=options.batch_size)
        finder = None
        if options.entities is not None:
            finder = load_finder(options.entities, options.ner_types, predictor.entity_types)
        backend = PageBackend(predictor, options, Path(directory))
        blocks = build_page(backend, DocumentBackend(backend, finder))
        hosts = [*LOCAL, "[::1]"] if options.host in LOCAL else ["*"]
        fonts = [Font(font) for font in FONTS]
        _, address, _ = blocks.launch(
            server_name=options.host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            allowed_paths=[],
            max_file_size=int(options.max_megabytes * 1e6),
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Default(primary_hue="blue", font=fonts, font_mono=[Font("monospace")]),
            css_paths=Path(__file__).with_name("stylesheet.css"),
            app_kwargs={
                "middleware": [Middleware(SecurityHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
            },
        )
        try:
            yield str(address)
        finally:
            blocks.close(verbose=False)


def demo(ckpt: str, options: DemoConfig) -> None:
    """Serve the page of a checkpoint until Ctrl-C or SIGTERM (`mtl-re demo`)."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with serving(ckpt, options) as address:
        print(f"{address}  (press Ctrl-C to stop)", flush=True)
        while not stop.wait(3600):
            pass
