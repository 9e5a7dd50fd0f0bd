"""Continue several prompts at once: python examples/generate.py [MODEL.gguf]"""

import pathlib
import sys

import rfjax

BUNDLED = pathlib.Path(__file__).parent / "models" / "shakespeare.gguf"


def main(path: str | pathlib.Path = BUNDLED) -> list[rfjax.RequestOutput]:
    llm = rfjax.LLM(path)
    prompts = ["ROMEO:\n", "To be, or", "KING HENRY:\nMy lord,"]
    params = rfjax.SamplingParams(max_tokens=48, temperature=0.8, top_p=0.95, seed=1)
    outputs = llm.generate(prompts, params)
    for prompt, output in zip(prompts, outputs, strict=True):
        mean = sum(output.logprobs) / len(output.logprobs)
        print(
            f"--- {output.finish_reason}, mean log-probability {mean:.2f}\n{prompt}{output.text}\n"
        )
    return outputs


if __name__ == "__main__":
    main(*sys.argv[1:2])
