"""What one block keeps for a token."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KvShape:
    """What one block keeps for a token: `heads` keys of `key_dim` and values of `value_dim` elements."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_dim + self.value_dim)
