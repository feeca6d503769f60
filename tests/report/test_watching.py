"""How a run of `wilson add` goes is read from its folder at any moment of it."""

from __future__ import annotations

import json
import re

import numpy as np
from PIL import Image

from wilson.pictures.inline import url
from wilson.report import watching
from wilson.run_folder import RunFolder
from wilson.training.board import Board


def test_a_run_is_told_from_its_first_moment_on(tmp_path):
    run = RunFolder(tmp_path)
    step = run.step(1)
    text = watching.running(run, "<zebra>")
    assert "Learning &lt;zebra&gt;" in text and "Opening the model" in text and "<progress></progress>" in text
    step.pseudo_labels.mkdir(parents=True)
    before = watching.stamp(run)
    far = {"epoch": 3, "epochs": 8, "iteration": 25, "iterations": 80, "seconds_left": 75.4}
    step.progress.write_text(json.dumps(far))
    assert watching.stamp(run) != before
    text = watching.running(run, "zebra")
    assert "Epoch 3 of 8, about 0:01:15 left." in text and '<progress value="25" max="80">' in text
    assert "loss" not in text and "<table" not in text
    board = Board(step, 0)
    board.add_scalar("loss/cls", 0.5, 0)
    board.flush()
    assert "loss terms" in watching.so_far(run) and "SEG" not in watching.so_far(run)
    board.add_scalar("loss/seg", 0.5, 1)
    board.close()
    assert "SEG" in watching.so_far(run)


def test_pseudo_labels_are_shown_from_the_first_to_the_newest(tmp_path):
    run = RunFolder(tmp_path)
    step = run.step(1)
    step.pseudo_labels.mkdir(parents=True)
    iterations = [5, 10, 15, 20, 25, 30]
    for number in range(2):
        for iteration in iterations[: 6 - number]:  # the newest one of the second photograph is being written
            Image.new("RGB", (4, 4), (iteration, number, 0)).save(step.pseudo_labels / f"{number}-{iteration:06d}.jpg")
    text = watching.so_far(run)
    assert re.findall(r"iteration (\d+)", text) == ["5", "10", "20", "25"]  # no more than four of them
    shown = [step.pseudo_labels / f"{number}-{i:06d}.jpg" for number in (0, 1) for i in (5, 10, 20, 25)]
    assert re.findall(r'src="([^"]+)"', text) == [url(path) for path in shown]


def test_pictures_inside_a_page_keep_labels_exactly(tmp_path):
    import base64
    import io

    labels = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    kind, data = url(labels).split(",")
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kind == "data:image/png;base64" and np.array_equal(read, labels)
    assert url(np.zeros((5, 7, 3), np.uint8)).startswith("data:image/jpeg;base64,")
