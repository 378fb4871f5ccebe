"""Train the bundled scene classifier on scenes drawn as it goes.

    python -m captum_transformer_lrp.examples.training.scene_classifier --output FOLDER

draws every batch anew, trains a small `timm` VisionTransformer, rounds its weights to float16,
writes `scene_classifier.safetensors` and `scene_classifier.json` and prints the accuracy of the
rounded model on scenes of other seeds. `--evaluate FOLDER` only prints the accuracy. The same
seed, device and versions give the same weights. The defaults fit a CPU; the options that the
bundled model was trained with are in `examples/README.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from captum_transformer_lrp.examples.training.scene_generator import (
    CLASSES,
    DEFAULT_FONT,
    IMAGE_SIZE,
    TRAINING_RANGES,
    UNSEEN_RANGES,
    Ranges,
    Scenes,
    draw_scenes,
    load_sprites,
)
from captum_transformer_lrp.examples.training.schedule import warm_up_then_cosine

ARCHITECTURE = {
    "img_size": IMAGE_SIZE,
    "patch_size": 8,
    "num_classes": len(CLASSES),
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
}
"""Arguments of `timm.models.vision_transformer.VisionTransformer`: 145 tokens, 1.2 M parameters."""

HELD_OUT_SEED = 1_000_003
"""Where evaluation's scenes start; training draws from its own `--seed` only."""

_WEIGHTS = "scene_classifier.safetensors"
_CONFIGURATION = "scene_classifier.json"
_UNFINISHED = "unfinished_training.pt"
_STEPS_BETWEEN_SAVES = 250


def normalize(images: Tensor) -> Tensor:
    """From [0, 1], as the scenes are drawn, to [−1, 1], as the model expects them."""
    return images * 2 - 1


def present_classes(classes: Tensor) -> Tensor:
    """Which classes a scene shows.

    Args:
        classes: int64 (N, 3), −1 for none.

    Returns:
        bool (N, classes).
    """
    one_hot = F.one_hot(classes.clamp(min=0), len(CLASSES)).bool()
    return (one_hot & (classes >= 0)[:, :, None]).any(1)


def patch_target_distribution(scenes: Scenes) -> Tensor:
    """What each patch shows: the share of its pixels by class, and the rest as background.

    Returns:
        float32 (N, patches, classes + 1), the last column for the background; rows sum to 1.
    """
    coverage = F.avg_pool2d(scenes.masks.float(), ARCHITECTURE["patch_size"]).flatten(2)
    # A slot without object has an empty mask, so that its class does not matter.
    one_hot = F.one_hot(scenes.classes.clamp(min=0), len(CLASSES)).float()
    by_class = coverage.transpose(1, 2) @ one_hot
    return torch.cat([by_class, 1 - coverage.sum(1)[:, :, None]], 2)


