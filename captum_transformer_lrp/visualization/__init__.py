"""Pictures and pages of attributions, drawn with matplotlib, jinja2 and rich.

Every function returns what it drew (a `matplotlib.figure.Figure`, an HTML page, a rich renderable)
and shows nothing, so that notebooks, servers and threads can use it alike.
"""

from captum_transformer_lrp.visualization.blocks import block_grid
from captum_transformer_lrp.visualization.image import (
    blend,
    class_grid,
    method_class_grid,
    on_photo,
    overlay,
    overlay_image,
)
from captum_transformer_lrp.visualization.matrices import token_matrix
from captum_transformer_lrp.visualization.records import from_record, to_record
from captum_transformer_lrp.visualization.report import Picture, Section, Table, report_html
from captum_transformer_lrp.visualization.text import (
    TextExplanation,
    text_figure,
    text_html,
    text_terminal,
)
from captum_transformer_lrp.visualization.words import Word, words_from_pieces

__all__ = [
    "Picture",
    "Section",
    "Table",
    "TextExplanation",
    "Word",
    "blend",
    "block_grid",
    "class_grid",
    "from_record",
    "method_class_grid",
    "on_photo",
    "overlay",
    "overlay_image",
    "report_html",
    "text_figure",
    "text_html",
    "text_terminal",
    "to_record",
    "token_matrix",
    "words_from_pieces",
]
