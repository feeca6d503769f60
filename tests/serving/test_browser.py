"""The page in a real browser: headless Chromium, which asks no other host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.processes import free_port
from tests.support.tiny_runs import save_tiny
from wilson.adding.jobs import Jobs
from wilson.data.sources.synthetic import Synthetic
from wilson.inference.predict import Predictor
from wilson.serving.uploads import LARGEST

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What Chromium itself would ask of other hosts, besides the page
ALONE = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SECOND, LONG = 1000, 120_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"no browser on the PATH ({', '.join(BROWSERS)}); install one: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=ALONE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict[str, list[Path]]:
    """A dozen images with zigzag, and a dozen without."""
    out, source = tmp_path_factory.mktemp("photographs"), Synthetic("step", 80)
    found: dict[str, list[Path]] = {"with": [], "without": []}
    for index, name in enumerate(source.names):
        kind = "with" if source.classes.index("zigzag") in source.class_ids(index) else "without"
        if len(found[kind]) < 12:
            found[kind].append(out / f"{name}.png")
            source.image(index).save(found[kind][-1])
    return found


@contextmanager
def serving(work: Path, *models: Path) -> Iterator[str]:
    """The address of a page that `wilson serve` opens, until the block ends."""
    command = [sys.executable, "-m", "wilson", "serve", *map(str, models), "--work", str(work)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    options = ["--port", str(free_port()), "--device", "cpu"]
    server = subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.send_signal(signal.SIGINT)  # Ctrl-C
        assert server.wait(20) in (0, 130)


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page of the browser; an error in it, or a request to another host, fails the test."""
    context = browser.new_context(**options)
    context.set_default_timeout(LONG)
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    page.goto(url)
    page.wait_for_selector("#photograph-drop")
    yield page
    context.close()
    assert asked[0] == url and [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []
    assert errors == []


def adding(page: Any) -> None:
    page.get_by_role("tab", name="Add a class").click()
    page.wait_for_selector("#name", state="visible")
    page.wait_for_function("document.querySelector('#plan').innerText || document.querySelector('#job h2')")


def drop(page: Any, field: str, *files: Path) -> None:
    """Choose files for a field."""
    page.set_input_files(f"#{field}-drop input[type=file]", [str(file) for file in files])


def says(page: Any, place: str, text: str) -> None:
    """Wait until a place of the page says something."""
    page.locator(f"#{place}", has_text=text).wait_for()


def colours(page: Any, pane: int = 0) -> np.ndarray:
    """The pixels of a canvas, uint8 (H, W, 3)."""
    read = """canvas => [canvas.height, canvas.width,
        ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]"""
    height, width, *values = page.locator("#viewer canvas").nth(pane).evaluate(read)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def choose(page: Any, view: str) -> None:
    page.locator(f"#viewer input[value={view}]").check()


def test_a_photograph_is_seen(browser, photographs, tmp_path):
    model = save_tiny(tmp_path / "tiny.pt")
    with serving(tmp_path / "work", model) as url, opened(browser, url, accept_downloads=True) as page:
        drop(page, "photograph", *photographs["with"][:5])
        page.wait_for_selector("#viewer canvas")
        assert page.locator("#photograph-drop").get_by_text(".png").count() >= 5
        predictor = Predictor.load(model, device=predicting())
        names = dict(zip(predictor.ids.tolist(), predictor.classes, strict=True))
        ids = predictor.predict(photographs["with"][0])
        table = np.array(predictor.colours(), np.uint8)
        known = np.array([predictor.colours()[i] for i in predictor.ids], np.uint8)
        choose(page, "mask")
        expected = known[np.searchsorted(predictor.ids, ids)]
        assert (colours(page) == expected).all(2).mean() > 0.99 and len(np.unique(ids)) > 1 and table is not None
        choose(page, "photograph")
        picture = np.asarray(Image.open(photographs["with"][0]).convert("RGB"))
        assert np.abs(colours(page).astype(int) - picture).mean() < 10  # a JPEG of it
        plain = colours(page)
        choose(page, "overlay")
        assert (colours(page)[ids == 0] == plain[ids == 0]).all(1).mean() > 0.98
        other = max(set(ids.flat) - {0}, key=lambda i: (ids == i).sum())
        assert (colours(page)[ids == other] != plain[ids == other]).any(1).mean() > 0.9
        page.locator("#viewer tr", has_text=names[other]).locator("input").uncheck()
        assert (colours(page)[ids == other] == plain[ids == other]).all(1).mean() > 0.98
        choose(page, "confidence")
        grey = colours(page)
        assert (grey[..., 0] == grey[..., 1]).all() and 0 < grey.mean() <= 255 and grey.std() > 0
        for button, suffix in (("png", "_mask.png"), ("coco", "_coco.json")):
            with page.expect_download() as download:
                page.click(f"#{button}")
            assert download.value.suggested_filename == photographs["with"][0].stem + suffix
            download.value.save_as(tmp_path / f"taken{suffix}")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "taken_mask.png")), ids)
        assert json.loads((tmp_path / "taken_coco.json").read_text())["annotations"]


