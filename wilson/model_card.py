"""The README.md of a model folder: a model card, as the Hugging Face Hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from wilson.config import Config
from wilson.data.tasks import Task
from wilson.pictures import palette

TAGS = ("semantic-segmentation", "class-incremental-learning", "weakly-supervised")
LIBRARY = "wilson-seg"


def card(
    config: Config,
    task: Task,
    step: int,
    results: Sequence[Mapping[str, Any]],
    loading: str,
    library: str = LIBRARY,
) -> ModelCard:
    """Describe a model: its classes with their colours, data, task and scores, and how to load it.

    Args:
        config, task, step, results: as a checkpoint has them; results may lack scores where nothing was measured.
            An entry's `data` names the data set that it was measured on, if that is not the one of the configuration.
        loading: Python code that loads the model as `model`.
        library: that the Hub offers to load it with.

    Returns:
        The card. It names no license: that is for whoever publishes the model to choose.
    """
    data = config.data.root
    tested = _tested_on(config, results)
    means = dict(results[-1]["miou"]) if results else {}
    known = {group: means[group] for group in ("old", "new", "all") if means.get(group) is not None}
    metadata = ModelCardData(
        library_name=library,
        pipeline_tag="image-segmentation",
        tags=list(TAGS),
        model_name=f"{task.name} of {data}",
        eval_results=[
            EvalResult(
                task_type="image-segmentation", dataset_type=tested, dataset_name=tested,
                metric_type="mean_iou", metric_name=f"mIoU, {group} classes", metric_value=round(value, 1),
            )
            for group, value in known.items()
        ]
        or None,
    )  # fmt: skip
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{_text(config, task, step, results, known, loading)}")


def _text(
    config: Config,
    task: Task,
    step: int,
    results: Sequence[Mapping[str, Any]],
    means: Mapping[str, float],
    loading: str,
) -> str:
    names, ids = task.class_names(step), task.seen(step)
    iou = results[-1]["iou"] if results else {}
    rows = [
        f"| {class_id} | {name} | `#{red:02x}{green:02x}{blue:02x}` | {_points(iou.get(name))} |"
        for class_id, name, (red, green, blue) in zip(ids, names, palette.distinct(len(names)), strict=True)
    ]
    measured = ", ".join(f"{group} {value:.1f}" for group, value in means.items())
    learned = f"After step {step} of the task {task.name}: " + "; ".join(
        f"step {number} learned {', '.join(task.classes[i] for i in task.new(number))}" for number in range(step + 1)
    )
    lines = [
        f"# {task.name} of {config.data.root}",
        "",
        f"A model of semantic segmentation with {len(names)} classes, background included. It learned classes in "
        "steps, the later ones from image-level labels alone (WILSON, Cermelli et al., CVPR 2022).",
        "",
        "```python",
        loading,
        'mask = model.predict("photo.jpg")  # mask ids (H, W), uint8',
        "```",
        "",
        "| mask id | class | colour | IoU |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"Mean IoU in percent on {_tested_on(config, results)}: {measured}."
        if measured
        else "No IoU was measured, for want of masks.",
        "",
        f"{learned}. Data: {config.data.root}. Method: {config.method}. Backbone: {config.model.backbone}.",
        "",
        "The card names no license. Choose one that the data and the first weights allow, before you publish this.",
        "",
    ]
    return "\n".join(lines)


def _tested_on(config: Config, results: Sequence[Mapping[str, Any]]) -> str:
    return str(results[-1].get("data", config.data.root)) if results else config.data.root


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
