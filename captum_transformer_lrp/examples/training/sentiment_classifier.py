"""Train the bundled sentiment classifier on the Stanford Sentiment Treebank.

    python -m captum_transformer_lrp.examples.training.sentiment_classifier SST --output FOLDER

reads `train.txt`, `dev.txt` and `test.txt` (the official trees) from the folder SST, trains a
WordPiece vocabulary and a small Hugging Face BERT on the training trees, rounds the weights to
float16, writes model and tokenizer and prints the accuracy of the rounded model on the CPU.
`--evaluate FOLDER` only prints the accuracy. The same seed, device and versions give the same
weights.

Every phrase of a tree is an example, not only the whole sentence. The treebank's five grades
become soft targets, so that a neutral phrase asks for even odds: words without sentiment then
carry no evidence.

What *not* and *but* do to an opinion, the treebank shows too rarely. `--refine` adds a second stage
with sentences about that, made up from the treebank's own words (`opinions.py`); `--start FOLDER`
does only that, to a model that is there. The shipped model is the first stage's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer_lrp.examples.training.opinions import held_out_negations, made_up
from captum_transformer_lrp.examples.training.schedule import warm_up_then_cosine

MAX_TOKENS = 128
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PADDING, UNKNOWN = 0, 1

GRADE_TO_POSITIVE = (0.03, 0.2, 0.5, 0.8, 0.97)
"""Target probability of POSITIVE for the treebank's grades 0 (very negative) to 4."""

_NEUTRAL_GRADE = 2


class Phrase(NamedTuple):
    """A node of a tree: its text, its grade 0–4, and whether it is the whole sentence."""

    text: str
    grade: int
    is_sentence: bool


def phrases(tree: str) -> Iterator[Phrase]:
    """All phrases of one tree, the whole sentence last.

    >>> [tuple(phrase) for phrase in phrases("(3 (1 (2 Does) (2 n't)) (2 bore))")][-2:]
    [('bore', 2, False), ("Doesn't bore", 3, True)]
    """
    words: list[str] = []
    open_nodes: list[tuple[int, int]] = []
    for part in re.findall(r"\(\d|\)|[^\s()]+", tree):
        if part == ")":
            grade, start = open_nodes.pop()
            yield Phrase(detokenize(words[start:]), grade, not open_nodes)
        elif part[0] == "(":
            open_nodes.append((int(part[1]), len(words)))
        else:
            words.append(part)


def detokenize(words: Iterable[str]) -> str:
    """Undo the treebank's spelling, so that the model sees text as people type it.

    >>> detokenize(["It", "does", "n't", "-LRB-", "really", "-RRB-", "bore"])
    "It doesn't ( really ) bore"
    """
    text = " ".join(words)
    for written, meant in (("-LRB-", "("), ("-RRB-", ")"), ("``", '"'), ("''", '"'), ("\\/", "/")):
        text = text.replace(written, meant)
    return re.sub(r" (n't|'(?:s|re|ve|ll|d|m))\b", r"\1", text, flags=re.IGNORECASE)


