"""What editors and `help` show of `MixupTrainer` is what it takes."""

import inspect
from inspect import Parameter

import pytest
from transformers import Trainer

from hf_mixup import Mixup, MixupCollator, MixupMixin, MixupModel, MixupTrainer
from hf_mixup.training.baseline_trainer import BaselineTrainer
from hf_mixup.training.unlabeled import UnlabeledTrainer
from tests.toy_runs import arguments, collate, examples, steady_bert

SHOWN = inspect.signature(MixupTrainer).parameters


def test_trainers_parameters_come_first_as_the_installed_trainer_has_them():
    expected = [(name, found.default) for name, found in inspect.signature(Trainer).parameters.items()]
    assert [(name, SHOWN[name].default) for name in SHOWN][: len(expected)] == expected
    by_position = [name for name, found in SHOWN.items() if found.kind is Parameter.POSITIONAL_OR_KEYWORD]
    assert by_position == [name for name, _ in expected]


def test_the_others_are_those_of_the_classes():
    own = {}
    for kind in (BaselineTrainer, UnlabeledTrainer, MixupMixin, MixupTrainer):
        own |= kind.__init__.__kwdefaults__
    # The config holds these fields.
    own.pop("unlabeled")
    shown = {name: found.default for name, found in SHOWN.items() if found.kind is Parameter.KEYWORD_ONLY}
    assert shown == own
    assert list(SHOWN.values())[-1].kind is Parameter.VAR_KEYWORD


def test_help_shows_them():
    assert "preprocess_logits_for_metrics" in str(inspect.signature(MixupTrainer.__init__))
    assert list(inspect.signature(MixupTrainer.__init__).parameters)[0] == "self"
    assert MixupTrainer.__init__.__name__ == "__init__"


@pytest.mark.parametrize(
    ("kind", "name"), [(MixupTrainer, "mixup"), (MixupMixin, "mixup"), (Mixup, "config"), (MixupModel, "config")]
)
def test_an_editor_completes_recipes(kind, name):
    assert "MixupLike" in inspect.signature(kind).parameters[name].annotation
    assert "MixupLike" in inspect.signature(MixupCollator).parameters["config"].annotation


def test_what_a_newer_trainer_takes_passes_through(tmp_path):
    class Newer(Trainer):
        def __init__(self, *args, added=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.added = added

    class Mine(MixupTrainer, Newer):
        pass

    given = {"data_collator": collate, "train_dataset": examples()}
    trainer = Mine(steady_bert(), arguments(tmp_path), **given, mixup="tmix", added=3)
    assert trainer.added == 3 and trainer.mixup.config.site == "hidden"
    with pytest.raises(TypeError, match="added"):
        MixupTrainer(steady_bert(), arguments(tmp_path), **given, added=3)


def test_the_name_of_a_recipe_is_corrected(tmp_path):
    with pytest.raises(ValueError, match="mixup='tmx': no such recipe. Did you mean 'tmix'"):
        MixupTrainer(steady_bert(), arguments(tmp_path), mixup="tmx")
