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

from captum_transformer_lrp.benchmarks.eraser import AnnotationError, EraserDocuments
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.model_benchmark import evenly_spaced
from captum_transformer_lrp.models import ModelLoadError

CHECKPOINT: Final = "checkpoint.pt"
SUMMARY: Final = "training.json"


@dataclass(frozen=True)
class TrainingSettings:
    """How to fine-tune.

    Args:
        model: a Hugging Face name or folder of an encoder, with or without a classifier.
        labels: the corpus' classes, in the order of the classifier's outputs.
        max_length: the most pieces of a document, special tokens included.
        epochs: passes over the training split.
        batch_size: documents a step.
        learning_rate: the highest of AdamW's; it rises over the first tenth of the steps and falls
            linearly to 0.
        weight_decay: AdamW's.
        seed: of the new classifier's weights, the order of the documents and dropout.
        limit: how many documents of each split are used, spread over all; None for all.
    """

    model: str
    labels: tuple[str, ...] = ("NEG", "POS")
    max_length: int = 512
    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_length", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, found {self.limit}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, found {self.learning_rate}")


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
    """Where a fine-tuning is.

    Args:
        step: steps done.
        steps: steps in all.
        epoch: the epoch, counted from 1.
        loss: of the step's batch.
    """

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
    on_step: Callable[[TrainingStep], None] | None = None,
    on_skipped: Callable[[str], None] | None = None,
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
    described = _described(settings, corpus.file)
    summary = _summary_of(folder, described)
    if summary is not None:
        return summary
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(device)
    report = on_skipped or (lambda sentence: None)
    with _seeded(settings.seed, device):
        model, tokenizer = _untrained(settings)
        model.to(device).train()
        usable, skipped = _usable(corpus, settings, report)
        run = _Run(model, tokenizer, corpus, usable, settings, device)
        run.restore(folder / CHECKPOINT, described)
        for done in run.steps():
            if on_step is not None:
                on_step(done)
            if done.step % checkpoint_every == 0 and done.step < done.steps:
                run.save(folder / CHECKPOINT, described)
    model.eval()
    accuracies = {}
    for split in ("val", "test"):
        if (Path(data) / f"{split}.jsonl").is_file():
            documents = EraserDocuments(data, split)
            of_split, more = _usable(documents, settings, report)
            skipped += more
            if of_split:
                accuracies[split] = _accuracy(
                    model, tokenizer, documents, of_split, settings, device
                )
    losses = tuple(run.epoch_losses())
    result = TrainingResult(folder, run.step, losses, accuracies, tuple(skipped))
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_summary(result, described)
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
        self.optimizer = AdamW(
            model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.schedule = LambdaLR(self.optimizer, _rise_and_fall(self.total))

    def steps(self) -> Iterator[TrainingStep]:
        """Train to the end, step by step."""
        for epoch in range(self.step // self.per_epoch, self.settings.epochs):
            order = self._order(epoch)
            for batch in range(self.step % self.per_epoch, self.per_epoch):
                size = self.settings.batch_size
                loss = self._learn(order[batch * size : (batch + 1) * size])
                self.losses.append(loss)
                self.step += 1
                yield TrainingStep(self.step, self.total, epoch + 1, loss)

    def epoch_losses(self) -> Iterator[float]:
        """The mean loss of each epoch."""
        for start in range(0, self.total, self.per_epoch):
            of_epoch = self.losses[start : start + self.per_epoch]
            yield sum(of_epoch) / len(of_epoch)

    def _order(self, epoch: int) -> list[int]:
        """The documents of an epoch, shuffled by its number so that it can be entered anywhere."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.usable), generator=generator).tolist()
        return [self.usable[index] for index in shuffled]

    def _learn(self, indices: Sequence[int]) -> float:
        inputs, targets = _batch(self.tokenizer, self.corpus, indices, self.settings, self.device)
        loss = F.cross_entropy(self.model(**inputs).logits.float(), targets)
        if not bool(loss.isfinite()):
            raise BenchmarkError(
                f"the loss is {loss.item()} at step {self.step + 1}: try a lower learning rate"
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def save(self, file: Path, described: Mapping[str, Any]) -> None:
        """Write everything that the remaining steps depend on; the file is whole at any time."""
        state = {
            "settings": json.dumps(described),
            "step": self.step,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        unfinished = file.with_suffix(".unfinished")
        torch.save(state, unfinished)
        os.replace(unfinished, file)

    def restore(self, file: Path, described: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written, if there is one."""
        if not file.is_file():
            return
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            _same_settings(json.loads(state["settings"]), described, file.parent)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step, self.losses = int(state["step"]), list(state["losses"])
        except DifferentSettingsError:
            raise
        except Exception as error:  # a damaged file raises whatever its bytes happen to mean
            raise BenchmarkError(
                f"cannot read the checkpoint {file} ({type(error).__name__}): delete it to start "
                "again"
            ) from error
        torch.set_rng_state(state["random"])
        if "random_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)


class DifferentSettingsError(BenchmarkError):
    """A folder that belongs to a run with other settings."""


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of our own, and deterministic kernels; the caller's come back afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        if device.type == "cuda":
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


def _usable(
    documents: EraserDocuments, settings: TrainingSettings, report: Callable[[str], None]
) -> tuple[list[int], list[str]]:
    """The indices of the documents that can be used, and a sentence about each other one."""
    usable, skipped = [], []
    for index in evenly_spaced(range(len(documents)), settings.limit):
        try:
            document = documents[index]
            if document.label not in settings.labels:
                raise AnnotationError(
                    f"{document.name} in {documents.file.name}: found the class "
                    f"{document.label!r}, expected one of {', '.join(settings.labels)}"
                )
        except AnnotationError as error:
            skipped.append(str(error))
            report(str(error))
        else:
            usable.append(index)
    if not usable and documents.split == "train":
        raise BenchmarkError(f"{documents.file} has no usable document; the first: {skipped[0]}")
    return usable, skipped


def _batch(
    tokenizer: Any,
    documents: EraserDocuments,
    indices: Sequence[int],
    settings: TrainingSettings,
    device: torch.device,
) -> tuple[dict[str, Tensor], Tensor]:
    chosen = [documents[index] for index in indices]
    encoding = tokenizer(
        [" ".join(document.tokens) for document in chosen],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=settings.max_length,
    )
    targets = torch.tensor([settings.labels.index(document.label) for document in chosen])
    return {name: value.to(device) for name, value in encoding.items()}, targets.to(device)


def _accuracy(
    model: Any,
    tokenizer: Any,
    documents: EraserDocuments,
    indices: Sequence[int],
    settings: TrainingSettings,
    device: torch.device,
) -> float:
    right = 0
    for start in range(0, len(indices), settings.batch_size):
        inputs, targets = _batch(
            tokenizer, documents, indices[start : start + settings.batch_size], settings, device
        )
        with torch.no_grad():
            logits: Tensor = model(**inputs).logits
        right += int((logits.argmax(-1) == targets).sum())
    return right / len(indices)


def _rise_and_fall(steps: int) -> Callable[[int], float]:
    """The learning rate's factor: up over a tenth of the steps, then linearly down to 0."""
    rise = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))

    return factor


