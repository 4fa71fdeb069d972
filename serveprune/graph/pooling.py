from typing import Literal

import torch
from torch import nn

Pooling = Literal["mean", "cls", "max", "none"]


class TokenPooling(nn.Module):
    """Turns token vectors into one vector per row; padding has no influence on it."""

    def __init__(self, pooling: Pooling, *, normalize: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pool over tokens and scale to length 1 if asked to.

        Args:
            tokens: ``(N, T, C)`` float32.
            attention_mask: ``(N, T)`` int64, 1 for a token and 0 for padding.

        Returns:
            ``(N, C)`` float32; ``(N, T, C)`` for pooling "none".
        """
        pooled = self._pool(tokens, attention_mask)
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def _pool(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        present = attention_mask.unsqueeze(-1)
        match self.pooling:
            case "mean":
                weights = present.to(tokens.dtype)
                return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
            case "max":
                return tokens.masked_fill(present == 0, torch.finfo(tokens.dtype).min).amax(dim=1)
            case "cls":
                return tokens[:, 0]
            case "none":
                return tokens
