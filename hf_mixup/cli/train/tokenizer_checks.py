"""Whether a tokenizer belongs to a model and to the texts, looked at before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain

from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Texts that are tokenised for the look.
SAMPLE = 1000
# How modules are called that look up positions, and by how many rows their tables may be longer (BART, OPT).
POSITIONS, SPARE = ("position", "wpe"), 2
# Shares of unknown tokens.
REFUSED_ABOVE, WARNED_ABOVE = 0.5, 0.1


def check_tokenizer(
    name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, columns: Sequence[Sequence[str]]
) -> None:
    """Check that texts become tokens that the model has.

    Args:
        name (`str`): what `tokenizer_name` or `model_name_or_path` says, for messages.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        model (`PreTrainedModel`): the model.
        columns (`Sequence[Sequence[str]]`): the training texts, one or two columns of them.

    Raises:
        ValueError: for texts without tokens, of which most tokens are unknown, or with tokens that the embedding of the
            model does not have.
    """
    embedding = model.get_input_embeddings()
    size = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None
    # With tokens beyond the embedding every text is looked at, as each may hold one.
    is_larger = size is not None and max(tokenizer.get_vocab().values(), default=0) >= size
    texts = [text for column in columns for text in (column if is_larger else column[:SAMPLE])]
    tokens = tokenizer(texts)["input_ids"]
    empty = sum(not row for row in tokens)
    if empty * 2 > len(tokens):
        raise ValueError(
            f"tokenizer_name={name!r}: {empty} of {len(tokens)} texts have no tokens at all; does the folder hold the "
            "files of a tokenizer? Name another one with tokenizer_name."
        )
    _check_unknown(name, tokenizer, texts[:SAMPLE])
    largest = max(chain.from_iterable(tokens), default=0)
    if size is not None and largest >= size:
        raise ValueError(
            f"tokenizer_name={name!r}: the tokenizer has token {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}), but the model has {size}; name the model's own tokenizer."
        )


def _check_unknown(name: str, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    unknown = tokenizer.unk_token_id
    tokens = [token for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in row]
    if unknown is None or not tokens:
        return
    share = tokens.count(unknown) / len(tokens)
    words = f"{share:.0%} of the tokens of the training texts are unknown to the tokenizer"
    if share > REFUSED_ABOVE:
        raise ValueError(
            f"tokenizer_name={name!r}: {words}; is it the model's, with its files in the folder, and of the language "
            "of the texts? Name another one with tokenizer_name."
        )
    if share > WARNED_ABOVE:
        logger.warning("tokenizer_name=%r: %s.", name, words)


def lacks_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words in a list become other tokens than in a text: those of byte-level BPE begin with their blank."""
    splitter = tokenizer.backend_tokenizer.pre_tokenizer if tokenizer.is_fast else None
    return isinstance(splitter, ByteLevel) and not splitter.add_prefix_space


def begin_words_with_blanks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the blank in tokenizers that do not follow their own `add_prefix_space`."""
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True


def longest_text(model: PreTrainedModel) -> int | None:
    """How many positions the model has a table for; `None` if it has none, as with rotary or relative positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for path, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) and any(word in path.rpartition(".")[2] for word in POSITIONS)
        if not is_table or not isinstance(limit, int) or not limit <= module.num_embeddings <= limit + SPARE:
            continue
        # RoBERTa and its like count positions from after the padding, in a table that has a place for it.
        is_shifted = module.num_embeddings == limit and module.padding_idx is not None
        return limit - module.padding_idx - 1 if is_shifted else limit
    return None
