"""How a step is computed: rates by layer, activations computed twice, fused optimisers, torch.compile; and resumed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from tests.runs.test_distributed import assert_same_course
from tests.support.processes import in_processes
from tests.support.tiny_runs import QUICK, TINY, losses, same, weights
from tests.support.tiny_timm import TINY_VIT
from wilson import distributed
from wilson.config import Config, StepConfig
from wilson.errors import UserError
from wilson.methods import Supervised
from wilson.models import build_segmenter
from wilson.runs.run import run
from wilson.training import computing, loop, optimizer
from wilson.training.optimizer import make_optimizer

ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr_encoder": 1e-3, "lr_head": 1e-3}
VIT: Config = replace(
    TINY,
    model=replace(TINY.model, backbone=TINY_VIT, stride=8),
    base=replace(TINY.base, epochs=1, **ADAMW),
    step=replace(TINY.step, epochs=2, layer_decay=0.5, **ADAMW),
    precision="fp32",
)


class StopHereError(Exception):
    pass


def killed_and_resumed(config, out, monkeypatch, last):
    """A run that is stopped in an iteration and goes on from the epoch before."""
    original, count = loop.gradient_norm, 0

    def interrupting(*arguments):
        nonlocal count
        count += 1
        if count == last:
            raise StopHereError
        return original(*arguments)

    monkeypatch.setattr(loop, "gradient_norm", interrupting)
    with pytest.raises(StopHereError):
        run(config, out)
    monkeypatch.setattr(loop, "gradient_norm", original)
    return run(config, out, resume=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(VIT, tmp_path_factory.mktemp("whole") / "run")


def method_with(name, stride):
    return Supervised(build_segmenter(name, stride, "none", 8, [3], 32, (1,)))


def test_the_rate_falls_from_layer_to_layer():
    method = method_with(TINY_VIT, 8)
    made, _ = make_optimizer(method, StepConfig(lr_encoder=1.0, lr_head=3.0, layer_decay=0.5), 10)
    rates = {group["name"]: group["lr"] for group in made.param_groups}
    assert rates == {
        **{f"encoder.{number}": 0.5 ** (5 - number) for number in range(1, 6)},  # the patches and four blocks
        "decoder": 3.0,
        "classifiers": 3.0,
    }
    body = method.model.backbone.body
    rate_of = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    assert [rate_of[id(p)] for p in (body.pos_embed, body.patch_embed.proj.weight)] == [1 / 16] * 2
    assert [rate_of[id(block.mlp.fc1.weight)] for block in body.blocks] == [1 / 8, 1 / 4, 1 / 2, 1]
    assert len(rate_of) == sum(len(group["params"]) for group in made.param_groups) == len(list(method.parameters()))


def test_layers_of_a_model_whose_names_timm_flattens():
    layers = method_with("convnext_atto", 16).model.backbone.layers()
    assert len(layers) == 13  # the stem and twelve blocks
    backbone = method_with("convnext_atto", 16).model.backbone
    numbers = {id(p): number for number, layer in enumerate(backbone.layers()) for p in layer}
    assert len(numbers) == len(list(backbone.parameters()))
    first, last = backbone.body["stem_0"].weight, backbone.body["stages_3"].blocks[-1].conv_dw.weight
    assert numbers[id(first)] == 0 and numbers[id(last)] == 12


def test_checkpointing_computes_each_block_twice_and_changes_no_bit(whole, tmp_path, monkeypatch):
    """The run with it is killed in the second epoch of its incremental step, and goes on."""
    config = replace(VIT, base=replace(VIT.base, checkpointing=True), step=replace(VIT.step, checkpointing=True))
    out = killed_and_resumed(config, tmp_path / "run", monkeypatch, last=3 + 2 + 2)
    for step in (0, 1):
        assert same(weights(whole, step), weights(out, step))

    calls = []
    for settings in (VIT.base, config.base):
        method = method_with(TINY_VIT, 8).train()
        computed = computing.prepared(method, VIT, settings)
        for block in method.model.backbone.body.blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(settings.checkpointing))  # noqa: B023
        batch = {"image": torch.randn(2, 3, 32, 32), "mask": torch.zeros(2, 32, 32, dtype=torch.long)}
        sum(computed(batch, 0).values()).backward()
    assert calls == [False] * 4 + [True] * 8


def test_frozen_batch_norm_may_be_computed_twice():
    batch = {"image": torch.randn(2, 3, 64, 64), "mask": torch.zeros(2, 64, 64, dtype=torch.long)}
    gradients = []
    for twice in (False, True):
        torch.manual_seed(0)
        method = method_with("resnet18", 16).train()
        loop.freeze_norm(method)
        settings = StepConfig(checkpointing=twice, freeze_norm=True)
        sum(computing.prepared(method, VIT, settings)(batch, 0).values()).backward()
        gradients.append({name: p.grad for name, p in method.named_parameters()})
    assert same(*gradients)


def test_resume_with_rates_by_layer_continues_exactly(whole, tmp_path, monkeypatch):
    out = killed_and_resumed(VIT, tmp_path / "run", monkeypatch, last=3 + 2 + 2)
    assert same(weights(whole, 1), weights(out, 1))
    assert {t: dict(v) for t, v in losses(out / "step-1").items()} == {
        t: dict(v) for t, v in losses(whole / "step-1").items()
    }


def test_what_a_backbone_lacks_is_said():
    with pytest.raises(UserError, match=r"--step.layer-decay: timm does not number"):
        make_optimizer(method_with("small_resnet", 4), StepConfig(layer_decay=0.9), 10)
    with pytest.raises(UserError, match=r"--step.checkpointing: the blocks of this backbone are not known"):
        computing.prepared(method_with("small_resnet", 4), VIT, StepConfig(checkpointing=True))
    with pytest.raises(UserError, match="count each batch twice"):
        computing.prepared(method_with("resnet18", 16), VIT, StepConfig(checkpointing=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_fused_optimisers_take_the_same_steps_and_resume(tmp_path, monkeypatch, kind):
    assert "cuda" in optimizer.FUSED
    config = replace(TINY, base=replace(TINY.base, optimizer=kind, lr_encoder=1e-3, lr_head=1e-3), precision="fp32")
    stepped = []
    for devices in ((), ("cpu",)):  # which has them, too
        monkeypatch.setattr(optimizer, "FUSED", devices)
        torch.manual_seed(0)
        method = method_with("small_resnet", 4)
        made, _ = make_optimizer(method, config.base, 10)
        assert all(bool(group["fused"]) == bool(devices) for group in made.param_groups)
        for _ in range(3):
            for parameter in method.parameters():
                parameter.grad = torch.randn_like(parameter)
            made.step()
        stepped.append(method.state_dict())
    for name, value in stepped[0].items():
        torch.testing.assert_close(stepped[1][name], value, rtol=1e-5, atol=1e-6, msg=name)
    fused = run(config, tmp_path / "fused", steps=[0])

    keep = loop.TrainingState.keep

    def stopping(self, epoch):
        keep(self, epoch)
        raise StopHereError

    monkeypatch.setattr(loop.TrainingState, "keep", stopping)
    with pytest.raises(StopHereError):
        run(config, tmp_path / "killed", steps=[0])
    monkeypatch.setattr(loop.TrainingState, "keep", keep)
    assert same(weights(fused, 0), weights(run(config, tmp_path / "killed", steps=[0], resume=True), 0))


def test_compiled_is_the_training_alone(tmp_path, monkeypatch):
    """With PyTorch's plain backend the graphs compute the same bits; models are evaluated as they are."""
    config, graphs = replace(QUICK, precision="fp32"), []

    def plain(graph, inputs):
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    plainly = run(config, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=plain))
    compiled = run(replace(config, compile=True), tmp_path / "compiled")
    assert graphs
    for step in (0, 1):
        assert same(weights(plainly, step), weights(compiled, step))
        assert losses(plainly / f"step-{step}") == losses(compiled / f"step-{step}")


