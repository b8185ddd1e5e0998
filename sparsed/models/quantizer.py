"""How transformers quantises while it loads: each weight as soon as it is on its device, so that there is never more
than one that is not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparsed.models.numbers import QUANTISED
from sparsed.models.quantise import is_quantised, quantise

_METHOD = "sparsed"


@register_quantization_config(_METHOD)
class Quantization(QuantizationConfigMixin):
    """What `from_pretrained` is given as quantization_config."""

    def __init__(self, quantize: str) -> None:
        self.quant_method: Any = _METHOD
        self.quantize = quantize


@register_quantizer(_METHOD)
class Quantizer(HfQuantizer):
    """transformers' part: says which weights, how large they become, and what makes them."""

    quantization_config: Any

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        # What has another shape: transformers looks at those of weights that are not quantised.
        self.mismatched: set[tuple[str, Any, Any]] = set()

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        return is_quantised(param_name)

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        # transformers takes that much of a GPU's memory beforehand.
        if is_quantised(param_name):
            return QUANTISED[self.quantization_config.quantize]
        return param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self)

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False


class _Quantise(ConversionOps):
    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], *_: Any, **given: Any) -> dict[str, list[Tensor]]:
        """Takes over the one weight of input_dict, and leaves nothing to be set."""
        [value] = input_dict.values()
        value = value[0] if isinstance(value, list) else value
        model, name = given["model"], given["full_layer_name"]
        place = name.removesuffix(".weight")
        layer = model.get_submodule(place)
        given["missing_keys"].discard(name)
        if value.shape != layer.weight.shape:
            self.quantizer.mismatched.add((name, value.shape, layer.weight.shape))
            return {}
        layer.weight = nn.Parameter(value.to(layer.weight.dtype), requires_grad=False)
        quantise(model, name, self.quantizer.quantization_config.quantize)
        made = model.get_submodule(place)
        for part in (made, *made.parameters(recurse=False)):
            part._is_hf_initialized = True
        return {}