def read_phrases(file: Path) -> list[Phrase]:
    """All phrases of all trees of a file, one tree a line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [phrase for line in lines for phrase in phrases(line)]


def train_tokenizer(sentences: list[str], vocabulary_size: int) -> Tokenizer:
    """An uncased WordPiece tokenizer with BERT's normalisation and special tokens."""
    # The trainer numbers the continuation letters ("##e") in the order of a hash map and breaks
    # ties by number, so that every run would give another vocabulary. Tokens named beforehand
    # are numbered in the order given.
    trained = _uncased(models.WordPiece(unk_token="[UNK]"))
    text = trained.normalizer.normalize_str(" ".join(sentences))
    letters = sorted(filter(str.isalnum, set(text)))
    trainer = WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in letters)],
        show_progress=False,
    )
    trained.train_from_iterator(sentences, trainer)
    # Started again from the vocabulary alone, where those letters are no special tokens.
    tokenizer = _uncased(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _uncased(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


class Examples(NamedTuple):
    """Encoded phrases, padded to the longest.

    Attributes:
        tokens: int64 (N, S).
        lengths: int64 (N,), tokens before the padding.
        positive: float32 (N,), target probability of POSITIVE.
    """

    tokens: Tensor
    lengths: Tensor
    positive: Tensor


def encode(tokenizer: Tokenizer, texts: Sequence[str], positive: Sequence[float]) -> Examples:
    """Encode texts with their soft targets."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    tokens = torch.tensor([row + [PADDING] * (width - len(row)) for row in rows])
    return Examples(tokens, lengths, torch.tensor(positive))


def training_examples(
    tokenizer: Tokenizer, all_phrases: list[Phrase], *, sentence_repeats: int
) -> Examples:
    """Every different phrase once, whole sentences more often."""
    once = list({phrase.text.lower(): phrase for phrase in all_phrases}.values())
    sentences = [phrase for phrase in all_phrases if phrase.is_sentence]
    shown = once + sentences * (sentence_repeats - 1)
    return encode(
        tokenizer,
        [phrase.text for phrase in shown],
        [GRADE_TO_POSITIVE[phrase.grade] for phrase in shown],
    )


def refining_examples(
    tokenizer: Tokenizer, all_phrases: list[Phrase], *, phrase_count: int
) -> Examples:
    """The made-up sentences, all whole sentences twice, and some phrases of the treebank."""
    once = list({phrase.text.lower(): phrase for phrase in all_phrases}.values())
    some = [once[index] for index in torch.randperm(len(once))[:phrase_count].tolist()]
    shown = some + 2 * [phrase for phrase in all_phrases if phrase.is_sentence]
    opinions = made_up(grades_of(all_phrases), GRADE_TO_POSITIVE)
    texts = [phrase.text for phrase in shown]
    positive = [GRADE_TO_POSITIVE[phrase.grade] for phrase in shown]
    texts += [detokenize(opinion.text.split()) for opinion in opinions]
    positive += [opinion.positive for opinion in opinions]
    return encode(tokenizer, texts, positive)


def grades_of(all_phrases: Iterable[Phrase]) -> dict[str, int]:
    """The grade of each phrase in lower case."""
    return {phrase.text.lower(): phrase.grade for phrase in all_phrases}


def batches(lengths: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Indices of one epoch's batches in random order, each of examples of similar length."""
    order = torch.randperm(len(lengths))
    batched = []
    for chunk in order.split(50 * batch_size):
        batched.extend(chunk[lengths[chunk].argsort(stable=True)].split(batch_size))
    for number in torch.randperm(len(batched)).tolist():
        yield batched[number]


def train(
    model: BertForSequenceClassification,
    examples: Examples,
    device: torch.device,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    word_dropout: float,
    decay: float,
) -> BertForSequenceClassification:
    """Train a model and return the moving average of its weights.

    Args:
        model: where to start; is changed in place.
        examples: what to learn from.
        device: where to train.
        epochs: passes over the examples.
        batch_size: examples per step.
        learning_rate: the highest; warm-up over a twentieth of the steps, then a cosine to 0.
        word_dropout: probability that a piece is replaced by [UNK], so that no single word
            decides and [UNK] comes to mean nothing in particular.
        decay: of the moving average.
    """
    model.to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    tokens, positive = examples.tokens.to(device), examples.positive.to(device)
    steps = epochs * sum(1 for _ in batches(examples.lengths, batch_size))
    schedule = warm_up_then_cosine(optimizer, steps)
    began = time.monotonic()
    for epoch in range(epochs):
        for batch in batches(examples.lengths, batch_size):
            width = int(examples.lengths[batch].max())
            batch = batch.to(device)
            chosen = tokens[batch, :width]
            # The ids of special tokens come first.
            drop = torch.rand(chosen.shape, device=device) < word_dropout
            dropped = chosen.masked_fill(drop & (chosen >= len(SPECIAL_TOKENS)), UNKNOWN)
            target = torch.stack([1 - positive[batch], positive[batch]], 1)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(dropped, attention_mask=(chosen != PADDING).long()).logits
            loss = F.cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        seconds = time.monotonic() - began
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    return average.module.eval()


def save(model: BertForSequenceClassification, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in float16 and the tokenizer as `from_pretrained` expects them."""
    model.half().cpu().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=1) + "\n")


def sentence_accuracy(
    model: BertForSequenceClassification, tokenizer: Tokenizer, all_phrases: list[Phrase]
) -> float:
    """Share of whole sentences that are not neutral whose sentiment is recognised."""
    sentences = [p for p in all_phrases if p.is_sentence and p.grade != _NEUTRAL_GRADE]
    praise = [phrase.grade > _NEUTRAL_GRADE for phrase in sentences]
    return _accuracy(model, tokenizer, [phrase.text for phrase in sentences], praise)


def negation_accuracy(
    model: BertForSequenceClassification, tokenizer: Tokenizer, train_phrases: list[Phrase]
) -> float:
    """Share of negated opinion words recognised, of words never negated by `opinions.made_up`."""
    texts, praise = zip(*held_out_negations(grades_of(train_phrases)), strict=True)
    return _accuracy(model, tokenizer, [detokenize(text.split()) for text in texts], praise)


def _accuracy(
    model: BertForSequenceClassification,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    praise: Sequence[bool],
) -> float:
    examples = encode(tokenizer, texts, [float(each) for each in praise])
    right = 0
    for rows in torch.arange(len(texts)).split(256):
        tokens = examples.tokens[rows]
        with torch.no_grad():
            logits = model(tokens, attention_mask=(tokens != PADDING).long()).logits
        right += int(((logits[:, 1] > logits[:, 0]) == (examples.positive[rows] > 0.5)).sum())
    return right / len(texts)


def train_from_scratch(arguments: argparse.Namespace, all_phrases: list[Phrase]) -> None:
    """The first stage: the vocabulary and the model, from the treebank alone."""
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(
        [phrase.text for phrase in all_phrases if phrase.is_sentence],
        arguments.vocabulary_size,
    )
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=arguments.dropout,
        attention_probs_dropout_prob=0.1,
        classifier_dropout=arguments.dropout,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    model = train(
        BertForSequenceClassification(config),
        training_examples(tokenizer, all_phrases, sentence_repeats=arguments.sentence_repeats),
        torch.device(arguments.device),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        word_dropout=arguments.word_dropout,
        decay=0.999,
    )
    save(model, tokenizer, arguments.output)


def refine(start: Path, arguments: argparse.Namespace, all_phrases: list[Phrase]) -> None:
    """The second stage: negation and contrast, beside a sample of what the first one learned."""
    torch.manual_seed(arguments.seed)
    model, tokenizer = load(start)
    model = train(
        model,
        refining_examples(tokenizer, all_phrases, phrase_count=25_000),
        torch.device(arguments.device),
        epochs=2,
        batch_size=128,
        learning_rate=2e-4,
        word_dropout=arguments.word_dropout,
        decay=0.99,
    )
    save(model, tokenizer, arguments.output)


def load(folder: Path) -> tuple[BertForSequenceClassification, Tokenizer]:
    """What `save` wrote, in float32 and evaluation mode."""
    model = BertForSequenceClassification.from_pretrained(folder).float().eval()
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description="Train the bundled sentiment classifier on the Stanford Sentiment Treebank."
    )
    parser.add_argument("treebank", type=Path, help="folder of train.txt, dev.txt and test.txt")
    purpose = parser.add_mutually_exclusive_group(required=True)
    purpose.add_argument("--output", type=Path, help="train, and write the model to this folder")
    purpose.add_argument("--evaluate", type=Path, help="evaluate the model in this folder")
    parser.add_argument("--refine", action="store_true", help="add the stage about negation")
    parser.add_argument("--start", type=Path, help="do that stage alone, to this folder's model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vocabulary-size", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--word-dropout", type=float, default=0.1)
    parser.add_argument("--sentence-repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    train_phrases = read_phrases(arguments.treebank / "train.txt")
    if arguments.output:
        # cuBLAS is deterministic only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        if arguments.start is None:
            train_from_scratch(arguments, train_phrases)
        if arguments.refine or arguments.start is not None:
            refine(arguments.start or arguments.output, arguments, train_phrases)

    model, tokenizer = load(arguments.output or arguments.evaluate)
    for split in ("dev", "test"):
        accuracy = sentence_accuracy(
            model, tokenizer, read_phrases(arguments.treebank / f"{split}.txt")
        )
        print(f"{split} sentences: {accuracy:.1%} right", flush=True)
    accuracy = negation_accuracy(model, tokenizer, train_phrases)
    print(f"negations of words never shown negated: {accuracy:.1%} right", flush=True)


if __name__ == "__main__":
    main()
