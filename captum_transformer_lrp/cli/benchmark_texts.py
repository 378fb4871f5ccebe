"""`captum-transformer-lrp benchmark rationale` and `benchmark text-perturbation`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from captum_transformer_lrp.cli.benchmark import benchmark
from captum_transformer_lrp.cli.benchmark_options import (
    Explain,
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
from captum_transformer_lrp.cli.options import Device, TextModelName, to_device
from captum_transformer_lrp.printing import printable

if TYPE_CHECKING:
    from captum_transformer_lrp.benchmarks.rationale_training import (
        TrainingResult,
        TrainingSettings,
        TrainingStep,
    )

Corpus: TypeAlias = Annotated[
    Path, typer.Option(help="A folder in the format of ERASER: docs/ and test.jsonl.")
]
Split: TypeAlias = Annotated[str, typer.Option(help="train, val or test.")]
Labels: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="What the classifier calls a class of the corpus: NEG=LABEL_0. May be given several "
        "times; classes of the same name need none.",
    ),
]
MaxLength: TypeAlias = Annotated[
    int, typer.Option(min=3, help="The most pieces of a document that the classifier is given.")
]


class FusionOption(str, Enum):
    """How the attributions of a token's pieces become one."""

    SUM = "sum"
    MAX = "max"
    MEAN = "mean"


class TextRemovalOption(str, Enum):
    """What happens to removed tokens."""

    DELETE = "delete"
    MASK = "mask"


Fusion: TypeAlias = Annotated[
    FusionOption, typer.Option(help="How the attributions of a token's pieces become one.")
]


@benchmark.command("rationale")
def rationale_command(
    model: TextModelName,
    data: Corpus,
    split: Split = "test",
    methods: Methods = ["paper"],  # noqa: B006 - typer copies it
    top_k: Annotated[
        str, typer.Option(help="How many tokens to select: FIRST:LAST:STEP, or 10,20,50.")
    ] = "10:80:10",
    explain: Annotated[
        list[Explain] | None,
        typer.Option(help="The document's class (the default) or the predicted one, or both."),
    ] = None,
    fusion: Fusion = FusionOption.SUM,
    label: Labels = None,
    max_length: MaxLength = 512,
    train: Annotated[
        Path | None,
        typer.Option(
            help="First fine-tune --model on the training split, into this folder, and explain the "
            "result. A training that was stopped goes on."
        ),
    ] = None,
    train_only: Annotated[
        bool, typer.Option("--train-only", help="Only train, and measure the accuracy.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Of the training.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Of the training.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of the training, the highest.")] = 5e-5,
    train_limit: Annotated[
        int | None,
        typer.Option(min=1, help="Train on and validate with at most so many of each split."),
    ] = None,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Steps of the training between two checkpoints.")
    ] = 50,
    output: Output = None,
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
    so_far: SoFar = False,
) -> None:
    """Compare the tokens ranked highest with those that people marked (figure 4)."""
    with clear_errors():
        counts = numbers(top_k, "--top-k")
        names = label_names(label)
        folder = output_folder(output, "rationale")
        check_corpus(data)
        where = to_device(device)
        if train_only and train is None:
            raise UsageError("--train-only needs --train FOLDER, where the model is written to")
        if train is not None:
            from captum_transformer_lrp.benchmarks.rationale_training import TrainingSettings

            settings = TrainingSettings(
                model=model,
                max_length=max_length,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
                limit=train_limit,
            )
            trained = _train(data, train, settings, str(where), checkpoint_every, quiet)
            if not quiet:
                _report_training(trained)
            if train_only:
                return
            model = str(train)

        from captum_transformer_lrp.benchmarks.rationale import rationale
        from captum_transformer_lrp.models import load_text_model

        result = rationale(
            load_text_model(model),
            data,
            method_names(methods, False),
            output=folder,
            split=split,
            top_k=[int(count) for count in counts],
            explain=[one.value for one in explain or [Explain.TARGET]],
            fusion=fusion.value,
            labels=names,
            max_length=max_length,
            limit=limit,
            device=where,
            seed=seed,
            show_progress=not quiet,
            so_far=so_far,
        )
        report(result, folder, quiet)


