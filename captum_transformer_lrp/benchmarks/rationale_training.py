"""Fine-tune a text classifier on an ERASER corpus; a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from captum_transformer_lrp.benchmark_options import option, wrong_option
from captum_transformer_lrp.benchmarks.eraser import AnnotationError, EraserDocuments
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.model_benchmark import evenly_spaced
from captum_transformer_lrp.models import ModelLoadError

CHECKPOINT: Final = "checkpoint.pt"
SUMMARY: Final = "training.json"


@dataclass(frozen=True)
class TrainingSettings:
    """How to fine-tune: AdamW, whose rate rises over a tenth of the steps and falls linearly to 0.

    Args:
        model: a Hugging Face name or folder of an encoder, with or without a classifier.
        labels: the corpus' classes, in the order of the classifier's outputs.
    """

    model: str
    labels: tuple[str, ...] = ("NEG", "POS")
    max_length: int = option(512, "The most pieces of a document.", least=1)
    epochs: int = option(3, "Passes over the training split.", least=1)
    batch_size: int = option(8, "Documents a step.", least=1)
    learning_rate: float = option(5e-5, "The highest.", above=0)
    weight_decay: float = option(0.01, "AdamW's.", least=0)
    seed: int = option(0, "Of the classifier's weights, the documents' order and dropout.")
    limit: int | None = option(None, "How many documents of each split are used.", least=1)

    def __post_init__(self) -> None:
        if wrong := wrong_option(self):
            raise ValueError(wrong)


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tuning came to.

    Args:
        folder: where model and tokenizer are.
        steps: optimizer steps in all.
        losses: the mean training loss of each epoch.
        accuracies: by split, of the final weights.
        skipped: why documents could not be used, one sentence each.
    """

    folder: Path
    steps: int
    losses: tuple[float, ...]
    accuracies: Mapping[str, float]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class TrainingStep:
    """Where a fine-tuning is: the step of all steps, its epoch from 1, and its batch's loss."""

    step: int
    steps: int
    epoch: int
    loss: float


