"""Everything to be measured on the day that a GPU is at hand: `python -m benchmarks.gpu_day`.

Correctness comes first: the tests of the ops with each provider, at the same time. Then each stage has the GPU for
itself. The stages stand in the order of their worth. Each runs in a process of its own, under its own time
limit, and the file with all results is written after each. `--dry-run` goes through the stages on the CPU, on small
shapes. `python -m benchmarks.report` renders what lies in docs/gpu.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import bench_ops, bench_step, gpu_timing, measure
from benchmarks.gpu_counts import FORMATS
from tests.support.agreement import Expected
from wilson import ops
from wilson.ops import reference

ROOT = Path(__file__).parents[1]
PROVIDERS = ("cuda", "triton")
COMPILED = ("ngwp_focal_pool", "localization_prior_loss", "pseudo_label_loss", bench_ops.PAIR, "upsampled_argmax")
TRAINED = {"cuda": (24, 8), "triton": (24,), "reference": (24,)}  # images of a batch, by provider


@dataclass(frozen=True)
class Stage:
    """A part of the day: a function of this file for a provider, or a command."""

    name: str
    seconds: int  # time limit
    provider: str | None = None
    command: tuple[str, ...] = ()
    together: bool = False  # at the same time as its neighbours


def stages() -> list[Stage]:
    tests = ("-m", "pytest", "-q", "-rf", "--tb=short", "-p", "no:cacheprovider", "tests/gpu/on_device.py")
    small, large = ("-k", "not four_gigabytes", "-n"), ("-k", "four_gigabytes")
    workers = {"cuda": "5", "triton": "10"}  # of 16 cores; Triton compiles
    return [
        *(Stage(f"tests-{name}", 170, name, (*tests, *small, workers[name]), together=True) for name in PROVIDERS),
        *(Stage(f"ops-{name}", 100, name) for name in PROVIDERS),  # Triton compiles for most of it
        *(Stage(f"labelled-{name}", 30, name) for name in PROVIDERS),
        *(Stage(f"step-{name}", 30, name) for name in PROVIDERS),
        *(Stage(f"training-{name}", 60, name) for name in TRAINED),
        Stage("profile-cuda", 60, "cuda"),
        *(Stage(f"large-{name}", 60, name, (*tests, *large)) for name in PROVIDERS),
        Stage("demo", 170, None, ("-m", "wilson", "demo", "--out", "{scratch}/demo")),
        Stage("ncu-cuda", 60, "cuda"),
        Stage("compile", 120, "reference"),
    ]


def times(call: Callable[[], Any]) -> dict[str, Any]:
    """What `gpu_timing` finds, and the peak memory; in a dry run, that the call runs."""
    if measure.DEVICE.type == "cpu":
        return {"host, us": round(1e6 * measure.fastest(call, 0.01), 1)}
    return {**gpu_timing.times(call), "peak extra MB": round(measure.peak_extra_bytes(call) / 1e6, 2)}


def grids() -> tuple[str, ...]:
    return ("small",) if measure.DEVICE.type == "cpu" else ("voc", "coco")


def run_ops(provider: str) -> list[dict[str, Any]]:
    """Every op on every grid and format, after a comparison with the reference in float64; eager beside CUDA."""
    rows = []
    for grid in grids():
        for format_name, (dtype, layout) in FORMATS.items():
            for op in bench_ops.NAMES:
                case = bench_ops.case_of(op, grid, dtype, layout).on(measure.DEVICE)
                functions = {provider: bench_ops.function_of(op, ops)}
                if provider == "cuda":
                    functions["eager"] = bench_ops.function_of(op, reference)
                for name, function in functions.items():
                    row = {"op": op, "grid": grid, "format": format_name, "provider": name}
                    call = measure.forward_and_backward(function, case.args, case.kwargs, case.differentiable)
                    try:
                        if name != "eager":
                            Expected(case, bench_ops.function_of(op, reference)).assert_met_by(function)
                        row |= times(call)
                    except (AssertionError, RuntimeError) as error:
                        row["error"] = str(error).splitlines()[0]
                    rows.append(row)
    return rows


def run_labelled(provider: str) -> list[dict[str, Any]]:
    """PAMR of the classes that images show, 1.5 of them an image."""
    rows = []
    for grid in grids():
        for format_name, (dtype, layout) in FORMATS.items():
            image, mask = bench_ops.case_of("pamr", grid, dtype, layout).on(measure.DEVICE).args
            labels = torch.zeros(mask.shape[0], mask.shape[1] - 1, device=measure.DEVICE)
            labels[:, -1], labels[::2, -2] = 1, 1
            call = functools.partial(ops.pamr, image, mask, image_labels=labels)
            rows.append({"grid": grid, "format": format_name, "provider": provider, **times(call)})
    return rows


def run_step(provider: str) -> list[dict[str, Any]]:
    """All losses of a step; eager beside CUDA."""
    rows = []
    for grid in grids():
        for format_name, (dtype, layout) in FORMATS.items():
            for name, module in {provider: ops, **({"eager": reference} if provider == "cuda" else {})}.items():
                row = {"grid": grid, "format": format_name, "provider": name}
                try:
                    row |= times(bench_step.step(module, grid, dtype, layout))
                except RuntimeError as error:
                    row["error"] = str(error).splitlines()[0]
                rows.append(row)
    return rows


def training_step(images: int, side: int = 512) -> Callable[[], Any]:
    """A step of WILSON as `fit` takes it: ResNet-101, 15-5, after the warm-up, in bf16 and channels-last."""
    from wilson.config import ModelConfig, StepConfig
    from wilson.data.loading import Batch
    from wilson.methods import Settings, Wilson
    from wilson.models import new_model
    from wilson.training.computing import autocast_dtype
    from wilson.training.loop import backward, gradient_norm
    from wilson.training.optimizer import make_optimizer

    device, draw = measure.DEVICE, torch.Generator().manual_seed(0)
    previous = new_model(ModelConfig(weights="none"), [16], side, weights="none")
    method = Wilson(previous.extended(5), previous, Settings()).to(device).to(memory_format=torch.channels_last)
    method.train()
    optimizer, _ = make_optimizer(method, StepConfig(epochs=1), 10**6)
    rgb = torch.rand(images, 3, side, side, generator=draw).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(images, 20)
    labels[torch.arange(images), 15 + torch.arange(images) % 5] = 1
    batch: Batch = {"image": (rgb - 0.45) / 0.225, "rgb": rgb, "labels": labels.to(device)}
    precision = autocast_dtype("auto", device)
    autocast = torch.autocast(device.type, precision, enabled=precision is not torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=False)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(method, [batch], 1, 10, images, autocast, scaler)
        gradient_norm(method, None)
        optimizer.step()

    return call


def run_training(provider: str) -> list[dict[str, Any]]:
    """Milliseconds of a training step, without the loading of images."""
    rows = []
    for images in (2,) if measure.DEVICE.type == "cpu" else TRAINED[provider]:
        call = training_step(images, 64 if measure.DEVICE.type == "cpu" else 512)
        for _ in range(1 if measure.DEVICE.type == "cpu" else 5):
            call()
        measure.finish()
        if measure.DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(1 if measure.DEVICE.type == "cpu" else 10):
            start = time.perf_counter()
            call()
            measure.finish()
            seconds.append(time.perf_counter() - start)
        row = {"provider": provider, "images": images, "ms": round(1e3 * sorted(seconds)[len(seconds) // 2], 2)}
        if measure.DEVICE.type == "cuda":
            row["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
        rows.append(row)
    return rows


def run_profile(provider: str) -> list[dict[str, Any]]:
    """Kernels of a training step by their time, and of all losses of a step."""
    from torch.profiler import ProfilerActivity, profile

    rows = []
    cpu = measure.DEVICE.type == "cpu"
    activity = ProfilerActivity.CPU if cpu else ProfilerActivity.CUDA
    calls = {"training step": training_step(2 if cpu else 24, 64 if cpu else 512)}
    for grid in grids():
        calls |= {f"losses, {grid}, {name}": bench_step.step(ops, grid, *how) for name, how in FORMATS.items()}
    for what, call in calls.items():
        for _ in range(1 if cpu else 3):
            call()
        measure.finish()
        with profile(activities=[activity]) as profiled:
            call()
            measure.finish()
        total = 0.0
        kernels = []
        for event in profiled.key_averages():
            spent = event.self_cpu_time_total if cpu else event.self_device_time_total
            total += spent
            kernels.append({"kernel": event.key[:120], "launches": event.count, "us": round(spent, 1)})
        kernels.sort(key=lambda row: -row["us"])
        launches = sum(row["launches"] for row in kernels)
        ours = [row for row in kernels if "wilson" in row["kernel"]]
        rows.append({"of": what, "us": round(total, 1), "launches": launches, "ours": ours, "kernels": kernels[:25]})
    return rows


def run_compile(_: str) -> list[dict[str, Any]]:
    """torch.compile of the reference on VOC shapes."""
    rows = []
    grid, (dtype, layout) = grids()[0], FORMATS["fp32 NCHW"]
    for op in COMPILED:
        case = bench_ops.case_of(op, grid, dtype, layout).on(measure.DEVICE)
        torch.compiler.reset()
        function = torch.compile(bench_ops.function_of(op, reference), dynamic=False)
        call = measure.forward_and_backward(function, case.args, case.kwargs, case.differentiable)
        rows.append({"op": op, "grid": grid, "format": "fp32 NCHW", "provider": "compile", **times(call)})
        print(rows[-1], flush=True)
    return rows


NCU_METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram, %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm, %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps, %",
    "l1tex__throughput.avg.pct_of_peak_sustained_active": "l1, %",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
    "smsp__inst_executed.sum": "instructions",
}


def run_ncu(provider: str) -> list[dict[str, Any]]:
    """Counters of every kernel of all losses of a step and of the ops at the image's size."""
    tool = shutil.which("ncu") or next(iter(Path("/usr/local/cuda/bin").glob("ncu")), None)
    if tool is None:
        return [{"error": "ncu is not installed"}]
    command = [str(tool), "--csv", "--page", "raw", "--clock-control", "none", "--metrics", ",".join(NCU_METRICS)]
    command += ["--profile-from-start", "off", "--kernel-name", "regex:wilson|_kernel"]
    command += [sys.executable, "-m", "benchmarks.gpu_day", "--stage", "once"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return [{"error": text[-2000:]}]
    rows = list(csv.DictReader(lines[start:]))[1:]  # the first holds units
    return [
        {"kernel": row["Kernel Name"][:120], **{to: row.get(key) for key, to in NCU_METRICS.items()}} for row in rows
    ]


def run_once(_: str) -> None:
    """One call of everything that `run_ncu` looks at."""
    calls = [bench_step.step(ops, "coco", *how) for how in FORMATS.values()]
    for op in ("upsampled_soft_margin_loss", "upsampled_cross_entropy", "upsampled_argmax"):
        case = bench_ops.case_of(op, "voc", torch.bfloat16, "channels_last").on(measure.DEVICE)
        function = bench_ops.function_of(op, ops)
        calls.append(measure.forward_and_backward(function, case.args, case.kwargs, case.differentiable))
    for call in calls:
        call()
    measure.finish()
    torch.cuda.profiler.start()
    for call in calls:
        call()
    measure.finish()
    torch.cuda.profiler.stop()


RUN: dict[str, Callable[[str], Any]] = {
    "ops": run_ops,
    "labelled": run_labelled,
    "step": run_step,
    "training": run_training,
    "profile": run_profile,
    "ncu": run_ncu,
    "compile": run_compile,
    "once": run_once,
}


def result_of(stage: Stage, status: int | None, log: Path, results: Path) -> dict[str, Any]:
    """What a stage left: its results, the summary of its tests, or the end of its log."""
    text = log.read_text(errors="replace")
    found: dict[str, Any] = {"stage": stage.name, "status": "out of time" if status is None else status}
    if results.exists():
        found["results"] = json.loads(results.read_text())
    elif "pytest" in stage.command:
        found["summary"] = next(iter(re.findall(r"^=* ?(\d+ .* in [\d.]+s.*)$", text, re.MULTILINE)[-1:]), "no summary")
        found["failed"] = [line[:300] for line in text.splitlines() if line.startswith("FAILED")]
        found["done"] = text.count(".")
    if status is None or (status and "results" not in found):
        found["log"] = text[-1500:]
    return found


def run_day(out: Path, chosen: list[str], dry: bool, logs: Path) -> None:
    """Run the stages and write what they found to `out` after each."""
    card = "CPU, dry run" if dry else torch.cuda.get_device_name()
    day: dict[str, Any] = {"card": card, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "stages": []}
    logs.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = [stage for stage in stages() if not chosen or any(stage.name.startswith(name) for name in chosen)]
    groups: list[list[Stage]] = []
    for stage in kept:
        if stage.together and groups and groups[-1][0].together:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    for group in groups:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            started = [(stage, *launch(stage, Path(scratch), logs, dry)) for stage in group]
            for stage, process, results in started:
                try:
                    status = process.wait(max(1, stage.seconds - (time.perf_counter() - start)))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, 9)
                    process.wait()
                    status = None
                found = result_of(stage, status, logs / f"{stage.name}.log", results)
                found["seconds"] = round(time.perf_counter() - start, 1)
                day["stages"].append(found)
                out.write_text(json.dumps(day, indent=1))
                shown = found.get("summary") or f"{len(found.get('results') or [])} results"
                print(f"{stage.name}: {found['status']}, {found['seconds']} s, {shown}", flush=True)


