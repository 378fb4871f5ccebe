"""`captum-transformer-lrp benchmark`: measure methods as the paper does."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_transformer_lrp.cli.benchmark_options import (
    Ablations,
    Explain,
    LabelsFile,
    Limit,
    Methods,
    Output,
    Quiet,
    Seed,
    SoFar,
    method_names,
    output_folder,
    report,
)
from captum_transformer_lrp.cli.errors import UsageError, clear_errors
from captum_transformer_lrp.cli.options import Checkpoint, Device, ImageModelName, to_device
from captum_transformer_lrp.hub import as_address

if TYPE_CHECKING:
    from captum_transformer_lrp.models import ImageModel

benchmark = typer.Typer(
    help=(
        "Measure how good explanations are. A run that was stopped goes on when the same command "
        "is given again. `torchrun --nproc-per-node N -m captum_transformer_lrp.benchmarks …` "
        "takes the same commands and shares the work among N processes."
    ),
    no_args_is_help=True,
)


class RemovalOption(str, Enum):
    """What comes in the place of removed pixels."""

    BLACK = "black"
    MEAN = "mean"
    BLUR = "blur"


class ResizeOption(str, Enum):
    """How a photo becomes the model's input."""

    WHOLE = "whole"
    MODEL = "model"


@benchmark.callback()
def _commands() -> None:
    """Let there be subcommands, also where there is one only."""


@benchmark.command("perturbation")
def perturbation_command(
    model: ImageModelName,
    data: Annotated[Path, typer.Option(help="A folder of photos whose names tell the class.")],
    checkpoint: Checkpoint = None,
    methods: Methods = ["paper"],  # noqa: B006 - typer copies it
    ablations: Ablations = False,
    explain: Annotated[
        list[Explain] | None,
        typer.Option(help="The predicted or the true class; may be given twice. Default: both."),
    ] = None,
    removal: Annotated[
        RemovalOption, typer.Option(help="What comes in the place of pixels.")
    ] = RemovalOption.BLACK,
    resize: Annotated[
        ResizeOption,
        typer.Option(help="All of the photo, as the paper, or cropped as the model has it."),
    ] = ResizeOption.WHOLE,
    labels: LabelsFile = None,
    output: Output = None,
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
    so_far: SoFar = False,
) -> None:
    """Remove pixels in the order of each map and measure the accuracy (tables 1 and 3)."""
    with clear_errors():
        folder = output_folder(output, "perturbation")
        check_photos(data)
        loaded, where = image_model(model, checkpoint, device)
        from captum_transformer_lrp.benchmarks.perturbation import perturbation

        result = perturbation(
            loaded,
            data,
            method_names(methods, ablations),
            output=folder,
            explain=[one.value for one in explain or Explain],
            removal=removal.value,
            resize=resize.value,
            labels=labels,
            limit=limit,
            device=where,
            seed=seed,
            show_progress=not quiet,
            so_far=so_far,
        )
        report(result, folder, quiet)


@benchmark.command("segmentation")
def segmentation_command(
    model: ImageModelName,
    data: Annotated[
        Path,
        typer.Option(
            help="gtsegs_ijcv.mat, a folder with an index.json, or one with JPEGImages and "
            "SegmentationClass."
        ),
    ],
    checkpoint: Checkpoint = None,
    methods: Methods = ["paper"],  # noqa: B006 - typer copies it
    ablations: Ablations = False,
    explain: Annotated[
        Explain | None,
        typer.Option(help="The predicted class, or the object's. Default: the object's if known."),
    ] = None,
    output: Output = None,
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
    so_far: SoFar = False,
) -> None:
    """Compare maps with the masks of objects (tables 2 and 3)."""
    with clear_errors():
        folder = output_folder(output, "segmentation")
        from captum_transformer_lrp.benchmarks.segmentation import segmentation
        from captum_transformer_lrp.benchmarks.segmentation_data import segmentation_data

        masks = segmentation_data(data)
        loaded, where = image_model(model, checkpoint, device)
        result = segmentation(
            loaded,
            masks,
            method_names(methods, ablations),
            output=folder,
            explain=None if explain is None else explain.value,
            limit=limit,
            device=where,
            seed=seed,
            show_progress=not quiet,
            so_far=so_far,
        )
        report(result, folder, quiet)


