"""Token activation maps (Li et al., ICCV 2025), a baseline for models that see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from torch import Tensor

from captum_transformer_lrp.attr.arguments import captum_method, split_arguments
from captum_transformer_lrp.attr.targets import checked_target
from captum_transformer_lrp.attr.views import TokenGranularity, check_choice
from captum_transformer_lrp.engine.recording import find_logits
from captum_transformer_lrp.engine.watch.checks import tensors_of
from captum_transformer_lrp.engine.watch.thread_state import ThreadState
from captum_transformer_lrp.engine.watch.writes import unchanged
from captum_transformer_lrp.errors import ArgumentError


class TokenActivationMap(Attribution):
    r"""Where in a picture the language model's own head finds the word that it writes.

    The last layer's output of every token of the image is read as if a word were written there.
    With :math:`z_{j,c}` the logit of the word :math:`c` at position :math:`j`, and :math:`t` the
    written word,

    .. math::
        a_c = (z_{j,c})^+_{j \in \text{image}}, \qquad
        w_i = \frac{(z_{i,t})^+}{\sum_k (z_{k,t})^+}, \qquad
        I = \sum_{i:\, c_i \ne t} w_i\, a_{c_i}, \qquad
        m = \Big(a_t - \frac{\langle a_t, I\rangle}{\langle I, I\rangle} I\Big)^+

    where :math:`i` runs over the words :math:`c_i` of the text before :math:`t` (estimated causal
    inference: :math:`I` is what they would light up anyway).  :math:`m` and the
    :math:`(z_{i,t})^+` of the text are scaled to 0…1 together.  Each entry of :math:`m` then
    becomes a mean of the nine around it, sorted, with weights
    :math:`\exp(-r^2 / 2\sigma^2)` for the ranks :math:`r = -4 … 4`, and :math:`\sigma` their
    standard deviation by their mean (rank Gaussian filter).

    A word of the prompt is read at its own position, and one of the answer where it was predicted.
    The position that predicts :math:`t` itself is left out.  For the first word of the text, the
    word that the model finds most probable there stands for :math:`c_i`.  All text that was read
    counts as context, a chat template included.  The method takes one forward pass, and no
    operation needs a rule.

    Args:
        forward_func: the model, or a function that calls it, of token ids and pixels; it returns
            logits (N, S, vocabulary) or a Hugging Face ``ModelOutput``.
        image_token: the id of the tokens in whose place the image stands, such as
            ``model.config.image_token_index``.
        answer_start: the position at which the answer begins; None if all that is read is prompt.
        grid: rows and columns of the tokens of one picture; None for as many as fit its shape.
        kernel_size: entries along each side of what the filter reads, an odd number; 1 for none.

    Reference:
        Yi Li et al., *Token Activation Map to Visually Explain Multimodal LLMs*, ICCV 2025; details
        are those of their published code.

    Example:
        >>> import torch
        >>> from captum_transformer_lrp import TokenActivationMap, examples
        >>> model, processor = examples.digit_reader()
        >>> given = processor(images=examples.digit_picture(),
        ...     text="<image> name the digit on the left", return_tensors="pt")
        >>> three = processor.tokenizer.convert_tokens_to_ids("three")
        >>> method = TokenActivationMap(lambda ids, pixels:
        ...     model(input_ids=ids, pixel_values=pixels), model.config.image_token_index)
        >>> inputs = given["input_ids"], given["pixel_values"]
        >>> of_ids, of_pixels = method.attribute(inputs, target=(-1, three))
        >>> of_ids.shape, of_pixels.shape
        (torch.Size([1, 42]), torch.Size([1, 3, 24, 24]))
    """

    multiplies_by_inputs = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        image_token: int,
        *,
        answer_start: int | None = None,
        grid: tuple[int, int] | None = None,
        kernel_size: int = 3,
    ) -> None:
        super().__init__(forward_func)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ArgumentError(f"kernel_size must be 1, 3, 5 or so on, found {kernel_size!r}")
        self.image_token, self.answer_start = image_token, answer_start
        self.grid, self.kernel_size = grid, kernel_size

    @captum_method
    def attribute(
        self,
        inputs: tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: TokenGranularity = "input",
    ) -> tuple[Tensor, ...] | Tensor:
        """Explain one written token for each example of a batch.

        Args:
            inputs: token ids (N, S) and pixels (N, …, C, H, W), in the model's order.
            target: (position, token id), or a list with one for each example: the logit at the
                position that predicts the token.
            additional_forward_args: as in Captum, or a dictionary of keyword arguments.  Where its
                ``attention_mask`` (N, S) is 0 is padding, which gets 0.
            granularity: ``"input"`` for maps shaped as the inputs, bilinearly upsampled for the
                image, or ``"token"`` for (N, S), the image's tokens included.

        Returns:
            Attributions of 0 to 1 before the filter and the upsampling, float32 or as precise as
            the logits; a tuple if ``granularity`` is ``"input"``.

        Raises:
            ArgumentError: for inputs that are no token ids and pixels, or for a grid that does not
                fit.
            ValueError: for a target that the output has not.
        """
        return self.attribute_targets(
            inputs, [target], additional_forward_args, granularity=granularity
        )[0]

    def attribute_targets(
        self,
        inputs: tuple[Tensor, ...],
        targets: Sequence[Any],
        additional_forward_args: Any = None,
        *,
        granularity: TokenGranularity = "input",
    ) -> list[Any]:
        """Explain several targets of the same inputs from one forward pass.

        Takes the arguments of :meth:`attribute`, with a list of targets.

        Returns:
            For each target what :meth:`attribute` returns.
        """
        check_choice("granularity", granularity, TokenGranularity)
        ids, pixels = self._told_apart(inputs)
        logits = self._logits(inputs, ids, additional_forward_args)
        _, named = split_arguments(additional_forward_args)
        mask = named.get("attention_mask")
        live = mask.bool() if mask is not None else torch.ones_like(ids, dtype=torch.bool)
        found: list[Any] = []
        for target in targets:
            entries = checked_target(logits, target)
            rows = [
                self._of_example(logits[n], ids[n], live[n], pixels[n], (position, token))
                for n, (position, token) in enumerate(entries)
            ]
            if granularity == "token":
                found.append(torch.stack([row for row, _ in rows]))
                continue
            of_ids = torch.stack([row for row, _ in rows]).masked_fill(ids == self.image_token, 0)
            of_pixels = torch.stack([seen for _, seen in rows])
            found.append(tuple(of_ids if one is ids else of_pixels for one in inputs))
        return found

    def _told_apart(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Token ids and pixels."""
        given = tensors_of(inputs)
        ids = [one for one in given if one.dim() == 2 and not one.is_floating_point()]
        pixels = [one for one in given if one.dim() >= 4 and one.is_floating_point()]
        if len(given) != 2 or len(ids) != 1 or len(pixels) != 1:
            shapes = ", ".join(f"{one.dtype} {tuple(one.shape)}" for one in given)
            raise ArgumentError(
                f"found inputs of {shapes}, expected token ids (N, S) and pixels (N, …, C, H, W)"
            )
        return ids[0], pixels[0]

    def _logits(self, inputs: tuple[Tensor, ...], ids: Tensor, additional: Any) -> Tensor:
        """Logits (N, S, vocabulary) of one pass that leaves nothing behind."""
        args, named = split_arguments(additional)
        state, model = ThreadState(ids.device), self.forward_func
        with state, state, torch.no_grad(), unchanged(model, inputs, additional):
            logits = find_logits(model(*inputs, *args, **named))
        if logits.dim() != 3 or logits.shape[:2] != ids.shape:
            raise ArgumentError(
                f"the model returned shape {tuple(logits.shape)} for token ids "
                f"{tuple(ids.shape)}, expected logits (N, S, vocabulary) of every token, those of "
                "the image included"
            )
        return logits if logits.dtype == torch.float64 else logits.float()

    def _of_example(
        self, logits: Tensor, ids: Tensor, live: Tensor, pixels: Tensor, target: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The value of every token (S,) and of the pixels (…, C, H, W)."""
        places = torch.arange(len(ids), device=ids.device)
        position, token = target[0] % len(ids), target[1] % logits.shape[1]
        read = live & (places <= position)
        of_image = (live & (ids == self.image_token)).nonzero()[:, 0]
        if not len(of_image):
            raise ArgumentError(f"found no image_token {self.image_token} among the token ids")
        words = (read & (ids != self.image_token)).nonzero()[:, 0]
        start = len(ids) if self.answer_start is None else self.answer_start
        spoken = torch.where(words < start, words, words - 1)
        words, spoken = words[spoken < position], spoken[spoken < position]
        own = (logits[:, token].clamp(min=0) * read)[:, None]
        said = ids[words].clone()
        said[:1] = logits[spoken[:1]].argmax(1)
        others = ids[words] != token
        lit = logits[of_image].clamp(min=0) * read[of_image, None]
        activation = without_interference(
            own[of_image, 0], lit[:, said[others]], own[spoken[others], 0]
        )
        scaled = torch.cat([activation, own[spoken, 0]])
        scaled = scaled - scaled.min()
        scaled = scaled / scaled.max().clamp(min=torch.finfo(scaled.dtype).tiny)
        grids = self._grids(scaled[: len(of_image)], pixels)
        grids = rank_gaussian(grids, self.kernel_size)
        row = torch.zeros_like(own[:, 0])
        row[of_image], row[words] = grids.flatten(), scaled[len(of_image) :]
        channels, *size = pixels.shape[-3:]
        seen = F.interpolate(grids[:, None], size, mode="bilinear", align_corners=False) / channels
        return row, seen.expand(-1, channels, -1, -1).reshape(pixels.shape)

    def _grids(self, values: Tensor, pixels: Tensor) -> Tensor:
        """Values of an image's tokens as (pictures, rows, columns)."""
        height, width = pixels.shape[-2:]
        pictures = pixels.shape[:-3].numel()
        count = len(values) // pictures
        rows = max(round((count * height / width) ** 0.5), 1)
        rows, columns = self.grid or (rows, count // rows)
        if pictures * rows * columns != len(values):
            raise ArgumentError(
                f"found {len(values)} tokens of the image for {pictures} picture(s) of "
                f"{height} × {width} pixels, expected {pictures} × {rows} × {columns}: give "
                "grid=(rows, columns)"
            )
        return values.reshape(pictures, rows, columns)


def without_interference(activation: Tensor, context: Tensor, relevance: Tensor) -> Tensor:
    """What a word lights up in the image beyond what the words before it do.

    Args:
        activation: (tokens of the image,), not negative.
        context: (tokens of the image, words), that of each word before.
        relevance: (words,), how much each says of the word, not negative.

    Returns:
        (tokens of the image,), not negative.

    Example:
        >>> without_interference(
        ...     torch.tensor([1.0, 1.0]), torch.tensor([[2.0], [0.0]]), torch.tensor([3.0]))
        tensor([0., 1.])
    """
    weights = relevance / relevance.sum().clamp(min=torch.finfo(relevance.dtype).tiny)
    interference = context @ weights
    power = interference @ interference
    if float(power) == 0:
        return activation
    return (activation - (activation @ interference) / power * interference).clamp(min=0)


def rank_gaussian(grids: Tensor, kernel_size: int = 3) -> Tensor:
    """Each entry as a mean of those around it, by their ranks: the middle ones count most.

    Args:
        grids: (N, rows, columns), not negative.
        kernel_size: how many entries are read along each side.

    Returns:
        A tensor of the same shape.

    Example:
        >>> spike = torch.zeros(1, 5, 5)
        >>> spike[0, 2, 2] = 1
        >>> float(rank_gaussian(spike).max()) < 0.2
        True
    """
    if kernel_size == 1:
        return grids
    pad, least = kernel_size // 2, min(grids.shape[1:])
    padded = F.pad(grids[:, None], [pad] * 4, mode="reflect" if least > pad else "replicate")
    windows = F.unfold(padded, kernel_size).sort(1).values
    mean = windows.mean(1, keepdim=True)
    tiny = torch.finfo(grids.dtype).eps
    sigma = windows.std(1, keepdim=True, correction=0) / mean.clamp(min=tiny)
    rank = torch.arange(kernel_size**2, device=grids.device) - kernel_size**2 // 2
    weights = torch.exp(-(rank**2)[:, None] / (2 * sigma.clamp(min=1e-6) ** 2))
    filtered = (windows * weights).sum(1) / weights.sum(1)
    return (filtered * (mean[:, 0] > 0)).reshape(grids.shape)