def test_plop_cannot_be_compiled(tmp_path):
    with pytest.raises(UserError, match=r"method plop .* leave --compile out"):
        run(replace(QUICK, method="plop", compile=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_compiled_run_resumes(whole, tmp_path, monkeypatch):
    """With PyTorch's plain backend, as inductor compiles for minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    resumed = killed_and_resumed(replace(VIT, compile=True), tmp_path / "run", monkeypatch, last=3 + 2 + 2)
    assert same(weights(whole, 1), weights(resumed, 1))


def in_a_session(config, out):
    with distributed.session(torch.device("cpu")):
        run(config, out, steps=[0])


def test_processes_compute_what_one_does(tmp_path, one_thread):
    """By SGD, as AdamW makes large steps of gradients that are rounding alone."""
    rates: dict[str, Any] = {"lr_encoder": 1e-4, "lr_head": 1e-4, "layer_decay": 0.5, "checkpointing": True}
    config = replace(VIT, base=replace(TINY.base, **rates))
    run(config, tmp_path / "one", steps=[0])
    in_processes(2, in_a_session, config, tmp_path / "two")
    assert_same_course(tmp_path / "two" / "step-0", tmp_path / "one" / "step-0")


def compiled_in_a_session(config, out):
    """With PyTorch's plain backend, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        in_a_session(replace(config, compile=True), out)


@pytest.mark.slow
def test_compiled_processes_compute_what_one_does(tmp_path, one_thread):
    rates: dict[str, Any] = {"lr_encoder": 1e-4, "lr_head": 1e-4}
    config = replace(QUICK, precision="fp32", base=replace(QUICK.base, **rates))
    run(config, tmp_path / "one", steps=[0])
    in_processes(2, compiled_in_a_session, config, tmp_path / "two")
    assert_same_course(tmp_path / "two" / "step-0", tmp_path / "one" / "step-0")
