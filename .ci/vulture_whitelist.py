"""Names that vulture takes for unused although something outside the code uses them.

One bare name a line, with the reason. Read by vulture only (`paths` in pyproject.toml).
"""

DataclassInstance  # named in a quoted bound
__getattr__  # the import system calls these two of a module
__dir__
byte_fallback  # fields of sentencepiece's ModelProto
escape_whitespaces
model_type
precompiled_charsmap
intercepted_binops  # jinja2 reads these of a sandbox and of an extension
tags
model_filename  # fields of a benchmark's row, read by name
type_k
type_v
jsonl  # values of flags
xla
hide
rope_freqs  # fields of the tree of weights, read by their names
rope_factors_long
rope_factors_short
dir  # triton reads it of its settings
jaxlib  # a field of what a self-check holds for, read with all others
teardown  # hypothesis calls it of a state machine
token_id  # of the stop token that ended a sequence, for whoever asks why
disable_tqdm  # lm-eval passes these two, and reads the third, by name
dataset_kwargs
dataset
download  # lm-eval calls it of a task
handle_starttag  # html.parser calls these three
handle_endtag
handle_data
