"""Unlabelled rows on two ranks: other rows for each, the same guesses on both, and resumed to the bit."""

import pytest
import torch
from torch import distributed

from tests.distributed.launch import WORLD, on_two_ranks
from tests.hosts import LOADS_TO_CPU_0
from tests.toy_runs import Gradients, assert_same_step, examples, make_trainer, steady_bert
from tests.training.test_averaging import copied
from tests.training.test_unlabeled import UNLABELED, run, with_rows

START = 4  # of 8 steps


def first_step(folder, batch):
    """The gradients of one clean step with unlabelled rows."""
    seen = Gradients()
    given = {"callbacks": [seen], "max_steps": 1, "max_grad_norm": 0.0, "per_device_train_batch_size": batch}
    trainer = make_trainer(folder, steady_bert(), rows=examples(8), **given, **with_rows(None))
    trainer.train()
    return trainer, seen.first


def train(folder, resumes):
    """What a rank has of its training, and of the same resumed before, at and after the start of the guesses."""
    whole = run(f"{folder}/whole", "counted")
    found = {
        "worlds": [whole.args.world_size, whole.accelerator.num_processes, distributed.get_world_size()],
        "weights": copied(whole.model),
        "guesses": whole._guesses.state_dict(),
        "resumed": [],
    }
    for step in (START - 2, START, START + 2) if resumes else ():
        resumed = run(f"{folder}/resumed-{step}", "counted", resume=f"{folder}/whole/checkpoint-{step}")
        found["resumed"].append((copied(resumed.model), resumed._guesses.state_dict()))
    trainer, found["gradients"] = first_step(f"{folder}/step", 4)
    trainer._rows.restart()
    found["rows"] = [tokens for _ in range(5) for tokens in trainer._rows.take()["input_ids"].tolist()]
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(train, str(tmp_path_factory.mktemp("ranks")), not LOADS_TO_CPU_0)


def test_two_ranks_learn_and_resume_the_same(ranks):
    assert all(rank["worlds"] == [WORLD] * 3 for rank in ranks)
    # 4 passes of 3 batches of 4 rows on each of two ranks, and one row more for each class.
    assert sum(ranks[0]["guesses"]["counts"]) == 4 * 3 * 4 * WORLD + 3
    for rank in ranks:
        assert rank["guesses"] == ranks[0]["guesses"]
        assert all(torch.equal(weight, rank["weights"][name]) for name, weight in ranks[0]["weights"].items())
        for weights, guesses in rank["resumed"]:
            assert guesses == ranks[0]["guesses"]
            assert all(torch.equal(weight, weights[name]) for name, weight in ranks[0]["weights"].items())


def test_a_pass_gives_each_row_to_one_rank(ranks):
    texts = sorted(tuple(row["input_ids"]) for row in UNLABELED)
    given = [[tuple(token for token in row if token != 1) for row in rank["rows"]] for rank in ranks]
    of_pass = [row for rank in given for row in rank[: len(texts) // WORLD]]
    assert sorted(of_pass) == texts


def test_a_step_of_two_ranks_is_that_of_one_with_all_rows(ranks, tmp_path):
    _, expected = first_step(tmp_path, 8)
    for rank in ranks:
        assert_same_step((0.0, rank["gradients"]), (0.0, expected))
