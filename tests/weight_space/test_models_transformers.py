"""Models of the transformers library, small and with random weights, and the symmetry that each must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry
from tests.weight_space.cases import Case, check_case, check_torn
from tests.weight_space.models import draw

TOKENS = torch.tensor([[0, 3, 6, 10, 2], [1, 1, 2, 5, 9]])
IMAGES = draw(2, 3, 8, 8)
LARGE_IMAGES = draw(2, 3, 32, 32)
TEXT = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
BLOCKS = [12, 3, 4, 4, 20, 3, 4, 4, 20]
"""Groups of a model of two blocks: its width; heads, query and value widths and hidden neurons of each block."""


class First(nn.Module):
    """The first output of a model, which gives them by name; caches are left out."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.m, self.options = model, options

    def forward(self, x: Tensor) -> Tensor:
        return self.m(x, return_dict=False, **self.options)[0]


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        **TEXT, n_positions=8, n_embd=12, n_layer=2, n_head=3, n_inner=20, attn_implementation=attention
    )
    return First(transformers.GPT2LMHeadModel(config), use_cache=False)


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(
        **TEXT,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        attn_implementation=attention,
    )
    return First(transformers.LlamaForCausalLM(config), use_cache=False)


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(
        **TEXT, **SIZES, max_position_embeddings=8, attn_implementation=attention
    )
    return First(transformers.BertForSequenceClassification(config))


def vit(attention: str) -> nn.Module:
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, attn_implementation=attention)
    return First(transformers.ViTForImageClassification(config))


def resnet(layer: str) -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=6, hidden_sizes=[8, 12], depths=[2, 2], layer_type=layer
    )
    return First(transformers.ResNetForImageClassification(config))


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[6, 8], depths=[2, 1], num_stages=2)
    return First(transformers.ConvNextForImageClassification(config))


def cases(attention: str) -> dict[str, Case]:
    """The models whose attention may be computed in more than one way."""
    block = "m.transformer.h.1"
    layer = "m.model.layers.0"
    bert_layer = "m.bert.encoder.layer.1"
    vit_layer = "m.vit.layers.1"
    return {
        f"GPT-2, {attention}": Case(
            lambda: gpt2(attention),
            TOKENS,
            BLOCKS,
            {},
            "m.transformer.wte.weight (11, h1:12); m.transformer.wpe.weight (8, h1:12); "
            f"{block}.attn.c_attn.weight (h1:12, (h6*h7+h6*h7+h6*h8):36); "
            f"{block}.attn.c_attn.bias ((h6*h7+h6*h7+h6*h8):36); {block}.attn.c_proj.weight (h6:3, h8:4, h1:12); "
            f"{block}.mlp.c_fc.weight (h1:12, h9:20); {block}.mlp.c_proj.weight (h9:20, h1:12)",
        ),
        f"Llama, {attention}": Case(
            lambda: llama(attention),
            TOKENS,
            [16, 2, 2, 4, 20, 2, 2, 4, 20],
            {"out1": 11},
            f"m.model.embed_tokens.weight (11, h1:16); {layer}.self_attn.q_proj.weight (h2:2, h3:2, 4, h1:16); "
            f"{layer}.self_attn.k_proj.weight (h2:2, 4, h1:16); {layer}.self_attn.v_proj.weight (h2:2, h4:4, h1:16); "
            f"{layer}.self_attn.o_proj.weight (h1:16, h2:2, h3:2, h4:4); {layer}.mlp.gate_proj.weight (h5:20, h1:16); "
            f"{layer}.mlp.up_proj.weight (h5:20, h1:16); {layer}.mlp.down_proj.weight (h1:16, h5:20)",
        ),
        f"BERT, {attention}": Case(
            lambda: bert(attention),
            TOKENS,
            [*BLOCKS, 12],
            {"out1": 2},
            "m.bert.embeddings.token_type_embeddings.weight (2, h1:12); "
            f"{bert_layer}.attention.self.query.weight (h6:3, h7:4, h1:12); "
            f"{bert_layer}.attention.self.value.bias (h6:3, h8:4); "
            f"{bert_layer}.attention.output.dense.weight (h1:12, h6:3, h8:4); "
            f"{bert_layer}.intermediate.dense.weight (h9:20, h1:12); m.bert.pooler.dense.weight (h10:12, h1:12)",
        ),
        f"ViT, {attention}": Case(
            lambda: vit(attention),
            IMAGES,
            BLOCKS,
            {"in1": 3, "out1": 2},
            "m.vit.embeddings.cls_token (1, 1, h1:12); m.vit.embeddings.position_embeddings (1, 5, h1:12); "
            f"{vit_layer}.attention.k_proj.weight (h6:3, h7:4, h1:12); "
            f"{vit_layer}.attention.o_proj.weight (h1:12, h6:3, h8:4); {vit_layer}.mlp.fc1.weight (h9:20, h1:12)",
        ),
    }


