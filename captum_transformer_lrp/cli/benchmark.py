"""`captum-transformer-lrp benchmark`: one command for each benchmark, made from its options."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from enum import Enum
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_origin

import typer

from captum_transformer_lrp.benchmark_options import (
    COMMANDS,
    Command,
    RunOptions,
    SpeedOptions,
    choices_of,
    options_of,
)
from captum_transformer_lrp.cli.errors import UsageError, clear_errors
from captum_transformer_lrp.cli.options import Checkpoint, ImageModelName, TextModelName, to_device
from captum_transformer_lrp.hub import as_address
from captum_transformer_lrp.names import ALIASES
from captum_transformer_lrp.printing import printable

if TYPE_CHECKING:
    from captum_transformer_lrp.benchmarks.results import Result

benchmark = typer.Typer(
    help=(
        "Measure how good explanations are. A run that was stopped goes on when the same command "
        "is given again. `torchrun --nproc-per-node N -m captum_transformer_lrp.benchmarks …` "
        "takes the same commands and shares the work among N processes."
    ),
    no_args_is_help=True,
)

BENCHMARKS = "captum_transformer_lrp.benchmarks"
_METHODS = typer.Option(
    "--method",
    "--methods",
    metavar="NAME",
    help="What explains; may be given several times, or with commas. 'paper' and 'ablations' "
    "stand for several; options follow a colon: transformer_attribution:start_layer=1. A wrong "
    "name lists all.",
)
_LIMITS = {"min": "least", "max": "most"}
SPEED = options_of(SpeedOptions)


def add(
    name: str, about: str, parameters: Sequence[inspect.Parameter], run: Callable[..., None]
) -> None:
    """Add a command with these parameters."""

    def command(**given: Any) -> None:
        with clear_errors():
            run(**given)

    setattr(command, "__signature__", inspect.Signature(parameters))  # noqa: B010
    benchmark.command(name, help=about)(command)


def parameter(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """A parameter of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def of_option(one: Field[Any], kind: Any) -> inspect.Parameter:
    """A benchmark's option as a parameter of its command."""
    several, default = get_origin(kind) is Sequence, cast("Any", one.default)
    limits: dict[str, Any] = {name: one.metadata.get(of) for name, of in _LIMITS.items()}
    if choices := choices_of(kind):
        words = Enum(one.name, {word.upper(): word for word in choices}, type=str)  # type: ignore[misc]
        kind, limits = (list[words] if several else words | None), {}
        default = [words(word) for word in default] if several else default and words(default)
    elif one.metadata.get("joined"):
        kind, default, limits = str, ",".join(f"{number:g}" for number in default), {}
    elif several:
        kind, default = list[get_args(kind)[0]], list(default)  # type: ignore[misc]
    elif any(get_origin(part) is Mapping for part in get_args(kind)):
        kind = list[str] | None
    elif kind is Any:
        kind = str
    flags = [one.metadata["flag"]] if "flag" in one.metadata else []
    option = typer.Option(*flags, help=one.metadata["about"], **limits)
    return parameter(one.name, Annotated[kind, option], default)


def value_of(one: Field[Any], kind: Any, given: Any) -> Any:
    """What a command was given as the benchmark takes it."""
    if one.metadata.get("joined"):
        flag = "--" + one.name.replace("_", "-")
        found = numbers(given, flag)
        if int not in get_args(kind):
            return found
        if not all(number.is_integer() for number in found):
            raise UsageError(f"{flag} {given!r}: expected whole numbers")
        return [int(number) for number in found]
    if one.metadata.get("flag") == "--label":
        return label_names(given)
    if isinstance(given, list | tuple):
        return [value_of(one, None, single) for single in given]
    return given.value if isinstance(given, Enum) else given