@benchmark.command("text-perturbation")
def text_perturbation_command(
    model: TextModelName,
    data: Corpus,
    split: Split = "test",
    methods: Methods = ["paper", "random"],  # noqa: B006
    bins: Annotated[
        str, typer.Option(help="Shares of the tokens in per cent, with commas between them.")
    ] = "1,5,10,20,50",
    removal: Annotated[
        TextRemovalOption, typer.Option(help="Delete tokens, or replace them by [MASK].")
    ] = TextRemovalOption.DELETE,
    explain: Annotated[
        list[Explain] | None,
        typer.Option(help="The predicted class (the default) or the document's, or both."),
    ] = None,
    fusion: Fusion = FusionOption.SUM,
    label: Labels = None,
    max_length: MaxLength = 512,
    output: Output = None,
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
    so_far: SoFar = False,
) -> None:
    """Take the tokens ranked highest away, or keep only them (ERASER's AOPC)."""
    with clear_errors():
        shares = numbers(bins, "--bins")
        names = label_names(label)
        folder = output_folder(output, "text-perturbation")
        check_corpus(data)
        where = to_device(device)

        from captum_transformer_lrp.benchmarks.text_perturbation import text_perturbation
        from captum_transformer_lrp.models import load_text_model

        result = text_perturbation(
            load_text_model(model),
            data,
            method_names(methods, False),
            output=folder,
            split=split,
            bins=shares,
            removal=removal.value,
            explain=[one.value for one in explain or [Explain.PREDICTED]],
            fusion=fusion.value,
            labels=names,
            max_length=max_length,
            limit=limit,
            device=where,
            seed=seed,
            show_progress=not quiet,
            so_far=so_far,
        )
        report(result, folder, quiet)


def numbers(text: str, option: str) -> list[float]:
    """The numbers that `10:80:10` or `1,5,10` stand for.

    >>> numbers("10:80:10", "--top-k")
    [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]
    >>> numbers("1, 2.5", "--bins")
    [1.0, 2.5]
    """
    spaced = re.fullmatch(r"(\d+):(\d+):(\d+)", text.replace(" ", ""))
    if spaced:
        first, last, step = map(int, spaced.groups())
        found = [float(one) for one in range(first, last + 1, step)] if step else []
    else:
        try:
            found = [float(one) for one in text.split(",")]
        except ValueError:
            found = []
    if not found or not all(one > 0 for one in found):
        raise UsageError(f"{option} {text!r}: expected numbers above 0, as 10:80:10 or 10,20,50")
    if option == "--top-k" and not all(one.is_integer() for one in found):
        raise UsageError(f"{option} {text!r}: expected whole numbers")
    return found


def label_names(labels: Sequence[str] | None) -> dict[str, str]:
    """The classifier's names of the corpus' classes.

    >>> label_names(["NEG=LABEL_0", "POS=LABEL_1"])
    {'NEG': 'LABEL_0', 'POS': 'LABEL_1'}
    """
    names = {}
    for one in labels or []:
        of_corpus, equals, of_model = one.partition("=")
        if not (of_corpus and equals and of_model):
            raise UsageError(f"--label {one!r}: expected CORPUS=CLASSIFIER, such as NEG=LABEL_0")
        names[of_corpus] = of_model
    return names


def check_corpus(folder: Path) -> None:
    """Tell a mistyped folder before a model is loaded."""
    if not folder.is_dir():
        raise UsageError(
            f"found no folder {folder}, expected one with docs/ and train.jsonl, val.jsonl, "
            "test.jsonl"
        )


def _train(
    data: Path,
    folder: Path,
    settings: TrainingSettings,
    device: str,
    checkpoint_every: int,
    quiet: bool,
) -> TrainingResult:
    from captum_transformer_lrp.benchmarks.rationale_training import fine_tune

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--train runs in one process: train first, then use torchrun")
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
    with progress:
        return fine_tune(
            data,
            folder,
            settings,
            device=device,
            checkpoint_every=checkpoint_every,
            on_step=_shown(progress),
            on_skipped=lambda sentence: progress.console.print(
                printable(f"skipped {sentence}"), markup=False
            ),
        )


def _shown(progress: Progress) -> Callable[[TrainingStep], None]:
    """Move the bar at each step."""
    task = progress.add_task("training", total=None)

    def show(done: TrainingStep) -> None:
        progress.update(
            task,
            total=done.steps,
            completed=done.step,
            description=f"training, epoch {done.epoch}, loss {done.loss:.3f}",
        )

    return show


def _report_training(trained: TrainingResult) -> None:
    accuracies = [f"{name} {share:.1%}" for name, share in trained.accuracies.items()]
    measured = f"; accuracy: {', '.join(accuracies)}" if accuracies else ""
    left_out = f"; {len(trained.skipped)} documents skipped" if trained.skipped else ""
    typer.echo(f"trained {trained.folder} in {trained.steps} steps{measured}{left_out}")
