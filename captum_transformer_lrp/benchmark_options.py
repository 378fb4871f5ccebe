"""The options of every benchmark: one table for Python and for the command line.

Each option is a field with its default and a sentence about it.  A benchmark inherits its options;
the command line makes an option of each field.  Nothing here waits for PyTorch to be imported.
"""

# ruff: noqa: RUF009 - an option is a field

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

Explained: TypeAlias = Literal["predicted", "target"]

PAPER: Final = (
    "transformer_attribution",
    "attention_rollout",
    "raw_attention",
    "attention_gradcam",
    "transformer_lrp:preset=lrp:epsilon=0",
    "partial_lrp:epsilon=0",
)
"""The six methods of the paper's tables 1 and 2.

The baselines are as published: LRP by eq. 4 without normalisation, and eq. 2 as printed."""

ABLATIONS: Final = (
    "transformer_attribution:head_weighting=attention",
    "transformer_attribution:layers=[-1]",
    "transformer_attribution:layers=[1]",
)
"""The variants of the paper's table 3: A in the place of ∇A, only the block nearest the output, and
only block B − 1, the second from the input."""


def option(default: Any, about: str, **more: Any) -> Any:
    """A field with a sentence about it.

    ``more`` are ``least``, ``above`` and ``most``, the limits of numbers; ``flag``, how the command
    line spells it; ``joined`` where it takes several with commas between them; ``recorded=False``
    where no record depends on it.
    """
    return field(default=default, metadata={"about": about, **more})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark takes."""

    limit: int | None = option(
        None, "At most so many examples, spread evenly over the data.", least=1, recorded=False
    )
    device: Any = option("cpu", "Where the model runs: cpu, cuda, cuda:1, …", recorded=False)


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """What every benchmark of images takes."""

    compile: Literal["eager", "inductor"] | None = option(
        None,
        "Compile each method for single images: eager records its operations, inductor makes "
        "machine code of them. Pays after some hundred maps. Default: nothing is compiled.",
    )


@dataclass(frozen=True, kw_only=True)
class RemovalOptions(Options):
    """What every benchmark takes that removes tokens."""

    removal: Literal["delete", "mask"] = option(
        "delete", "Delete tokens, or replace them by [MASK]."
    )


@dataclass(frozen=True, kw_only=True)
class PhotoOptions(ImageOptions):
    """What every benchmark of labelled photos takes."""

    labels: Path | None = option(
        None, "A file of lines 'photo.jpg 281', if names do not tell.", recorded=False
    )


@dataclass(frozen=True, kw_only=True)
class PerturbationOptions(PhotoOptions):
    """Those of the perturbation test."""

    explain: Sequence[Explained] = option(
        get_args(Explained), "The predicted or the true class; may be given twice."
    )
    removal: Literal["black", "mean", "blur", "road"] = option(
        "black",
        "What comes in the place of pixels: black before normalisation, the model's mean colour, "
        "a Gaussian blur as wide as a twentieth of the photo, or the noisy mean of the neighbours "
        "(ROAD).",
    )
    cells: int | None = option(
        None,
        "Remove whole cells of a grid with so many along each side, by their mean relevance: fair "
        "to maps of single pixels. Default: single pixels, as the paper.",
        least=1,
    )
    resize: Literal["whole", "model"] = option(
        "whole", "All of the photo, as the paper, or cropped as the model has it."
    )


@dataclass(frozen=True, kw_only=True)
class MetricOptions(PhotoOptions):
    """Those of single metrics."""

    metrics: Sequence[str] = option(
        (
            "deletion:blur:cells=14",
            "insertion:blur:cells=14",
            "road:cells=14",
            "saco",
            "mprt",
            "random_logit",
            "sparseness",
        ),
        "What is measured, with options after colons; may be given several times, or with commas. "
        "A wrong name lists all.",
        flag="--metric",
    )
    explain: Explained = option("predicted", "The predicted or the true class.")


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(ImageOptions):
    """Those of the segmentation test."""

    explain: Explained | None = option(
        None, "The predicted class, or the object's. Default: the object's if known."
    )


@dataclass(frozen=True, kw_only=True)
class GridOptions(PhotoOptions):
    """Those of the grid pointing game."""

    grid: int = option(2, "Photos along each side.", least=2)
    rounds: int = option(
        1, "How often the photos are shared out; in each round a photo is in one grid.", least=1
    )
    confidence: float = option(0.9, "The least probability of a photo's class.", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    """What every benchmark of annotated texts takes."""

    split: str = option("test", "train, val or test.", recorded=False)
    fusion: Literal["sum", "max", "mean"] = option(
        "sum", "How the attributions of a token's pieces become one."
    )
    labels: Mapping[str, str] | None = option(
        None,
        "What the classifier calls a class of the corpus: NEG=LABEL_0. May be given several times; "
        "classes of the same name need none.",
        flag="--label",
        recorded=False,
    )
    max_length: int = option(
        512, "The most pieces of a document that the classifier is given.", least=3
    )
    explain: Sequence[Explained] = option(
        ("predicted",), "The predicted class or the document's; may be given twice."
    )


@dataclass(frozen=True, kw_only=True)
class RationaleOptions(TextOptions):
    """Those of the comparison with human rationales."""

    top_k: Sequence[int] = option(
        (10, 20, 30, 40, 50, 60, 70, 80),
        "How many tokens to select: FIRST:LAST:STEP, or 10,20,50.",
        least=1,
        joined=True,
    )
    explain: Sequence[Explained] = option(
        ("target",), "The document's class or the predicted one; may be given twice."
    )


@dataclass(frozen=True, kw_only=True)
class TextPerturbationOptions(RemovalOptions, TextOptions):
    """Those of comprehensiveness and sufficiency."""

    bins: Sequence[float] = option(
        (1.0, 5.0, 10.0, 20.0, 50.0),
        "Shares of the tokens in per cent, with commas between them.",
        above=0,
        most=100,
        joined=True,
    )


@dataclass(frozen=True, kw_only=True)
class TextMetricOptions(TextOptions):
    """Those of single metrics of texts."""

    metrics: Sequence[str] = option(
        ("deletion", "insertion", "saco", "mprt", "random_logit", "sparseness"),
        "What is measured, with options after colons; may be given several times, or with commas. "
        "A wrong name lists all.",
        flag="--metric",
    )


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Those of the measurement of time and memory."""

    model: Sequence[str] = option(
        ("vit_base_patch16_224",),
        "A timm name, bert-base or llama-8b; random weights. May be given several times.",
    )
    batch: Sequence[int] = option((1,), "Examples at once; may be given several times.", least=1)
    tokens: Sequence[int] = option((128,), "Lengths of texts; of no effect on images.", least=1)
    depth: Sequence[int] = option((), "Numbers of blocks. Default: the model's own.", least=1)
    method: Sequence[str] = option((), "Methods to time; a wrong name lists all. Default: all.")
    repeats: int = option(7, "Rounds; the median counts.", least=1)
    threads: int | None = option(None, "Threads of PyTorch.", least=1)
    cpu_time: bool = option(
        False, "Count processor time, for a machine that is busy.", flag="--cpu-time"
    )
    memory: bool = option(
        False, "Measure peak memory, too, in a process for each.", flag="--memory"
    )
    dtype: Literal["float32", "tf32", "bfloat16"] = option(
        "float32", "Precision. A GPU multiplies float32 in tf32 if you ask for it."
    )
    device: Any = option("cpu", "Where the model runs: cpu, cuda, cuda:1, …")
    output: Path | None = option(
        None, "A Markdown file; the figures are written beside it as JSON."
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every command takes, and no benchmark."""

    output: Path | None = option(
        None, "The folder for results; by default benchmark-NAME. Processes share it."
    )
    seed: int = option(0, "Of methods that draw random numbers.")
    quiet: bool = option(
        False,
        "No progress bar and no table; files are written, damaged examples named.",
        flag="--quiet",
    )
    so_far: bool = option(
        False, "Run nothing: show what an unfinished run has found.", flag="--so-far"
    )


@dataclass(frozen=True)
class Command:
    """A benchmark as the command line has it: what ``--data`` is, what it does, its function."""

    options: type[Options]
    data: str
    about: str
    function: str
    methods: tuple[str, ...] = ("paper",)
    reads: Literal["images", "texts", "prompts"] = "images"
    takes_file: bool = False


_PHOTOS = "A folder of photos whose names tell the class."
_CORPUS = "A folder in the format of ERASER: docs/ and test.jsonl."

COMMANDS: Final[Mapping[str, Command]] = {
    "perturbation": Command(
        PerturbationOptions,
        _PHOTOS,
        "Remove pixels in the order of each map and measure the accuracy (tables 1 and 3).",
        "perturbation",
    ),
    "metrics": Command(
        MetricOptions,
        _PHOTOS,
        "Measure maps: faithfulness, sanity, robustness, sparseness, any metric of Quantus.",
        "map_metrics",
    ),
    "segmentation": Command(
        SegmentationOptions,
        "gtsegs_ijcv.mat, a folder with an index.json, or one with JPEGImages and "
        "SegmentationClass.",
        "Compare maps with the masks of objects (tables 2 and 3).",
        "segmentation",
        takes_file=True,
    ),
    "grid-pointing": Command(
        GridOptions,
        _PHOTOS,
        "See whether the map of each class in a grid of photos is in its own photo's cell.",
        "grid_pointing",
    ),
    "rationale": Command(
        RationaleOptions,
        _CORPUS,
        "Compare the tokens ranked highest with those that people marked (figure 4).",
        "rationale",
        reads="texts",
    ),
    "text-perturbation": Command(
        TextPerturbationOptions,
        _CORPUS,
        "Take the tokens ranked highest away, or keep only them (ERASER's AOPC).",
        "text_perturbation",
        ("paper", "random"),
        reads="texts",
    ),
    "text-metrics": Command(
        TextMetricOptions,
        _CORPUS,
        "Measure maps of tokens: deletion and insertion, sanity, sparseness.",
        "text_metrics",
        reads="texts",
    ),
    "generation": Command(
        RemovalOptions,
        'A file of lines {"prompt": …, "written": …, "evidence": [[FROM, TO]], "context": …}.',
        "See whether maps of what a language model writes find where it comes from.",
        "generation",
        ("transformer_attribution", "attnlrp", "input_x_gradient", "random"),
        reads="prompts",
        takes_file=True,
    ),
}


def options_of(kind: type) -> list[tuple[Field[Any], Any]]:
    """Each option of a benchmark, or of a class of options, with its type.

    >>> [one.name for one, _ in options_of(GridOptions)]
    ['limit', 'device', 'compile', 'labels', 'grid', 'rounds', 'confidence']
    """
    hints = get_type_hints(kind)
    return [(one, hints[one.name]) for one in fields(kind) if "about" in one.metadata]


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that an option may be, or be several of; none if it takes others.

    >>> choices_of(Explained | None), choices_of(Sequence[Explained]), choices_of(int)
    (('predicted', 'target'), ('predicted', 'target'), ())
    """
    if get_origin(kind) is Literal:
        return tuple(get_args(kind))
    return next(filter(None, map(choices_of, get_args(kind))), ())


def wrong_option(options: Any) -> str | None:
    """What is wrong with the first option that does not fit; None if all fit."""
    for one, kind in options_of(type(options)):
        value, limits = getattr(options, one.name), one.metadata
        several = get_origin(kind) is Sequence
        if several and isinstance(value, str):
            return f"found {one.name} {value!r}, expected a list: [{value!r}]"
        found = list(value) if several else [] if value is None else [value]
        if several and (not found or len(set(found)) < len(found)):
            return f"{one.name} must be different ones, found {found or 'nothing'}"
        if (known := choices_of(kind)) and not set(found) <= set(known):
            words = " or ".join(map(repr, known))
            return f"found {one.name} {', '.join(map(repr, found))}, expected {words}"
        for name, holds, words in (
            ("least", lambda x, y: x >= y, "at least"),
            ("above", lambda x, y: x > y, "above"),
            ("most", lambda x, y: x <= y, "at most"),
        ):
            if name in limits and not all(holds(x, limits[name]) for x in found):
                return f"{one.name} must be {words} {limits[name]}, found {value}"
    return None
