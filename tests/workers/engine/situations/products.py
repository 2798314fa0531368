"""Products with a constant that no module class announces: functions, operators, expressions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.workers.engine.situations.situation import Situation, normal, normals

Product = Callable[[Tensor, Tensor], Tensor]


class Times(nn.Module):
    """One Parameter, and a function of the input and it."""

    def __init__(self, shape: tuple[int, ...], product: Product) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(shape))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.matrix)


def times(*shape: int, by: Product) -> Callable[[], nn.Module]:
    return lambda: Times(shape, by)


def einsum(equation: str, *shape: int) -> Callable[[], nn.Module]:
    """The input first, the constant second, whatever the equation."""
    return lambda: Times(shape, lambda x, matrix: torch.einsum(equation, x, matrix))


class Affine(nn.Module):
    """``torch.addmm`` in each of its forms."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.randn(8, 8))
        self.scaled = nn.Parameter(torch.randn(8, 8))
        self.left = nn.Parameter(torch.randn(8, 8))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.addmm(self.bias, x, self.right))
        x = torch.addmm(x, x, self.scaled, beta=0.5, alpha=2.0)
        return torch.addmm(self.bias[:, None], self.left, x.t()).t()


class Experts(nn.Module):
    """A mixture of experts as one [experts, in, out] parameter each: every token goes through all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up = nn.Parameter(torch.randn(4, 8, 16) * 0.3)
        self.down = nn.Parameter(torch.randn(4, 16, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        hidden = torch.relu(torch.bmm(x.expand(4, -1, -1), self.up))
        return torch.einsum("etd,te->td", torch.bmm(hidden, self.down), share)


class GroupedExperts(nn.Module):
    """Tokens sorted by expert, one grouped product for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter((torch.randn(2, 16, 32) * 0.3).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([4, 8], dtype=torch.int32)
        return F.grouped_mm(x.bfloat16(), self.experts, offs=ends).float()


class LowRank(nn.Module):
    """LoRA, merged on the fly: the weight is an expression of three parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 16)
        self.down = nn.Parameter(torch.randn(2, 16))
        self.up = nn.Parameter(torch.randn(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + 0.5 * (self.up @ self.down), self.base.bias)


class Adapter(nn.Module):
    """LoRA, unmerged: three products."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 16)
        self.down = nn.Linear(16, 2, bias=False)
        self.up = nn.Linear(2, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class StandardizedConvolution(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019): the kernel is normalized in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


class Hypernetwork(nn.Module):
    """A linear makes the weight of the next product from the input: that one has no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(x).view(-1, 8, 8)
        return torch.bmm(x.unsqueeze(1), weight).squeeze(1)


class GivenWeight(nn.Module):
    """The caller gives both operands of one product; the other has a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.bmm(self.linear(x).unsqueeze(1), y.unsqueeze(2)).squeeze(2)


class Scores(nn.Module):
    """Attention written out: two products of activations between four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share = (self.query(x) @ self.key(x).transpose(1, 2) / 4.0).softmax(-1)
        return self.out(torch.einsum("bst,btd->bsd", share, self.value(x)))


class FusedScores(Scores):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)))


PRODUCTS = (
    Situation("root linear", "root-module", lambda: nn.Linear(8, 4), normal(3, 8)),
    Situation("F.linear", "functional", times(4, 8, by=F.linear), normal(3, 8)),
    Situation("at", "functional", times(8, 4, by=lambda x, w: x @ w), normal(3, 8)),
    Situation("at, three dimensions", "functional", times(8, 4, by=lambda x, w: x @ w), normal(3, 5, 8)),
    Situation("at, transposed", "functional", times(4, 8, by=lambda x, w: x @ w.T), normal(3, 8)),
    Situation("at, constant left", "functional", times(4, 8, by=lambda x, w: w @ x), normal(3, 8, 5)),
    Situation("matmul", "functional", times(8, 4, by=torch.matmul), normal(3, 2, 5, 8)),
    Situation("mm, constant right", "functional", times(8, 4, by=torch.mm), normal(3, 8)),
    Situation("mm, constant left", "functional", times(4, 8, by=lambda x, w: torch.mm(w, x.t()).t()), normal(3, 8)),
    Situation("addmm", "functional", Affine, normal(3, 8), gemms=3),
    Situation("baddbmm", "param-3d", times(2, 8, 4, by=lambda x, w: torch.baddbmm(w[:, :1], x, w)), normal(2, 5, 8),
              dynamic=False),
    Situation("mv", "shape", times(4, 8, by=lambda x, w: torch.mv(w, x)), normal(8), dynamic=False),
    Situation("einsum bi,oi", "functional", einsum("bi,oi->bo", 4, 8), normal(3, 8)),
    Situation("einsum bsi,io", "functional", einsum("bsi,io->bso", 8, 4), normal(3, 5, 8)),
    Situation("einsum heads out", "functional", einsum("bsi,ihd->bshd", 8, 2, 4), normal(3, 5, 8)),
    Situation("einsum heads in", "functional", einsum("bshd,hdo->bso", 2, 4, 8), normal(3, 5, 2, 4)),
    Situation("einsum ellipsis", "functional", einsum("...i,oi->...o", 4, 8), normal(3, 2, 5, 8)),
    Situation("einsum channels first", "functional", einsum("bihw,oi->bohw", 4, 8), normal(3, 8, 5, 5)),
    Situation("einsum heads first", "functional", einsum("bsi,ihd->bhsd", 8, 2, 4), normal(3, 5, 8)),
    Situation("einsum of every head", "functional", einsum("bhi,hio->bho", 2, 8, 4), normal(3, 2, 8)),
    Situation("einsum, constant first", "functional",
              times(4, 8, by=lambda x, w: torch.einsum("oi,bi->bo", w, x)), normal(3, 8)),
    Situation("tensordot", "functional", times(8, 4, by=lambda x, w: torch.tensordot(x, w, 1)), normal(3, 5, 8)),
    Situation("inner", "functional", times(4, 8, by=torch.inner), normal(3, 5, 8)),
    Situation("multi_dot", "functional", times(8, 8, by=lambda x, w: torch.linalg.multi_dot([x, w, w])), normal(3, 8),
              dynamic=False),
    Situation("F.conv1d", "functional", times(4, 8, 3, by=F.conv1d), normal(3, 8, 6)),
    Situation("unfolded convolution", "functional", times(4, 36, by=lambda x, w: w @ F.unfold(x, 3)),
              normal(3, 4, 6, 6)),
    Situation("bmm experts", "param-3d", Experts, normal(6, 8), gemms=3),
    Situation("matmul experts", "param-3d", times(3, 8, 4, by=torch.matmul), normal(2, 3, 5, 8)),
    Situation("matmul experts, constant left", "param-3d", times(3, 4, 8, by=lambda x, w: w @ x), normal(2, 3, 8, 5)),
    Situation("grouped_mm experts", "param-3d", GroupedExperts, normal(8, 16), dynamic=False),
    Situation("weight from constants", "computed-weight",
              times(4, 8, by=lambda x, w: F.linear(x, w.softmax(-1) * 2)), normal(3, 8)),
    Situation("low rank, merged", "computed-weight", LowRank, normal(3, 16)),
    Situation("low rank, unmerged", "computed-weight", Adapter, normal(3, 16), gemms=3),
    Situation("standardized convolution", "computed-weight", lambda: StandardizedConvolution(4, 8, 3),
              normal(3, 4, 6, 6)),
    Situation("weight from the input", "computed-weight", Hypernetwork, normal(3, 8)),
    Situation("weight as an input", "act-act", GivenWeight, normals((3, 8), (3, 8))),
    Situation("scores", "act-act", Scores, normal(3, 5, 16), gemms=4),
    Situation("fused scores", "act-act", FusedScores, normal(3, 5, 16), gemms=4),
)  # fmt: skip
