"""CALA: condition-aware low-rank adaptation of the codec, as a method of PEFT.

Importing this package registers it: `get_peft_model(codec, CalaConfig(...))`, `save_pretrained` and
`PeftModel.from_pretrained` then work as for PEFT's own methods.
"""

from peft.utils import register_peft_method

from dekag.cala.conditions import CONDITION_FEATURES, condition_vector
from dekag.cala.config import CalaConfig
from dekag.cala.layer import CalaLayer
from dekag.cala.model import CalaModel

__all__ = ["CONDITION_FEATURES", "CalaConfig", "CalaLayer", "CalaModel", "condition_vector"]

register_peft_method(name="cala", config_cls=CalaConfig, model_cls=CalaModel)
