"""The page: Gradio Blocks with a tab for each kind of model, which loads nothing from elsewhere.

Importing this module imports Gradio.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import gradio
from starlette.middleware import Middleware

from transformer_jax.tasks.tab import Phrase, Tab

TITLE = "transformer-jax"
REQUESTS_AT_ONCE = 4
"""Requests of a kind that are answered at a time; others wait in the queue."""
MOST_WAITING = 64
LARGEST_REQUEST = 10_000_000
"""Bytes of a request's body."""
CHINESE_LOCALES = ("zh", "zh-CN", "zh-SG", "zh-TW", "zh-HK")

_FONTS = ("system-ui", "Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "sans-serif")
_MONO = ("ui-monospace", "monospace")
# Gradio's own secondary text and buttons are too pale to be read by everyone (WCAG asks for a contrast of 4.5).
_COLOURS = {
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
}
_NOTE = "note"
_PHRASES = {_NOTE: Phrase("Models can be wrong. No text is stored.", "模型可能出错；输入的文本不会被保存。")}
_STYLE = """
.gradio-container { max-width: 900px !important; width: 100%; margin: auto; }
.message:not(:has([role=alert])) { display: none !important; }
.gradio-container h1 { margin: .2em 0; }
.message [role=alert] { color: var(--error-text-color); background: var(--error-background-fill);
                        border: 1px solid var(--error-border-color); border-radius: 6px; padding: .5em .8em;
                        margin: 0; overflow-wrap: anywhere; }
"""
# Gradio has inline code and evaluates templates. Nothing is loaded from another host, or sent to one.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
_API = "/gradio_api"
_SERVED = ("/assets/", "/static/", "/svelte/", f"{_API}/heartbeat/")
"""What the page needs of Gradio; files, proxies, other services and its own tools are not served."""
_SERVED_EXACTLY = {
    "/",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/theme.css",
    *(f"{_API}/{name}" for name in ("app_id", "cancel", "info", "queue/data", "queue/join", "reset", "theme.css")),
    f"{_API}/startup-events",
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Page(gradio.Blocks):
    """The page, built; `launch` serves it."""

    def __init__(self, tabs: list[Tab]) -> None:
        """Build it of tabs, at least one, each of a class of its own."""
        super().__init__(analytics_enabled=False, title=TITLE)
        self.phrases = dict(_PHRASES)
        for tab in tabs:
            self.phrases |= {tab.key(key): phrase for key, phrase in tab.all_phrases().items()}
        with self:
            gradio.Markdown(f"# {TITLE}")
            with gradio.Tabs():
                for tab in tabs:
                    with gradio.Tab(tab.label(tab.title)):
                        tab.build()
            gradio.Markdown(gradio.i18n.I18nData(_NOTE))
        self.queue(default_concurrency_limit=REQUESTS_AT_ONCE, max_size=MOST_WAITING)

    def launch(self, *arguments: Any, **options: Any) -> Any:
        """As Gradio's, with the words, the look and the limits of this page unless `options` say otherwise."""
        english = {key: phrase.english for key, phrase in self.phrases.items()}
        chinese = {key: phrase.chinese for key, phrase in self.phrases.items()}
        own = {
            "i18n": gradio.I18n(en=english, **dict.fromkeys(CHINESE_LOCALES, chinese)),
            "theme": gradio.themes.Default(primary_hue="blue", font=_FONTS, font_mono=_MONO).set(**_COLOURS),
            "css": _STYLE,
            "js": "() => { document.documentElement.lang = navigator.language; }",
            "footer_links": ["gradio"],
            "run_history": False,
            "ssr_mode": False,
            "pwa": False,
            "enable_monitoring": False,
            "app_kwargs": {"middleware": [Middleware(Guard)]},
        }
        return super().launch(*arguments, **own | options)

    def serve(self, host: str, port: int) -> str:
        """Serve it in threads of this process.

        Args:
            host: the address to listen at.
            port: one that is free there.

        Returns:
            The address of the page.

        Raises:
            OSError: if Gradio cannot listen there, or takes too long to start.
        """
        # Gradio asks its own server whether it is up, which is not a question for a proxy.
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), "127.0.0.1", "localhost", host]))
        _, address, _ = self.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        return str(address)


class Guard:
    """Middleware: refuses what the page does not need, and lets browsers load nothing from elsewhere."""

    def __init__(self, app: App) -> None:
        """Stand before an application."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if status := _refusal(scope):
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {
                    b"x-content-type-options": b"nosniff",
                    b"referrer-policy": b"no-referrer",
                    b"content-security-policy": _POLICY.encode(),
                }
                message["headers"] = [*message.get("headers", ()), *headers.items()]
            await send(message)

        await self._app(scope, receive, guarded)


def _refusal(scope: Message) -> int:
    """The status that refuses a request; 0: it is served."""
    path = "/" + scope["path"].removeprefix(scope.get("root_path", "")).strip("/")
    if path not in _SERVED_EXACTLY and not path.startswith(_SERVED):
        return 404
    if scope["method"] == "POST":
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit() or b"transfer-encoding" in dict(scope["headers"]):
            return 411
        if int(length) > LARGEST_REQUEST:
            return 413
    return 0
