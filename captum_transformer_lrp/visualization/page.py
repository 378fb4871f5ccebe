"""HTML pages from the templates of this package; everything put into them is escaped."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("captum_transformer_lrp.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: object) -> str:
    """Fill a template.

    >>> "<!doctype html>" in render("text.html.jinja", title="t", lang="en", texts=[])
    True
    """
    return _environment().get_template(template).render(**values)