class RandomPatches(nn.Module):
    """Keeps the class token and some of the patches of each scene, which ones is chance.

    It stands where `timm` has `PatchDropout`, after the position embeddings.

    Args:
        generator: source of chance.
        share: of the patches that is kept.

    Attributes:
        kept: int64 (N, patches kept), which patches the latest batch has kept.
    """

    def __init__(self, generator: torch.Generator, share: float) -> None:
        super().__init__()
        self.generator = generator
        self.share = share
        self.kept = torch.zeros(0, 0, dtype=torch.long)

    def forward(self, tokens: Tensor) -> Tensor:
        """From (N, 1 + patches, D) to (N, 1 + patches kept, D)."""
        number, patches = len(tokens), tokens.shape[1] - 1
        order = torch.rand(
            number, patches, generator=self.generator, device=self.generator.device
        ).argsort(1)
        self.kept = order[:, : max(1, round(self.share * patches))]
        return torch.cat([tokens[:, :1], rows_at(tokens[:, 1:], self.kept)], 1)


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """The rows (N, K, D) of ``values`` (N, S, D) at ``index`` (N, K)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def train(
    sprites: Tensor,
    generator: torch.Generator,
    output: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    patch_weight: float,
    bfloat16: bool,
    views: int = 1,
    kept_patches: float = 1.0,
    whole: float = 0.15,
    resume: bool = False,
) -> None:
    """Train from scratch on scenes drawn as it goes.

    Each class is a yes-or-no question of its own. A softmax would only compare classes: whatever
    speaks against the elephant would speak for the zebra, wherever it is.

    Beside the class token's loss, a linear layer that is thrown away afterwards learns from each
    patch's final token what the patch shows, as in token labelling (Jiang et al., All Tokens
    Matter, NeurIPS 2021). Without it, background tokens come to carry what the objects' own
    tokens should say. Neither loss looks at attention or at any explanation.

    Args:
        sprites: what `load_sprites` returned, on the generator's device.
        generator: source of the scenes. The weights start from torch's global one.
        output: folder that the model is saved to every 250 steps, with all that it takes to go on,
            so that a training that is cut off leaves a model to evaluate and can be resumed.
        steps: optimizer steps.
        batch_size: scenes per step.
        learning_rate: the highest; warm-up over a twentieth of the steps, then a cosine to 0.
        patch_weight: factor on the loss of the patches.
        bfloat16: whether the forward pass multiplies matrices in bfloat16.
        views: in how many steps each scene is seen.  Drawing one takes as long as learning from
            half of its patches.
        kept_patches: the share of its patches, other ones in each step, that a scene is seen by.
        whole: the share of the steps, the last ones, in which scenes are seen whole all the same.
        resume: whether to go on with the training that was cut off in ``output``, which takes the
            same steps as one that was not.

    Raises:
        ValueError: if there is none to go on with, or it had other settings.
    """
    settings = [
        steps,
        batch_size,
        learning_rate,
        patch_weight,
        bfloat16,
        views,
        kept_patches,
        whole,
    ]
    device = generator.device
    model = VisionTransformer(**ARCHITECTURE).to(device)
    patch_head = nn.Linear(ARCHITECTURE["embed_dim"], len(CLASSES) + 1).to(device)
    parameters = [*model.parameters(), *patch_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.05)
    schedule = warm_up_then_cosine(optimizer, steps)
    patches = RandomPatches(generator, kept_patches)
    changing = {"model": model, "patch_head": patch_head, "optimizer": optimizer,
                "schedule": schedule}  # fmt: skip
    unfinished = output / _UNFINISHED
    first = _resumed(unfinished, settings, changing, generator) if resume else 0
    between_saves = views * math.ceil(_STEPS_BETWEEN_SAVES / views)  # before scenes are drawn
    began = time.monotonic()
    for step in range(first, steps):
        if step % views == 0:
            with torch.no_grad():
                scenes = draw_scenes(batch_size, sprites, generator)
        sees_all = kept_patches == 1 or step >= (1 - whole) * steps
        model.patch_drop = nn.Identity() if sees_all else patches
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            tokens = model.forward_features(normalize(scenes.images))
            logits = model.forward_head(tokens)
            patch_logits = patch_head(tokens[:, 1:])
        target = present_classes(scenes.classes).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), target)
        patch_target = patch_target_distribution(scenes)
        if not sees_all:
            patch_target = rows_at(patch_target, patches.kept)
        patch_loss = F.cross_entropy(patch_logits.float().flatten(0, 1), patch_target.flatten(0, 1))
        optimizer.zero_grad()
        (loss + patch_weight * patch_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % between_saves == 0 or step + 1 == steps:
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
            save(model, output)
            state = {name: one.state_dict() for name, one in changing.items()}
            state |= {"step": step + 1, "settings": settings, "generator": generator.get_state()}
            partly_written = unfinished.with_suffix(".part")
            torch.save(state, partly_written)
            partly_written.replace(unfinished)
    unfinished.unlink(missing_ok=True)


def _resumed(
    unfinished: Path, settings: list[Any], changing: dict[str, Any], generator: torch.Generator
) -> int:
    """Put everything back to where a training was cut off, and return the steps it had taken."""
    if not unfinished.is_file():
        raise ValueError(f"there is no training to resume: {unfinished} was not found")
    state = torch.load(unfinished, map_location="cpu", weights_only=True)
    if state["settings"] != settings:
        raise ValueError(
            f"the training in {unfinished.parent} had the settings {state['settings']} and cannot "
            f"be resumed with {settings}: give the same options, or another folder"
        )
    for name, one in changing.items():
        one.load_state_dict(state[name])
    generator.set_state(state["generator"])
    return int(state["step"])


def save(model: VisionTransformer, folder: Path) -> None:
    """Write the weights in float16 and what is needed to build and read the model."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().cpu() for name, value in model.state_dict().items()}
    save_file(weights, folder / _WEIGHTS)
    configuration = {"architecture": ARCHITECTURE, "class_names": list(CLASSES)}
    (folder / _CONFIGURATION).write_text(json.dumps(configuration, indent=1) + "\n")


