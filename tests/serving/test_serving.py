"""The page without a browser: who may see it, what it serves, what it takes, and what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.processes import free_port
from tests.support.tiny_runs import CLASSES, one_line, save_tiny
from wilson.cli import main
from wilson.errors import UserError
from wilson.serving import uploads
from wilson.serving.uploads import Pile, fault

pytest.importorskip("gradio", reason='needs pip install -e ".[serve]"')


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a page, and its work folder."""
    from wilson.serving.serve import serve

    work = tmp_path_factory.mktemp("page") / "work"
    (work / "photographs").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(work / "photographs" / "private.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        app = serve([save_tiny(work / "tiny.pt")], work, port=free_port(), device="cpu")
        yield app.local_url.rstrip("/"), work
        app.close()


def status(request: str | urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "options",
    [
        ["--host", "0.0.0.0"],
        ["--host", "0.0.0.0", "--user", "me"],
        ["--host", "0.0.0.0", "--password", "secret"],
        ["--host", "0.0.0.0", "--user", "me", "--password", ""],
        ["--user", "me", "--password", "secret"],
    ],
)
def test_a_host_needs_a_user_and_a_password(options, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WILSON_PASSWORD", raising=False)
    assert main(["serve", *options, "--work", str(tmp_path / "work")]) == 2
    assert "--host opens the page to others" in one_line(capsys) and not (tmp_path / "work").exists()


def test_a_model_that_is_missing_is_told_at_the_start(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "none.pt"), "--work", str(tmp_path / "work")]) == 2
    assert "none.pt: no such model" in one_line(capsys)


def test_others_see_the_page_with_the_password_alone(tmp_path, monkeypatch):
    from wilson.serving.serve import serve

    monkeypatch.setattr(os, "environ", os.environ.copy())
    app = serve([], tmp_path / "work", host="127.0.0.1", port=free_port(), user="me", password="secret")
    try:
        assert status(f"{app.local_url}gradio_api/info") == status(f"{app.local_url}config") == 401
        for word, expected in (("secre", 400), ("secret", 200)):
            form = f"username=me&password={word}".encode()
            assert status(urllib.request.Request(f"{app.local_url}login", form)) == expected
    finally:
        app.close()


def test_it_is_for_this_machine_and_asks_no_other_host(page):
    url, _ = page
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url) as answer:
        assert answer.status == 200 and "connect-src 'self'" in answer.headers["content-security-policy"]
        config = json.loads(answer.read().decode().split("window.gradio_config = ")[1].split(";</script>")[0])
    assert config["analytics_enabled"] is False and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert status(urllib.request.Request(url, headers={"Host": "evil.example"})) == 400
    assert status(urllib.request.Request(url, headers={"Origin": url})) == 200
    assert status(urllib.request.Request(url, headers={"Origin": "http://evil.example"})) == 404


def test_no_file_outside_of_what_was_uploaded_is_served(page, tmp_path):
    url, work = page
    shown = work / "cache" / "shown.png"
    shutil.copy(work / "photographs" / "private.png", shown)
    assert status(f"{url}/gradio_api/file={shown}") == 200
    secret = tmp_path / "secret.png"
    shutil.copy(shown, secret)
    (work / "cache" / "link.png").symlink_to(secret)
    files = [
        secret,
        "/etc/passwd",
        work / "photographs" / "private.png",
        work / "tiny.pt",
        f"{work}/cache/../tiny.pt",
        f"{work}/cache/..%2Ftiny.pt",
        work / "cache" / "link.png",
        Path(uploads.__file__),
        "pyproject.toml",
        "http://127.0.0.1:9/",
        "https%3A//example.org/",
        "file:///etc/passwd",
    ]
    for file in files:
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy="):
            assert status(f"{url}/{route}{file}") in (403, 404), (route, file)


