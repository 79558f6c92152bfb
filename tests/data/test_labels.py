from __future__ import annotations

import numpy as np
import pytest
import torch

from margrave.data.labels import number_labels


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors_give_the_same_classes(convert) -> None:
    classes, names = number_labels(convert([7, 3, 7]), 3)
    assert classes.tolist() == [0, 1, 0] and names == ("7", "3")


def test_labels_keep_their_type() -> None:
    assert number_labels([1, "1", 1], 3)[0].tolist() == [0, 1, 0]
    assert number_labels([(1, 2), (1, 3), (1, 2)], 3)[0].tolist() == [0, 1, 0]