def fine_tune(
    data: str | Path,
    folder: str | Path,
    settings: TrainingSettings,
    *,
    device: torch.device | str = "cpu",
    checkpoint_every: int = 50,
    on_step: Callable[[TrainingStep], None] = lambda done: None,
    on_skipped: Callable[[str], None] = lambda sentence: None,
) -> TrainingResult:
    """Fine-tune a classifier on the training split, and measure it on the others.

    Every ``checkpoint_every`` steps the weights, the optimizer's state and the state of the random
    numbers are written to ``folder``.  The same call goes on from there, with the same final
    weights as without the interruption on the same kind of machine.  Once training is finished the
    same call only returns the result.

    Args:
        data: a folder in the format of ERASER.
        folder: for the result: a Hugging Face folder with tokenizer, and `training.json`.
        settings: how to fine-tune.
        device: where to train.
        checkpoint_every: steps between two checkpoints.
        on_step: is called after every step.
        on_skipped: is called with a sentence about each document that cannot be used.

    Raises:
        FileNotFoundError: where the corpus has no training split.
        BenchmarkError: where ``folder`` holds something else, or a run with other settings, and
            where no document can be used.
        ModelLoadError: where the model cannot be loaded.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, found {checkpoint_every}")
    folder = Path(folder)
    corpus = EraserDocuments(data, "train")
    digest = hashlib.sha256(corpus.file.read_bytes()).hexdigest()
    about = {**asdict(settings), "labels": list(settings.labels), "train_sha256": digest}
    if (finished := _finished(folder, about)) is not None:
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(device)
    skipped: list[str] = []

    def usable(documents: EraserDocuments) -> list[int]:
        found, told = _usable(documents, settings)
        skipped.extend(told)
        for sentence in told:
            on_skipped(sentence)
        return found

    with _seeded(settings.seed, device):
        model, tokenizer = _untrained(settings)
        model.to(device).train()
        run = _Run(model, tokenizer, corpus, usable(corpus), settings, device)
        run.restore(folder / CHECKPOINT, about)
        for done in run.steps():
            on_step(done)
            if done.step % checkpoint_every == 0 and done.step < done.steps:
                run.save(folder / CHECKPOINT, about)
    model.eval()
    accuracies = {}
    for split in ("val", "test"):
        if (Path(data) / f"{split}.jsonl").is_file():
            documents = EraserDocuments(data, split)
            if chosen := usable(documents):
                accuracies[split] = run.accuracy(documents, chosen)
    epochs = [run.losses[at : at + run.per_epoch] for at in range(0, run.total, run.per_epoch)]
    losses = tuple(sum(of_epoch) / len(of_epoch) for of_epoch in epochs)
    result = TrainingResult(folder, run.step, losses, accuracies, tuple(skipped))
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    summary = {"settings": about, **asdict(result), "torch": torch.__version__}
    del summary["folder"]
    # Last of all, and whole: it says that the folder is complete.
    unfinished = folder / f"{SUMMARY}.unfinished"
    unfinished.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / SUMMARY)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


class _Run:
    """The state of a fine-tuning."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        corpus: EraserDocuments,
        usable: Sequence[int],
        settings: TrainingSettings,
        device: torch.device,
    ) -> None:
        self.model, self.tokenizer, self.corpus = model, tokenizer, corpus
        self.usable, self.settings, self.device = usable, settings, device
        self.per_epoch = -(-len(usable) // settings.batch_size)
        self.total = settings.epochs * self.per_epoch
        self.step = 0
        self.losses: list[float] = []
        optimizer = AdamW(
            model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        rise, total = max(1, self.total // 10), self.total
        schedule = LambdaLR(
            optimizer,
            lambda step: min((step + 1) / rise, max(0.0, (total - step) / max(1, total - rise))),
        )
        self.kept: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}

    def steps(self) -> Iterator[TrainingStep]:
        """Train to the end, step by step."""
        size = self.settings.batch_size
        for epoch in range(self.step // self.per_epoch, self.settings.epochs):
            # Shuffled by the epoch's number, so that it can be entered anywhere.
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            shuffled = torch.randperm(len(self.usable), generator=generator).tolist()
            order = [self.usable[index] for index in shuffled]
            for batch in range(self.step % self.per_epoch, self.per_epoch):
                loss = self._learn(order[batch * size : (batch + 1) * size])
                self.losses.append(loss)
                self.step += 1
                yield TrainingStep(self.step, self.total, epoch + 1, loss)

    def _learn(self, indices: Sequence[int]) -> float:
        inputs, targets = self._batch(self.corpus, indices)
        loss = F.cross_entropy(self.model(**inputs).logits.float(), targets)
        if not bool(loss.isfinite()):
            raise BenchmarkError(
                f"the loss is {loss.item()} at step {self.step + 1}: try a lower learning rate"
            )
        self.kept["optimizer"].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.kept["optimizer"].step()
        self.kept["schedule"].step()
        return loss.item()

    def _batch(
        self, documents: EraserDocuments, indices: Sequence[int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        chosen = [documents[index] for index in indices]
        encoding = self.tokenizer(
            [" ".join(document.tokens) for document in chosen],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.settings.max_length,
        )
        targets = torch.tensor([self.settings.labels.index(one.label) for one in chosen])
        return {n: x.to(self.device) for n, x in encoding.items()}, targets.to(self.device)

    def accuracy(self, documents: EraserDocuments, indices: Sequence[int]) -> float:
        """The share of documents whose class the model predicts."""
        right, size = 0, self.settings.batch_size
        for start in range(0, len(indices), size):
            inputs, targets = self._batch(documents, indices[start : start + size])
            with torch.no_grad():
                right += int((self.model(**inputs).logits.argmax(-1) == targets).sum())
        return right / len(indices)

    def save(self, file: Path, about: Mapping[str, Any]) -> None:
        """Write everything that the remaining steps depend on; the file is whole at any time."""
        state = {name: one.state_dict() for name, one in self.kept.items()}
        state |= {"settings": json.dumps(about), "step": self.step, "losses": self.losses}
        state["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        unfinished = file.with_suffix(".unfinished")
        torch.save(state, unfinished)
        os.replace(unfinished, file)

    def restore(self, file: Path, about: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written, if there is one."""
        if not file.is_file():
            return
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            found = json.loads(state["settings"])
        except Exception as error:  # a damaged file raises whatever its bytes happen to mean
            raise BenchmarkError(
                f"cannot read the checkpoint {file} ({type(error).__name__}): delete it to start "
                "again"
            ) from error
        _same_settings(found, about, file.parent)
        for name, one in self.kept.items():
            one.load_state_dict(state[name])
        self.step, self.losses = int(state["step"]), list(state["losses"])
        torch.set_rng_state(state["random"])
        if "random_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of our own, and deterministic kernels; the caller's come back afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        if devices:
            # cuBLAS is deterministic only with a workspace of fixed size.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)


def _untrained(settings: TrainingSettings) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            settings.model,
            num_labels=len(settings.labels),
            id2label=dict(enumerate(settings.labels)),
            label2id={label: index for index, label in enumerate(settings.labels)},
            trust_remote_code=False,  # without it, a terminal is asked
        )
        tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelLoadError(f"cannot load the text model {settings.model!r} ({first})") from error
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and settings.max_length > longest:
        raise ValueError(
            f"max_length is {settings.max_length}, but {settings.model} reads at most {longest} "
            "pieces"
        )
    # The tokenizer's folder may name a shorter length, for another task.
    tokenizer.model_max_length = settings.max_length
    return model.float(), tokenizer


def _usable(documents: EraserDocuments, settings: TrainingSettings) -> tuple[list[int], list[str]]:
    """The indices of the documents that can be used, and a sentence about each other one."""
    usable, skipped = [], []
    for index in evenly_spaced(range(len(documents)), settings.limit):
        try:
            documents[index].index_of(settings.labels, documents.file)
        except AnnotationError as error:
            skipped.append(str(error))
        else:
            usable.append(index)
    if not usable and documents.split == "train":
        raise BenchmarkError(f"{documents.file} has no usable document; the first: {skipped[0]}")
    return usable, skipped


def _same_settings(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise BenchmarkError(
                f"{folder} holds a run with {name} {found.get(name)!r}, this one has {value!r}: "
                "repeat its settings to go on with it, or choose another folder"
            )


def _finished(folder: Path, about: Mapping[str, Any]) -> TrainingResult | None:
    """The result of the same call, if it is finished."""
    if folder.exists() and not folder.is_dir():
        raise BenchmarkError(f"{folder} is a file, expected a folder to write the model to")
    if not (folder / SUMMARY).is_file():
        if (folder / "config.json").exists() and not (folder / CHECKPOINT).exists():
            raise BenchmarkError(f"{folder} holds another model already: choose another folder")
        return None
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        settings, losses, skipped = found["settings"], found["losses"], found["skipped"]
        result = TrainingResult(
            folder, found["steps"], tuple(losses), found["accuracies"], tuple(skipped)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{folder / SUMMARY} is damaged: choose another folder") from error
    _same_settings(settings, about, folder)
    return result
