"""`captum-transformer-lrp explain text`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console

from captum_transformer_lrp.cli.common import (
    Method,
    Prediction,
    UsageError,
    attribute,
    check_output,
    choose,
    clear_errors,
    predict,
    print_predictions,
    to_device,
)
from captum_transformer_lrp.cli.options import Device, Json, MethodOption, Targets
from captum_transformer_lrp.visualization import (
    TextExplanation,
    text_html,
    text_terminal,
    words_from_pieces,
)

if TYPE_CHECKING:
    from captum_transformer_lrp.models import TextModel


def explain_text(
    text: Annotated[str, typer.Argument(help="The sentence or document.")],
    model: Annotated[str, typer.Option(help="A Hugging Face name or a folder.")],
    target: Targets = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many classes to explain where no target is given.")
    ] = 1,
    method: MethodOption = Method.TRANSFORMER_ATTRIBUTION,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("explanation.html"),
    lang: Annotated[str, typer.Option(help="The language of the text, for the page.")] = "en",
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Show tokens such as [CLS], too.")
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show which words speak for a class: coloured in the terminal and on an HTML page."""
    with clear_errors():
        # Loading a model takes seconds; mistakes are told before.
        check_output(output, ("html", "htm"))
        where = to_device(device)
        if not text.strip():
            raise UsageError("found an empty text, expected at least one word")

        from captum_transformer_lrp.models import load_text_model

        loaded = load_text_model(model)
        predictions, explained, explanations = explain_words(
            loaded, text, target, top_k, method, where, special_tokens
        )
        page = text_html(explanations, title="Relevant words", lang=lang)
        output.write_text(page, encoding="utf-8")

        if as_json:
            result = {
                "text": text,
                "model": model,
                "method": method.value,
                "predictions": [each.as_json() for each in predictions[:5]],
                "explained": [
                    prediction.as_json()
                    | {"words": [[word.text, word.attribution] for word in explanation.words]}
                    for prediction, explanation in zip(explained, explanations, strict=True)
                ],
                "output": str(output),
            }
            typer.echo(json.dumps(result, indent=2))
            return
        console = Console()
        print_predictions(console, predictions, explained)
        console.print(text_terminal(explanations))
        typer.echo(f"wrote {output}")


def explain_words(
    loaded: TextModel,
    text: str,
    targets: Sequence[str] | None,
    top_k: int,
    method: Method,
    device: torch.device,
    special_tokens: bool = False,
) -> tuple[list[Prediction], list[Prediction], list[TextExplanation]]:
    """All predictions, those that are explained, and their explanations."""
    encoding = loaded.tokenizer(text, return_tensors="pt", truncation=True)
    read = max((end for _, end in encoding.encodings[0].offsets), default=0)
    if text[read:].strip():
        typer.echo(f"note: the model reads only the first {read} characters of the text", err=True)
    inputs = {name: tensor.to(device) for name, tensor in encoding.items()}
    input_ids = inputs.pop("input_ids")
    classifier = loaded.model.to(device)
    predictions = predict(classifier, input_ids, inputs, loaded.class_names)
    explained = choose(predictions, targets, top_k, loaded.class_names)
    maps = attribute(method, classifier, input_ids, explained, inputs)
    explanations = [
        TextExplanation(
            prediction.name,
            words_from_pieces(
                text,
                encoding.tokens(),
                relevance,
                offsets=encoding.encodings[0].offsets,
                word_ids=encoding.word_ids(),
                special_tokens=special_tokens,
            ),
            prediction.probability,
        )
        for prediction, relevance in zip(explained, maps, strict=True)
    ]
    return predictions, explained, explanations
