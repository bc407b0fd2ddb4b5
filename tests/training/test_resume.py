import json
import shutil
import signal

import pytest

from tests.resume_worker import SAVE_STEPS, STEPS, STEPS_PER_EPOCH, Kill, in_a_new_process, train


def final_weights(folder):
    return (folder / "final" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder that a training left which was killed in the middle of an epoch, two steps after a checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    assert in_a_new_process(folder, kill=Kill(SAVE_STEPS + 2)) == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == [f"checkpoint-{SAVE_STEPS}"]
    return folder


def test_a_killed_and_resumed_training_ends_with_the_same_weights(uninterrupted, killed, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(killed, folder)
    assert in_a_new_process(folder, resume=True) == 0
    resumed = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "mixup_lambda", "mixup_site", "mixup_accuracy")
    expected = [entry for entry in uninterrupted[1].state.log_history if "loss" in entry]
    assert [[entry.get(name) for name in names] for entry in resumed] == [
        [entry.get(name) for name in names] for entry in expected
    ]
    assert final_weights(folder) == final_weights(uninterrupted[0])


def test_without_the_state_of_mixup_the_weights_are_others(uninterrupted, killed, tmp_path):
    folder = tmp_path / "forgetful"
    shutil.copytree(killed, folder)
    (folder / f"checkpoint-{SAVE_STEPS}" / "mixup_state_0.json").unlink()
    train(folder, resume=True)
    assert final_weights(folder) != final_weights(uninterrupted[0])


def test_a_training_resumed_at_the_end_of_an_epoch_ends_with_the_same_weights(uninterrupted, tmp_path):
    train(tmp_path, resume=str(uninterrupted[0] / f"checkpoint-{STEPS_PER_EPOCH}"))
    assert final_weights(tmp_path) == final_weights(uninterrupted[0])


def test_a_second_training_draws_the_plans_of_the_first(uninterrupted, tmp_path):
    train(tmp_path)
    assert final_weights(tmp_path) == final_weights(uninterrupted[0])


def test_the_state_is_plain_json_with_numbers_and_words_only(uninterrupted):
    state = json.loads((uninterrupted[0] / f"checkpoint-{SAVE_STEPS}" / "mixup_state_0.json").read_text())["plans"]
    later = json.loads((uninterrupted[0] / f"checkpoint-{STEPS}" / "mixup_state_0.json").read_text())["plans"]
    assert state["bit_generator"] == later["bit_generator"] == "PCG64"
    assert state["state"] != later["state"]
