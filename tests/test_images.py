"""Pictures of several images."""

import numpy as np
import torch

from percepta.images import grid


def test_neighbours_that_belong_together_stay_in_one_row():
    images = torch.linspace(-1, 1, 12)[:, None, None, None].expand(12, 3, 64, 64)
    for together, columns in ((1, 4), (2, 4), (3, 6), (5, 5)):
        picture = grid(images, together=together)
        assert picture.shape[1] == columns * 66 + 2
        for k in range(12):
            y, x = 2 + (k // columns) * 66, 2 + (k % columns) * 66
            assert len(np.unique(picture[y : y + 64, x : x + 64])) == 1
            assert k // together == 12 // together or (k // together * together) // columns == k // columns
