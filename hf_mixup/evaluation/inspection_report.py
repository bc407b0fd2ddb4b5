"""What is known of mixing a model, and its text, to be read at a glance. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from textwrap import fill, wrap
from typing import Any

from hf_mixup.evaluation.site_checks import Mask, SiteCheck

WIDTH, FACT, WHERE, NUMBER = 116, 18, 45, 10
# Blocks of a kind beyond this number share a row.
LONGEST = 8
READOUTS = {
    "first": "the first token",
    "last": "the last position",
    "last_token": "the last token of the text",
    "last_eos": "the last end-of-text token",
    "mean": "the mean over the tokens",
    "fixed": "the same positions in every text",
    "text": "positions that it finds by a rule of its own",
    "tokens": "every token",
}
# The side to pad on, for heads that read one position whatever is there.
SIDES = {"first": " of texts padded on the right", "last": " of texts padded on the left"}
WHERES = {
    "input": "what the model is given",
    "word_embeddings": "{}",
    "embeddings": "into {}",
    "hidden": "after {}",
    "pooled": "into the last linear layer",
}
COLUMNS = ("lambda 0", "lambda 1", "1e-3 off", "1e-6 off")
LEGEND = (
    "lambda 0, lambda 1: how far the mixed logits are at most from the clean ones of the partner, of the text itself; "
    "1e-3 off, 1e-6 off: the same that far from either end. 1 would be the distance between two clean texts."
)


def _facts(inspection: Inspection) -> Iterator[str]:
    kind = f" ({inspection.model_type})" if inspection.model_type else ""
    if inspection.source is not None:
        yield _fact("made from", inspection.source)
    yield _fact("model", f"{inspection.model_class}{kind}, {inspection.parameters:,} parameters in {inspection.dtype}")
    yield _fact("attention kernel", inspection.attention or "not named")
    if inspection.reason is not None:
        yield _fact("can be mixed at", f"no site. {inspection.reason}")
        return
    yield _fact("can be mixed at", _sites(check for check in inspection.sites if check.exact) or "no site")
    yield _fact("masks", "; ".join(map(_mask, inspection.masks)) or "none")
    readout = READOUTS.get(str(inspection.readout), str(inspection.readout))
    yield _fact("head reads", f"{readout}, in the output of {inspection.read_at}")
    if inspection.padding_is_text is not None:
        unread = f"does not reach the logits{SIDES.get(str(inspection.readout), '')}"
        yield _fact("padding", "counts as text" if inspection.padding_is_text else unread)


def _table(sites: Sequence[SiteCheck]) -> Iterator[str]:
    if not sites:
        return
    groups = list(_groups(sites))
    labels, wheres = [_label(group) for group in groups], [_where(group) for group in groups]
    longest_path = max(len(word) for where in wheres for word in where.split())
    label_width, where_width = max(map(len, labels)) + 2, max(WHERE, longest_path)
    yield ""
    yield "site".ljust(label_width) + "where".ljust(where_width) + "".join(name.rjust(NUMBER) for name in COLUMNS)
    for group, label, where in zip(groups, labels, wheres, strict=True):
        first, *more = wrap(where, where_width, break_on_hyphens=False)
        yield label.ljust(label_width) + first.ljust(where_width) + _numbers(group) + f"  {_verdict(group[0])}"
        yield from (" " * label_width + part for part in more)
    yield ""
    yield from _reasons(sites)
    yield fill(LEGEND, WIDTH)


def _fact(name: str, text: str) -> str:
    return fill(f"{name:<{FACT}}{text}", WIDTH, subsequent_indent=" " * FACT, break_on_hyphens=False)


def _sites(checks: Iterable[SiteCheck]) -> str:
    """`embeddings, hidden 0-2` and so on."""
    layers: dict[str, list[int]] = {}
    for check in checks:
        layers.setdefault(check.site, []).extend([] if check.layer is None else [check.layer])
    return ", ".join(f"{site} {_ranges(numbers)}".strip() for site, numbers in layers.items())


def _mask(mask: Mask) -> str:
    where = mask.module or f"block{'s' if len(mask.blocks) > 1 else ''} {_ranges(mask.blocks)}"
    return f"{mask.argument}: {mask.kind} ({where})"


def _ranges(numbers: Iterable[int]) -> str:
    """`0-2, 4` for 0, 1, 2, 4."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)


