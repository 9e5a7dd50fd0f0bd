"""Seed-OSS: llama's mechanisms; the norm before its network is named post_attention_norm."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(name="seed_oss", pairing="half", renames=(("ffn_norm", "post_attention_norm"),))
