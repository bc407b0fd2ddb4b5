"""A model from its name: a folder, an architecture at toy size, a hub model."""

from __future__ import annotations

import logging
from pathlib import Path
from textwrap import shorten

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_mixup.cli.inspect.toy import toy_model
from hf_mixup.config.checks import nearest
from hf_mixup.forward.anatomy.inputs import text_config
from hf_mixup.forward.anatomy.unsupported import refuse_without_accelerator

NO_TEXT = "no text classifier of transformers; load it in Python and call hf_mixup.inspect_model(model)."
logger = logging.getLogger(__name__)


def named_model(
    name: str, attention: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, str]:
    """The classifier of a name, in float32, and what the name was taken for: of texts, unless it was saved of tokens.

    Args:
        name (`str`): the first of these that there is: a folder; a model type of transformers, which is built at toy
            size; a hub name. `demo:minilm` is the demo model.
        attention (`str`, *optional*): the attention kernel; by default what the model chooses. For those that a CPU
            cannot run, the model is put on an accelerator if there is one.
        trust_remote_code (`bool`, defaults to `False`): run model code that comes with the model.

    Raises:
        ValueError: for a model that cannot be built.
        FileNotFoundError: for a name that is none of these, with the nearest model type.
    """
    refuse_without_accelerator(attention)
    types = sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    path = name
    if name.startswith("demo:"):
        # Imported here: the data sets beside it take a second that other models need not wait for.
        from hf_mixup.cli.demo import model_path

        path = model_path(name)
    is_folder = Path(path).is_dir()
    if name in CONFIG_MAPPING_NAMES and name not in types and not is_folder:
        raise ValueError(f"model={name!r}: {NO_TEXT}")
    # A model without a classification head gets a random one, which is to be the same each time.
    set_seed(0)
    try:
        if name in types and not is_folder:
            model, source = toy_model(name, attention), f"model type {name} at toy size, random weights"
        else:
            kernel = {} if attention is None else {"attn_implementation": attention}
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            tags = any(name.endswith("ForTokenClassification") for name in config.architectures or ())
            model = (AutoModelForTokenClassification if tags else AutoModelForSequenceClassification).from_pretrained(
                path, dtype=torch.float32, trust_remote_code=trust_remote_code, **kernel
            )
            source = f"{'demo model' if path != name else 'folder' if is_folder else 'hub model'} {name}"
    except OSError as error:
        unknown = "no such folder or model type, and no such model within reach on the hub."
        reason = _short(error) if is_folder else f"{unknown}{nearest(name, types)}"
        raise FileNotFoundError(f"model={name!r}: {reason}") from error
    except Exception as error:
        if "Unrecognized configuration class" in str(error):
            raise ValueError(f"model={name!r}: {NO_TEXT}") from error
        if attention is not None and "FlashAttention" in str(error):
            raise ValueError(
                f"attn_implementation={attention!r}: {_short(error)} eager and sdpa need neither it nor a GPU."
            ) from error
        raise ValueError(f"model={name!r}: {_short(error)}") from error
    _set_pad_token(model)
    if attention not in (None, "eager", "sdpa") and torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    return model, source


def _set_pad_token(model: PreTrainedModel) -> None:
    config = text_config(model)
    eos = getattr(config, "eos_token_id", None)
    if getattr(config, "pad_token_id", None) is None and eos is not None:
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
        logger.warning("The model has no pad token: its eos token %s serves as one.", config.pad_token_id)


def _short(error: Exception) -> str:
    return shorten(str(error), 300, placeholder=" ...")
