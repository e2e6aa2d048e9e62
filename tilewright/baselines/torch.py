"""torch as a peer: the ONNX model as torch calls, one by one (eager) or compiled by Inductor."""

from __future__ import annotations

from pathlib import Path

from tilewright.baselines.engine import Engine, Feed


def open_eager(model: Path, threads: int) -> Engine:
    """Return the model in eager torch."""
    return _open(model, threads, compiled=False)


def open_inductor(model: Path, threads: int) -> Engine:
    """Return the model compiled by torch's Inductor, which needs a C++ compiler."""
    return _open(model, threads, compiled=True)


def _open(path: Path, threads: int, compiled: bool) -> Engine:
    import onnx
    import torch

    _declare_torchvision()
    import onnx2torch

    proto = onnx.load(path)
    constants = {item.name for item in proto.graph.initializer}
    inputs = [item.name for item in proto.graph.input if item.name not in constants]
    outputs = [item.name for item in proto.graph.output]
    network = onnx2torch.convert(proto).eval()
    torch.set_num_threads(threads)
    call = torch.compile(network, dynamic=False) if compiled else network

    def run(feed: Feed) -> dict:
        with torch.inference_mode():
            found = call(*(torch.from_numpy(feed[name]) for name in inputs))
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    return run


def _declare_torchvision() -> None:
    """Let torchvision, which onnx2torch imports, load without its compiled operators.

    Where they do not match the torch build, importing it fails with "operator torchvision::nms does
    not exist". No model here uses them, so that declaring the names is enough.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library = torch.library.Library("torchvision", "FRAGMENT")
        _declared.append(library)  # what it declares lives as long as it does
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}{signature}")


_declared: list = []
