"""Every option has a range; a wrong value, wherever it comes from, is one line, and nothing is written."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from math import inf, nan
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
import yaml

from wilson.cli import main
from wilson.config import (
    DEMO,
    RECIPES,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    StepConfig,
    changed,
    from_dict,
    limits,
    save,
    to_dict,
)
from wilson.config.ranges import Flag
from wilson.errors import UserError
from wilson.methods import METHODS
from wilson.run_folder import RunFolder
from wilson.runs.ablation import FIXED, ablate
from wilson.runs.folder import check_same
from wilson.training import seeds

SECTIONS = {"data": DataConfig, "model": ModelConfig, "base": StepConfig, "step": StepConfig, "losses": LossConfig}
HINTS = {
    **get_type_hints(Config, include_extras=True),
    **{
        f"{section}.{name}": hint
        for section, kind in SECTIONS.items()
        for name, hint in get_type_hints(kind, include_extras=True).items()
    },
}
FREE = {
    "task", "device",
    "data.root", "data.train_split", "data.val_split", "data.step_root", "data.step_train_split",
    "data.step_val_split", "data.labels", "data.saliency", "data.prior", "data.regions", "data.similarity",
    "data.negatives",
    "model.backbone", "model.weights",
}  # fmt: skip
RANGED = {name: limits(hint) for name, hint in HINTS.items() if limits(hint)}

COUNT, RATE, SHARE, MORE = (0, -1), (-0.1, inf, nan), (-0.1, 1.5, nan), (0.0, -1.0, inf, nan)
STEP = {
    "epochs": COUNT, "batch": COUNT, "passes": COUNT, "lr_encoder": RATE, "lr_head": RATE, "warmup": (-1,),
    "power": RATE, "momentum": (-0.1, 1.0, nan), "weight_decay": RATE, "accumulate": COUNT,
    "layer_decay": (0.0, -0.1, 1.5, nan),
}  # fmt: skip
WRONG = {
    "seed": (-1, 2**53, 2**63),
    "evaluate_every": COUNT,
    "max_grad_norm": MORE,
    "data.negative_share": SHARE,
    "data.crop": COUNT,
    "data.test_crop": COUNT,
    "data.workers": (-1,),
    "data.mean": ((0.5, 0.5, 1.5), (123.7, 116.8, 103.9), (0.5, nan, 0.5)),
    "data.std": ((0.2, 0.0, 0.2), (0.2, 0.2, -1.0)),
    "data.replay": (-1,),
    "data.replay_share": SHARE,
    "data.shots": COUNT,
    "data.train_images": COUNT,
    "data.val_images": COUNT,
    "model.stride": COUNT,
    "model.head_channels": COUNT,
    "model.localizer_channels": COUNT,
    "model.dilations": ((), (1, 0), (-1,)),
    **{f"base.{name}": values for name, values in STEP.items()},
    **{f"step.{name}": values for name, values in STEP.items()},
    **{f"losses.{name}": RATE for name in ("cls", "loc", "enc", "sss", "seg", "maps", "names", "distillation")},
    "losses.alpha": SHARE,
    "losses.background": SHARE,
    "losses.prior_weight": SHARE,
    "losses.eps": MORE,
    "losses.gamma": (0.5, -1.0, inf, nan),
    "losses.lam": MORE,
    "losses.pamr_iterations": COUNT,
    "losses.pamr_dilations": ((), (1, 0)),
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]
TINY = shlex.split(
    "--recipe demo --data.train-images 42 --data.val-images 6 --data.crop 32 --model.head-channels 8 "
    "--model.localizer-channels 8 --base.epochs 1 --base.batch 8 --step.epochs 1 --step.warmup 0 --step.batch 8"
)


def nested(name, value):
    section, _, option = name.rpartition(".")
    return {section: {option: value}} if section else {option: value}


def words(value):
    return list(map(str, value)) if isinstance(value, tuple) else [str(value)]


def told(error, name):
    assert "\n" not in str(error) and re.search(rf"(^|\b|--){re.escape(name)}: expected .*, got ", str(error)), error


def one_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wilson: ")
    return line.removeprefix("wilson: ")


def test_every_option_has_a_range_or_is_known_to_be_free():
    for name, hint in HINTS.items():
        if name in SECTIONS or get_origin(hint) is Literal or {bool, Flag} & set(get_args(hint)):
            continue
        assert (name in FREE) != bool(limits(hint)), f"{name}: give it a range, or list it as free"
    assert RANGED.keys() == WRONG.keys()


@pytest.mark.parametrize(("name", "value"), CASES, ids=str)
def test_a_wrong_value_in_python(name, value):
    section, _, option = name.rpartition(".")
    kind = SECTIONS.get(section, Config)
    with pytest.raises(UserError) as caught:
        kind(**{option: value})
    told(caught.value, option)
    with pytest.raises(UserError):
        replace(kind(), **{option: value})


@pytest.mark.parametrize(("name", "value"), CASES, ids=str)
def test_a_wrong_value_in_plain_values(name, value):
    with pytest.raises(UserError) as caught:
        from_dict(yaml.safe_load(yaml.safe_dump(nested(name, list(value) if isinstance(value, tuple) else value))))
    told(caught.value, name)


@pytest.mark.parametrize(("name", "values"), WRONG.items(), ids=str)
def test_a_wrong_value_in_a_flag(name, values, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flag = f"--{name.replace('_', '-')}"
    for command in ("run", "train"):
        assert main([command, flag, *words(values[-1]), "--data.root", "nowhere"]) == 2
        told(one_line(capsys), flag)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["demo", "--seed", "-1"], ["data", "bench", "--data.workers", "-1"]])
def test_a_wrong_value_for_other_commands(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    told(one_line(capsys), command[-2])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "values"), WRONG.items(), ids=str)
def test_a_wrong_value_in_a_grid(name, values, tmp_path):
    value = list(values[-1]) if isinstance(values[-1], tuple) else values[-1]
    base, row = {"base": nested(name, value), "rows": {"a": {}}}, {"rows": {"a": nested(name, value)}}
    for place, recipe in {"base": base, "rows.a": row}.items():
        if place == "rows.a" and name.split(".")[0] in FIXED:
            continue
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(UserError) as caught:
            ablate(tmp_path / "grid.yaml", tmp_path / "out")
        told(caught.value, f"grid.yaml: {place}.{name}")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["losses: {alpha: 1.5}", "losses: {alhpa: 0.5}", "step: 3", "[1]", "seed: 2024-13-45"])
def test_a_wrong_value_in_the_configuration_of_a_run_that_is_resumed(text, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(text)
    assert main(["run", *TINY, "--out", str(tmp_path), "--resume"]) == 2
    assert "config.yaml is not the configuration of a run" in one_line(capsys)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.yaml": text, "run.lock": ""}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"seed": True}, "seed: expected a whole number.*got True"),
        ({"seed": "3"}, "seed: expected a whole number.*got '3'"),
        ({"seed": 3.0}, "seed: expected a whole number.*got 3.0"),
        ({"losses": {"alpha": True}}, "losses.alpha: expected a number.*got True"),
        ({"losses": {"alpha": "much"}}, "losses.alpha: expected a number.*got 'much'"),
        ({"losses": {"alpha": "nan"}}, "losses.alpha: expected a number.*got nan"),
        ({"losses": {"alpha": None}}, "losses.alpha: expected a number.*got None"),
        ({"losses": {"merge": 1}}, "losses.merge: expected true or false, got 1"),
        ({"losses": {"pamr_dilations": [1, True]}}, "losses.pamr_dilations: expected one or more whole.*got True"),
        ({"losses": {"pamr_dilations": 3}}, "losses.pamr_dilations: expected one or more whole numbers.*got 3"),
        ({"losses": {"prior": ["loc"]}}, r"losses.prior: expected loc, softmax.*got \['loc'\]"),
        ({"data": {"mean": [0.5, 0.5]}}, r"data.mean: expected 3 numbers.*or None \(null in YAML\), got"),
        ({"data": {"root": 3}}, "data.root: expected text, got 3"),
        ({"data": None}, "data: expected options with their values, got None"),
        ({"data": {"corp": 3}}, r"data.corp: no such option; did you mean crop\?"),
        ({"sed": 3}, r"sed: no such option; did you mean seed\?"),
        ({3: 3}, "3: no such option"),
        ({"seed": int("9" * 4000) ** 3}, "seed: expected a whole number.*got a number of thousands of digits"),
        ({"data": {"crop": [[[["deep"] * 99] * 99] * 99]}}, r"data.crop: .*got \[\[\[\.\.\.\], .*, \.\.\.\]\]"),
        ([], r"expected options with their values, got \[\]"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind(values, text):
    with pytest.raises(UserError, match=text) as caught:
        from_dict(values)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "text",
    [
        "rows: [a, b]", "rows: 3", "rows: {a: 3}", "rows: {a: [1]}", "rows: {a: {losses: [1]}}", "rows: {a: {3: 4}}",
        "rows: {a: {losses: }}", "rows: {a: {method: 2024-01-31}}", "rows: {a: {method: 2024-13-45}}",
        "rows: {a: {}}\nbase: [1]", "rows: {a: {}}\nbase: {recipe: [voc]}", "rows: {a: {}}\nseeds: '01'",
        "rows: {a: {}}\nseeds: [-1]", "rows: {a: {}}\nseeds: [1.5]", "rows: {a: {seeds: {0: 1}}}", "? [a]\n: 3",
        "rows: {a: {seed: 1}}", "rows: !!timestamp x", "rows: !!int ''", "rows: &a {a: *a}", "2024-01-31", "",
        "rows: " + "[" * 2000, "rows: " + "{a: " * 2000,
        "rows: {\"a\\nb\": {method: x}}",
    ],
)  # fmt: skip
def test_a_malformed_grid_is_one_line(text, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["ablate", "--grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 2
    line = one_line(capsys)
    assert line.startswith("grid ") and "grid.yaml" in line and len(line) < 500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", METHODS)
def test_only_steps_from_image_labels_warm_up_by_themselves(method):
    for recipe, epochs in (("voc", 5), ("demo", 3), ("coco-voc", 5), ("few-shots", 2)):
        config = replace(RECIPES[recipe], method=method)
        assert config.for_step(0).warmup == 0
        assert config.for_step(1).warmup == (0 if METHODS[method].pixel_supervised else epochs)
        given = replace(config, step=replace(config.step, warmup=2))
        assert given.for_step(1).warmup == (0 if method == "offline" else 2)


def test_a_run_goes_on_with_its_warm_up_spelled_out(tmp_path):
    folder = RunFolder(tmp_path)
    save(Config(), folder.config)
    check_same(folder, replace(Config(), step=replace(Config().step, warmup=5)), None)
    with pytest.raises(UserError, match=r"step\.warmup 5, not 4"):
        check_same(folder, replace(Config(), step=replace(Config().step, warmup=4)), None)


def test_the_warm_up_may_be_longer_than_the_step():
    assert from_dict(to_dict(Config(step=StepConfig(epochs=3, warmup=5)))).step.warmup == 5  # as runs on disk have it


def test_borders_are_allowed():
    StepConfig(lr_encoder=0, lr_head=0.0, power=0, momentum=0, weight_decay=0)
    LossConfig(cls=0, alpha=0, background=1, gamma=1)
    DataConfig(workers=0, negative_share=1, mean=(0, 0.5, 1), std=(1, 1, 1))
    largest = Config(seed=2**53 - 1).seed
    torch.manual_seed(seeds.of_step(largest, 99))
    assert seeds.of_step(largest, 99) < 2**63 and np.random.SeedSequence((largest, 0, 0)).entropy


def test_the_help_shows_every_range(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, text in RANGED.items():
        (option,) = re.findall(rf" --{re.escape(name.replace('_', '-'))} .*?\(default: ", shown)
        assert f"({text})" in option, name
    assert "Nesterov momentum of SGD. (at least 0 and below 1) (default: 0.9)" in shown


def test_plain_values_and_back(tmp_path):
    for config in [
        *RECIPES.values(),
        changed(DEMO, {"losses": {"eps": "1e-5"}, "model": {"dilations": [2, 4]}, "data": {"mean": [0, 0.5, 1]}}),
    ]:
        assert from_dict(to_dict(config)) == config
        save(config, tmp_path / "config.yaml")
        values = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert from_dict(values) == config and list(values) == [field.name for field in fields(Config)]
    assert (config.losses.eps, config.model.dilations, config.data.mean) == (1e-5, (2, 4), (0.0, 0.5, 1.0))
    assert type(to_dict(config)["model"]["dilations"]) is tuple
    assert from_dict({"step": {}}).step == StepConfig() and from_dict({}) == Config()


def test_changes_keep_the_rest():
    config = changed(DEMO, {"method": "mib", "step": {"epochs": 5}})
    assert config == replace(DEMO, method="mib", step=replace(DEMO.step, epochs=5))


def test_the_configuration_imports_no_torch():
    code = "import sys, wilson.config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ops_do_without_the_library_that_checks_options():
    code = (
        "import sys; sys.modules['pydantic'] = None; from wilson.cli import main; print(main(['ops']), main(['demo']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("0 2\n"), result.stderr
    assert 'pip install "wilson-seg[train]"' in result.stderr and "Traceback" not in result.stderr
