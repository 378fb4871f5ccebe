"""From what a user types to the index of a class."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence


def resolve_target(target: str, class_names: Sequence[str]) -> int:
    """The index of a class given by its index or its name.

    A name may be written in any case, and may be a part of the class's name where no class is
    called exactly so. In `"tabby, tabby cat"`, both synonyms are names.

    Raises:
        ValueError: where the name fits several classes or none; the message lists the nearest.

    Example:
        >>> resolve_target("Retriever", ["tabby cat", "golden retriever"])
        1
        >>> resolve_target("dog", ["tabby cat", "golden retriever"])
        Traceback (most recent call last):
        ...
        ValueError: no class is called 'dog': give an index from 0 to 1, or a name such as
        0 (tabby cat), 1 (golden retriever)
    """
    last = len(class_names) - 1
    if target.strip().lstrip("-").isdecimal():
        index = int(target)
        if not 0 <= index <= last:
            raise ValueError(f"found target {index}, expected an index from 0 to {last}")
        return index
    wanted = " ".join(target.split()).casefold()
    folded = [name.casefold() for name in class_names]
    exact = [index for index, name in enumerate(folded) if wanted in (name, *name.split(", "))]
    parts = [index for index, name in enumerate(folded) if wanted and wanted in name]
    # "cat" means a tiger cat rather than a muscat.
    whole = [index for index in parts if re.search(rf"\b{re.escape(wanted)}\b", folded[index])]
    matches = exact or whole or parts
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(
            f"{target!r} may mean {len(matches)} classes, {_listed(matches, class_names)}: "
            "give the index of one"
        )
    nearest = [folded.index(name) for name in difflib.get_close_matches(wanted, folded, n=5)]
    raise ValueError(
        f"no class is called {target!r}: give an index from 0 to {last}, or a name such as "
        f"{_listed(nearest or range(len(class_names)), class_names)}"
    )


def _listed(indices: Sequence[int], class_names: Sequence[str], most: int = 5) -> str:
    names = [f"{index} ({class_names[index]})" for index in indices[:most]]
    return ", ".join(names) + (", …" if len(indices) > most else "")
