"""rfjax: functional LLM inference for GGUF models in JAX."""
