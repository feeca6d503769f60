"""The page: two tabs over a desk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from wilson.adding.photographs import FEW, LEAST
from wilson.errors import UserError

from .desk import Desk
from .uploads import LARGEST, Pile, left_out, said, sifted

HERE, MEGABYTES = Path(__file__).parent, LARGEST // 2**20
STYLE, VIEWER, SIFT = (HERE.joinpath(name).read_text("utf-8") for name in ("page.css", "viewer.js", "uploads.js"))
HEAD = f"<script>{SIFT.replace('LIMIT', str(MEGABYTES))}</script>"
FONTS, MONOSPACED = ("system-ui", "Liberation Sans", "sans-serif"), ("ui-monospace", "monospace")  # none is fetched
EVERY = 1.5  # seconds between two looks at the job


def build(desk: Desk) -> gr.Blocks:
    """The page. Its functions turn what fields hold into calls of the desk, and errors into sentences."""
    hidden = gr.update(visible=False)

    def told(action: Callable[..., Any], *given: Any) -> str:
        try:
            action(*given)
        except UserError as error:
            return said(desk.plain(error))
        return ""

    def dropped(files: list[str] | None) -> tuple[Any, ...]:
        good, wrong = sifted(files)
        names = [file.name for file in good]
        which = gr.update(choices=names, value=names[0] if names else None, visible=len(names) > 1)
        return [str(file) for file in good] or None, left_out(wrong), which

    def look(label: str | None, other: str | None, files: list[str] | None, which: int | None) -> tuple[Any, ...]:
        if not files:
            return "", gr.skip(), hidden, hidden
        try:
            value, *written = desk.look(label, other, Path(files[which or 0]))
        except UserError as error:
            return "", said(desk.plain(error)), hidden, hidden
        return value, gr.skip(), *(gr.update(value=str(path), visible=True) for path in written)

    def few(pile: Pile) -> str:
        count = len(pile.files())
        text = f"{LEAST} photographs are the least, {FEW} and more are better."
        return said(text, "said" if count < LEAST else "hint") if 0 < count < FEW else ""

    def taken(pile: Pile, files: list[str] | None) -> tuple[Any, ...]:
        wrong = pile.take(files)
        return None, left_out(wrong) + few(pile), pile.shown(), gr.update(visible=bool(pile.files()))

    def cleared(pile: Pile) -> tuple[Any, ...]:
        pile.clear()
        return taken(pile, None)

    def check_name(label: str | None, text: str) -> str:
        desk.note.write_text(text, encoding="utf-8")
        return told(desk.name, label, text) if text.strip() else ""

    def plan(*given: Any) -> str:
        try:
            lines = "".join(f"<li>{escape(line)}</li>" for line in desk.plan(*given))
        except UserError as error:
            return said(desk.plain(error), "hint")
        return f"<details><summary>Ready. What will be done, and why</summary><ul>{lines}</ul></details>"

    def refresh(seen: str, label: str | None, other: str | None, grows: str | None) -> list[Any]:
        state, now, text = desk.told()
        if now == seen:
            return [gr.skip()] * 8
        labels = list(desk.offered())
        if state == "done":  # the new model beside the old one
            label, other = labels[-1], desk.jobs.all()[-1].model
        first = labels[0] if labels else None
        return [
            now,
            text,
            gr.update(choices=labels, value=label if label in labels else first),
            gr.update(choices=[("none", ""), *labels], value=other if other in labels else ""),
            gr.update(choices=labels, value=grows if grows in labels else first),
            gr.update(visible=state == "running"),
            gr.update(visible=state in ("stopped", "failed")),
            gr.update(interactive=state != "running"),
        ]

    def opened() -> list[Any]:
        text = desk.note.read_text(encoding="utf-8") if desk.note.is_file() else gr.skip()
        return [text, *taken(desk.photographs, None)[1:], *taken(desk.without, None)[1:]]

    def drop(label: str, name: str) -> tuple[gr.File, gr.HTML]:
        label = f"{label}, up to {MEGABYTES} MB each"
        field = gr.File(label=label, file_count="multiple", height=150, elem_id=f"{name}-drop")
        return field, gr.HTML(elem_id=f"{name}-said")

    with gr.Blocks(title="wilson", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        with gr.Tab("Try"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                model = gr.Dropdown(label="Model")
                other = gr.Dropdown(label="Beside it")
                files, files_said = drop("Photographs", "photograph")
                which = gr.Dropdown(label="Photograph", type="index", visible=False, elem_id="which")
                png = gr.DownloadButton("Mask as PNG", visible=False, elem_id="png")
                coco = gr.DownloadButton("Mask as COCO RLE", visible=False, elem_id="coco")
            with gr.Column(scale=2, min_width=320):
                viewer = gr.HTML("", html_template='<div class="viewer"></div>', js_on_load=VIEWER, elem_id="viewer")
        with gr.Tab("Add a class"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                grows = gr.Dropdown(label="Model that learns it")
                name = gr.Textbox("", label="Name of the class", placeholder="zebra", max_length=40, elem_id="name")
                name_said = gr.HTML(elem_id="name-said")
                fields: list[Any] = []
                changed: list[Any] = []
                for pile, kind in ((desk.photographs, "with"), (desk.without, "without")):
                    field, sentence = drop(f"Photographs {kind} it", kind)
                    shown = gr.HTML(elem_id=f"{kind}-pile")
                    clear = gr.Button("Clear", size="sm", visible=False, elem_id=f"{kind}-clear")
                    places = [field, sentence, shown, clear]
                    changed.append(field.upload(partial(taken, pile), field, places))
                    changed.append(clear.click(partial(cleared, pile), None, places))
                    fields += places[1:]
                epochs = gr.Number(label="Epochs (0: chosen)", minimum=0, precision=0, value=0, elem_id="epochs")
                planned = gr.HTML(elem_id="plan", elem_classes="told")
                start = gr.Button("Start", variant="primary", elem_id="start")
            with gr.Column(scale=2, min_width=320):
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
                go_on = gr.Button("Go on", variant="primary", visible=False, elem_id="go-on")
                job = gr.HTML(elem_id="job", elem_classes="told")
        seen = gr.State("")

        quiet: Any = {"show_progress": "hidden"}
        looking = {"fn": look, "inputs": [model, other, files, which], "outputs": [viewer, files_said, png, coco]}
        planning = {"fn": plan, "inputs": [grows, name, epochs], "outputs": planned, **quiet}
        seeing = {"fn": refresh, "inputs": [seen, model, other, grows], **quiet}
        seeing["outputs"] = [seen, job, model, other, grows, stop, go_on, start]
        came = gr.on([files.upload, files.delete, files.clear], dropped, files, [files, files_said, which])
        came.success(**looking)
        gr.on([model.change, other.change, which.input], **looking)
        changed.append(gr.on([name.blur, name.submit, grows.input], check_name, [grows, name], name_said, **quiet))
        for event in (*changed, gr.on([epochs.change], lambda: None)):
            event.then(**planning)
        started = start.click(partial(told, desk.start), [grows, name, epochs], planned)
        going = go_on.click(lambda: told(desk.jobs.go_on, desk.jobs.all()[-1]), None, planned)
        for event in (started, going, stop.click(desk.jobs.stop)):
            event.then(**seeing)
        gr.Timer(EVERY).tick(**seeing)
        page.load(opened, None, [name, *fields], **quiet).then(**seeing).then(**planning)
    return page
