"""A short run of what tests/benchmarks/compaction.py does at length."""

from tests.compaction_race import campaign


def test_no_document_is_lost_or_doubled() -> None:
    found = campaign(rounds=8, seed=1)
    assert found["compactors killed"] == 16
    assert found["documents learned"] > 20
    assert found["batches damaged"] > 0
    assert found["lost or doubled"] == 0
