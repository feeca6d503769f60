"""A grid of runs: its file, what rows share, resuming, and what is written."""

import csv
import json
import shlex

import pytest
import yaml

from tests.support.tiny_runs import QUICK, changes
from wilson.cli import main, parse
from wilson.commands.run import Run
from wilson.errors import UserError
from wilson.report.grid import Outcome, write
from wilson.report.text import DASH
from wilson.runs import ablation
from wilson.runs.ablation import ablate, read

TINY = changes(QUICK)
BASE = {"recipe": "demo", **TINY, "step": {**TINY["step"], "lr_encoder": "1e-3"}}


def grid(folder, **values):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "seeds": [0], "rows": {"wilson": {}}, **values}, sort_keys=False))
    return path


def test_grid_is_read(tmp_path):
    rows = {"wilson": None, "no prior": {"losses": {"prior": "none", "alpha": 1}, "seeds": [3]}}
    base, (first, second) = read(grid(tmp_path, rows=rows, seeds=[0, 3]))
    assert (
        base.config.recipe == "demo" and base.config.step.lr_encoder == 0.001 and base.config.data.root == "synthetic"
    )
    assert base.config.model.dilations == (2,) and base.config.base.lr_head == 0.1  # the named recipe's
    assert first.config == base.config and first.seeds == (0, 3)
    assert second.config.losses.prior == "none" and second.config.losses.alpha == 1.0 and second.seeds == (3,)
    assert second.config.step == base.config.step and second.folder(3) == "no_prior-seed3"


