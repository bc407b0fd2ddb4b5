"""Batches of rows without labels, beside those of a training: endless, in the same order again, resumed anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers.utils import logging

from hf_mixup.config.unlabeled_config import GIVEN
from hf_mixup.loss.task import check_labels
from hf_mixup.training.trainer_seams import same_random_state

logger = logging.get_logger(__name__)

# Seeds of this package go with a number for what they are for; 1 is that of held-out rows.
ORDER, MASK = 2, 3
# Probabilities in half precision do not sum to 1 exactly.
ROUNDING = 0.01


class UnlabeledRows:
    """Batches of an unlabelled data set for one process of several.

    A data set of known length is read in an order that is drawn anew in each pass, a stream as it comes, again and
    again. Each process takes every `world`-th row. Nothing of it takes a random number from the training.

    Args:
        dataset (`Dataset` or `IterableDataset`): rows as the collator takes them.
        collate (`Callable`): makes a batch of a list of rows.
        size (`int`): rows per batch.
        seed (`int`), rank (`int`), world (`int`): of the order; the process, and how many there are.
        workers (`int`): of the `DataLoader`; a stream is read by none.

    Raises:
        ValueError: for an empty data set.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        size: int,
        seed: int,
        rank: int,
        world: int,
        workers: int,
    ) -> None:
        self.dataset: Any = dataset
        self.collate, self.size, self.seed = collate, size, seed
        self.rank, self.world, self.workers = rank, world, workers
        # Batches that were taken, of all processes together.
        self.taken = 0
        self._batches: Iterator[Any] | None = None
        if isinstance(dataset, Sized) and not len(dataset):
            raise ValueError("unlabeled_dataset: has no rows.")

    def take(self) -> dict[str, Any]:
        """The next batch."""
        if self._batches is None:
            self._batches = iter(self._loader())
        self.taken += self.world
        return _as_mapping(next(self._batches))

    def look(self) -> dict[str, Any] | None:
        """A batch of the first rows that takes none of them; `None` of a stream."""
        if is_stream(self.dataset):
            return None
        with same_random_state(torch.device("cpu")):
            rows = [self.dataset[number] for number in range(min(self.size, len(self.dataset)))]
            return _as_mapping(self.collate(rows))

    def restart(self, taken: int = 0) -> None:
        """Begin again, after `taken` batches of all processes."""
        self.taken, self._batches = taken, None

    def _loader(self) -> DataLoader[Any]:
        # A generator of its own, as a DataLoader takes its seed from the global one.
        common: dict[str, Any] = {"collate_fn": self.collate, "generator": torch.Generator().manual_seed(self.seed)}
        start = self.taken // self.world * self.size
        dataset = self.dataset
        if is_stream(dataset):
            return DataLoader(_Stream(dataset, self.rank, self.world, start), self.size, **common)
        order = _Batches(len(dataset), self.size, self.seed, self.rank, self.world, start)
        return DataLoader(dataset, batch_sampler=order, num_workers=self.workers, **common)


def _as_mapping(batch: Any) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise ValueError(f"unlabeled_dataset: its batches are {type(batch).__name__}, expected mappings.")
    return dict(batch)


def is_stream(dataset: Any) -> bool:
    """Whether rows are read as they come, and not by their number."""
    return isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized)


class _Batches:
    """Indices of endless batches: row k of a process is row k * world + rank of all passes, one after the other."""

    def __init__(self, length: int, size: int, seed: int, rank: int, world: int, start: int) -> None:
        self.length, self.size, self.seed, self.rank, self.world, self.start = length, size, seed, rank, world, start

    def __iter__(self) -> Iterator[list[int]]:
        row, known, order = self.start, -1, np.empty(0, dtype=np.int64)
        while True:
            batch = []
            for place in range(row, row + self.size):
                number, at = divmod(place * self.world + self.rank, self.length)
                if number != known:
                    known, order = number, np.random.default_rng([self.seed, ORDER, number]).permutation(self.length)
                batch.append(int(order[at]))
            row += self.size
            yield batch


class _Stream(IterableDataset):
    """The rows of a stream that are those of a process, again and again, without the first `start`."""

    def __init__(self, dataset: Any, rank: int, world: int, start: int) -> None:
        self.dataset, self.rank, self.world, self.start = dataset, rank, world, start

    def __iter__(self) -> Iterator[Any]:
        place = 0
        while True:
            before = place
            for row in self.dataset:
                if place % self.world == self.rank and place // self.world >= self.start:
                    yield row
                place += 1
            if place == before:
                raise ValueError("unlabeled_dataset: the stream has no rows.")