def of_benchmark(name: str, command: Command) -> None:
    """Add the command of a benchmark."""
    own, images = options_of(command.options), command.reads == "images"

    def run(model: str, data: Path, **given: Any) -> None:
        options = {one.name: value_of(one, kind, given[one.name]) for one, kind in own}
        folder = given["output"] or Path(f"benchmark-{name}")
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--output {folder} is a file, expected a folder")
        check_data(data, command)
        from captum_transformer_lrp import models

        options["device"] = to_device(options["device"])
        if images:
            loaded: Any = models.load_image_model(model, checkpoint=given["checkpoint"])
        elif command.reads == "prompts":
            loaded = models.load_language_model(model)
        else:
            loaded = models.load_text_model(model)
        result = getattr(import_module(BENCHMARKS), command.function)(
            loaded,
            data,
            method_names(given["methods"], given.get("ablations", False)),
            output=folder,
            seed=given["seed"],
            show_progress=not given["quiet"],
            so_far=given["so_far"],
            **options,
        )
        report(result, folder, given["quiet"])

    parameters = [
        parameter("model", ImageModelName if images else TextModelName),
        parameter("data", Annotated[Path, typer.Option(help=command.data)]),
        parameter("methods", Annotated[list[str], _METHODS], list(command.methods)),
    ]
    if images:
        ablations = typer.Option("--ablations", help="Add the variants of the paper's table 3.")
        parameters.append(parameter("checkpoint", Checkpoint, None))
        parameters.append(parameter("ablations", Annotated[bool, ablations], False))
    parameters += [of_option(*one) for one in (*own, *options_of(RunOptions))]
    add(name, command.about, parameters, run)


def speed_command(**given: Any) -> None:
    """Time every method beside Captum's gradient methods, interleaved in one process."""
    import torch

    from captum_transformer_lrp.benchmarks import speed

    given = {one.name: value_of(one, kind, given[one.name]) for one, kind in SPEED}
    device = str(to_device(given["device"]))
    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    how: dict[str, Any] = {name: given[name] for name in ("repeats", "cpu_time", "memory")}
    results: list[tuple[speed.Workload, list[speed.Cost]]] = []
    sizes = (given["model"], given["batch"], given["tokens"], given["depth"] or [None])
    for size in product(*sizes):
        work = speed.Workload(*size, device, given["dtype"])
        costs = speed.measure(work, given["method"] or None, **how)
        typer.echo(speed.table(work, costs))
        results.append((work, costs))
        if given["output"] is not None:  # after each: a run that is stopped has left something
            command = shlex.join(["captum-transformer-lrp", *sys.argv[1:]])
            speed.write(results, given["output"], command, cpu_time=given["cpu_time"])


def method_names(methods: Sequence[str], ablations: bool) -> list[str]:
    """What `--method` and `--ablations` stand for.

    >>> method_names(["random, paper", "rollout:start_layer=1"], True)
    ['random', 'paper', 'attention_rollout:start_layer=1', 'ablations']
    """
    given = [one.strip() for several in methods for one in several.split(",") if one.strip()]
    parts = [one.partition(":") for one in given]
    names = [ALIASES.get(name, name) + colon + rest for name, colon, rest in parts]
    return [*names, "ablations"] if ablations and "ablations" not in names else names


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


def check_data(data: Path, command: Command) -> None:
    """Refuse data that are not there before the model is loaded."""
    if address := as_address(data):
        raise UsageError(f"found the address {address}: download the data, and give the folder")
    kind = "file" if command.reads == "prompts" else "folder"
    if not ((data.is_dir() and kind == "folder") or (data.is_file() and command.takes_file)):
        raise UsageError(f"found no {kind} {data}, expected: {command.data}")


def report(result: Result, folder: Path, quiet: bool) -> None:
    """Print the result, once for all processes."""
    from rich.console import Console

    if int(os.environ.get("RANK", "0")):
        return
    for identifier, reason in result.skipped:
        typer.echo(printable(f"skipped {identifier}: {reason}"), err=True)
    if quiet:
        return
    console = Console()
    console.print(*result.tables(console.width), sep="\n")
    if not result.pending:
        typer.echo(f"wrote {folder / 'results.json'}, with .csv, .md and curves beside it")


for _name, _command in COMMANDS.items():
    of_benchmark(_name, _command)
add("speed", str(inspect.getdoc(speed_command)), [of_option(*one) for one in SPEED], speed_command)