def _described(settings: TrainingSettings, file: Path) -> dict[str, Any]:
    """What the final weights depend on."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {**asdict(settings), "labels": list(settings.labels), "train_sha256": digest}


def _same_settings(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise DifferentSettingsError(
                f"{folder} holds a run with {name} {found.get(name)!r}, this one has {value!r}: "
                "repeat its settings to go on with it, or choose another folder"
            )


def _summary_of(folder: Path, described: Mapping[str, Any]) -> TrainingResult | None:
    """The result of the same call, if it is finished."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise BenchmarkError(f"{folder} is a file, expected a folder to write the model to")
    if not (folder / SUMMARY).is_file():
        if (folder / "config.json").exists() and not (folder / CHECKPOINT).exists():
            raise BenchmarkError(f"{folder} holds another model already: choose another folder")
        return None
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        _same_settings(summary["settings"], described, folder)
        return TrainingResult(
            folder,
            summary["steps"],
            tuple(summary["losses"]),
            summary["accuracies"],
            tuple(summary["skipped"]),
        )
    except DifferentSettingsError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{folder / SUMMARY} is damaged: choose another folder") from error


def _write_summary(result: TrainingResult, described: Mapping[str, Any]) -> None:
    summary = {
        "settings": dict(described),
        "steps": result.steps,
        "losses": list(result.losses),
        "accuracies": dict(result.accuracies),
        "skipped": list(result.skipped),
        "torch": torch.__version__,
    }
    # Last of all, and whole: it says that the folder is complete.
    unfinished = result.folder / f"{SUMMARY}.unfinished"
    unfinished.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, result.folder / SUMMARY)