def launch(stage: Stage, scratch: Path, logs: Path, dry: bool) -> tuple[subprocess.Popen, Path]:
    """Start a stage; its results go to the file that is returned, what it prints to its log."""
    results = scratch / f"{stage.name}.json"
    command = [part.format(scratch=scratch) for part in stage.command] or [
        "-m", "benchmarks.gpu_day", "--stage", stage.name.split("-")[0], "--provider", stage.provider or "cuda",
        "--out", str(results),
    ]  # fmt: skip
    environment = dict(os.environ)
    if stage.provider and not dry:
        environment["WILSON_CUDA_PROVIDER"] = stage.provider
    with (logs / f"{stage.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    return process, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the file of results; by default in docs/gpu, by the card's name")
    parser.add_argument("--logs", type=Path, default=ROOT / "benchmarks" / ".figures" / "gpu", help="what stages print")
    parser.add_argument("--only", nargs="*", default=[], help="stages whose names begin so")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, on small shapes, without tests and demo")
    parser.add_argument("--stage", choices=RUN, help="run this one here, for the day's other process")
    parser.add_argument("--provider", default="cuda", help="of the stage")
    options = parser.parse_args()
    if options.stage:
        found = RUN[options.stage](options.provider)
        if options.out:
            options.out.write_text(json.dumps(found))
        return
    if not (options.dry_run or torch.cuda.is_available()):
        parser.error("no GPU is at hand; --dry-run goes through the stages on the CPU")
    name = "dry-run" if options.dry_run else torch.cuda.get_device_name().lower().replace(" ", "-")
    only = options.only or (["ops", "labelled", "step", "training", "profile"] if options.dry_run else [])
    run_day(options.out or ROOT / "docs" / "gpu" / f"{name}.json", only, options.dry_run, options.logs)


if __name__ == "__main__":
    main()
