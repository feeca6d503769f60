"""What a step costs: counted over resumes, and kept beside the results."""

from __future__ import annotations

import json
import time

import torch

from wilson.run_folder import StepFolder
from wilson.training import cost

CPU = torch.device("cpu")


def work(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        sum(range(1000))


def test_a_resumed_step_adds_to_its_cost(tmp_path):
    folder = StepFolder(tmp_path)
    first = cost.Cost(folder, CPU, resumed=False)
    work(0.3)
    first.keep()
    spent = cost.read(folder)
    assert 0.25 < 3600 * spent < 3
    again = cost.Cost(folder, CPU, resumed=True)
    work(0.3)
    again.keep()
    assert 3600 * cost.read(folder) > 3600 * spent + 0.25


def test_a_step_begun_anew_forgets_its_cost(tmp_path):
    folder = StepFolder(tmp_path)
    folder.cost.write_text(json.dumps({"core_hours": 5}))
    cost.Cost(folder, CPU, resumed=False).keep()
    assert cost.read(folder) < 0.01


def test_time_without_work_costs_nothing(tmp_path):
    folder = StepFolder(tmp_path)
    idle = cost.Cost(folder, CPU, resumed=False)
    time.sleep(0.5)
    idle.keep()
    assert 3600 * cost.read(folder) < 0.25


def test_a_folder_without_a_cost(tmp_path):
    assert cost.read(StepFolder(tmp_path)) == 0.0