def load(folder: Path) -> VisionTransformer:
    """The model that `save` wrote, in float32 and evaluation mode."""
    configuration = json.loads((folder / _CONFIGURATION).read_text())
    model = VisionTransformer(**configuration["architecture"])
    weights = load_file(folder / _WEIGHTS)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


def shares_on_top(model: VisionTransformer, batches: Iterator[Scenes]) -> float:
    """Share of scenes whose k objects are the k largest logits."""
    right = total = 0
    for images, classes, _ in batches:
        with torch.no_grad():
            logits = model(normalize(images))
        present = present_classes(classes)
        lowest_present = logits.masked_fill(~present, math.inf).amin(1)
        highest_absent = logits.masked_fill(present, -math.inf).amax(1)
        right += int((lowest_present > highest_absent).sum())
        total += len(images)
    return right / total


def held_out_scenes(
    number: int, sprites: Tensor, seed: int, *, objects: int, ranges: Ranges
) -> Iterator[Scenes]:
    """Scenes that training never drew, in batches of 100."""
    generator = torch.Generator(sprites.device).manual_seed(seed)
    for _ in range(number // 100):
        yield draw_scenes(100, sprites, generator, objects=objects, ranges=ranges)


def report(model: VisionTransformer, sprites: Tensor, number: int) -> dict[str, float]:
    """Print and return the share of held-out scenes with their objects on top."""
    shares = {}
    for name, objects, ranges in (
        ("one object", 1, TRAINING_RANGES),
        ("two objects", 2, TRAINING_RANGES),
        ("three objects", 3, TRAINING_RANGES),
        ("one object, unseen transforms", 1, UNSEEN_RANGES),
        ("two objects, unseen transforms", 2, UNSEEN_RANGES),
    ):
        scenes = held_out_scenes(
            number, sprites, HELD_OUT_SEED + objects, objects=objects, ranges=ranges
        )
        shares[name] = shares_on_top(model, scenes)
        print(f"{name}: {shares[name]:.1%} of {number} scenes", flush=True)
    return shares


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description="Train the bundled scene classifier on scenes drawn as it goes."
    )
    purpose = parser.add_mutually_exclusive_group(required=True)
    purpose.add_argument("--output", type=Path, help="train, and write the model to this folder")
    purpose.add_argument("--evaluate", type=Path, help="evaluate the model in this folder")
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--patch-weight", type=float, default=1.0)
    parser.add_argument(
        "--resume", action="store_true", help="go on with a training that was cut off"
    )
    parser.add_argument("--views", type=int, default=2, help="steps that see each scene")
    parser.add_argument(
        "--kept-patches", type=float, default=0.5, help="share of a scene's patches in each step"
    )
    parser.add_argument(
        "--whole", type=float, default=0.15, help="share of the steps, at the end, with all patches"
    )
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="multiply matrices in bfloat16, which is faster where the processor knows it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=2000, help="scenes per evaluation")
    arguments = parser.parse_args()

    sprites = load_sprites(arguments.font)
    if arguments.output:
        # cuBLAS is deterministic only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(arguments.seed)
        train(
            sprites.to(arguments.device),
            torch.Generator(arguments.device).manual_seed(arguments.seed),
            arguments.output,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            patch_weight=arguments.patch_weight,
            bfloat16=arguments.bfloat16,
            views=arguments.views,
            kept_patches=arguments.kept_patches,
            whole=arguments.whole,
            resume=arguments.resume,
        )
    # Always of the file, on the CPU, where one seed gives the same scenes everywhere.
    report(load(arguments.output or arguments.evaluate), sprites, arguments.held_out)


if __name__ == "__main__":
    main()
