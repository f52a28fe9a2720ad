"""Several sequences in one graph on a real GPU: each computes what it computes alone."""

import pytest

from harness.backends import open_batch, open_decoder
from harness.backends.cuda.graph import in_line
from harness.batch_suite import BatchSession
from harness.errors import BadInput, Rejected
from harness.meter.stopping import StoppingRule
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.model.prompts import distinct_prompts

PROMPT = [3, 1, 4]
RULE = StoppingRule(least_seconds=0.05, time_out=0.5)


@pytest.mark.parametrize(
    ("edges", "alone"),
    [
        ([(1, 2), (2, 3)], [True, True]),
        ([(1, 2), (3, 4)], [True, True]),  # two branches
        ([(1, 2), (1, 3), (2, 4), (3, 5)], [False, False, True, True]),  # they part
        ([(1, 3), (2, 3), (3, 4)], [False, False, True]),  # they meet
        ([], []),
    ],
)
def test_only_edges_that_are_alone_at_both_ends_overlap(edges, alone):
    assert in_line([a for a, _ in edges], [b for _, b in edges]) == alone


@pytest.mark.gpu
@pytest.mark.parametrize("which", ["small", "embedded"])
@pytest.mark.parametrize("numerics", ["i24", "f32", "q8_k"])
def test_each_sequence_computes_what_it_computes_alone(small_model, which, numerics):
    model = small_model if which == "small" else open_model(embedded_path())
    first = open_decoder(model, backend="cuda", numerics=numerics, capacity=64)
    prompts = distinct_prompts(PROMPT, 8, model.config.vocab)
    tokens, alone = [], []
    for prompt in prompts:
        first.reset()
        tokens.append(first.generate(prompt, 40))
        first.reset()
        alone.append([first.step(token) for token in (*prompt, *tokens[-1])])
    for size in (2, 8):
        first.reset()
        batch = open_batch(first, size)
        fed = [[*p, *t] for p, t in zip(prompts, tokens, strict=True)][:size]
        together = [batch.step(step) for step in zip(*fed, strict=True)]
        for number in range(size):
            for row, step in zip(alone[number], together, strict=True):
                assert row.tobytes() == step[number].tobytes()
        for _ in range(5):
            for member in batch.members:
                member.rewind(0)
            for number, seen in enumerate(batch.timed_pass(prompts[:size], 40)):
                assert seen.tokens[:40] == tokens[number]
                assert seen.logits[40].tobytes() == alone[number][-1].tobytes()
        ran = batch.ran()
        assert ran["graph_branches"] == size
        assert ran["graph_nodes"] == size * first.ran()["graph_nodes"]
        batch.close()
    first.close()


@pytest.mark.gpu
def test_a_batch_is_measured_and_one_fault_rejects_it():
    model = open_model(embedded_path())
    prompts = distinct_prompts(PROMPT, 4, model.config.vocab)
    with BatchSession(model, backend="cuda") as session:
        found = session.measure_batch(prompts, tokens=16, rule=RULE)
        deep = session.measure_batch(prompts[:2], tokens=16, depth=100, rule=RULE)
        with pytest.raises(BadInput, match="of 100000 sequences"):
            session.measure_batch([prompts[0]] * 100000, tokens=16)
    assert found.time.evidence.verdict.accepted
    assert deep.ran["graph_branches"] == 2
    with (
        BatchSession(model, backend="cuda", plant="swap_two_weights") as session,
        pytest.raises(Rejected, match="sequence 3: "),
    ):
        session.measure_batch(prompts, tokens=16, rule=RULE)
