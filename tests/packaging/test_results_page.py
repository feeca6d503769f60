"""The page of results holds what its records say; the tables' arithmetic."""

import json

import pytest

from tools.results import DOCS, renewed, table


def test_the_page_is_what_the_records_say():
    """After a new record: python tools/results.py."""
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert renewed(page, DOCS / "results") == page
    assert "<!-- results " in page


def test_every_record_is_shown():
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    shown = {file for mark in page.split("<!-- results ")[1:] for file in (DOCS / "results").glob(mark.split()[0])}
    assert shown == set((DOCS / "results").iterdir())


def run(row, seed, of_all, old=10.0, options=""):
    miou = {"old": old, "new": 20.0, "all": of_all}
    return {"row": row, "seed": seed, "miou": miou, "pixel_accuracy": 50.0, "core_hours": 0.5, "options": options}


def test_means_deviations_and_the_paired_interval():
    """Differences 1, 2, 3: mean 2, deviation 1, t(2, 0.975) = 4.3027, so 2 +- 2.484."""
    runs = [run("base", 0, 30.0, None), *(run("wilson", seed, 20.0 + seed) for seed in (0, 1, 2))]
    runs += [run("other", seed, 21.0 + 2 * seed, options="--a 1") for seed in (0, 1, 2)] + [run("once", 1, 11.0)]
    base, wilson, other, once = table(runs).splitlines()[2:]
    assert base == "| base | 0 | - | 20.0 | 30.0 | 50.0 |  | 0.50 |  |"
    assert wilson == "| wilson | 0, 1, 2 | 10.0 ± 0.0 | 20.0 ± 0.0 | 21.0 ± 1.0 | 50.0 ± 0.0 |  | 0.50 |  |"
    assert "| 23.0 ± 2.0 |" in other and "| +2.0 (-0.5 to +4.5) |" in other and other.endswith("| `--a 1` |")
    assert "| -10.0 |" in once


def test_records_of_several_files_are_one_table(tmp_path):
    for seed in (0, 1):
        record = {"command": "", "runs": [run("wilson", seed, 20.0 + seed)]}
        (tmp_path / f"grid-seed{seed}.json").write_text(json.dumps(record))
    page = "before\n<!-- results grid-*.json -->\nold\n<!-- /results -->\nafter\n"
    made = renewed(page, tmp_path)
    assert "| wilson | 0, 1 |" in made and "old" not in made.replace("| old |", "")
    assert made.startswith("before\n") and made.endswith("<!-- /results -->\nafter\n")
    with pytest.raises(ValueError, match="no such record"):
        renewed(page.replace("grid", "none"), tmp_path)
