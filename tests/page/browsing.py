"""A headless browser in front of `mtl-re demo`: what the tests of the page's tabs share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mtl_re.page.translations import TEXTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where MTL_RE_REQUIRE_BROWSER=1 says that a browser must be here (`.ci/run`)."""
    if os.environ.get("MTL_RE_REQUIRE_BROWSER") == "1":
        pytest.fail(what)
    pytest.skip(what)


@contextmanager
def demo_server(folder: Path, ckpt: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """Yield (address, process, temporary folder) of `mtl-re demo` as a user starts it."""
    if find_spec("gradio") is None:
        missing("gradio is not installed (extra: demo)")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    call = [sys.executable, "-m", "mtl_re", "demo", str(ckpt), "--port", "0", *options]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line
            yield line.split()[0].rstrip("/"), process, folder
        finally:
            process.kill()


@contextmanager
def pages_of(address: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Yield what opens the page: (language, width) → page; at the end, nothing was asked of another host, and nothing
    went wrong."""
    if find_spec("playwright") is None:
        missing("playwright is not installed (extra: dev)")
    from playwright.sync_api import sync_playwright

    asked, faults, contexts = [], [], []
    with sync_playwright() as driver:
        program = CHROMIUM or driver.chromium.executable_path
        if not Path(program).exists():
            missing("Chromium is not installed (apt-get install chromium, or playwright install chromium)")

        def opened(language: str = "en-US", width: int = 1280):
            folder = tmp_path / f"profile{len(contexts)}"
            size = {"width": width, "height": 900}
            options = {"executable_path": program, "args": FLAGS.split(), "locale": language, "viewport": size}
            context = driver.chromium.launch_persistent_context(str(folder), accept_downloads=True, **options)
            contexts.append(context)
            context.on("request", lambda request: asked.append(request.url))
            page = context.new_page()
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(address)
            words = TEXTS["ko" if language.startswith("ko") else "en"]
            page.wait_for_selector(f"text={words['subtitle']}")
            return page

        yield opened
        for context in contexts:
            context.close()
    assert len(asked) > 10
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert faults == []


def open_tab(page, name: str, inside: str) -> None:
    """Open a tab, and click again if its content does not appear: a click before Gradio has bound its tabs is lost."""
    timed_out = pytest.importorskip("playwright.sync_api").TimeoutError
    for patience in (10_000, 10_000, 60_000):
        page.get_by_role("tab", name=name).click()
        try:
            page.locator(inside).wait_for(state="attached", timeout=patience)
            return
        except timed_out:
            continue
    pytest.fail(f"the tab {name!r} did not open")
