"""What is carried backward over a tape: the gradient, relevance, token mass."""

from captum_transformer_lrp.engine.phases.gradient import Gradient
from captum_transformer_lrp.engine.phases.relevance import Relevance
from captum_transformer_lrp.engine.phases.rollout import Arrivals, Rollout

ALL_PHASES = (Relevance, Rollout, Gradient)

__all__ = ["ALL_PHASES", "Arrivals", "Gradient", "Relevance", "Rollout"]
