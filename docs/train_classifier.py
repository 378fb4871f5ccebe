"""Fine-tunes the classifier that ``benchmark rationale`` explains, on the corpus' training split.

::

    python docs/train_classifier.py bert-base-uncased eraser_movies classifier --epochs 3
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from captum_transformer_lrp.benchmarks.eraser import AnnotatedDocument, EraserDocuments
from captum_transformer_lrp.benchmarks.errors import UnreadableExampleError


def usable(data: Path, split: str) -> list[AnnotatedDocument]:
    """The documents of a split; what is wrong with another one is printed."""
    documents, found = EraserDocuments(data, split), []
    for index in range(len(documents)):
        try:
            found.append(documents[index])
        except UnreadableExampleError as error:
            print(f"skipped {error}")
    return found


def train(
    name: str, data: Path, folder: Path, *, epochs: int = 3, size: int = 8, rate: float = 5e-5
) -> None:
    """Fine-tune an encoder by AdamW, its rate falling to 0, and save it with its tokenizer."""
    torch.manual_seed(0)
    documents = usable(data, "train")
    labels = sorted({one.label for one in documents})
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(
        name, num_labels=len(labels), id2label=dict(enumerate(labels))
    )
    length = min(model.config.max_position_embeddings, 512)

    def loss_of(batch: Sequence[AnnotatedDocument]) -> torch.Tensor:
        texts = [" ".join(one.tokens) for one in batch]
        inputs = tokenizer(
            texts, return_tensors="pt", padding=True, truncation=True, max_length=length
        )
        targets = torch.tensor([labels.index(one.label) for one in batch])
        return model(**inputs, labels=targets).loss

    optimizer = torch.optim.AdamW(model.parameters(), rate)
    steps = epochs * -(-len(documents) // size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    order = random.Random(0)
    for epoch in range(epochs):
        order.shuffle(documents)
        losses = []
        model.train()
        for first in range(0, len(documents), size):
            loss = loss_of(documents[first : first + size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a Hugging Face name or folder")
    parser.add_argument("data", type=Path, help="a corpus in the format of ERASER")
    parser.add_argument("output", type=Path, help="the folder for the classifier")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    train(given.model, given.data, given.output, epochs=given.epochs)


if __name__ == "__main__":
    main()
