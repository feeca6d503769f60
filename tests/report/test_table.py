"""The table of papers: which runs make a row, means over seeds, and the published rows."""

import csv
import io
from dataclasses import replace

from tests.support.run_folders import BASE, after, make_run
from wilson.cli import main
from wilson.report.reading import read
from wilson.report.table import PUBLISHED, cells, comma_separated, markdown, row_names


def made(folder, method="wilson", seed=0, old=60.0, **settings):
    path = make_run(folder, method, [BASE, after(66.0, old, 50.0, 51.5)], seed=seed, logs=False, pictures=False)
    run = read(path)
    return replace(run, settings={"seed": seed, "losses": {"alpha": 0.5}, "data": {"root": str(folder)}, **settings})


def test_runs_that_differ_in_their_seed_make_a_row(tmp_path):
    runs = [made(tmp_path / f"{seed}", seed=seed, old=60.0 + seed) for seed in range(3)]
    runs += [made(tmp_path / "hard", losses={"alpha": 1.0}), made(tmp_path / "tuned", "finetune")]
    assert row_names(runs) == ["wilson", "wilson", "wilson", "wilson, losses.alpha 1.0", "finetune"]
    first, hard, _ = cells(runs)
    olds = [run.steps[-1].miou["old"] for run in runs[:3]]
    assert first.values["old"] == olds and len(set(olds)) == 3
    mean = sum(olds) / 3
    assert first.text.startswith(f"{mean:.1f} ± {(sum((x - mean) ** 2 for x in olds) / 2) ** 0.5:.1f} / ")
    assert "±" not in hard.text
    lines = list(csv.DictReader(io.StringIO(comma_separated(cells(runs)))))
    assert [line["seeds"] for line in lines] == ["3", "1", "1"]
    assert lines[0]["old"] == f"{mean:.2f}" and lines[1]["old deviation"] == ""


def test_protocols_of_a_task_stand_side_by_side_with_the_published_figures(tmp_path):
    run = made(tmp_path / "run")
    runs = [replace(run, task=task, protocol=protocol) for task, protocol in (
        ("15-5", "disjoint"), ("10-10", "overlap"), ("15-5", "overlap"),
    )]  # fmt: skip
    header, _, ours, *published = markdown(cells(runs), published=True).splitlines()
    assert header == "|  | 15-5 disjoint | 15-5 overlap | 10-10 overlap |"
    assert ours.startswith("| wilson | ") and ours.count(cells(runs)[0].text) == 3
    assert "| wilson (published) | 73.6 / 43.8 / 67.3 | 74.2 / 41.7 / 67.2 | 70.4 / 57.1 / 65.0 |" in published
    assert len(published) == len(PUBLISHED["15-5", "disjoint"])
    assert len(markdown(cells(runs)).splitlines()) == 3


def test_command(tmp_path, capsys):
    folder = make_run(tmp_path / "a", "wilson", [BASE, after(66.0, 60.5, 50.0, 51.5)], logs=False, pictures=False)
    assert main(["results", "table", str(folder), "--csv", str(tmp_path / "table.csv")]) == 0
    assert capsys.readouterr().out == markdown(cells([read(folder)]))
    assert (tmp_path / "table.csv").read_text() == comma_separated(cells([read(folder)]))
