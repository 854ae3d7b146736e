"""AnyRes: which grid, which tiles, which soft tokens, beside transformers' own."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextImageProcessor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from mmjax.data.media.tiles import NEWLINE, Tiling

LLAVA = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
PUBLISHED = {
    (640, 480): 2340, (480, 640): 2352, (1024, 768): 2340, (640, 427): 2144, (1000, 300): 2182, (500, 500): 2928,
    (336, 336): 1176,
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_positions_of_llava_next(size):
    width, height = size
    assert len(Tiling(LLAVA, 336, 24).layout(height, width)) == PUBLISHED[size]


def test_of_equal_grids_the_first():
    assert Tiling(LLAVA, 336, 24).grid(300, 300) == (336, 672)
    assert Tiling(tuple((height, width) for width, height in LLAVA), 336, 24).grid(300, 300) == (672, 336)


SMALL = Tiling(((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)), 28, 2)
SIZES = [(30, 40), (40, 30), (28, 28), (17, 90), (91, 13), (55, 54), (1, 1), (1, 200), (200, 1), (57, 56)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_and_layout_are_those_of_transformers(height, width):
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[list(grid) for grid in SMALL.grids], do_rescale=False, do_normalize=False,
    )  # fmt: skip
    theirs = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    tiles = SMALL.cut(pixels)
    assert tiles.shape == (SMALL.count(height, width), 28, 28, 3)
    # torchvision's bicubic filter rounds otherwise than PIL's.
    difference = np.abs(tiles.astype(int) - np.asarray(theirs).transpose(0, 2, 3, 1).astype(int))
    assert difference.max() <= 2

    layout = SMALL.layout(height, width)
    features = torch.arange(len(tiles) * 4, dtype=torch.float32).reshape(len(tiles), 4, 1)
    model = LlavaNextModel.__new__(LlavaNextModel)
    torch.nn.Module.__init__(model)
    vision = type("Vision", (), {"image_size": 28, "patch_size": 14})
    model.config = type("Config", (), {"image_grid_pinpoints": [list(grid) for grid in SMALL.grids], "vision_config": vision})
    packed, _ = model.pack_image_features(
        [features], torch.tensor([[height, width]]), "default", image_newline=torch.tensor([float(NEWLINE)])
    )
    np.testing.assert_array_equal(layout, np.concatenate([np.asarray(each) for each in packed])[:, 0])


@pytest.mark.parametrize("grids", [(), ((28, 30),), ((0, 28),)])
def test_bad_grids(grids):
    with pytest.raises(ValueError, match="grids must be multiples"):
        Tiling(grids, 28, 2)
