"""Train the bundled model that sees: it names the digit on the side that the prompt asks for.

A picture shows two of scikit-learn's digits, one in each half. The prompt says *left* or *right*.
So one knows where in the picture the answer comes from. Nothing tells the model where the digits
are: its only loss is that of the answer. At first many pictures show one digit, so that the model
learns digits before it learns sides. A second stage (``--start``) draws each digit a little
otherwise every time, since there are few of them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from captum_transformer_lrp.examples.training.schedule import warm_up_then_cosine

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

SIDES: Final = ("left", "right")
NUMBERS: Final = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS: Final = ("[PAD]", "<image>", "name", "the", "digit", "on", *SIDES, *NUMBERS)
SIDE, PATCH, DIGIT = 24, 4, 8
HELD_OUT: Final = 360
"""Of the 1797 digits, those that no training picture shows."""


@dataclass(frozen=True)
class Questions:
    """Pictures of two digits with a question about one of them.

    Args:
        images: float32 (N, 24, 24), 0 to 1, with some noise.
        sides: int64 (N,), 0 where the left digit is asked for.
        digits: int64 (N, 2), what the left and the right digit are.
        corners: int64 (N, 2, 2), row and column of each one's upper left corner.
    """

    images: Tensor
    sides: Tensor
    digits: Tensor
    corners: Tensor

    @property
    def prompts(self) -> list[str]:
        """The questions as one types them."""
        return [f"name the digit on the {SIDES[side]}" for side in self.sides.tolist()]

    @property
    def answers(self) -> list[str]:
        """The words that the model should write."""
        asked = self.digits.gather(1, self.sides[:, None])[:, 0]
        return [NUMBERS[digit] for digit in asked.tolist()]

    @property
    def pictures(self) -> list[Image.Image]:
        """The images in red, green and blue, as a processor takes them."""
        levels = (255 * self.images).round().byte().numpy()
        return [Image.fromarray(np.stack([one] * 3, -1)) for one in levels]

    @property
    def pixel_values(self) -> Tensor:
        """The images as the model takes them, float32 (N, 3, 24, 24) in [−1, 1]."""
        levels = (255 * self.images).round() / 127.5 - 1
        return levels[:, None].expand(-1, 3, -1, -1).contiguous()

    @property
    def input_ids(self) -> Tensor:
        """The prompts as the model takes them, int64 (N, S): a token for each patch comes first."""
        seen = [WORDS.index("<image>")] * (SIDE // PATCH) ** 2
        rows = [[*seen, *map(WORDS.index, prompt.split())] for prompt in self.prompts]
        return torch.tensor(rows)

    def of(self, examples: Tensor) -> Questions:
        """Some of them, by their numbers (M,)."""
        parts = (self.images, self.sides, self.digits, self.corners)
        return Questions(*(one[examples] for one in parts))

    def box(self, which: int) -> Tensor:
        """Bool (N, 24, 24), where the left (0) or the right (1) digit is."""
        place = torch.arange(SIDE)
        start = self.corners[:, which, :, None]
        inside = (place >= start) & (place < start + DIGIT)
        return inside[:, 0, :, None] & inside[:, 1, None, :]


def digits(held_out: bool) -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits, float32 (N, 8, 8) in 0 to 1, and what they are."""
    from sklearn.datasets import load_digits

    found = load_digits()
    part = slice(None, HELD_OUT) if held_out else slice(HELD_OUT, None)
    shapes = torch.tensor(found.images, dtype=torch.float32)[part] / 16
    return shapes, torch.tensor(found.target)[part]


