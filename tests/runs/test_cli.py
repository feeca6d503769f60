"""The commands as a user types them: what they write, their exit status, and one line for a user's mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_runs import QUICK, one_line, options
from wilson.cli import main

TINY = options(QUICK)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["run", *TINY, "--out", str(out)]) == 0
    return out


def test_train_one_step_after_the_other(tmp_path, capsys):
    base, step = tmp_path / "base", tmp_path / "step"
    assert main(["train", *TINY, "--out", str(base)]) == 0
    start = str(base / "step-0" / "checkpoint.pt")
    assert main(["train", *TINY, "--step", "1", "--start", start, "--method", "finetune", "--out", str(step)]) == 0
    results = json.loads((step / "results.json").read_text())
    assert results["method"] == "finetune" and [s["step"] for s in results["steps"]] == [0, 1]


def test_evaluate_repeats_the_results(trained, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(trained / "step-1" / "checkpoint.pt"), "--out", str(out)]) == 0
    recorded = json.loads((trained / "results.json").read_text())["steps"][1]
    del recorded["localizer"], recorded["training"]  # which the checkpoint does not hold
    assert json.loads(out.read_text()) == recorded
    assert "zigzag" in capsys.readouterr().out


def test_predict_writes_masks_and_overlays(trained, tmp_path, capsys):
    image = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(image)
    out = tmp_path / "out"
    command = ["predict", str(image), "--checkpoint", str(trained / "step-1" / "checkpoint.pt"), "--out", str(out)]
    assert main(command) == 0
    mask = Image.open(out / "picture.png")
    assert mask.mode == "P" and mask.size == (56, 40) and np.asarray(mask).max() <= 8
    assert Image.open(out / "picture_overlay.jpg").size[0] >= 56, "wider where the legend is"
    assert main(command) == 2 and "not empty" in one_line(capsys)


def test_report_compares_runs(trained, tmp_path, capsys):
    assert main(["report", str(trained), str(trained), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").stat().st_size > 1000
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "s.html")]) == 2
    assert "results.json" in one_line(capsys)


def test_export_and_check(tmp_path, capsys):
    root = tmp_path / "data"
    size = ["--train-images", "14", "--val-images", "7", "--size", "32"]
    assert main(["data", "export", "--out", str(root), *size]) == 0
    assert main(["data", "check", str(root), "--task", "5-3"]) == 0
    assert "vertical stripes" in capsys.readouterr().out
    bad = next((root / "SegmentationClass").iterdir())
    Image.fromarray(np.full((32, 32), 77, dtype=np.uint8)).save(bad)
    assert main(["data", "check", str(root)]) == 1
    assert bad.name in capsys.readouterr().out


def test_ops_prints_the_providers(capsys):
    assert main(["ops"]) == 0
    printed = capsys.readouterr().out
    assert "ngwp_focal_pool" in printed and "CUDA" in printed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--data.root", "nowhere"], "nowhere"),
        (["run", "--recipe", "nothing"], "voc or own or demo"),
        (["run", *TINY, "--task", "1,unicorn/2,3"], "unicorn"),
        (["run", *TINY, "--task", "7-1"], "single class"),
        (["run", *TINY, "--model.weights", "missing.pth"], "no such file"),
        (["run", *TINY, "--device", "cuda:99"], "not usable"),
        (["train", *TINY, "--step", "1"], "needs the checkpoint"),
        (["train", *TINY, "--step", "1", "--start", "missing.pt"], "no such file"),
        (["evaluate", "missing.pt"], "no such file"),
        (["predict", "missing.jpg", "--checkpoint", "missing.pt", "--out", "x"], "missing.jpg"),
        (["data", "check", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line_and_status_2(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert text in one_line(capsys)
    assert not list(tmp_path.glob("**/*.pt"))


def test_debug_shows_the_traceback(capsys):
    assert main(["evaluate", "missing.pt", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_out_of_memory_names_the_remedy(monkeypatch, capsys, tmp_path):
    import torch

    from wilson.training import loop

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(loop, "gradient_norm", exhausted)
    assert main(["run", *TINY, "--out", str(tmp_path / "run")]) == 2
    assert "smaller batch" in one_line(capsys)


def test_unwritable_folder(capsys, monkeypatch, tmp_path):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["run", *TINY, "--out", str(tmp_path / "a" / "b")]) == 2
    assert "no permission" in one_line(capsys)


def test_a_mistake_in_a_data_worker_is_one_line_too(tmp_path, capsys):
    root = tmp_path / "data"
    size = ["--train-images", "42", "--val-images", "6", "--size", "32"]
    assert main(["data", "export", "--out", str(root), *size]) == 0
    bad = root / "JPEGImages" / "train_00000.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    command = ["run", *TINY, "--data.root", str(root), "--data.workers", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "train_00000" in one_line(capsys)


MISSING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torchvision", "timm", "tyro", "PIL", "matplotlib", "tensorboard", "triton", "yaml"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from wilson.cli import main
"""


def test_without_the_train_extra_commands_name_the_line_that_installs_it():
    run = [sys.executable, "-c", MISSING + "sys.exit(main(['demo']))"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and 'pip install "wilson-seg[train]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_ops_need_nothing_of_the_train_extra():
    code = MISSING + (
        "import torch\nfrom wilson import ops\nassert main(['ops']) == 0\n"
        "ops.ngwp_focal_pool(torch.randn(1, 3, 4, 4, requires_grad=True)).sum().backward()\n"
        "assert not {'triton', 'wilson.kernels', 'wilson.models', 'timm'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_module_is_the_command():
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run([sys.executable, "-m", "wilson", "--help"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "demo" in result.stdout and "evaluate" in result.stdout