def test_a_path_that_was_not_uploaded_is_not_taken(page, tmp_path):
    url, work = page

    def call(path: Path) -> str:
        value = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}]
        asked = urllib.request.Request(
            f"{url}/gradio_api/call/dropped",
            json.dumps({"data": [value]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}/gradio_api/call/dropped/{event}") as answer:
            return answer.read().decode()

    shutil.copy(work / "photographs" / "private.png", work / "cache" / "own.png")
    shutil.copy(work / "photographs" / "private.png", tmp_path / "secret.png")
    assert "event: complete" in call(work / "cache" / "own.png")
    for path in (tmp_path / "secret.png", work / "photographs" / "private.png", Path("/etc/passwd")):
        assert "event: error" in call(path) and "secret" not in call(path)


def test_uploads_beyond_the_limit_are_refused(page):
    url, work = page
    for size, expected in ((1000, 200), (uploads.LARGEST + 1, 413)):
        head = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="../../a.jpg"\r\n\r\n'
        body = head + bytes(size) + b"\r\n--cut--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=cut"}
        assert status(urllib.request.Request(f"{url}/gradio_api/upload", body, kind)) == expected
    (kept,) = work.parent.rglob("a.jpg")
    assert kept.is_relative_to(work / "cache")


def test_what_is_no_photograph_is_told_by_name(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.jpg")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "hidden.jpg").write_bytes(b"%PDF-1.4")
    assert fault(tmp_path / "good.jpg") == ""
    assert fault(tmp_path / "paper.pdf").startswith("paper.pdf is no image of a known format (JPEG,")
    assert fault(tmp_path / "hidden.jpg").startswith("hidden.jpg: cannot be read: no image of a known format")
    monkeypatch.setattr(uploads, "LARGEST", 100)
    assert fault(tmp_path / "good.jpg") == "good.jpg is larger than 0 MB"


def test_a_pile_takes_each_photograph_once_under_a_safe_name(tmp_path, monkeypatch):
    pile, names = Pile(tmp_path / "pile"), ["a b;$(rm)'é.PNG", "copy.png", "b.png", "c.png", "paper.pdf"]
    for number, name in enumerate(names):
        Image.new("RGB", (300, 200), (0, 0, max(1, number))).save(tmp_path / name, "PNG")
    monkeypatch.setattr(uploads, "MOST", 2)
    wrong = pile.take([str(tmp_path / name) for name in names])
    assert wrong[1:] == ["copy.png is there already", "c.png is one too many, as 2 are taken"]
    assert wrong[0].startswith("paper.pdf is no image")
    assert [re.sub("[0-9a-f]{16}", "#", path.name) for path in pile.files()] == ["a-b-rm--#.png", "b-#.png"]
    assert pile.shown().count("<img") == 2 and "<b>2</b>" in pile.shown()
    assert "Left out: &lt;b&gt;; &lt;b&gt;; &lt;b&gt;; and 2 more.<" in uploads.left_out(["<b>"] * 5)
    pile.clear()
    assert pile.files() == [] and pile.shown() == ""


@pytest.fixture
def desk(tmp_path) -> Any:
    from wilson.serving.desk import Desk

    save_tiny(tmp_path / "tiny.pt")
    return Desk([tmp_path / "tiny.pt"], tmp_path / "work", None, None, "cpu")


def photographs(pile: Pile, count: int, folder: Path, shade: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.new("RGB", (40, 40), (number, shade, 0)).save(folder / f"{number}.png")
    assert not pile.take([str(path) for path in folder.iterdir()])


def test_what_is_missing_is_one_sentence(desk, tmp_path):
    def missing(name: str) -> str:
        with pytest.raises(UserError) as caught:
            desk.plan("tiny.pt", name, 0)
        return desk.plain(caught.value)

    assert missing(" ") == "Still missing: a name, photographs with it, photographs without it."
    photographs(desk.photographs, 1, tmp_path / "a")
    photographs(desk.without, 4, tmp_path / "b", 1)
    assert "'bee' is known to the model already" in missing("bee")
    for name in ("-rf", "a=b", "a/b", "_", "x" * 41):
        assert missing(name).startswith("A name has up to 40 letters")
    assert missing("zebra").startswith("Zebra: 1 photograph can be used, expected at least 2, better 20")
    photographs(desk.photographs, 1, tmp_path / "c", 7)
    plan = "\n".join(desk.plan("tiny.pt", "zebra", 3))
    assert "It learns zebra" in plan and "Zebra has only 2 photographs" in plan and "3 epochs" in plan
    assert str(tmp_path / "work") not in plan
    shutil.copy(desk.photographs.files()[0], desk.without.folder)
    desk.photographs.files()[1].write_bytes(b"torn")
    text = missing("zebra")
    assert "with it/1-" not in text and "--" not in text and str(tmp_path) not in text
    with pytest.raises(UserError, match="no model is chosen"):
        desk.plan("other", "zebra", 0)


def test_a_photograph_is_seen_and_taken_along(desk, tmp_path):
    source = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3)).astype(np.uint8)).save(source)
    value, png, coco = desk.look("tiny.pt", "", source)
    told, model = json.loads(value), desk.predictor(tmp_path / "tiny.pt")
    assert list(told["classes"]) == [CLASSES[0], "ant", "bee", "dog"] and told["size"] == [50, 30]
    assert sum(told["panes"][0]["shares"]) == pytest.approx(100, abs=0.5)
    ids = np.asarray(Image.open(png))
    assert np.array_equal(ids, model.predict(source)) and png.is_relative_to(tmp_path / "work" / "cache")
    from pycocotools import mask

    found = json.loads(coco.read_text())
    assert {one["category_id"] for one in found["annotations"]} == set(ids.flat) - {0} != set()
    for one in found["annotations"]:
        inside = mask.decode({**one["segmentation"], "counts": one["segmentation"]["counts"].encode()})
        assert np.array_equal(inside, ids == one["category_id"]) and one["area"] == inside.sum()
        assert one["bbox"] == mask.toBbox(mask.encode(np.asfortranarray(inside))).tolist()
