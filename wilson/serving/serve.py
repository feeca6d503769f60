"""Open the page: to this machine alone unless a host is named, and then to those who know a password."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from wilson.errors import UserError

from .uploads import LARGEST

LOCAL = "127.0.0.1"
# The browser asks no other host, whatever the page says. The scripts and styles of Gradio stand in its page.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'"
)
# Routes of Gradio that fetch from other hosts, or serve what this page does not have
REFUSED = re.compile(r"/(proxy=|file=(?!/)|file/|custom_component/|vibe-|undo-vibe|monitoring|dev/)")


class Guard:
    """Refuses routes that the page has no use for, and what other sites send; gives the policy with every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        sent = dict(scope.get("headers", ()))
        origin = urlsplit(sent.get(b"origin", b"")).netloc
        if (origin and origin != sent.get(b"host")) or REFUSED.search(unquote(scope.get("path", ""))):
            await guarded({"type": "http.response.start", "status": 404, "headers": []})
            await guarded({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, guarded)


def serve(
    models: Sequence[Path],
    work: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    user: str | None = None,
    password: str | None = None,
    builder: str | None = None,
    validation: Path | None = None,
    device: str = "auto",
) -> Any:
    """Serve the page in the background.

    Args:
        models: what :meth:`wilson.Predictor.load` takes.
        work: folder for photographs, jobs and new models; created if missing. No file outside of it is served.
        host: address to serve at; None for this machine alone. Another one needs user and password.
        port: None for the first free one from 7860 on.
        user, password: of those who may see the page.
        builder: FILE.py:FUNCTION that returns the architecture, for models that were built by one.
        validation: data set with masks, see :func:`wilson.add_classes`.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        Gradio's application, whose `local_url` says where it is, and whose `block_thread` waits for Ctrl-C.

    Raises:
        UserError: a host without user and password, or these without a host; or a model is missing.
    """
    if len({bool(host), bool(user), bool(password)}) > 1:
        raise UserError("--host opens the page to others, so it needs --user and a password, and these need --host")
    if missing := [path for path in models if not path.exists()]:
        raise UserError(f"{missing[0]}: no such model")
    work = work.absolute()
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)  # what was uploaded and written for an earlier page
    cache.mkdir(parents=True)
    os.environ |= {  # before Gradio is imported
        "GRADIO_TEMP_DIR": str(cache),
        "GRADIO_EXAMPLES_CACHE": str(cache / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .desk import Desk
    from .page import FONTS, HEAD, MONOSPACED, STYLE, build

    # Another site must not reach the page under a name of its own that it lets point here
    names = ["*"] if host else [LOCAL, "localhost"]
    page = build(Desk(models, work, builder, validation, device))
    page.launch(
        server_name=host or LOCAL,
        server_port=port,
        auth=(user, password) if user and password else None,
        max_file_size=LARGEST,
        allowed_paths=[],
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=names), Middleware(Guard)]},
        theme=gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONOSPACED),
        css=STYLE,
        head=HEAD,
        footer_links=[],
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return page
