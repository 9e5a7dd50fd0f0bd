"""The short examples run as they stand, on the bundled model."""

import generate
import score_in_jit


def test_generate_continues_every_prompt():
    outputs = generate.main()
    assert len(outputs) == 3
    assert all(output.text and len(output.token_ids) <= 48 for output in outputs)


def test_score_in_jit_prefers_the_likely_ending():
    scores = score_in_jit.main()
    assert max(scores, key=scores.__getitem__) == " lord"
    assert min(scores, key=scores.__getitem__) == " of"
