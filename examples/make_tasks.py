"""Task files for `rfjax eval`, made from a text: here, one of each form from the held-out plays.

python examples/make_tasks.py writes examples/tasks again. Then, without any network:

rfjax eval examples/models/shakespeare.gguf --tasks examples/tasks/next-line.jsonl
"""

import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).parent
TEXT = HERE / "models" / "shakespeare-heldout.txt"
N_DOCUMENTS = 48


def next_line(speeches: list[str], rng: random.Random) -> dict:
    """Which of four lines follows?"""
    speech = rng.choice([s for s in speeches if s.count("\n") >= 4])
    *before, true = speech.split("\n")[: rng.randint(3, 5)]
    others = [line for s in speeches if s != speech for line in s.split("\n")[1:]]
    choices = [true, *rng.sample([line for line in others if line != true], 3)]
    rng.shuffle(choices)
    answer = choices.index(true)
    after = [f"\n{line}" for line in choices]  # a context and a choice are joined as they are
    return {"context": "\n".join(before), "choices": after, "answer": answer}


def last_word(speeches: list[str], rng: random.Random) -> dict:
    """How likely is a line's last word?"""
    line = rng.choice([s.split("\n")[1] for s in speeches if s.split("\n")[1].count(" ") >= 5])
    context, _, word = line.rpartition(" ")
    return {"context": context, "continuation": f" {word}"}


def passage(speeches: list[str], rng: random.Random) -> dict:
    """How likely are five speeches in a row?"""
    start = rng.randrange(len(speeches) - 5)
    return {"text": "\n\n".join(speeches[start : start + 5])}


def speaker(speeches: list[str], rng: random.Random) -> dict:
    """Whose name is begun?"""
    index = rng.choice([i for i, s in enumerate(speeches) if i > 1 and s.index(":") > 6])
    name, _, _ = speeches[index].partition(":")
    prompt = "\n\n".join([*speeches[index - 2 : index], name[:4]])
    return {"prompt": prompt, "until": [":", "\n"], "target": name[4:]}


FORMS = {"next-line": next_line, "last-word": last_word, "passages": passage, "speaker": speaker}


def main(folder: str | pathlib.Path = HERE / "tasks") -> None:
    blocks = TEXT.read_text(encoding="utf-8").split("\n\n")
    speeches = [block for block in blocks if ":\n" in block]
    pathlib.Path(folder).mkdir(exist_ok=True)
    for name, make in FORMS.items():
        rng = random.Random(name)  # not depending on the other files
        count = 8 if make is passage else N_DOCUMENTS
        lines = [json.dumps(make(speeches, rng)) + "\n" for _ in range(count)]
        pathlib.Path(folder, f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
