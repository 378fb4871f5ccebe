"""What is said at once of names that would have to be downloaded and cannot be."""

from __future__ import annotations

import re
from pathlib import Path


def as_address(given: str | Path) -> str | None:
    """The address on the web that was given in the place of a file or a name, if it is one.

    >>> as_address(Path("https://example.org/cat.jpg")), as_address("photos/cat.jpg")
    ('https://example.org/cat.jpg', None)
    >>> as_address("C:/cat.jpg")
    """
    parts = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(given))  # a Path folds slashes
    return None if parts is None or Path(given).exists() else f"{parts[1]}://{parts[2]}"


def name_in_address(address: str) -> str | None:
    """The name that a model has on the hub whose page this is.

    >>> name_in_address("https://huggingface.co/google/vit-base-patch16-224/tree/main")
    'google/vit-base-patch16-224'
    """
    parts = re.match(r"[a-z]+://(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)", address)
    return None if parts is None else parts[1]


def check_reachable(repository: str) -> None:
    """Raise at once where a model is neither in the cache nor the hub can be asked for it.

    The hub's own client tries again for half a minute.

    Raises:
        OSError: says why the hub cannot be reached.
    """
    from huggingface_hub import constants, get_session

    cached = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    if cached.exists():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # requests, httpx and offline mode have their own
        raise OSError(f"{constants.ENDPOINT} cannot be reached: {error}") from error
