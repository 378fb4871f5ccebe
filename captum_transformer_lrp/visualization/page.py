"""HTML pages from the templates of this package; everything put into them is escaped."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from captum_transformer_lrp.printing import printable


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("captum_transformer_lrp.visualization"),
        autoescape=True,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalized(value: object) -> object:
    """What is put into a page; control characters are shown rather than obeyed."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value.replace("\r\n", "\n"), keep="\n\t")
    return value


def render(template: str, **values: object) -> str:
    """Fill a template.

    >>> "<!doctype html>" in render("text.html.jinja", title="t", lang="en", texts=[], footer={})
    True
    """
    return _environment().get_template(template).render(**values)
