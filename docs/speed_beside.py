"""Times methods of this library beside other libraries', on the same models with random weights.

::

    python docs/speed_beside.py legrad      # torch-cam's LeGrad
    python docs/speed_beside.py autolrp     # its AttnLRP of pixels
    python docs/speed_beside.py authors     # the code published with the paper, in PYTHONPATH
    python docs/speed_beside.py bert        # lxt's AttnLRP, 128 tokens
    python docs/speed_beside.py qwen2       # the same, half a billion parameters

lxt patches the model code of one release of transformers, so it needs an environment of its own:
this library, then ``pip install transformers==4.52.4 zennit``, then ``pip install --no-deps lxt``.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module, util
from typing import Any
from unittest import mock

import torch
from captum.attr import Saliency
from torch import Tensor, nn

import captum_transformer_lrp as lrp
from captum_transformer_lrp.benchmarks.speed import TARGET, Workload
from captum_transformer_lrp.rules import GammaRule, preset

Runs = dict[str, Callable[[], Any]]


def ours(name: str, method: Any, inputs: Tensor, target: Any = TARGET) -> Runs:
    """A method of this library, and the same compiled when it is first called."""
    program = cache(lambda: method.compile(inputs))
    return {
        name: lambda: method.attribute(inputs, target),
        f"{name}, compiled": lambda: program()(inputs, target),
    }


def gradient_times_input(model: nn.Module, embeddings: Tensor, target: tuple[int, ...]) -> Tensor:
    """One forward and one backward pass."""
    given = embeddings.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs_embeds=given).logits[0][target], given)
    return gradient * embeddings


def patched_by_lxt(name: str) -> Callable[[bool], None]:
    """Patch the model code, and return what takes the patches out and puts them back."""
    patches = import_module(f"lxt.efficient.models.{name}").attnLRP
    before = {owner: dict(vars(owner)) for owner in patches}
    for owner, patch in patches.items():
        patch(owner)
    after = {owner: dict(vars(owner)) for owner in patches}

    def switch(on: bool) -> None:
        for owner, values in before.items():
            for key, old in values.items():
                if after[owner][key] is not old:
                    setattr(owner, key, after[owner][key] if on else old)

    return switch


def language_model(name: str, kind: str, target: tuple[int, ...], **config: int) -> Runs:
    """AttnLRP of a class, or of the token after 128 others."""
    torch.manual_seed(0)
    code: Any = import_module(f"transformers.models.{name}.modeling_{name}")
    sizes = getattr(import_module("transformers"), f"{name.capitalize()}Config")(**config)
    model = getattr(code, kind)(sizes).eval().requires_grad_(False)
    embeddings = 0.02 * torch.randn(1, 128, sizes.hidden_size)
    method = lrp.TransformerLRP(lambda given: model(inputs_embeds=given).logits, preset="attnlrp")
    runs: Runs = {
        "forward and backward pass": partial(gradient_times_input, model, embeddings, target),
        **ours("TransformerLRP", method, embeddings, target),
    }
    if util.find_spec("lxt") is None:  # then the baseline is repeated here
        return runs
    switch = patched_by_lxt(name)
    patched = getattr(code, kind)(sizes).eval().requires_grad_(False)
    patched.load_state_dict(model.state_dict(), assign=True)  # the weights are in memory once
    switch(False)

    def by_lxt() -> None:
        switch(True)  # takes microseconds
        gradient_times_input(patched, embeddings, target)
        switch(False)

    return runs | {"lxt": by_lxt}


def autolrp() -> Runs:
    """AttnLRP of pixels; the two libraries share biases and sums otherwise."""
    from autolrp import LRPConfig, tensor

    model, images = Workload("vit_base_patch16_224").build()
    rules = preset("attnlrp").overridden({nn.Conv2d: GammaRule(0.25)})  # as in theirs
    return {
        "Saliency": partial(Saliency(model).attribute, images, target=TARGET),
        "autoLRP": lambda: model(tensor(images))[0, TARGET].lrp(config=LRPConfig.attnlrp()),
        **ours("TransformerLRP", lrp.TransformerLRP(model, preset=rules), images),
    }


def legrad() -> Runs:
    """LeGrad of all blocks of torchvision's ViT-B/16."""
    from torchcam.methods import LeGrad
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    model, images = vit_b_16().eval(), torch.randn(1, 3, 224, 224)
    nn.init.normal_(model.heads.head.weight)  # zero by default
    theirs = LeGrad(model, list(model.encoder.layers), enable_hooks=False)

    def by_torchcam() -> None:
        theirs.enable_hooks()
        theirs(TARGET, model(images), normalized=False)
        theirs.disable_hooks()

    return {
        "Saliency": partial(Saliency(model).attribute, images, target=TARGET),
        "torch-cam": by_torchcam,
        **ours("LeGrad", lrp.LeGrad(model), images),
    }


def authors() -> Runs:
    """The paper's method by hila-chefer/Transformer-Explainability, with the same weights."""
    explaining = import_module("baselines.ViT.ViT_explanation_generator")
    models = import_module("baselines.ViT.ViT_LRP")
    model, images = Workload("vit_base_patch16_224").build()
    theirs = models.vit_base_patch16_224()
    theirs.load_state_dict(model.state_dict())
    mock.patch.object(Tensor, "cuda", lambda self: self).start()  # it wants a GPU
    return {
        "Saliency": partial(Saliency(model).attribute, images, target=TARGET),
        "authors": partial(explaining.LRP(theirs).generate_LRP, images, TARGET),
        **ours("TransformerAttribution", lrp.TransformerAttribution(model), images),
    }


WORKS: dict[str, Callable[[], Runs]] = {
    "autolrp": autolrp, "authors": authors, "legrad": legrad,
}  # fmt: skip
WORKS["bert"] = partial(language_model, "bert", "BertForSequenceClassification", (TARGET,))
WORKS["qwen2"] = partial(
    language_model, "qwen2", "Qwen2ForCausalLM", (127, 5), hidden_size=896,
    intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2, num_hidden_layers=24,
    tie_word_embeddings=True, use_cache=False,
)  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")  # Captum's, of inputs that need no gradient
    runs = WORKS[sys.argv[1]]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(8):  # the first round is not counted
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    print(f"| {sys.argv[1]} | ms | × {next(iter(medians))} |\n|---|---:|---:|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds * 1e3:.0f} | {seconds / next(iter(medians.values())):.2f} |")
