"""A checkpoint that is not whole, or of another model, is refused with its reason before anything of it is loaded."""

import json
import logging
import shutil

import pytest
import torch
import yaml

from hf_mixup.training.checkpoints import check_output_dir, problem_of
from hf_mixup.training.state import CONFIG_NAME
from tests.plain_config import PLAIN
from tests.toy_runs import arguments, examples, make_trainer
from tests.zoo import toy_model

MIXUP = PLAIN | {"site": "hidden", "partner": "previous_batch", "memory": 2}


def trainer_in(folder, model=None, mixup=MIXUP, **options):
    rows = examples(8)
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 1}
    return make_trainer(folder, model or toy_model("bert"), rows=rows, mixup=mixup, **saving | options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trainer_in(folder).train()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "mixup_memory_0.pt"]


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "mixup_state_0.json", *FILES])
def test_a_file_that_is_cut_off_is_refused_by_name(copied, name):
    cut(copied / "checkpoint-4" / name)
    trainer = trainer_in(copied)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"checkpoint-4' is no whole checkpoint: .*{name}.* cannot be read "):
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-4"))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_weights_that_are_missing_are_refused(copied):
    (copied / "checkpoint-4" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is no whole checkpoint: its weights are missing"):
        trainer_in(copied).train(resume_from_checkpoint=str(copied / "checkpoint-4"))


def test_where_every_node_saves_its_own_only_the_files_of_this_process_are_looked_for(copied):
    for path in copied.glob("checkpoint-*/mixup_state_0.json"):
        state = json.loads(path.read_text()) | {"ranks": 2}
        path.unlink()
        path.with_name("mixup_state_1.json").write_text(json.dumps(state))
        path.with_name("mixup_memory_0.pt").rename(path.with_name("mixup_memory_1.pt"))
        path.with_name("rng_state.pth").rename(path.with_name("rng_state_1.pth"))
    assert problem_of(copied / "checkpoint-4", rank=1) is None
    assert "mixup_state_0.json" in problem_of(copied / "checkpoint-4")


@pytest.mark.parametrize("name", ["trainer_state.json", *FILES])
def test_a_file_that_is_missing_is_refused_by_name(copied, name):
    (copied / "checkpoint-4" / name).unlink()
    with pytest.raises(ValueError, match=f"is no whole checkpoint: {name} is missing"):
        trainer_in(copied).train(resume_from_checkpoint=str(copied / "checkpoint-4"))


def test_the_newest_that_is_whole_is_taken(copied, caplog):
    cut(copied / "checkpoint-4" / "model.safetensors")
    with caplog.at_level(logging.WARNING, "hf_mixup.training.checkpoints"):
        trainer = trainer_in(copied)
        trainer.train(resume_from_checkpoint=True)
    assert "Skipped checkpoint-4: model.safetensors cannot be read" in caplog.text
    assert trainer.state.global_step == 4


def test_a_path_is_that_checkpoint(copied):
    trainer = trainer_in(copied, max_steps=3)
    trainer.train(resume_from_checkpoint=copied / "checkpoint-2")
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3]


def test_what_is_saved_in_shards_is_resumed_from_the_command_line_too(copied, monkeypatch):
    for path in copied.glob("checkpoint-*/optimizer.pt"):
        path.unlink()
    args = arguments(copied, resume_from_checkpoint="true")
    with pytest.raises(FileNotFoundError, match="optimizer.pt is missing .with save_only_model there is nothing"):
        check_output_dir(args, False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert check_output_dir(args, False) == str(copied / "checkpoint-4")


def test_a_state_of_another_make_is_refused(copied):
    (copied / "checkpoint-4" / "mixup_state_0.json").write_text("{}")
    with pytest.raises(ValueError, match="mixup_state_0.json: cannot be read"):
        trainer_in(copied).train(resume_from_checkpoint=str(copied / "checkpoint-4"))


def test_where_none_is_whole_the_reasons_are_given(copied):
    for checkpoint in copied.glob("checkpoint-*"):
        cut(checkpoint / "optimizer.pt")
    with pytest.raises(FileNotFoundError, match=r"checkpoint-4: optimizer.pt cannot be read.*checkpoint-2: optimizer"):
        trainer_in(copied).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: toy_model("roberta"), "bert.embeddings.* is .* in the checkpoint, not there in the model"),
        (lambda: toy_model("bert", intermediate_size=96), r"\(64,\) in the checkpoint, \(96,\) in the model"),
        (lambda: toy_model("bert", num_hidden_layers=4), r"bert.encoder.layer.3\S+ is not in the checkpoint"),
    ],
)
def test_one_of_another_model_is_refused(copied, model, message):
    with pytest.raises(ValueError, match=f"does not fit this model.*{message}"):
        trainer_in(copied, model()).train(resume_from_checkpoint=True)


def test_tied_weights_are_in_it_once(tmp_path):
    trainer_in(tmp_path, toy_model("bart")).train()
    resumed = trainer_in(tmp_path, toy_model("bart"), max_steps=5)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5


def test_another_number_of_processes_is_said(copied, caplog):
    for path in copied.glob("checkpoint-*/mixup_state_0.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ranks": 2}))
        for name in ("mixup_state", "mixup_memory"):
            suffix = "json" if name == "mixup_state" else "pt"
            shutil.copy(path.with_name(f"{name}_0.{suffix}"), path.with_name(f"{name}_1.{suffix}"))
        for rank in range(2):
            shutil.copy(path.with_name("rng_state.pth"), path.with_name(f"rng_state_{rank}.pth"))
    with caplog.at_level(logging.WARNING, "hf_mixup.training.state"):
        resumed = trainer_in(copied, max_steps=5)
        resumed.train(resume_from_checkpoint=True)
    assert "was saved by 2 processes and is resumed by 1, so plans start anew" in caplog.text
    # The batches are counted on, so that a warm-up does not begin again.
    assert resumed.mixup.planner.drawn == 5


def test_another_config_is_said(copied, caplog):
    with caplog.at_level(logging.WARNING, "hf_mixup.training.state"):
        trainer_in(copied, mixup=MIXUP | {"alpha": 1.0}, max_steps=5).train(resume_from_checkpoint=True)
    assert "another mixup config: alpha=1.0 (was 0.4)" in caplog.text


def test_a_config_that_was_saved_with_nulls_is_that_with_the_defaults(copied, caplog):
    path = copied / "checkpoint-4" / CONFIG_NAME
    values = yaml.safe_load(path.read_text())
    assert {"bandwidth", "kappa", "layers"} <= set(values)
    path.write_text(yaml.safe_dump(values | {"bandwidth": None, "kappa": None}))
    with caplog.at_level(logging.WARNING, "hf_mixup.training.state"):
        trainer_in(copied, max_steps=5).train(resume_from_checkpoint=True)
    assert "another mixup config" not in caplog.text


def test_what_was_saved_without_mixup_is_resumed_with_it(tmp_path, caplog):
    trainer_in(tmp_path, mixup=None).train()
    with caplog.at_level(logging.WARNING, "hf_mixup.training.state"):
        trainer_in(tmp_path, max_steps=5).train(resume_from_checkpoint=True)
    assert "holds no mixup state" in caplog.text
