"""`captum-transformer-lrp models`: what is installed, and what works."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from captum_transformer_lrp.cli.batch import progress_bar
from captum_transformer_lrp.cli.errors import FAILED, UsageError, clear_errors
from captum_transformer_lrp.names import BUNDLED_IMAGE_MODEL, BUNDLED_TEXT_MODEL, METHODS
from captum_transformer_lrp.printing import one_sentence

if TYPE_CHECKING:
    from captum_transformer_lrp import Verification

_LIBRARIES = ("captum-transformer-lrp", "torch", "captum", "timm", "transformers", "torchvision")
_BUNDLED = {
    BUNDLED_IMAGE_MODEL: "images: ViT, 1.2 M parameters, 24 classes of emoji in scenes",
    BUNDLED_TEXT_MODEL: "texts: BERT, 1.7 M parameters, sentiment of English sentences",
}
_MOST_CHECKED = 50


@clear_errors()
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            help='Names of timm architectures, such as "vit_tiny*".', show_default=False
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Build each with random weights and verify how two random images are explained, "
            "as the function verify() does. Downloads nothing.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """List what is installed: libraries, bundled models, methods, and timm's architectures.

    There is no list of supported models: whatever computes softmax attention with PyTorch's
    functions is explained, and what is not is an error that says why. `--check` tries, and
    ends with exit code 1 if any check fails.

    **Examples**

    - `captum-transformer-lrp models`

    - `captum-transformer-lrp models "deit*"`

    - `captum-transformer-lrp models vit_tiny_patch16_224 --check`
    """
    if pattern is None:
        if check:
            raise UsageError('--check needs to know what to check: give names, "deit_tiny*"')
        _print_installed(as_json)
        return
    import timm

    names = timm.list_models(pattern)
    if not names:
        raise UsageError(
            f'timm knows no architecture called {pattern!r}: try a pattern such as "vit_*"'
        )
    if not check:
        if as_json:
            typer.echo(json.dumps({"architectures": names}, indent=2))
        else:
            typer.echo("\n".join(names))
        return
    if len(names) > _MOST_CHECKED:
        raise UsageError(
            f"{pattern!r} fits {len(names)} architectures, expected at most {_MOST_CHECKED}"
        )
    checked: dict[str, Verification | str] = {}
    with progress_bar("checking", len(names)) as advance:
        for name in names:
            checked[name] = _verified(name)
            advance()
    if as_json:
        rows = [_as_data(name, found) for name, found in checked.items()]
        typer.echo(json.dumps({"checked": rows}, indent=2))
    else:
        said = [
            f"{name}: refused: {found}" if isinstance(found, str) else f"{name}: {found}"
            for name, found in checked.items()
        ]
        typer.echo("\n\n".join(said))
    if any(isinstance(found, str) or not found.passed for found in checked.values()):
        raise typer.Exit(FAILED)


def _verified(name: str) -> Verification | str:
    """What ``verify`` finds of an architecture with random weights, or why it is refused."""
    import timm
    import torch

    from captum_transformer_lrp import verify
    from captum_transformer_lrp.verification.weights import draw_zero_weights

    try:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        draw_zero_weights(model)
        size = timm.data.resolve_model_data_config(model)["input_size"]
        return verify(model, torch.rand(2, *size))
    except Exception as error:  # what a model raises cannot be foreseen
        return one_sentence(error)


def _as_data(name: str, found: Verification | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"name": name, "explained": False, "passed": False, "error": found}
    return {
        "name": name,
        "explained": True,
        "passed": found.passed,
        "attentions": found.attentions,
        "checks": [vars(check) for check in found],
    }


def _print_installed(as_json: bool) -> None:
    import timm
    import torch

    libraries = {name: _version(name) for name in _LIBRARIES}
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    found = {
        "libraries": libraries,
        "devices": devices,
        "bundled": _BUNDLED,
        "timm_architectures": len(timm.list_models()),
        "methods": list(METHODS),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    installed = Table("library", "version", title="Installed", title_justify="left")
    for name, installed_version in libraries.items():
        installed.add_row(name, installed_version or "not installed")
    console.print(installed)
    names = Table("--model", "what it is", title="Models", title_justify="left")
    for name, what in _BUNDLED.items():
        names.add_row(name, what)
    names.add_row("deit_tiny_patch16_224, …", f"{found['timm_architectures']} timm architectures")
    names.add_row("owner/name", "of the Hugging Face hub: classifiers of images or texts")
    names.add_row("a folder", "that save_pretrained wrote")
    console.print(names)
    console.print(f"Devices: {', '.join(devices)}")
    console.print(f"Methods: {', '.join(METHODS)}")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
