"""An adapter method of one's own: only biases are trained.

`train_method(folder, "biases", ...)` trains it as it does CALA, `deliver` sends with it.
"""

from __future__ import annotations

from dekag.cala.methods import AdaptedCodec
from dekag.codec import JsccCodec


class Biases(AdaptedCodec):
    """BitFit: the codec's weights stay, its biases are trained, the same for all conditions."""

    name, title = "biases", "biases alone"
    learning_rate = 3e-3
    sized = False  # there are as many biases as there are

    def __init__(self, codec: JsccCodec) -> None:
        super().__init__(codec)
        for parameter, values in codec.named_parameters():
            values.requires_grad_(parameter.endswith("bias"))
