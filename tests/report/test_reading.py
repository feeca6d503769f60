"""Run folders as they are read: whole, resumed, incomplete, or none at all."""

import pytest

from tests.support.run_folders import BASE, make_run, page_of
from wilson import report
from wilson.errors import UserError
from wilson.report.reading import read


def test_missing_pieces_are_named_in_place(tmp_path):
    run = make_run(tmp_path / "run", "wilson", [BASE], logs=False, pictures=False, config=False)
    page = page_of([run], tmp_path)
    assert "no TensorBoard logs in step-0" in page.text
    assert "No example pictures in the run folders of: wilson" in page.text
    assert "config.yaml is missing or unreadable" in page.text


def test_a_run_without_an_evaluated_step_is_no_crash(tmp_path):
    page = page_of([make_run(tmp_path / "run", "wilson", [])], tmp_path)
    assert "No step has been evaluated yet" in page.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.json is missing"),
        ("{", "not valid JSON"),
        ("[]", "holds no results"),
        ('{"method": "wilson", "task": "2-2", "seed": 0, "steps": []}', "no entry 'protocol'"),
        ('{"method": "wilson", "task": "2-2", "protocol": "overlap", "seed": 0, "steps": [3]}', "not in the form"),
    ],
)
def test_what_is_no_run_folder_is_a_users_mistake(tmp_path, content, message):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        report.write([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_runs_is_refused_with_their_names(three_runs, tmp_path):
    with pytest.raises(UserError, match="base, finetune, wilson"):
        report.write([three_runs[0].parent], tmp_path / "report.html")
    with pytest.raises(UserError, match="is not a folder"):
        report.write([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match="no run folder was given"):
        report.write([], tmp_path / "report.html")


def test_a_resumed_run_keeps_the_later_values(tmp_path, monkeypatch):
    from tensorboard.summary.writer import event_file_writer
    from torch.utils.tensorboard import SummaryWriter

    # Files of one second are ordered by a number that counts the writers of a process, 10 before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = make_run(tmp_path / "run", "supervised", [BASE], logs=False)
    for value, iterations in ((1.0, range(10)), (2.0, range(5, 12))):
        writer = SummaryWriter(str(run / "step-0"), filename_suffix=f".{value}")
        for step in iterations:
            writer.add_scalar("loss/total", value, step)
        writer.close()
    found, values = read(run).steps[0].curves["loss/total"]
    assert found == list(range(12))
    assert values == [1.0] * 5 + [2.0] * 7
