"""CLIP: a picture tower and a text tower, and the cosine of what they say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from captum_transformer_lrp import TransformerAttribution
from tests.independent.comparison import Truth, alive, close, compare
from tests.independent.relprop import (
    Value,
    add,
    add_parameter,
    dense,
    elementwise,
    hide,
    join,
    layer_norm,
    leaf,
    linear,
    matmul,
    merge_heads,
    move,
    patches,
    rows,
    scale,
    softmax,
    split_heads,
    times,
    total,
    transposed,
)

HEADS, WIDTH, TOKENS = 2, 12, 5
SIDE, PATCH = 8, 4
LAST = 29


class Similarity(nn.Module):
    """The score of each picture with its own text, (N, 1)."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        output = self.clip(input_ids=ids, pixel_values=images)
        product = output.image_embeds * output.text_embeds
        return product.sum(-1, keepdim=True) * self.clip.logit_scale.exp()


def by_hand(clip: CLIPModel, image: Tensor, ids: Tensor) -> Truth:
    attentions: list[Value] = []
    pixels = leaf(image)
    vision = clip.vision_model
    tokens = move(patches(pixels, vision.embeddings.patch_embedding), lambda t: t.flatten(0, 1))
    x = join([leaf(vision.embeddings.class_embedding[None]), tokens], torch.cat)
    x = add_parameter(x, vision.embeddings.position_embedding.weight)
    x = layer_norm(x, vision.pre_layrnorm)
    for block in vision.encoder.layers:
        x = transformer_block(x, block, torch.ones(1, 1).bool(), attentions)
    seen = linear(layer_norm(rows(x, 0), vision.post_layernorm), clip.visual_projection.weight)

    words = leaf(clip.text_model.embeddings.token_embedding.weight[ids])
    x = add_parameter(words, clip.text_model.embeddings.position_embedding.weight[: len(ids)])
    causal = torch.ones(len(ids), len(ids)).tril().bool()
    for block in clip.text_model.encoder.layers:
        x = transformer_block(x, block, causal, attentions)
    end = int((ids == LAST).int().argmax())
    read = layer_norm(rows(x, end), clip.text_model.final_layer_norm)
    said = linear(read, clip.text_projection.weight)

    cosine = total(times(elementwise(seen, unit), elementwise(said, unit)), 0)
    logits = scale(move(cosine, lambda t: t[None]), clip.logit_scale.exp())
    return Truth(logits, attentions, [pixels, words])


def unit(x: Tensor) -> Tensor:
    """Divided by its length: a normalisation."""
    return x / x.square().sum(-1, keepdim=True).sqrt()


def transformer_block(x: Value, block: Any, allowed: Tensor, attentions: list[Value]) -> Value:
    normed = layer_norm(x, block.layer_norm1)
    attention = block.self_attn
    q, k, v = (
        split_heads(dense(normed, module), HEADS)
        for module in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = scale(matmul(q, transposed(k)), (WIDTH / HEADS) ** -0.5)
    attentions.append(softmax(hide(scores, allowed)))
    x = add(x, dense(merge_heads(matmul(attentions[-1], v)), attention.out_proj))
    hidden = dense(layer_norm(x, block.layer_norm2), block.mlp.fc1)
    hidden = elementwise(hidden, lambda h: h * torch.sigmoid(1.702 * h))
    return add(x, dense(hidden, block.mlp.fc2))


def test_clip() -> None:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "projection_dim": 6,
    }
    text = {
        "vocab_size": 30,
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": LAST,
        **sizes,
    }
    picture = {"image_size": SIDE, "patch_size": PATCH, **sizes}
    config = CLIPConfig(text_config=text, vision_config=picture, projection_dim=6)
    model = alive(Similarity(CLIPModel(config)))
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    ids = torch.randint(3, 29, (2, TOKENS))
    ids[0, -1] = ids[1, -2] = LAST
    truths = [by_hand(model.clip, *pair) for pair in zip(images, ids, strict=True)]
    compare(model, (images, ids), truths, 0)

    # Eq. 14 for each tower: the row of the class token, and of the last word.  The two factors of
    # the product are read alike, so each tower has half of the mass.
    of_images, of_ids = TransformerAttribution(model).attribute(
        (images, ids), 0, keep_identity=True
    )
    grid = SIDE // PATCH
    for n, truth in enumerate(truths):
        C = torch.eye(grid**2 + 1, dtype=torch.float64)
        for index in range(2):
            C = (torch.eye(grid**2 + 1) + truth.weighted(index)) @ C
        pixels = torch.nn.functional.interpolate(
            C[0, 1:].reshape(1, 1, grid, grid), size=(SIDE, SIDE), mode="bilinear"
        )
        close(of_images[n].sum(0), pixels[0, 0] / 2, "the picture's map")
        C = torch.eye(TOKENS, dtype=torch.float64)
        for index in range(2, 4):
            C = (torch.eye(TOKENS) + truth.weighted(index)) @ C
        end = int((ids[n] == LAST).int().argmax())
        close(of_ids[n], C[end] / 2, "the text's map")
