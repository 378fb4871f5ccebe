"""Checks of one model that anybody can run: whether its explanation can be trusted, and why not."""

from captum_transformer_lrp.verification.checks import verify as verify
from captum_transformer_lrp.verification.results import Check as Check
from captum_transformer_lrp.verification.results import Verification as Verification
