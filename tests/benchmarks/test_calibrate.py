"""Calibration gives random networks outputs that have unit scale and depend on the input."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch (bench extra)")
pytest.importorskip("transformers", reason="needs transformers (bench extra)")

from benchmarks.zoo.calibrate import calibrate  # noqa: E402


def test_calibrate_restores_the_signal_of_a_deep_network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3)]
    for _ in range(6):
        layers += [torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1)]
    network = torch.nn.Sequential(*layers)
    batch = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        assert network(batch).std() < 0.1
        calibrate(network, [batch])
        after = network(batch)
    assert float(after.std()) == pytest.approx(1, rel=0.01)
    assert after.mean((0, 2, 3)).abs().max() < 1e-3
    assert (after[0] - after[1]).std() > 0.5


def test_calibrate_gives_batch_norm_the_statistics_of_its_input():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    batch = torch.randn(200, 5) + 3
    calibrate(network, [batch])
    with torch.no_grad():
        norm = network[1]
        normalised = (network(batch) - norm.bias) / norm.weight
    assert normalised.mean(0).abs().max() < 1e-4
    assert normalised.std(0) == pytest.approx(torch.ones(7), rel=1e-3)
    assert float(norm.weight.detach().std()) > 0.05  # affine parameters are not left at one