STAGES = "m.resnet.encoder.stages"
CONVOLUTIONAL = {
    "ResNet, basic": Case(
        lambda: resnet("basic"),
        LARGE_IMAGES,
        [6, 8, 8, 8, 12, 12, 12],
        {"in1": 3, "out1": 2},
        f"{STAGES}.0.layers.0.shortcut.convolution.weight (h2:8, h1:6, 1, 1); "
        f"{STAGES}.0.layers.1.layer.0.convolution.weight (h4:8, h2:8, 3, 3); "
        f"{STAGES}.0.layers.1.layer.1.convolution.weight (h2:8, h4:8, 3, 3); "
        f"{STAGES}.1.layers.1.layer.1.normalization.weight (h5:12); m.classifier.1.weight (2, h5:12)",
    ),
    "ResNet, bottleneck": Case(
        lambda: resnet("bottleneck"),
        LARGE_IMAGES,
        [6, 8, 2, 2, 2, 2, 12, 3, 3, 3, 3],
        {"in1": 3, "out1": 2},
        f"{STAGES}.0.layers.1.layer.0.convolution.weight (h5:2, h2:8, 1, 1); "
        f"{STAGES}.0.layers.1.layer.1.convolution.weight (h6:2, h5:2, 3, 3); "
        f"{STAGES}.0.layers.1.layer.2.convolution.weight (h2:8, h6:2, 1, 1); m.classifier.1.weight (2, h7:12)",
    ),
    "ConvNeXt": Case(
        convnext,
        LARGE_IMAGES,
        [6, 24, 24, 8, 32],
        {"in1": 3, "out1": 2},
        "m.convnext.encoder.stages.0.layers.0.dwconv.weight (h1:6, 1, 7, 7); "
        "m.convnext.encoder.stages.0.layers.0.layer_scale_parameter (h1:6); "
        "m.convnext.encoder.stages.0.layers.1.pwconv1.weight (h3:24, h1:6); "
        "m.convnext.encoder.stages.1.downsampling_layer.1.weight (h4:8, h1:6, 2, 2); m.classifier.weight (2, h4:8)",
    ),
}

CASES = CONVOLUTIONAL | cases("eager") | cases("sdpa")


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("name", CASES)
def test_groups_and_axes(name: str, symmetry: Symmetry) -> None:
    check_case(CASES[name], symmetry)


@pytest.mark.parametrize("name", ["GPT-2, sdpa", "Llama, eager", "BERT, sdpa", "ConvNeXt"])
def test_no_matrix_can_be_torn_from_its_groups(name: str) -> None:
    check_torn(CASES[name])


def test_embeddings_tied_to_the_last_layer() -> None:
    space = check_case(CASES["GPT-2, sdpa"], "hidden")
    assert space.aliases == (("m.lm_head.weight", "m.transformer.wte.weight"),)


def test_rotary_positions_are_named_as_what_fixes_the_widths_of_queries() -> None:
    axes = check_case(CASES["Llama, sdpa"], "hidden")["m.model.layers.0.self_attn.q_proj.weight"].axes
    assert axes[2].note == "buffer 'm.model.rotary_emb.inv_freq' is not permuted"
