"""The helper itself: what ranks return comes back, and none fails or hangs unseen."""

import time

import pytest
from torch import distributed
from torch.multiprocessing import ProcessRaisedException

from tests.distributed.launch import on_two_ranks


def name_rank(word):
    return word, distributed.get_rank()


def fail_on_the_second():
    assert distributed.get_rank() == 0, "the second rank fails"
    distributed.barrier()


def hang_on_the_second():
    if distributed.get_rank() == 1:
        time.sleep(600)


def test_each_rank_returns_something():
    assert on_two_ranks(name_rank, "rank") == [("rank", 0), ("rank", 1)]


def test_a_rank_that_fails_is_seen_with_its_traceback():
    with pytest.raises(ProcessRaisedException, match="fail_on_the_second(?s:.*)the second rank fails"):
        on_two_ranks(fail_on_the_second)


def test_a_rank_that_hangs_is_ended_and_shows_where_it_was():
    with pytest.raises(TimeoutError, match="1 of 2 ranks(?s:.*)Rank 1 hangs(?s:.*)in hang_on_the_second"):
        on_two_ranks(hang_on_the_second, timeout=5)
