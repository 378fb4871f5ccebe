"""Train the models that copy letters: ``python -m tests.letters.train [name ...]``."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.letters.data import MODELS, checkpoint, draw

BATCH, STEPS, RATE = 64, 400, 3e-3


def train(name: str, seed: int = 0) -> Any:
    """Every prompt is new; the loss is that of the two capitals."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = MODELS[name]().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        prompts = draw(BATCH, generator)
        text = torch.cat([prompts.ids, prompts.capitals[:, :1]], 1)
        logits = model(input_ids=text, use_cache=False).logits[:, -2:]
        loss = F.cross_entropy(logits.flatten(0, 1), prompts.capitals.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def accuracy(model: Any) -> float:
    """The share of 1,000 new prompts after which both capitals are right."""
    prompts = draw(1000, torch.Generator().manual_seed(1000))
    text = torch.cat([prompts.ids, prompts.capitals[:, :1]], 1)
    with torch.no_grad():
        found = model(input_ids=text, use_cache=False).logits[:, -2:].argmax(-1)
    return float((found == prompts.capitals).all(1).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MODELS), help="which models")
    torch.set_num_threads(1)
    for name in parser.parse_args().names:
        model = train(name).half()
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()
             if not key.startswith("lm_head") or name != "gpt2"},
            checkpoint(name),
        )  # fmt: skip
        print(f"{name}: both capitals right after {accuracy(model.float()):.1%} of new prompts")


if __name__ == "__main__":
    main()
