"""Ministral 3: llama with YaRN's log multiplier and queries that grow with their position."""

import dataclasses

from rfjax.models import llama

SPEC = dataclasses.replace(llama.SPEC, name="mistral3", attention_temperature=True)
