"""Model folders: a checkpoint as `config.json`, `model.safetensors` and a model card, for the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from wilson.checkpoint import FORMAT, Checkpoint, open_model
from wilson.config import from_dict, to_dict
from wilson.data.tasks import Task
from wilson.errors import UserError
from wilson.grown import Grown
from wilson.model_card import card
from wilson.models import Segmenter, new_model


class HubModel(
    nn.Module, PyTorchModelHubMixin, library_name="wilson-seg", pipeline_tag="image-segmentation"
):  # the arguments of `__init__` are what config.json holds
    """The segmentation model of a step, with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    `wilson.HubModel.from_pretrained("runs/model")` reads a folder, `from_pretrained("owner/name")` fetches one. Nothing
    is uploaded unless `push_to_hub("owner/name")` is called. `wilson.Predictor(model, device)` takes it.

    Args:
        format: version of these values.
        settings: the configuration of the run, as plain values.
        task, classes, steps: see :class:`wilson.data.tasks.Task`.
        step: the step after which the model was saved.
        results: entries of results.json.

    Raises:
        UserError: the values are of another version, or do not fit together.
    """

    def __init__(
        self,
        format: int,
        settings: dict[str, Any],
        task: str,
        classes: list[str],
        steps: list[list[int]],
        step: int,
        results: list[dict[str, Any]],
    ) -> None:
        super().__init__()
        if format != FORMAT:
            raise UserError(f"config.json: format {format}, this version reads {FORMAT}; use the version that wrote it")
        self.config, self.step, self.results = from_dict(settings), step, results
        self.task = Task(task, tuple(classes), tuple(map(tuple, steps)))
        self.task.check()
        data = self.config.data
        self.segmenter = new_model(self.config.model, self.task.class_counts(step), data.crop, weights="none")

    @classmethod
    def of(cls, saved: Checkpoint) -> HubModel:
        """The model of a checkpoint, in eval mode."""
        task = saved.task
        model = cls(
            format=FORMAT,
            settings=to_dict(saved.config),
            task=task.name,
            classes=list(task.classes),
            steps=[list(ids) for ids in task.steps],
            step=saved.step,
            results=saved.results,
        )
        model.segmenter = saved.model()
        return model.eval()

    def model(self) -> Segmenter:
        """The network, as a checkpoint gives it: images, normalised (B, 3, H, W), to logits and features."""
        return self.segmenter

    def forward(self, image: Tensor) -> Tensor:
        """The logits (B, C, h, w) of normalised images (B, 3, H, W), at feature resolution; differentiable."""
        return self.segmenter(image).logits

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write, if the folder has none."""
        loading = 'import wilson\n\nmodel = wilson.load("FOLDER")  # where this file lies'
        return card(self.config, self.task, self.step, self.results, loading)


def save(path: Path, folder: Path) -> None:
    """Write a trained model as a model folder: `config.json`, `model.safetensors` and `README.md`, the model card.

    Args:
        path: a checkpoint, a run, or a folder that `wilson add` or this function wrote.
        folder: where to; created, refused if it is not empty.

    Raises:
        UserError: there is no whole model, or the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another folder, or remove it")
    saved = open_model(path)
    if isinstance(saved, Grown):  # it is a folder of its own library already
        shutil.copytree(saved.path, folder, dirs_exist_ok=True)
    else:
        HubModel.of(saved).save_pretrained(folder)