def draw(
    count: int,
    generator: torch.Generator,
    *,
    held_out: bool,
    alone: float = 0.0,
    vary: bool = False,
) -> Questions:
    """Random questions.

    Args:
        count: how many.
        generator: of all that is random.
        held_out: whether the digits are those that no training picture shows.
        alone: the share of pictures that show nothing but the digit that is asked for.
        vary: whether each digit is `varied`.
    """
    shapes, classes = digits(held_out)

    def random(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    chosen, sides = random(len(shapes), count, 2), random(2, count)
    drawn = shapes[chosen]
    if vary:
        drawn = varied(drawn.flatten(0, 1), generator).unflatten(0, (count, 2))
    rows = PATCH * random((SIDE - DIGIT) // PATCH + 1, count, 2)
    columns = PATCH * random((SIDE // 2 - DIGIT) // PATCH + 1, count, 2)
    columns = columns + torch.tensor([0, SIDE // 2])
    shown = torch.rand(count, generator=generator) >= alone
    shown = shown[:, None] | (sides[:, None] == torch.arange(2))
    images = 0.1 * torch.rand(count, SIDE, SIDE, generator=generator)
    inside = torch.arange(DIGIT)
    for which in range(2):
        at = (
            torch.arange(count)[:, None, None],
            rows[:, which, None, None] + inside[:, None],
            columns[:, which, None, None] + inside,
        )
        images[at] += 0.9 * drawn[:, which] * shown[:, which, None, None]
    return Questions(images, sides, classes[chosen], torch.stack([rows, columns], 2))


def varied(shapes: Tensor, generator: torch.Generator) -> Tensor:
    """Digits (N, 8, 8) turned, stretched, slanted, moved and of another strength, each a little."""

    def random(size: float, *shape: int) -> Tensor:
        return size * (2 * torch.rand(len(shapes), *shape, generator=generator) - 1)

    angle = random(0.25)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).unflatten(
        1, (2, 2)
    )
    stretch = torch.eye(2) + random(0.15, 2, 2)
    grid = F.affine_grid(
        torch.cat([turn @ stretch, random(0.12, 2, 1)], 2), [len(shapes), 1, DIGIT, DIGIT],
        align_corners=False,
    )  # fmt: skip
    found = F.grid_sample(shapes[:, None], grid, align_corners=False)[:, 0]
    return (found * (1 + random(0.2, 1, 1))).clamp(0, 1)


def new_model() -> LlavaForConditionalGeneration:
    """A LLaVA of two layers that see and two that write, 64 wide, with random weights."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=SIDE, patch_size=PATCH)
    text = LlamaConfig(
        **sizes, vocab_size=len(WORDS), num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # transformers' 0.02 is meant for wider models
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def answer_logits(model: LlavaForConditionalGeneration, questions: Questions) -> Tensor:
    """Logits (N, vocabulary) of the word behind the prompt."""
    found = model(
        input_ids=questions.input_ids, pixel_values=questions.pixel_values, use_cache=False
    )
    logits: Tensor = found.logits[:, -1]
    return logits


def answer_ids(questions: Questions) -> Tensor:
    """The token ids (N,) of the right answers."""
    return torch.tensor([WORDS.index(answer) for answer in questions.answers])


def train(
    model: LlavaForConditionalGeneration,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    vary: bool = False,
) -> LlavaForConditionalGeneration:
    """Train a model on new pictures in every step.

    Args:
        model: where to start; is changed in place.
        steps: how many.
        batch_size: questions in each.
        learning_rate: the highest; `warm_up_then_cosine` says when.
        seed: of the pictures.
        vary: whether each digit is `varied`, and nearly all pictures show two from the start.
    """
    generator = torch.Generator().manual_seed(seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    schedule = warm_up_then_cosine(optimizer, steps)
    began = time.monotonic()
    for step in range(steps):
        # Of the first pictures all show one digit, and from the middle on few do.
        alone = 0.1 if vary else max(0.1, 1 - 2 * step / steps)
        questions = draw(batch_size, generator, held_out=False, alone=alone, vary=vary)
        loss = F.cross_entropy(answer_logits(model, questions), answer_ids(questions))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    return model.eval()


def accuracy(model: LlavaForConditionalGeneration, *, count: int = 2000) -> float:
    """The share of questions about held-out digits that the model answers rightly."""
    questions = draw(count, torch.Generator().manual_seed(1), held_out=True)
    with torch.no_grad():
        found = answer_logits(model, questions).argmax(-1)
    return float((found == answer_ids(questions)).double().mean())


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the model in float16, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    inside = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, "[PAD]"))
    inside.pre_tokenizer = WhitespaceSplit()
    inside.add_special_tokens(["[PAD]", "<image>"])
    inside.save(str(folder / "tokenizer.json"))


def load(folder: Path) -> LlavaForConditionalGeneration:
    """What `save` wrote, in float32."""
    model = new_model()
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train the bundled model that sees digits.")
    parser.add_argument("--output", type=Path, required=True, help="write the model to this folder")
    parser.add_argument("--start", type=Path, help="the second stage, to this folder's model")
    parser.add_argument("--steps", type=int, help="4,000, and 800 in the second stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    second = arguments.start is not None
    model = train(
        load(arguments.start) if second else new_model(),
        steps=arguments.steps or (800 if second else 4000),
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate / (2 if second else 1),
        seed=arguments.seed,
        vary=second,
    )
    save(model, arguments.output)
    print(f"held-out digits: {accuracy(load(arguments.output)):.1%} right", flush=True)


if __name__ == "__main__":
    main()
