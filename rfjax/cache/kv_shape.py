"""What a layer keeps of a token."""

from typing import NamedTuple


class KVShape(NamedTuple):
    """Sizes of one layer's keys and values.

    Attributes:
        n_kv: heads of keys and values.
        k_dim: elements of a key.
        v_dim: elements of a value; 0: the layer keeps no values, they are the first elements of
            its keys (DeepSeek's latent attention).
    """

    n_kv: int
    k_dim: int
    v_dim: int

    @property
    def per_token(self) -> int:
        """Numbers kept of a token."""
        return self.n_kv * (self.k_dim + self.v_dim)

    @property
    def is_latent(self) -> bool:
        """Whether the values are part of the keys."""
        return self.v_dim == 0
