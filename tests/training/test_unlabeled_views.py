"""Other words for unlabelled rows: the classes are guessed from the rows, and learned on their views."""

import pytest
import torch

from hf_mixup import MixupTrainer
from tests.plain_config import PLAIN
from tests.toy_runs import examples, make_trainer, same_weights

NOW = {"start": 0.0, "ramp": 0.0, "mask": 0.0}
MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0, "unlabeled": NOW}
ROWS = examples(20, seed=1)


def reversed_words(row):
    """The same tokens, but for both ends, in the other order."""
    tokens = row["input_ids"]
    return row | {"input_ids": [tokens[0], *tokens[-2:0:-1], tokens[-1]]}


VIEWS = [reversed_words(row) for row in ROWS]


class Recorded(MixupTrainer):
    """Keeps what was guessed from, and what was learned on."""

    def _guess(self, batch):
        self.seen = [*vars(self).get("seen", []), batch["input_ids"].tolist()]
        return super()._guess(batch)

    def _pass(self, model, lesson):
        tokens = lesson.inputs["input_ids"][lesson.labelled :]
        self.learned = [*vars(self).get("learned", []), tokens.tolist()]
        return super()._pass(model, lesson)


def without_padding(batches):
    return [[[token for token in row if token != 1] for row in batch] for batch in batches]


def trained(folder, resume=None, **options):
    torch.manual_seed(0)
    trainer = make_trainer(
        folder,
        trainer=Recorded,
        mixup=MIXED,
        unlabeled_dataset=ROWS,
        unlabeled_views=VIEWS,
        **{"max_steps": 6} | options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_row_is_guessed_and_its_view_is_learned(tmp_path):
    trainer = trained(tmp_path)
    seen, learned = without_padding(trainer.seen), without_padding(trainer.learned)
    assert len(seen) == 6
    assert learned == [[reversed_words({"input_ids": row})["input_ids"] for row in batch] for batch in seen]
    assert learned != seen


def test_views_are_resumed_with_their_rows(tmp_path):
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=2)
    again = trained(tmp_path / "again", resume=str(tmp_path / "whole/checkpoint-4"))
    assert without_padding(again.learned) == without_padding(whole.learned)[4:]
    assert same_weights(again.model, whole.model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"unlabeled_views": VIEWS}, "unlabeled_views: other words for the rows of unlabeled_dataset"),
        ({"unlabeled_dataset": ROWS, "unlabeled_views": VIEWS[:3]}, "unlabeled_views: 3 rows for the 20 of"),
        ({"unlabeled_dataset": ROWS, "unlabeled_views": iter(VIEWS)}, "unlabeled_views: one of .* is a stream"),
        ({"unlabeled_dataset": ROWS, "auto_find_batch_size": True}, "not with auto_find_batch_size"),
    ],
)
def test_views_of_other_rows_are_refused(tmp_path, options, error):
    with pytest.raises(ValueError, match=error):
        make_trainer(tmp_path, **options)
