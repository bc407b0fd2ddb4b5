"""The average of the weights on two ranks: the same on both, and resumed to the bit."""

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from hf_mixup.training.averaging import STATE_NAME
from tests.distributed.launch import WORLD, on_two_ranks
from tests.hosts import LOADS_TO_CPU_0
from tests.toy_runs import make_trainer
from tests.training.test_averaging import MIXED, STEPS, SWAPS, average_of, bert, trained

OPTIONS = {"mixup": MIXED, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def train(folder, resumes):
    """What a rank has of its training, and of the same resumed in the middle; how shards are refused."""
    whole, seen = trained(f"{folder}/whole", bert(torch.float32), **SWAPS, **OPTIONS)
    found = {
        "worlds": [whole.args.world_size, whole.accelerator.num_processes, distributed.get_world_size()],
        "wrapper": type(whole.model_wrapped).__name__,
        "average": dict(whole.model.named_parameters()),
        "expected": average_of(seen.weights),
    }
    if resumes:
        checkpoint = f"{folder}/whole/checkpoint-{STEPS - 2}"
        resumed, _ = trained(f"{folder}/resumed", bert(torch.float32), resume=checkpoint, **SWAPS, **OPTIONS)
        found["resumed"] = dict(resumed.model.named_parameters())
    try:
        make_trainer(f"{folder}/sharded", fully_shard(bert(torch.float32)), averaging="ema")
    except ValueError as error:
        found["refused"] = str(error)
    return found


def test_two_ranks_have_one_average(tmp_path):
    ranks = on_two_ranks(train, str(tmp_path), not LOADS_TO_CPU_0)
    assert all(rank["worlds"] == [WORLD] * 3 and rank["wrapper"] == "DistributedDataParallel" for rank in ranks)
    for name, weight in ranks[0]["average"].items():
        torch.testing.assert_close(weight.double(), ranks[0]["expected"][name], rtol=0, atol=1e-6)
        assert torch.equal(weight, ranks[1]["average"][name]), name
        for rank in ranks:
            assert torch.equal(weight, rank.get("resumed", ranks[0]["average"])[name]), name
    saved = sorted(path.parent.name for path in tmp_path.rglob(STATE_NAME) if path.parents[1].name == "whole")
    assert saved == [f"checkpoint-{step}" for step in range(2, STEPS + 1, 2)]
    assert all("averaging='ema': not with FSDP" in rank["refused"] for rank in ranks)