def predicting() -> Any:
    import torch

    return torch.device("cpu")


def test_bad_input_is_told_beside_its_field_and_nothing_is_lost(browser, photographs, tmp_path):
    paper, huge = tmp_path / "paper.pdf", tmp_path / "huge.jpg"
    paper.write_bytes(b"%PDF-1.4")
    with huge.open("wb") as file:
        file.truncate(4 * LARGEST)
    good = photographs["with"]
    work = tmp_path / "work"
    with serving(work, save_tiny(tmp_path / "tiny.pt")) as url, opened(browser, url) as page:
        drop(page, "photograph", paper, good[0])
        says(page, "photograph-said", "paper.pdf is no image of a known format")
        page.wait_for_selector("#viewer canvas")
        drop_large(page, "photograph")
        says(page, "photograph-drop-large", "Left out: large.jpg, larger than 50 MB.")
        adding(page)
        says(page, "plan", "Still missing: a name, photographs with it, photographs without it.")
        page.fill("#name input, #name textarea", "bee")
        page.keyboard.press("Tab")
        says(page, "name-said", "'bee' is known to the model already")
        drop(page, "with", huge, paper, *good[:2])
        says(page, "with-drop-large", "Left out: huge.jpg, larger than 50 MB.")
        says(page, "with-said", "paper.pdf is no image")
        says(page, "with-said", "2 photographs are the least, 20 and more are better.")
        says(page, "with-pile", "2")
        assert not list(work.rglob("huge*"))
        page.reload()
        adding(page)
        says(page, "with-pile", "2")
        says(page, "plan", "Still missing: photographs without it.")
        assert page.input_value("#name input, #name textarea") == "bee"
        page.click("#with-clear")
        says(page, "plan", "Still missing: photographs with it, photographs without it.")
        assert page.locator("#with-pile img").count() == 0


def drop_large(page: Any, field: str) -> None:
    """Drop a file that is too large from outside of the page, as with a mouse."""
    page.evaluate(
        """([field, size]) => {
            const data = new DataTransfer(), target = document.querySelector(`#${field}-drop button, #${field}-drop`);
            data.items.add(new File([new Uint8Array(size)], "large.jpg", { type: "image/jpeg" }));
            target.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data }));
        }""",
        [field, LARGEST + 1],
    )


def test_a_class_is_added_while_page_and_server_come_and_go(browser, photographs, tmp_path):
    work, model = tmp_path / "work", save_tiny(tmp_path / "tiny.pt")
    jobs = Jobs(work / "jobs")
    try:
        with serving(work, model) as url:
            with opened(browser, url) as page:
                adding(page)
                page.fill("#name input, #name textarea", "zigzag")
                page.fill("#epochs input", "60")
                drop(page, "with", *photographs["with"])
                says(page, "with-pile", "12")
                drop(page, "without", *photographs["without"])
                says(page, "plan", "Ready.")
                page.click("#start")
                says(page, "job", "Learning zigzag")
                says(page, "job", "Epoch")
                page.reload()
                adding(page)
                says(page, "job", "Learning zigzag")
                page.wait_for_function("document.querySelector('#start').disabled")
                page.locator("#job img").nth(3).wait_for()  # pseudo-labels
                page.click("#stop")
                says(page, "job", "zigzag: stopped, and can go on.")
                assert jobs.running() is None
                page.click("#go-on")
                says(page, "job", "Epoch")
            process = jobs.running()
            assert process
        assert jobs.running() == process  # the server is gone
        with serving(work, model) as url, opened(browser, url) as page:
            adding(page)
            says(page, "job", "zigzag is learned")
            says(page, "job", "recall")
            page.get_by_role("tab", name="Try").click()
            drop(page, "photograph", photographs["with"][0])
            page.locator("#viewer canvas").nth(1).wait_for()
            titles = page.locator("#viewer figcaption").all_inner_texts()
            assert titles == ["tiny.pt", "tiny.pt + zigzag (0001)"]
            assert page.locator("#viewer thead th").all_inner_texts() == ["class", *titles]
            (job,) = jobs.all()
            assert job.written and Predictor.load(job.written, predicting()).classes[-1] == "zigzag"
    finally:
        jobs.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen_in_light_and_dark(browser, photographs, tmp_path, scheme):
    look = {"viewport": {"width": 400, "height": 800}, "color_scheme": scheme}
    with serving(tmp_path / "work", save_tiny(tmp_path / "tiny.pt")) as url, opened(browser, url, **look) as page:
        drop(page, "photograph", photographs["with"][0])
        page.wait_for_selector("#viewer canvas")
        wide: Callable[[], int] = lambda: page.evaluate("document.documentElement.scrollWidth")  # noqa: E731
        assert wide() <= 400
        adding(page)
        assert wide() <= 400
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(json.loads(f"[{ground[4:-1]}]")) > 600) == (scheme == "light")
