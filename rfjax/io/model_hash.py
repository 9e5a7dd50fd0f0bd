"""What a model file holds, as digests: equal for files from which the same numbers come.

Needs no JAX.
"""

import concurrent.futures
import dataclasses
import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from rfjax.compile_threads import n_processors
from rfjax.io.gguf import GGUFFile, TensorInfo, text_bytes
from rfjax.tokenizer.vocabulary import read_vocabulary

_PIECE = 16 << 20
"""Bytes of a tensor that are hashed, and mapped into memory, at a time by each thread."""

_MOST_THREADS = 8
"""By then the disk is what takes the time."""


def weights_hash(gguf: GGUFFile) -> str:
    """SHA-256 of all that makes logits of token ids: `sha256:` and 64 hexadecimal digits.

    The names, shapes, types and bytes of all tensors, the architecture and its hyper-parameters
    (`general.architecture` and the keys below its name). The order of tensors and keys, the
    alignment, into how many files the model is split, whether an integer is stored in 4 or 8
    bytes, and every other key change nothing. Tensors are hashed in threads, a few pieces of them
    in memory at a time, and each tensor's digest is hashed once more.

    Raises:
        ModelFormatError: the file ends before its data does.
    """
    infos = sorted(gguf.tensors.values(), key=lambda info: info.name)
    threads = min(n_processors(), _MOST_THREADS)
    with concurrent.futures.ThreadPoolExecutor(threads, "rfjax-hash") as pool:
        data = list(pool.map(lambda info: _tensor_digest(gguf, info), infos))
    architecture = gguf.get_str("general.architecture", "")
    keys = _keys_below(gguf, f"{architecture}.")
    digest = hashlib.sha256(_encoded(architecture) + _of_keys(gguf, keys))
    for info, own in zip(infos, data, strict=True):
        digest.update(b"".join(map(_encoded, (info.name, info.type.name, np.array(info.shape)))))
        digest.update(own)
    return f"sha256:{digest.hexdigest()}"


def tokenizer_hash(gguf: GGUFFile) -> str:
    """SHA-256 of all that makes token ids of text, in the form of `weights_hash`.

    The keys `tokenizer.ggml.*`, and the tokens that swallow blanks because of the model's name.

    Raises:
        UnsupportedError, ModelFormatError: there is no vocabulary, or a malformed one.
    """
    vocabulary = read_vocabulary(gguf.metadata)
    digest = hashlib.sha256(_of_keys(gguf, _keys_below(gguf, "tokenizer.ggml.")))
    for ids in (vocabulary.strip_left, vocabulary.strip_right):
        digest.update(_encoded(np.array(sorted(ids), np.int64)))
    return f"sha256:{digest.hexdigest()}"


def template_hash(gguf: GGUFFile) -> str | None:
    """SHA-256 of the chat templates, in the form of `weights_hash`; None where there are none."""
    keys = _keys_below(gguf, "tokenizer.chat_template")
    return f"sha256:{hashlib.sha256(_of_keys(gguf, keys)).hexdigest()}" if keys else None


def _tensor_digest(gguf: GGUFFile, info: TensorInfo) -> bytes:
    raw, digest = gguf.raw(info), hashlib.sha256()
    for start in range(0, info.nbytes, _PIECE):
        piece = raw[start : start + _PIECE]
        digest.update(piece.data)
        gguf.release(dataclasses.replace(info, offset=info.offset + start, nbytes=piece.nbytes))
    return digest.digest()


def _keys_below(gguf: GGUFFile, prefix: str) -> list[str]:
    return sorted(key for key in gguf.metadata if key.startswith(prefix))


def _of_keys(gguf: GGUFFile, keys: Iterable[str]) -> bytes:
    return b"".join(_encoded(key) + _encoded(gguf.metadata[key]) for key in keys)


def _encoded(value: object) -> bytes:
    """A metadata value as bytes that no other value has, however wide its number is stored."""
    match value:
        case bool():
            return b"B1" if value else b"B0"
        case int():
            text = b"%d" % value
            return b"I%d:" % len(text) + text
        case float():
            return b"F" + struct.pack("<d", value)
        case str():
            text = text_bytes(value)
            return b"S%d:" % len(text) + text
        case tuple():
            return b"T%d:" % len(value) + b"".join(map(_encoded, value))
        case np.ndarray():
            kind = "<f8" if value.dtype.kind == "f" else "<i8"
            code = b"b" if value.dtype.kind == "b" else kind[1:2].encode()
            return b"A%b%d:" % (code, value.size) + value.astype(kind).tobytes()
    raise AssertionError(f"no metadata value is a {type(value).__name__}")
