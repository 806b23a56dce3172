"""Multi-scale deformable attention as a layer (Zhu et al. 2020, eq. 3), with the parameter names of its checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fiducial.backbones.sizes import shape_of
from fiducial.ops import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Every query looks at ``num_points`` places of every level, around its reference, for each of its heads.

    ``ratio`` scales the width of the values (``dim * ratio``), split over the heads. ``kernel`` and ``precise`` go to
    :func:`fiducial.ops.ms_deform_attn`.
    Raises: ValueError if the values do not divide into heads.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_levels: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        ratio: float = 1.0,
        kernel: str = "",
        precise: bool = False,
    ) -> None:
        super().__init__()
        value_dim = int(dim * ratio)
        if value_dim % num_heads or value_dim == 0:
            raise ValueError(f"dim * ratio must divide into heads, found {dim} * {ratio} for {num_heads} heads")
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        self.kernel, self.precise = kernel, precise
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform attention; head m looks in direction m of a circle, its point p on the square p + 1 pixels around."""
        angle_M = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction_M2 = torch.stack([angle_M.cos(), angle_M.sin()], -1)
        direction_M2 = direction_M2 / direction_M2.abs().amax(-1, keepdim=True)
        step_P = torch.arange(1, self.num_points + 1)
        offset_MLP2 = direction_M2[:, None, None] * step_P[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(offset_MLP2.expand(-1, self.num_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        features: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``query`` to ``features``.

        Shapes: ``query`` ``(B, Q, dim)``; ``features`` ``(B, S, dim)``, the levels one after another;
        ``spatial_shapes`` ``(L, 2)`` of (height, width); ``level_start_index`` ``(L,)``; ``padding_mask`` bool
        ``(B, S)``, true where a pixel is padding and counts as zero. ``reference_points`` ``(B, Q, L or 1, 2)``, (x, y)
        in 0..1, offsets being pixels of the level; or ``(B, Q, L or 1, 4)``, (x, y, w, h) in 0..1, offsets being half
        boxes over all points.
        Returns ``(B, Q, dim)``, of any range.
        Raises: ValueError when one of the shapes is another.
        """
        self._check_shapes(query, reference_points, features, spatial_shapes, level_start_index, padding_mask)
        batch, queries, _ = query.shape
        value = self.value_proj(features)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask.unsqueeze(-1), 0)
        value = value.view(*features.shape[:2], self.num_heads, self.value_proj.out_features // self.num_heads)
        per_point = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*per_point, 2)
        weights = (
            self.attention_weights(query)
            .view(*per_point[:3], self.num_levels * self.num_points)
            .softmax(-1)
            .view(per_point)
        )

        reference = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            locations = reference + offsets / spatial_shapes.flip(-1).view(-1, 1, 2)
        else:
            locations = reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        attended = ms_deform_attn(
            value, spatial_shapes, level_start_index, locations, weights, kernel=self.kernel, precise=self.precise
        )
        out: Tensor = self.output_proj(attended)
        return out

    def _check_shapes(
        self,
        query: Tensor,
        reference_points: Tensor,
        features: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding_mask: Tensor | None,
    ) -> None:
        dim, levels = self.value_proj.in_features, self.num_levels
        numbers = {"query": (query, 3), "reference_points": (reference_points, 4), "features": (features, 3)}
        for name, (x, ndim) in numbers.items():
            if x.ndim != ndim:
                raise ValueError(f"{name} must have {ndim} dimensions, found shape {shape_of(x)}")
        (batch, queries, _), (_, pixels, _) = shape_of(query), shape_of(features)
        reference = shape_of(reference_points)
        if reference[1] != queries or reference[2] not in (1, levels) or reference[3] not in (2, 4):
            wanted = f"(batch, {queries}, 1 or {levels}, 2 or 4)"
            raise ValueError(f"reference_points must be {wanted}, found shape {reference}")
        shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "query": (query, (batch, queries, dim)),
            "features": (features, (batch, pixels, dim)),
            "spatial_shapes": (spatial_shapes, (levels, 2)),
            "level_start_index": (level_start_index, (levels,)),
        }
        if padding_mask is not None:
            shapes["padding_mask"] = (padding_mask, (batch, pixels))
        for name, (x, expected) in shapes.items():
            if shape_of(x) != expected:
                raise ValueError(f"{name} must be {expected}, found shape {shape_of(x)}")


def is_deformable(module: nn.Module) -> bool:
    """Whether a network has any deformable attention."""
    return any(isinstance(layer, MSDeformAttn) for layer in module.modules())


def make_precise(module: nn.Module) -> None:
    """Let every deformable attention of a network compute in a fixed order (``model.precise_msda``)."""
    for layer in module.modules():
        if isinstance(layer, MSDeformAttn):
            layer.precise = True
