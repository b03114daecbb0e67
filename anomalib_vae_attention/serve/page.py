"""The page, in Gradio: an image goes in, a verdict and pictures come out, and nothing else of the machine."""

import asyncio
import hmac
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from anomalib_vae_attention.predict.models import Model

from .shown import Shown, look, write_counterfactual, write_error, write_verdict

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_MIB = 50
"""MiB of a file, at most."""
KEPT_SECONDS = 600
"""How long a file that was sent may stay on disk; at the end nothing does."""
NEEDED = re.compile(
    r"/|/(assets|static)/[\w./-]+|/(theme\.css|favicon\.ico|manifest\.json|config|login|logout)/?"
    r"|/gradio_api/(queue/(join|data)|upload|upload_progress|heartbeat/\w+|startup-events|info|login_check|cancel)/?"
    rf"|/gradio_api/file={re.escape(get_upload_folder())}/[0-9a-f]+/[^/]+"
)
"""Addresses that the page needs, files that were sent among them. Gradio has more: they read other files, fetch from
elsewhere, or keep what was done."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self' blob: data:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FONTS: dict[str, Any] = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}


class Guard:
    """Lets through what the page needs, of a known size, and tells browsers to load nothing from elsewhere."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = None
        length = Headers(scope=scope).get("content-length", "" if scope["method"] == "POST" else "0")
        if not NEEDED.fullmatch(scope["path"]):
            refusal = PlainTextResponse("Not here.", 404)
        elif not length.isdecimal() or int(length) > (LARGEST_MIB + 1) * 2**20:
            refusal = PlainTextResponse(f"At most {LARGEST_MIB} MiB.", 413)
        await (refusal or self.app)(scope, receive, send_with_headers)


def sent_file(path: str | Path) -> Path:
    """Return a file that a browser says it sent, if it did.

    Raises:
        gradio.Error: If it is another file of this machine, or an address of another one.
    """
    file = Path(path).resolve()
    if not file.is_relative_to(Path(get_upload_folder()).resolve()) or not file.is_file():
        msg = "There is no such file any more: send it again."
        raise gr.Error(msg, print_exception=False)
    return file


async def keep_sent_file(path: str | Path | None) -> str | None:  # noqa: RUF029 - as Gradio's is
    """Take only files that were sent, in place of Gradio's method, which would fetch those of other machines."""
    return None if path is None else str(sent_file(path))


def make_page(model: Model) -> gr.Blocks:
    """Make the page for a model."""
    own, name = model.thresholds, html.escape("/".join(model.file.resolve().parts[-2:]))
    page = gr.Blocks(title="vae_attention", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS))

    def judge_image(sent: dict[str, Any] | None, score: float, pixel: float) -> Any:  # noqa: ANN401 - Gradio's own
        if sent is None:
            return gr.skip()
        # Gradio looks at paths only where they are marked as such.
        file = sent_file(sent["path"] or "")
        try:
            shown = look(model, file, sent["orig_name"] or file.name)
        except ValueError as error:
            return None, None, write_error(str(error)), "", ""
        # The place where the image was dropped is free for the next one.
        return None, shown, *write_verdict(shown, (score, pixel)), write_counterfactual(shown)

    def judge_again(shown: Shown | None, score: float, pixel: float) -> Any:  # noqa: ANN401 - Gradio's own
        return gr.skip() if shown is None else write_verdict(shown, (score, pixel))

    with page:
        gr.HTML(f"<h2>Is this part good?</h2><p class='soft'>Model {name}. Images stay on this machine.</p>")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                image = gr.Image(
                    label="Drop or paste an image, or use the camera",
                    sources=["upload", "clipboard", "webcam"],
                    type="filepath",
                    image_mode=None,
                    height=260,
                    elem_id="image",
                )
                verdict = gr.HTML(elem_id="verdict")
                score = gr.Slider(0, 1, own[0], step=0.001, label="Threshold: a higher score is defective")
                pixel = gr.Slider(0, 1, own[1], step=0.001, label="Threshold of pixels, for the mask")
                reset = gr.Button("The model's own thresholds", size="sm")
            with gr.Column(scale=2, min_width=320):
                pictures = gr.HTML(elem_id="pictures")
                reason = gr.HTML(elem_id="reason")
        image.async_move_resource_to_block_cache = keep_sent_file  # type: ignore[assignment, method-assign]
        kept = gr.State(None, time_to_live=3600)
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        image.input(
            judge_image,
            [image, score, pixel],
            [image, kept, verdict, pictures, reason],
            preprocess=False,
            concurrency_limit=1,
            api_visibility="private",
            show_progress_on=verdict,
        )
        again = {
            "fn": judge_again,
            "inputs": [kept, score, pixel],
            "outputs": [verdict, pictures],
            "concurrency_limit": 4,
            **hidden,
        }
        for slider in (score, pixel):
            slider.input(trigger_mode="always_last", **again)
        reset.click(lambda: own, None, [score, pixel], **hidden).then(**again)
    return page


def start(page: gr.Blocks, host: str, port: int, password: str | None) -> None:
    """Serve a page in threads of its own; returns when it answers."""

    async def is_known(_user: str, given: str) -> bool:
        known = hmac.compare_digest(given.encode(), (password or "").encode())
        if not known:
            # Guessing takes long.
            await asyncio.sleep(1)
        return known

    page.queue(max_size=32, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        auth=is_known if password else None,  # type: ignore[arg-type]
        auth_message="Any name, and the password that the page was started with.",
        max_file_size=LARGEST_MIB * 2**20,
        state_session_capacity=100,
        theme=gr.themes.Default(primary_hue="blue", **FONTS),
        css_paths=Path(__file__).with_name("page.css"),
        app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None, "openapi_url": None},
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        prevent_thread_lock=True,
        inbrowser=False,
        quiet=True,
    )