def test_the_options_of_a_row_are_those_of_the_command_line(tmp_path):
    changed = {
        "all_labels": True,
        "losses": {"merge": False, "pamr_dilations": [1, 2]},
        "data": {"negatives": "my photos"},
    }
    _, (row,) = read(grid(tmp_path, base={"recipe": "demo"}, rows={"a": changed}))
    command = parse(["run", "--recipe", "demo", *shlex.split(row.options)])
    assert isinstance(command, Run) and command.config == row.config


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rows": {}}, "expected base, seeds and rows"),
        ({"columns": {}}, "expected base, seeds and rows"),
        ({"seeds": [0, 0]}, "different seeds"),
        ({"seeds": 3}, "list of different seeds"),
        ({"base": {"recipe": "nothing"}}, "voc or own or demo"),
        (
            {"rows": {"a": {"losses": {"priors": "none"}}}},
            r"rows\.a\.losses\.priors: no such option; did you mean prior\?",
        ),
        ({"rows": {"a": {"losses": {"prior": "all"}}}}, r"prior: expected loc, softmax.*got 'all'"),
        (
            {"rows": {"a": {"losses": {"alpha": "much"}}}},
            r"alpha: expected a number, at least 0 and at most 1, got 'much'",
        ),
        (
            {"rows": {"a": {"losses": {"background": []}}}},
            r"background: expected a number.*or None \(null in YAML\), got \[\]",
        ),
        ({"rows": {"a": {"losses": 3}}}, "expected options"),
        ({"rows": {"a": {"all_labels": "yes"}}}, "all_labels: expected true or false"),
        ({"rows": {"a": {"step": {"epochs": 1.5}}}}, "epochs: expected a whole number"),
        ({"rows": {"a": {"method": "best"}}}, "method: expected wilson, rasp, finetune.*got 'best'"),
        ({"rows": {"a": {"model": {"stride": 8}}}}, "model is that of the base step"),
        ({"rows": {"a": {"seeds": [1]}}}, "1 is that of the base step"),
        ({"rows": {"a b": {}, "a_b": {}}}, "two rows.*a_b-seed0"),
        ({"rows": {"a": {"method": "cam"}}}, "row 'a': method cam trains its localizer in the warm-up"),
        ({"base": {**BASE, "task": "offline"}}, "base step alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_a_grid_are_told_before_anything_runs(tmp_path, values, text):
    with pytest.raises(UserError, match=text):
        ablate(grid(tmp_path, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_grid_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["ablate", "--grid", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("rows: [")
    assert main(["ablate", "--grid", str(tmp_path / "bad.yaml")]) == 2
    assert "not YAML" in capsys.readouterr().err


def test_grid_continues_where_it_stopped(tmp_path, monkeypatch):
    """Rows share the base step; after an interruption the finished ones are kept, and the rest is run."""
    path, out = grid(tmp_path, rows={"wilson": {}, "mib": {"method": "mib", "step": {"warmup": 0}}}), tmp_path / "out"
    calls, original = [], ablation.run

    def stopping(config, folder, **options):
        calls.append((folder.name, options["steps"]))
        if config.method == "mib" and len(calls) == 3:
            raise KeyboardInterrupt
        return original(config, folder, **options)

    monkeypatch.setattr(ablation, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        ablate(path, out)
    assert calls == [("base-seed0", [0]), ("wilson-seed0", [1]), ("mib-seed0", [1])]
    assert "wilson" in (out / "table.md").read_text() and "mib" not in (out / "table.md").read_text()
    finished = out / "wilson-seed0" / "step-1" / "checkpoint.pt"
    before = finished.stat().st_mtime_ns
    with pytest.raises(UserError, match="not empty"):
        ablate(path, out)
    assert ablate(path, out, resume=True) == out / "table.md"
    assert finished.stat().st_mtime_ns == before

    lines = list(csv.DictReader((out / "results.csv").open()))
    assert [(line["row"], line["method"], line["step"]) for line in lines] == [
        ("base", "wilson", "0"),
        ("wilson", "wilson", "1"),
        ("mib", "mib", "1"),
    ]
    results = {name: json.loads((out / f"{name}-seed0" / "results.json").read_text()) for name in ("wilson", "mib")}
    assert results["wilson"]["steps"][0] == results["mib"]["steps"][0]  # of the shared base step
    for line in lines[1:]:
        assert float(line["all"]) == pytest.approx(results[line["row"]]["steps"][1]["miou"]["all"], abs=0.01)
    assert (out / "plot.png").read_bytes()[:4] == b"\x89PNG"

    record = json.loads((out / "record.json").read_text())
    assert record["command"] == f"wilson ablate --grid {path} --out {out}"
    base, _, mib = record["runs"]
    assert (base["options"], mib["options"]) == ("", "--method mib --step.warmup 0")
    assert mib["miou"] == results["mib"]["steps"][1]["miou"] and (base["images"], mib["images"]) == (24, 18)
    hours = [json.loads((out / f"{name}-seed0" / f"step-{step}" / "cost.json").read_text())["core_hours"]
             for name, step in (("base", 0), ("mib", 1))]  # fmt: skip
    assert [base["core_hours"], mib["core_hours"]] == hours and min(hours) > 0


def test_table_has_mean_and_deviation_over_seeds(tmp_path):
    def of(row, seed, old, new):
        miou = {"old": old, "new": new, "all": 50.0}
        return Outcome(row, row, seed, {"step": 1, "miou": miou, "pixel_accuracy": 80.0, "iou": {"a": new, "b": None}})

    outcomes = [of("a", 0, 10.0, 20.0), of("b", 0, None, 5.0), of("a", 1, 14.0, 20.0)]
    text = write(tmp_path, outcomes, ["b", "a", "not yet"])
    assert text == (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert rows[0] == ["b", "0", DASH, "5.0", "50.0", "80.0"]
    assert rows[1] == ["a", "0, 1", "12.0 ± 2.8", "20.0 ± 0.0", "50.0 ± 0.0", "80.0 ± 0.0"]
    lines = list(csv.reader((tmp_path / "results.csv").open()))
    assert lines[0][-2:] == ["iou a", "iou b"] and lines[1] == [
        "b",
        "b",
        "0",
        "1",
        "",
        "5.00",
        "50.00",
        "80.00",
        "5.00",
        "",
    ]
