"""Sessions and their oracles: which is closed, and which stays for the next numerics."""

import pytest

from harness.backends import open_decoder
from harness.decoder import COPIES
from harness.errors import BadInput
from harness.family_suite import FamilySession
from harness.meter.decode import Workload
from harness.reference import Oracle
from harness.suite import DecodeSession

CAPACITY = 4


@pytest.fixture
def closed(monkeypatch):
    """Oracles in the order in which they were closed."""
    seen, close = [], Oracle.close

    def noted(oracle):
        seen.append(oracle)
        close(oracle)

    monkeypatch.setattr(Oracle, "close", noted)
    return seen


@pytest.fixture
def families(small_model):
    """A session without the GPU that it opens first: only its oracle is looked at."""
    session = FamilySession.__new__(FamilySession)
    DecodeSession.__init__(session, small_model, backend="cpu")
    session._oracle = None
    return session


def test_a_family_session_has_room_for_the_copies_of_argmax_within_the_context(families):
    context = families._model.config.context_length
    assert families._capacity(Workload((3, 1), 20, 0)) == 22 + COPIES - 1
    assert families._capacity(Workload((3, 1), context - 2, 0)) == context
    with pytest.raises(BadInput, match="the model's context"):
        families._capacity(Workload((3, 1), context - 1, 0))


def candidate(model, numerics="f32", capacity=CAPACITY):
    return open_decoder(model, backend="cpu", numerics=numerics, capacity=capacity)


def test_a_decode_session_closes_its_oracle_before_memory_is_measured(small_model, closed):
    with DecodeSession(small_model, backend="cpu") as session:
        for number in (1, 2):
            assert session._check(candidate(small_model), [3, 1], None).verdict.accepted
            assert len(closed) == number


def test_a_family_session_keeps_its_oracle_as_long_as_it_fits(small_model, families, closed):
    with families as session:
        first = candidate(small_model)
        assert session._check(first, [3, 1], None).verdict.accepted
        kept = session._oracle
        assert session._check(candidate(small_model), [2, 5], None).verdict.accepted
        assert session._oracle is kept
        assert closed == []
        for other in (candidate(small_model, "q8_k"), candidate(small_model, capacity=8)):
            session._check(other, [3, 1], None)
            assert closed[-1] is kept
            kept = session._oracle
    assert closed[-1] is kept
    assert len(closed) == 3
