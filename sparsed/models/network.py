"""The network: transformers' own class, bidirectional, whose last layer can end with the rows that are asked for.

In a loaded network the decoder layers are exchanged for `Layer`, which holds the same modules and calls them in the
same order; where the family rotates in float32, so is the rotary embedding. No function of transformers is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch

from sparsed.attention import register
from sparsed.models import LoadError, reason
from sparsed.models.coverage import check_report
from sparsed.models.families import Checkpoint
from sparsed.models.layer import Float32Rotation, Layer
from sparsed.parallel.share import Share, localise

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(
    network: PreTrainedModel, *, float32_rotation: bool, share: Share | None = None
) -> PreTrainedModel:
    """Exchanges modules of a network with attention "sparsed", and sets it for inference. Returns it.

    share: of a network that was cut for several processes.
    """
    from accelerate.hooks import add_hook_to_module

    model: Any = network.model
    if float32_rotation:
        model.rotary_emb = Float32Rotation(network.config, input_device(network))
    last = len(model.layers) - 1
    for number, layer in enumerate(model.layers):
        ours = Layer(layer, last=number == last, share=share)
        # Weights spread over devices: the hook that brings a layer its inputs goes with the layer.
        if hasattr(layer, "_hf_hook"):
            add_hook_to_module(ours, layer._hf_hook)
        model.layers[number] = ours
    return network.eval().requires_grad_(False)


def input_device(network: PreTrainedModel) -> torch.device:
    """Where token ids go in. (Weights that accelerate keeps elsewhere come to their hook's device.)"""
    embedding: Any = network.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    return embedding.weight.device if place is None else torch.device(place)


def load_network(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    device_map: str | Mapping[str, Any] | None,
    on_weight: Callable[[str], None],
    share: Share | None = None,
    quantize: str | None = None,
) -> PreTrainedModel:
    """The weights of a folder of safetensors on transformers' own class.

    device_map: None puts everything on `device`; otherwise accelerate's ("auto", or module → device). share: this
    process reads its share alone, by transformers' tensor-parallel plan; all processes call this at the same time.
    on_weight: called with each weight's name in the network as it is loaded. quantize: see `sparsed.models.quantise`.
    Raises LoadError where weights are missing, left over, of another shape, unreadable, or too large for the memory.
    """
    import transformers
    from safetensors import SafetensorError

    register.register()
    where: dict[str, Any] = {"device_map": device_map}
    if share is not None:
        from transformers.distributed import DistributedConfig

        where = {"distributed_config": DistributedConfig(tp_size=share.size)}
    elif device_map is None and device.type != "cpu":
        where = {"device_map": {"": device}}
    if quantize is not None:
        from sparsed.models.quantizer import Quantization  # needs all of transformers' loading

        where["quantization_config"] = Quantization(quantize)
    with quiet_transformers(on_weight):
        try:
            # dtype= converts the weights alone; .to(dtype) would round the rotary frequencies too.
            network, report = getattr(transformers, checkpoint.network).from_pretrained(
                folder,
                config=checkpoint.config,
                dtype=dtype,
                attn_implementation=register.NAME,
                key_mapping=checkpoint.keys or None,
                local_files_only=True,
                use_safetensors=True,
                # What does not fit is reported below, in one sentence.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **where,
            )
        except SafetensorError as error:
            raise LoadError(f"The weights in {folder} cannot be read: {reason(error)}.") from error
        except torch.OutOfMemoryError as error:
            half = "load it in bfloat16, " if dtype == torch.float32 else ""
            whole = share is None and device_map is None and quantize is None
            spread = ", or spread it with device_map='auto'" if whole else ""
            raise LoadError(
                f"There is too little memory on the device for the weights in {folder}: {half}choose a smaller "
                f"model{spread}."
            ) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, OSError, RuntimeError) as error:
            if "offload_folder" in str(error):
                raise LoadError(
                    f"The experts in {folder} are stacked when they are loaded, and cannot be left on the disk: give "
                    f"device_map devices that hold them, or choose a smaller model."
                ) from error
            raise LoadError(f"The network in {folder} cannot be built: {reason(error)}.") from error
    if quantize is not None:
        report["mismatched_keys"] |= network.hf_quantizer.mismatched
        network.hf_quantizer.remove_quantization_config(network)
    check_report(report, folder)
    # transformers believes the weights, and says so in a warning alone.
    if checkpoint.config.tie_word_embeddings and not getattr(network, "all_tied_weights_keys", {"lm_head.weight"}):
        raise LoadError(
            f"config.json in {folder} ties the head to the embeddings, and the weights hold a head of its own: one of "
            f"them is wrong."
        )
    if share is not None:
        localise(network, share)
    return prepare(network, float32_rotation=checkpoint.float32_rotation, share=share)


# What the function below changes, and torch's default dtype while weights are loaded, belongs to the whole process.
_ONE_AT_A_TIME = RLock()


@contextmanager
def quiet_transformers(on_weight: Callable[[str], None] | None = None) -> Iterator[None]:
    """transformers' warnings and bars off for the moment: what is wrong is said in our own sentences. One thread at a
    time.

    on_weight hears of every weight that transformers would show on its bar.
    """
    from transformers.utils import logging

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if on_weight is None or not args or kwargs.get("desc") != "Loading weights":
            return factory(*args, **kwargs)
        return _heard(args[0], on_weight)

    with _ONE_AT_A_TIME:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        before = logging.set_tqdm_hook(hook)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def _heard(items: Any, on_weight: Callable[[str], None]) -> Iterator[Any]:
    for item in items:
        yield item
        on_weight(item[0])
