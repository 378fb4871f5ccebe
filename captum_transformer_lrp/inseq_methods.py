"""The methods of this library as methods of inseq, in whose tables and pages they then stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from torch import Tensor

from captum_transformer_lrp.attr.comparison import METHODS
from captum_transformer_lrp.results.written import of_this_library


@cache
def register_methods() -> dict[str, type]:
    """Make the methods of this library known to inseq, by the names that ``compare`` has for them.

    Each token gets one value with its sign.  inseq's default is to explain the probability, and
    the paper's rules explain logits alone: give ``attributed_fn="logit"``.  What is given to
    ``inseq.load_model`` beside the name goes to the class of the method.

    Returns:
        The classes that inseq knows, by name.

    Raises:
        ImportError: where inseq is not installed.

    Example::

        import inseq
        from captum_transformer_lrp.inseq_methods import register_methods

        register_methods()
        model = inseq.load_model("gpt2", "attnlrp")
        model.attribute("The capital of France is", attributed_fn="logit").show()
    """
    # inseq finds methods among the subclasses of this one, for as long as somebody holds them.
    from inseq.attr.feat.feature_attribution import FeatureAttribution

    return {
        name: type(
            f"{name.title().replace('_', '')}Attribution",
            (FeatureAttribution,),
            {"method_name": name, "__init__": _initialise, "attribute_step": _step},
        )
        for name in METHODS
        if of_this_library(name)
    }


def _initialise(self: Any, attribution_model: Any, **options: Any) -> None:
    """What makes a method of inseq of one of ours."""
    from inseq.attr.feat.feature_attribution import FeatureAttribution

    FeatureAttribution.__init__(self, attribution_model)
    self.attribute_batch_ids = True  # methods of this library find the embeddings themselves
    self.method = METHODS[self.method_name](partial(_logits, attribution_model.model), **options)


def _step(
    self: Any, attribute_fn_main_args: Mapping[str, Any], attribution_args: Mapping[str, Any] = {}
) -> Any:
    """One written token: the maps (N, S) of what was read."""
    from inseq.data import CoarseFeatureAttributionStepOutput

    model = self.attribution_model
    both = len(attribute_fn_main_args["inputs"]) > 1
    rest = list(attribute_fn_main_args["additional_forward_args"])
    if model.is_encoder_decoder:
        # Without the map of what was written, its embeddings stand before all.
        source, ids, target, function, mask, own_mask, _, names, *values = rest[not both :]
        inputs: Any = (source, ids)
        arguments = {"attention_mask": mask, "decoder_attention_mask": own_mask}
        read = {"encoder_input_ids": source, "encoder_attention_mask": mask}
    else:
        ids, target, function, mask, _, names, *values = rest
        inputs, own_mask, arguments, read = ids, mask, {"attention_mask": mask}, {}
    read = {**read, "decoder_input_ids": ids, "decoder_attention_mask": own_mask}
    options = {name: one for name, one in zip(names, values, strict=True) if one is not None}

    def score(logits: Tensor) -> Tensor:
        """What inseq makes of the logits (N, positions, vocabulary): a value for each example."""
        return _scored(model, logits, target.squeeze(-1), read, partial(function, **options))

    maps = self.method.attribute(inputs, score, arguments, **attribution_args)
    of_source, of_written = maps if model.is_encoder_decoder else (None, maps)
    if model.is_encoder_decoder and not both:
        of_written = None
    return CoarseFeatureAttributionStepOutput(
        source_attributions=of_source, target_attributions=of_written
    )


def _logits(model: Any, input_ids: Tensor, decoder_input_ids: Any = None, **others: Any) -> Tensor:
    """The logits of a model of transformers, a second input being what was written."""
    written = {} if decoder_input_ids is None else {"decoder_input_ids": decoder_input_ids}
    return model(input_ids=input_ids, use_cache=False, **written, **others).logits


def _scored(
    model: Any,
    logits: Tensor,
    target: Tensor,
    read: Mapping[str, Tensor],
    function: Callable[[Any], Tensor],
) -> Tensor:
    """What a step function of inseq makes of logits; it reads them from the model's output."""
    from transformers.modeling_outputs import CausalLMOutput

    batch = model.formatter.convert_args_to_batch(**read)
    step = model.formatter.format_step_function_args(
        attribution_model=model, forward_output=CausalLMOutput(logits=logits), target_ids=target,
        batch=batch, is_attributed_fn=True,
    )  # fmt: skip
    return function(step)