def join_rows(labelled: Mapping[str, Any], unlabeled: Mapping[str, Any], pad: Mapping[str, int], on_left: bool) -> dict:
    """One batch of two, the shorter texts padded.

    Args:
        labelled, unlabeled (`Mapping[str, torch.Tensor]`): of the same names, but for labels.
        pad (`Mapping[str, int]`): what a name is padded with; 0 if it is not there.
        on_left (`bool`): whether texts are padded before their first token.

    Raises:
        ValueError: for names that one of the two lacks, other shapes, and lengths that differ without a mask.
    """
    differ = sorted(set(labelled) ^ set(unlabeled))
    if differ:
        raise ValueError(
            f"unlabeled_dataset: {', '.join(differ)}: in the batches of only one of train_dataset and "
            "unlabeled_dataset; tokenize both the same way."
        )
    joined: dict[str, Any] = {}
    for name, own in labelled.items():
        other = unlabeled[name]
        if not isinstance(own, Tensor) or own.dim() == 0:
            joined[name] = own
            continue
        if own.dim() > 1 and own.shape[1] != other.shape[1]:
            if "attention_mask" not in labelled:
                raise ValueError("unlabeled_dataset: texts of other lengths need an attention_mask.")
            longest = max(own.shape[1], other.shape[1])
            own, other = (_padded(value, longest, pad.get(name, 0), on_left) for value in (own, other))
        if own.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"unlabeled_dataset: {name} has shape {tuple(other.shape)}, that of the labelled rows "
                f"{tuple(own.shape)}."
            )
        joined[name] = torch.cat([own, other.to(own)])
    return joined


def _padded(value: Tensor, length: int, fill: int, on_left: bool) -> Tensor:
    missing = length - value.shape[1]
    sides = (missing, 0) if on_left else (0, missing)
    return F.pad(value, [0, 0] * (value.dim() - 2) + [*sides], value=fill)


def with_masked_tokens(
    batch: Mapping[str, Any], share: float, mask: int, kept: Tensor, seed: tuple[int, ...]
) -> dict[str, Any]:
    """A batch in which the mask token stands for a share of the tokens.

    Args:
        batch (`Mapping[str, torch.Tensor]`): with `input_ids` of shape `(rows, length)`.
        share (`float`): of the tokens, each by itself.
        mask (`int`): the mask token.
        kept (`torch.LongTensor` of shape `(tokens,)`): tokens that stay, such as those at the ends of a text.
        seed (`tuple[int, ...]`): of the draw.
    """
    tokens = batch["input_ids"]
    drawn = torch.from_numpy(np.random.default_rng([MASK, *seed]).random(tuple(tokens.shape)) < share)
    stays = torch.isin(tokens, kept.to(tokens.device))
    return {**batch, "input_ids": tokens.masked_fill(drawn.to(tokens.device) & ~stays, mask)}


def without_labels(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """A batch without its labels, and those; `None` if it has none."""
    rest, names = dict(batch), ("labels", "label")
    found = [rest.pop(name, None) for name in names]
    return rest, next((labels for labels in found if isinstance(labels, Tensor)), None)


def known_classes(labels: Tensor | None) -> Tensor | None:
    """The class of each row, negative for none; `None` if no row has one."""
    are_classes = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
    return labels if are_classes and bool((labels >= 0).any()) else None  # type: ignore[union-attr, operator]


def given_guesses(labels: Tensor | None, num_labels: int) -> Tensor:
    """The probabilities of the classes that rows have for labels: `(rows, num_labels)`.

    Raises:
        ValueError: for other labels; the message names the first row, counted from 1, that is wrong.
    """
    if labels is None or labels.dim() != 2:
        found = "there is none" if labels is None else f"its shape is {tuple(labels.shape)}"
        raise ValueError(
            f"unlabeled.guesses={GIVEN!r}: the column labels of unlabeled_dataset has to hold a probability for each "
            f"of the {num_labels} classes; {found}."
        )
    chances = labels.float()
    sums = chances.sum(-1, keepdim=True)
    chances = torch.where((sums - 1).abs() <= ROUNDING, chances / sums, chances)
    try:
        check_labels(chances, "single_label_classification", num_labels)
    except ValueError as error:
        raise ValueError(f"unlabeled.guesses={GIVEN!r}: {error}") from error
    return chances


def warn_of_unused_guesses(labels: Tensor | None) -> None:
    """Say that labels are probabilities, which are not learned."""
    if labels is not None and labels.is_floating_point() and labels.dim() == 2:
        logger.warning(
            "unlabeled_dataset: its labels are probabilities, which are not used; mixup.unlabeled.guesses=%r learns "
            "them.",
            GIVEN,
        )
