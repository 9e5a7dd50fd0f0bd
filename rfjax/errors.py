"""The one exception hierarchy of rfjax.

Every message says what failed, what was found, what was expected and what to do about it.
Errors are raised at boundaries (files, metadata, user arguments); internal invariants are asserts.
"""


class RfjaxError(Exception):
    """Base of every error that rfjax raises on purpose."""


class ConfigError(RfjaxError, ValueError):
    """A setting, option or configuration file that makes no sense or contradicts another."""


class ModelFormatError(RfjaxError, ValueError):
    """A model file that is malformed, truncated, or inconsistent with its own metadata."""


class UnsupportedError(RfjaxError, NotImplementedError):
    """A valid input that this version does not handle: an architecture, a type, a kernel."""


class RequestError(RfjaxError, ValueError):
    """One request that cannot be served as asked; other requests are not affected."""


class CapacityError(RfjaxError, RuntimeError):
    """A limit of memory, context or queue reached; nothing was allocated or overwritten."""
