"""Controls: maps made wrong on purpose, so that anybody can ask whether a map helps.

Who claims that a map helps must show that the real map does better than "constant" (no map) and than "rolled" (a map as
sharp, but in the wrong place). Every draw comes from the seed and the groups' ids, so the order of the batch and the number
of processes change nothing.
"""

import torch
from torch import Tensor

from .spread import NEUTRAL, check_group_ids, check_maps

CONTROLS = ("none", "rolled", "shuffled", "inverted", "constant")


def controlled_maps(
    token_maps: Tensor,
    map_kind: str,
    control: str,
    group_ids: Tensor,
    map_valid: Tensor | None = None,
    neutral: float = NEUTRAL,
    rewards: Tensor | None = None,
    token_grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Pooled maps as a control changes them (B, N), and which of them are valid (B,) bool.

    "rolled"    moves the map by an offset that is drawn per group, around the edges: the same values in the wrong place
    "shuffled"  takes another group's maps, the best image that group's best map and so on: right for another prompt
    "inverted"  swaps good and bad; in an importance map, what counts and what does not
    "constant"  puts each map's mean everywhere, which gives the scalar advantage
    "none"      leaves the maps as they are

    token_maps: (B, N). group_ids: (B,) integers. rewards: (B,), for "shuffled". token_grid: (rows, columns), for "rolled";
    None: one row of N tokens. A constant map stays constant under every control.
    Raises ValueError for an unknown control, a grid that does not hold N tokens, and "shuffled" of fewer than two groups.
    """
    check_maps(token_maps, map_valid, token_maps.shape[0])
    check_group_ids(group_ids, token_maps.shape[0])
    if map_valid is None:
        map_valid = torch.ones(len(token_maps), dtype=torch.bool, device=token_maps.device)
    maps = token_maps.detach().float()
    if control == "none":
        return maps, map_valid
    if control == "rolled":
        return _rolled(maps, group_ids, token_grid or (1, maps.shape[1]), seed), map_valid
    if control == "shuffled":
        donors = _donors(maps, maps[:, 0] if rewards is None else rewards, group_ids, seed)  # (B,)
        return maps[donors], map_valid[donors]
    if control == "inverted":
        return (2 * neutral if map_kind == "reward" else 1) - maps, map_valid
    if control == "constant":
        return maps.mean(dim=1, keepdim=True).expand_as(maps), map_valid
    raise ValueError(f"unknown control {control!r}; choose one of {', '.join(CONTROLS)}")


def _rolled(maps: Tensor, group_ids: Tensor, token_grid: tuple[int, int], seed: int) -> Tensor:
    rows, columns = token_grid
    num_tokens = maps.shape[1]
    if rows * columns != num_tokens:
        raise ValueError(f"token_grid={tuple(token_grid)} must hold the {num_tokens} tokens of a map")
    rolled = maps.clone()
    for group_id in group_ids.unique().tolist():
        members = group_ids == group_id
        # Never an offset of 0. Siblings share the offset: what they agree on stays in one place, the wrong one.
        offset = 1 + _draw(max(num_tokens - 1, 1), seed, group_id)
        grid = maps[members].reshape(-1, rows, columns)
        rolled[members] = grid.roll((offset // columns, offset % columns), dims=(1, 2)).flatten(1)
    return rolled


def _donors(maps: Tensor, rewards: Tensor, group_ids: Tensor, seed: int) -> Tensor:
    """The index (B,) of the image whose map each image takes.

    The groups stand in a circle in a drawn order. An image takes the map of the image with the same rank in the next group.
    """
    ids = group_ids.unique().tolist()
    if len(ids) < 2:
        raise ValueError("control=shuffled gives each group another group's maps and needs two groups or more, got one")
    circle = sorted(ids, key=lambda group_id: (_draw(2**31, seed, group_id), group_id))
    # Rank by reward, then by map: only equal images share a rank, and the order of the batch does not matter.
    keys = torch.cat([rewards.detach().double()[:, None], maps.nan_to_num().double()], dim=1)
    rank = keys.unique(dim=0, return_inverse=True)[1]  # (B,)
    donors = torch.empty_like(rank)
    for takes, gives in zip(circle, circle[1:] + circle[:1], strict=True):
        receivers, givers = ((group_ids == group_id).nonzero()[:, 0] for group_id in (takes, gives))
        givers = givers[rank[givers].argsort(stable=True)]
        ordered = rank[receivers].sort().values
        place = torch.searchsorted(ordered, rank[receivers])  # (M,), equal images share theirs
        donors[receivers] = givers[place * len(givers) // len(receivers)]
    return donors


def _draw(below: int, seed: int, group_id: int) -> int:
    """An integer in [0, below), the same for the same seed and group."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + group_id * 7_919) % 2**63)
    return int(torch.randint(below, (1,), generator=generator))
