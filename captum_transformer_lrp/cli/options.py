"""Command-line options that several commands take, each described once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from captum_transformer_lrp.cli.errors import UsageError
from captum_transformer_lrp.names import (
    ALIASES,
    BUNDLED_IMAGE_MODEL,
    BUNDLED_TEXT_MODEL,
    DEFAULT_METHOD,
    METHODS,
    WRITTEN_TEXT_METHOD,
)

if TYPE_CHECKING:
    import torch

DEFAULT_IMAGE_MODEL = "deit_tiny_patch16_224"


def check_methods(methods: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """The methods by their names here; one that does not exist is refused, and those that do named.

    >>> check_methods("rollout")
    'attention_rollout'
    """
    if methods is None:
        return None
    if not isinstance(methods, str):
        return [str(check_methods(name)) for name in methods]
    name = ALIASES.get(methods, methods)
    if name not in METHODS:
        nearest = difflib.get_close_matches(name, METHODS, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise typer.BadParameter(
            f"there is no method {name!r}{hint}; there are {', '.join(METHODS)}"
        )
    return name


def completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What completes the beginning of one of some names, for the shell.

    >>> complete_method("attention_r"), complete_image_model("bund")
    (['attention_rollout'], ['bundled/scenes'])
    """
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def timm_architectures() -> list[str]:
    """What `timm.list_models` lists, read from timm's files: importing it takes seconds.

    >>> "deit_tiny_patch16_224" in timm_architectures()
    True
    """
    timm = find_spec("timm")
    folders = [] if timm is None else timm.submodule_search_locations or []
    return sorted(
        name
        for folder in folders
        for file in Path(folder, "models").glob("*.py")
        for name in re.findall(
            r"^@register_model\ndef (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE
        )
    )


complete_method = completing(lambda: METHODS)
complete_image_model = completing(lambda: [BUNDLED_IMAGE_MODEL, *timm_architectures()])
complete_text_model = completing(lambda: [BUNDLED_TEXT_MODEL])


def model_option(name: str, what: str, complete: Callable[[str], list[str]]) -> Any:
    """The option for the name of a model."""
    return typer.Option(name, help=what, autocompletion=complete)


def _method_option(what: str, **more: Any) -> Any:
    return typer.Option(
        "--method",
        metavar="NAME",
        help=f"{what}: see the command `models`; the first is the paper's, {DEFAULT_METHOD}.",
        callback=check_methods,
        autocompletion=complete_method,
        **more,
    )


ImageModelName: TypeAlias = Annotated[
    str,
    model_option(
        "--model",
        "A timm name, a Hugging Face name, a folder, or bundled/scenes.",
        complete_image_model,
    ),
]
TextModelName: TypeAlias = Annotated[
    str,
    model_option(
        "--model", "A Hugging Face name, a folder, or bundled/sentiment.", complete_text_model
    ),
]
Checkpoint: TypeAlias = Annotated[
    Path | None, typer.Option(help="Weights of the image model to use instead of downloaded ones.")
]
TrustRemoteCode: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model. Without it, such code is never run.",
    ),
]
MaxPixels: TypeAlias = Annotated[
    int, typer.Option(min=1, help="The most pixels of an image that is read.")
]
Frames: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--frame",
        metavar="NUMBER",
        help="Which picture of a GIF or TIFF, counted from 0, or all; may be given several times.",
        show_default="the first",
    ),
]
Frame: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=0, help="Which picture of a GIF or TIFF, counted from 0.", show_default="the first"
    ),
]
Targets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="A class to explain, by index or by name; may be given several times.",
        show_default="the most probable",
    ),
]
TopK: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many classes to explain where no target is given, however improbable.",
        show_default="a few, of at least 1 %",
    ),
]
MethodOption: TypeAlias = Annotated[str, _method_option("What explains")]
TextMethod: TypeAlias = Annotated[
    str | None,
    _method_option(
        "What explains", show_default=f"{DEFAULT_METHOD}; for written words {WRITTEN_TEXT_METHOD}"
    ),
]
MethodOptions: TypeAlias = Annotated[
    list[str] | None,
    _method_option(
        "What explains; may be given several times",
        show_default="the paper's six and integrated_gradients",
    ),
]
Device: TypeAlias = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, …")]
Language: TypeAlias = Annotated[
    str, typer.Option("--lang", help="The language of the text, for the page.")
]
SpecialTokens: TypeAlias = Annotated[
    bool, typer.Option("--special-tokens", help="Show tokens such as [CLS], too.")
]


Granularity: TypeAlias = Annotated[
    Literal["piece", "word", "sentence"],
    typer.Option(help="What is shown as one: a piece of the tokenizer, a word, a sentence."),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of tables.")
]


def how_many(top_k: int | None, few: int) -> dict[str, Any]:
    """What `--top-k` stands for: without it a few classes, none of them below 1 % but the first.

    >>> how_many(5, 2), how_many(None, 2)
    ({'top_k': 5}, {'top_k': 2, 'least': 0.01})
    """
    return {"top_k": few, "least": 0.01} if top_k is None else {"top_k": top_k}


MapFormat: TypeAlias = Literal["npz", "json"]
Maps: TypeAlias = Annotated[
    MapFormat | None,
    typer.Option(
        help="Write the numbers, too, beside each output: with the model, the hash of its weights, "
        "targets, methods, options and versions.",
        show_default="none",
    ),
]


def to_frames(chosen: Sequence[str] | None) -> list[int] | None:
    """The numbers of frames; none of them stands for all, and None for the first.

    >>> to_frames(["0", "2"]), to_frames(["all"]), to_frames(None)
    ([0, 2], [], None)
    """
    if not chosen:
        return None
    if "all" in chosen:
        return []
    for one in chosen:
        if not (one.isascii() and one.isdecimal()):
            raise UsageError(f"found --frame {one}, expected a number from 0, or all")
    return list(dict.fromkeys(int(one) for one in chosen))


def to_device(name: str) -> torch.device:
    """The device of that name, if this machine has it.

    >>> to_device("cpu")
    device(type='cpu')
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(
            f"--device {name} cannot be used here ({first_line}): try --device cpu"
        ) from error
    return device
