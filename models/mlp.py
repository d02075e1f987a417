"""A residual multilayer perceptron for vector data."""

from torch import Tensor, nn
from torch.nn import functional

from models.checkpointing import Block
from models.layers import ConditionEmbedding, Conditions, zero


class MLP(nn.Module):
    """F(x, c_noise, y) on vectors: residual blocks h + W2 act(W1 norm(h) + W3 embedding).

    Args:
        dim: dimension of the data.
        width: hidden width.
        blocks: number of residual blocks.
        dropout: probability.
        num_classes: number of class labels; 0 for none.
        num_attributes: length of label vectors, in place of classes; 0 for none.
        augment_dims: numbers that tell how the data were augmented; 0 for none.
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        width: int = 128,
        blocks: int = 3,
        dropout: float = 0.0,
        num_classes: int = 0,
        num_attributes: int = 0,
        augment_dims: int = 0,
    ) -> None:
        super().__init__()
        if min(dim, width, blocks) < 1:
            raise ValueError(f"dim {dim}, width {width}, blocks {blocks}: all must be at least 1")
        labels = Conditions(num_classes, num_attributes, augment_dims)
        self.embed = ConditionEmbedding(width, width, labels)
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = zero(nn.Linear(width, dim))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """(B, dim), noise levels (B,), labels (B, *) or None -> (B, dim)."""
        embedding = self.embed(c_noise, y, augment)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(functional.silu(self.norm(h)))


class _Block(Block):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, width)
        self.modulate = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.linear1(self.norm(h)) + self.modulate(functional.silu(embedding))
        return h + self.linear2(self.dropout(functional.silu(hidden)))
