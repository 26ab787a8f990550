"""How many chunks a compact region touches, for three orders of the voxels on disk.

python benchmarks/voxel_order.py
"""

from __future__ import annotations

import numpy as np

from daskdecode.store.layout import morton_order

SHAPE = (64, 64, 36)
TILE = 8


def tiled_order(voxel: np.ndarray) -> np.ndarray:
    """Cubes of 8 voxels one after another, C order within and between."""
    ijk = np.stack(np.unravel_index(voxel, SHAPE))
    return voxel[np.lexsort([*(ijk % TILE)[::-1], *(ijk // TILE)[::-1]])]


def main() -> None:
    """Compare on a brain-sized ellipsoid and 200 random spheres of about 500 voxels in it."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    scaled = (grid - np.array([31.5, 31.5, 17.5])[:, None, None, None]) / np.array([28, 28, 16])[:, None, None, None]
    inside = np.flatnonzero((scaled**2).sum(axis=0) < 1)
    orders = {"C": inside, "tiled": tiled_order(inside), "Morton": morton_order(inside, SHAPE)}
    for chunk in (1024, 2048, 4096):
        rng = np.random.default_rng(0)
        touched: dict[str, list[int]] = {name: [] for name in orders}
        for _ in range(200):
            centre = np.array(np.unravel_index(rng.choice(inside), SHAPE))
            region = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0).ravel() < 4.9**2
            for name, order in orders.items():
                touched[name].append(len(np.unique(np.flatnonzero(region[order]) // chunk)))
        means = ", ".join(f"{name} {np.mean(n):.1f}" for name, n in touched.items())
        n_chunks = -(-len(inside) // chunk)
        print(f"{len(inside)} voxels in {n_chunks} chunks of {chunk}: a sphere of about 500 voxels touches on average {means}")


if __name__ == "__main__":
    main()
