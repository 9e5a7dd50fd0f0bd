"""Tokenizers and chat templates from GGUF metadata; imports no JAX and no tokenizer library."""

from rfjax.tokenizer.tokenizer import Tokenizer as Tokenizer
from rfjax.tokenizer.tokenizer import load_tokenizer as load_tokenizer
