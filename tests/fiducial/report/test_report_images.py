import base64
import io

import numpy as np
import pytest
from PIL import Image

from fiducial.report import data_uri


@pytest.fixture
def board():
    """A smooth picture with a part on it, uint8 (160, 200, 3)."""
    y, x = np.mgrid[:160, :200]
    image = np.stack([90 + 30 * np.sin(x / 7), 90 + 30 * np.cos(y / 9), 80 + 20 * np.sin((x + y) / 11)], axis=-1)
    image[50:110, 60:140] = 200
    return image.astype(np.uint8)


def _decoded(uri):
    head, content = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_data_uri_keeps_small_images_and_shrinks_large_ones(board):
    assert _decoded(data_uri(board)).size == (200, 160)
    assert _decoded(data_uri(board, max_side=50)).size == (50, 40)
    assert np.abs(np.asarray(_decoded(data_uri(board)), dtype=float) - board).mean() < 4
