"""Noticing a model that computes NaN, instead of handing on its noise as text or figures."""

import numpy as np

from rfjax.errors import ModelFormatError


def check_not_nan(values: np.ndarray, dtype: str) -> None:
    """Refuse NaN among log-probabilities; infinities can be right (a probability of zero).

    Args:
        values: any shape, on the host.
        dtype: of the model's activations, for the message.

    Raises:
        ModelFormatError: there is a NaN.
    """
    if np.isnan(values).any():
        remedy = (
            "its weights are damaged: fetch the file again"
            if dtype == "float32"
            else "load it with dtype='float32'; if that gives NaN too, its weights are damaged"
        )
        raise ModelFormatError(
            f"the model computes NaN in {dtype}, expected log-probabilities: {remedy}"
        )
