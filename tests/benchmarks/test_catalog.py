"""Inputs of the zoo: reproducible, different per seed, in range."""

import numpy as np
import pytest

from benchmarks.zoo import NAMES, catalog


@pytest.mark.parametrize("name", [name for name in NAMES if name != "minilm"])
def test_inputs_depend_on_the_seed_alone(name):
    first, again, other = (catalog.inputs(name, seed) for seed in (0, 0, 1))
    key = next(iter(first))
    np.testing.assert_array_equal(first[key], again[key])
    assert np.mean(first[key] != other[key]) > 0.9


def test_images_have_unit_scale():
    for name in ("resnet18", "espcn", "resnet3d18"):
        image = catalog.inputs(name, 3)["x"]
        assert image.shape == catalog.ENTRIES[name].shape
        assert image.dtype == np.float32
        assert abs(image.mean()) < 1
        assert 0.5 < image.std() < 1.5


def test_odd_seeds_mask_the_tail_of_a_text():
    full, masked = (catalog.inputs("bert_tiny", seed) for seed in (0, 1))
    assert full["attention_mask"].min() == 1
    assert masked["attention_mask"][0, :96].min() == 1
    assert masked["attention_mask"][0, 96:].max() == 0
    assert 0 <= full["input_ids"].min() <= full["input_ids"].max() < 30522


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown model 'resnet'.*resnet18"):
        catalog.model_path("resnet")
    with pytest.raises(ValueError, match=r"unknown exporter 'tf'.*torchscript"):
        catalog.model_path("resnet18", "tf")
