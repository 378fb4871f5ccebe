"""Train the models of the two-digits test: ``python -m tests.digits.train [name ...]``."""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from tests.digits.data import CLASSES, MODELS, checkpoint, draw

BATCH, STEPS, RATE = 64, 1500, 3e-3


def train(name: str, steps: int = STEPS) -> nn.Module:
    """Each picture is new; both digits are to be named, in any order."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = MODELS[name]().train()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # timm's 0.02 is meant for wider models
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    start = time.time()
    for step in range(steps):
        batch = draw(BATCH, generator, held_out=False)
        loss = F.binary_cross_entropy_with_logits(model(batch.images), batch.labels) * CLASSES
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            print(
                f"{name} {step + 1} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True
            )
    return model.eval()


def exact_match(model: nn.Module) -> float:
    """The share of held-out pictures whose two highest logits are the two digits."""
    pictures = draw(1000, torch.Generator().manual_seed(2), held_out=True)
    with torch.no_grad():
        found = model(pictures.images).topk(2).indices.sort(1).values
    return float((found == pictures.classes.sort(1).values).all(1).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MODELS), help="which models")
    torch.set_num_threads(1)
    for name in parser.parse_args().names:
        model = train(name).half()
        save_file(model.state_dict(), checkpoint(name))
        print(f"{name}: both digits right in {exact_match(model.float()):.1%} of held-out pictures")


if __name__ == "__main__":
    main()
