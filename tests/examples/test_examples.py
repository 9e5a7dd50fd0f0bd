"""The short examples run as they stand, on the bundled model."""

import generate
import score_in_jit
import scoring_speed
import serving_speed


def test_generate_continues_every_prompt():
    outputs = generate.main()
    assert len(outputs) == 3
    assert all(output.text and len(output.token_ids) <= 48 for output in outputs)


def test_score_in_jit_prefers_the_likely_ending():
    scores = score_in_jit.main()
    assert max(scores, key=scores.__getitem__) == " lord"
    assert min(scores, key=scores.__getitem__) == " of"


def test_serving_speed_serves_every_request(capsys):
    first, second = serving_speed.main(
        ["tiny:q8_0", "--sequences", "3", "--dtype", "float32", "--mixed", "--most", "6"]
    )
    assert set(first) == set(second)
    assert all(result["output tokens/s"] > 0 for result in (first, second))
    assert "for 3 sequences" in capsys.readouterr().out


def test_scoring_speed_measures_texts_and_choices():
    found = scoring_speed.main(
        [
            *("tiny:q8_0", "--dtype", "float32", "--contexts", "64", "--tokens", "128"),
            *("--questions", "2"),
        ]
    )
    assert found["perplexity at 64, tokens/s"] > 0
    assert found["alone / together"] > 0
    assert all(value == 0 for name, value in found.items() if "other bits" in name)
