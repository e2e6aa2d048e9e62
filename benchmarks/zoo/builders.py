"""One function per model that builds it in torch with random or, for MiniLM, real weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.zoo import catalog, networks
from tilewright.baselines.torch import declare_torchvision

declare_torchvision()  # timm imports it

import timm  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from benchmarks.zoo.calibrate import calibrate  # noqa: E402

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: timm.create_model("resnet18"),
    "resnet50": lambda: timm.create_model("resnet50"),
    "mobilenetv2": lambda: timm.create_model("mobilenetv2_100"),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "densenet121": lambda: timm.create_model("densenet121"),
    "vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224"),
    "swin_tiny": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
    "convnext_tiny": lambda: timm.create_model("convnext_tiny"),
    "bert_tiny": lambda: LastHiddenState(BertModel(_bert(128, 2, 2))),
    "bert_base": lambda: LastHiddenState(BertModel(_bert(768, 12, 12))),
    "gpt2_small": lambda: Logits(GPT2LMHeadModel(_gpt2())),
    "minilm": lambda: SentenceEmbedding(_minilm()),
    "vgg16": networks.vgg16,
    "resnet3d18": networks.resnet3d18,
    "unet": networks.UNet,
    "rlfn": networks.Rlfn,
    "espcn": networks.espcn,
}

# Parameters that start near zero so that training is stable; here they must let the signal through.
_PARAMETER_SCALES = {
    "pos_embed": 0.5,
    "cls_token": 0.5,
    "relative_position_bias_table": 0.5,
    "gamma": 0.5,  # layer scale of ConvNeXt
    "word_embeddings.weight": 1.0,
    "position_embeddings.weight": 0.5,
    "token_type_embeddings.weight": 0.5,
    "wpe.weight": 0.02,
    "wte.weight": 768**-0.5,  # shared with the output projection: keeps the logits at unit scale
}


class LastHiddenState(nn.Module):
    """A BERT encoder that returns its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map int64 [N, tokens] twice to float32 [N, tokens, hidden]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Logits(nn.Module):
    """A GPT-2 that returns the logits of every position, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map int64 [N, tokens] to float32 [N, tokens, vocabulary]."""
        # the mask is given because transformers' way to do without has no ONNX operator (diff)
        mask = torch.ones_like(input_ids)
        return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


class SentenceEmbedding(nn.Module):
    """MiniLM as sentence-transformers runs it: masked mean over the tokens, then unit length."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = LastHiddenState(model)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map int64 [N, tokens] twice to float32 [N, tokens, 384] and [N, 384]."""
        tokens = self.encoder(input_ids, attention_mask)
        weight = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return tokens, nn.functional.normalize(mean, dim=1)


def _bert(hidden: int, layers: int, heads: int) -> BertConfig:
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        attn_implementation="eager",
    )


def _gpt2() -> GPT2Config:
    return GPT2Config(attn_implementation="eager", use_cache=False)


def _minilm() -> nn.Module:
    return BertModel.from_pretrained(catalog.minilm_folder(), attn_implementation="eager")


@dataclass(frozen=True, slots=True)
class Built:
    """A calibrated model, the example arguments to export it with, and the names of its ends."""

    model: nn.Module
    args: tuple[torch.Tensor, ...]
    input_names: Sequence[str]
    output_names: Sequence[str]


def build(name: str) -> Built:
    """Build model `name` from fixed seeds, calibrated on 8 samples (2 of a video)."""
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    feeds = [catalog.inputs(name, 100 + i) for i in range(2 if name == "resnet3d18" else 8)]
    if name != "minilm":
        _rescale_parameters(model)
        batch = [torch.cat([torch.from_numpy(f[key]) for f in feeds]) for key in feeds[0]]
        calibrate(model, batch, skip=("model.lm_head",))
    args = tuple(torch.from_numpy(array) for array in feeds[0].values())
    outputs = ("token_embeddings", "sentence_embedding") if name == "minilm" else ("y",)
    return Built(model, args, tuple(feeds[0]), outputs)


def _rescale_parameters(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for suffix, scale in _PARAMETER_SCALES.items():
                if name.endswith(suffix):
                    parameter.normal_(0, scale)