@benchmark.command("grid-pointing")
def grid_pointing_command(
    model: ImageModelName,
    data: Annotated[Path, typer.Option(help="A folder of photos whose names tell the class.")],
    checkpoint: Checkpoint = None,
    methods: Methods = ["paper"],  # noqa: B006 - typer copies it
    ablations: Ablations = False,
    grid: Annotated[int, typer.Option(min=2, help="Photos along each side.")] = 2,
    confidence: Annotated[
        float, typer.Option(min=0, max=1, help="The least probability of a photo's class.")
    ] = 0.9,
    labels: LabelsFile = None,
    output: Output = None,
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """See whether the map of each class in a grid of photos is in its own photo's cell."""
    with clear_errors():
        folder = output_folder(output, "grid-pointing")
        check_photos(data)
        loaded, where = image_model(model, checkpoint, device)
        from captum_transformer_lrp.benchmarks.grid_pointing import grid_pointing

        result = grid_pointing(
            loaded,
            data,
            method_names(methods, ablations),
            output=folder,
            grid=grid,
            confidence=confidence,
            labels=labels,
            limit=limit,
            device=where,
            seed=seed,
            show_progress=not quiet,
        )
        report(result, folder, quiet)


@benchmark.command("speed")
def speed_command(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A timm name, or bert-base; random weights. May be given several times."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Examples at once; may be given several times.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Lengths of texts; of no effect on images.")
    ] = None,
    depth: Annotated[
        list[int] | None, typer.Option(min=1, help="Numbers of blocks. Default: the model's own.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Methods to time; a wrong name lists all. Default: all."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch.")] = None,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="Count processor time, for a machine that is busy."),
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory, too, in a process for each.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Device = "cpu",
    output: Annotated[
        Path | None,
        typer.Option(help="A Markdown file; the figures are written beside it as JSON."),
    ] = None,
) -> None:
    """Time every method beside Captum's gradient methods, interleaved in one process."""
    import shlex
    import sys
    from itertools import product

    import torch

    from captum_transformer_lrp.benchmarks import speed

    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype must be float32 or bfloat16, found {dtype!r}")
    if threads is not None:
        torch.set_num_threads(threads)
    results: list[tuple[speed.Workload, list[speed.Cost]]] = []
    depths: list[int | None] = [*depth] if depth else [None]
    for name, of_batch, length, blocks in product(
        model or ["vit_base_patch16_224"], batch or [1], tokens or [128], depths
    ):
        work = speed.Workload(name, of_batch, length, blocks, str(to_device(device)), dtype)
        with clear_errors():
            costs = speed.measure(
                work, method or None, repeats=repeats, cpu_time=cpu_time, memory=memory
            )
        typer.echo(speed.table(work, costs))
        results.append((work, costs))
        if output is not None:  # after each, so that a run that is stopped has left something
            command = shlex.join(["captum-transformer-lrp", *sys.argv[1:]])
            speed.write(results, output, command, cpu_time=cpu_time)


def check_photos(folder: Path) -> None:
    """Refuse a folder that is not there before the model is loaded."""
    if address := as_address(folder):
        raise UsageError(f"found the address {address}: download the photos, and give the folder")
    if not folder.is_dir():
        raise UsageError(f"found no folder {folder}, expected one with photos")


def image_model(name: str, checkpoint: Path | None, device: str) -> tuple[ImageModel, Any]:
    """The model, and the device that it is to run on."""
    from captum_transformer_lrp.benchmarks.distributed import own_device

    where = to_device(own_device(device))
    from captum_transformer_lrp.models import load_image_model

    return load_image_model(name, checkpoint=checkpoint), where