def _groups(sites: Sequence[SiteCheck]) -> Iterator[list[SiteCheck]]:
    """The checks that share a row: one each, or all of a long run of blocks with the same verdict."""
    for _, run in groupby(sites, lambda check: (check.site, check.stack, _verdict(check))):
        group = list(run)
        yield from [group] if len(group) > LONGEST else [[check] for check in group]


def _numbers(group: Sequence[SiteCheck]) -> str:
    """The four differences; of several checks the largest."""
    columns = zip(*((check.at_0, check.at_1, check.near, check.nearer) for check in group), strict=True)
    largest = [max((value for value in column if value is not None), default=None) for column in columns]
    numbers = ("-" if value is None else f"{value:.1e}" if value else "0" for value in largest)
    return "".join(number.rjust(NUMBER) for number in numbers)


def _label(group: Sequence[SiteCheck]) -> str:
    layers = [check.layer for check in group if check.layer is not None]
    stack = f"({group[0].stack})" if group[0].stack else ""
    return " ".join(part for part in (group[0].site, _ranges(layers), stack) if part)


def _where(group: Sequence[SiteCheck]) -> str:
    first, last = _module(group[0]), _module(group[-1])
    if len(group) == 1:
        return first
    # Up to the last dot or space that the two share.
    shared = re.match(r"(.*[. ])?", os.path.commonprefix([first, last]))
    return f"{first} ... {last[shared.end() if shared else 0 :]}"


def _module(check: SiteCheck) -> str:
    run = f", run {check.run} of {check.runs}" if check.runs > 1 else ""
    return WHERES[check.site].format(", ".join(check.modules) or "no lookup") + run


def _verdict(check: SiteCheck) -> str:
    if check.exact:
        return "exact" if check.continuous else "ends only"
    return "not available" if check.at_0 is None else "not exact"


def _reasons(sites: Sequence[SiteCheck]) -> Iterator[str]:
    """What is said of the sites that are not all right, each reason once."""
    reasons = dict.fromkeys(check.reason for check in sites if check.reason is not None)
    for reason in reasons:
        names = _sites(check for check in sites if check.reason == reason)
        yield fill(f"{names}: {reason}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


@dataclass(frozen=True)
class Inspection:
    """What is known of mixing a model; `str()` is the report.

    ```python
    >>> inspection = inspect_model(model)
    >>> inspection.model_class, inspection.depth, inspection.usable
    ('BertForSequenceClassification', 3, True)
    ```

    Args:
        model_class (`str`): class of the model.
        model_type (`str`, *optional*): its type, as transformers names it.
        parameters (`int`): how many it has.
        dtype (`str`): their type.
        attention (`str`, *optional*): the attention kernel.
        source (`str`, *optional*): what the model was made from, if it was given by name.
        reason (`str`, *optional*): why it cannot be mixed at all; the fields below are empty then.
        depth (`int`): number of blocks that run.
        readout (`str`, *optional*): where the head reads, as `Anatomy.readout`.
        read_at (`str`, *optional*): module path of what it reads.
        padding_is_text (`bool`, *optional*): whether what stands at padding positions changes the logits;
            `None` if there is no padding.
        masks (`list[Mask]`): the masks that the model is given.
        sites (`list[SiteCheck]`): every site, `"hidden"` once for every block.
    """

    model_class: str
    model_type: str | None
    parameters: int
    dtype: str
    attention: str | None
    source: str | None = None
    reason: str | None = None
    depth: int = 0
    readout: str | None = None
    read_at: str | None = None
    padding_is_text: bool | None = None
    masks: list[Mask] = field(default_factory=list)
    sites: list[SiteCheck] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether a site other than `"pooled"`, which every classifier has, is exact."""
        return any(check.exact for check in self.sites if check.site != "pooled")

    def to_dict(self) -> dict[str, Any]:
        """Every field and `usable`, as plain Python values."""
        return asdict(self) | {"usable": self.usable}

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in [*_facts(self), *_table(self.sites)])
