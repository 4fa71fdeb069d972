"""Tiny random Hugging Face folders, as `save_pretrained` leaves them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from serveprune.graph.export import quiet_frameworks

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "cat", "sat", "on", "mat", "and", "slept", "day", "long"]
_TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def write_bert(folder: Path, *, head: str = "BertModel", **settings: Any) -> Path:
    config = transformers.BertConfig(**{**_TEXT, **settings})
    return _write(folder, getattr(transformers, head)(config))


def write_bert_classifier(folder: Path) -> Path:
    return write_bert(folder, head="BertForSequenceClassification")


def write_distilbert(folder: Path) -> Path:
    config = transformers.DistilBertConfig(
        vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=40
    )
    return _write(folder, transformers.DistilBertForSequenceClassification(config))


def write_roberta(folder: Path) -> Path:
    return _write(folder, transformers.RobertaModel(transformers.RobertaConfig(**_TEXT, pad_token_id=1)))


def write_vit(folder: Path) -> Path:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    return _write(folder, transformers.ViTForImageClassification(config))


def write_resnet(folder: Path) -> Path:
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    return _write(folder, transformers.ResNetForImageClassification(config))


def write_tokenizer(folder: Path, **settings: Any) -> None:
    """Write a tokenizer of `WORDS`."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write(folder: Path, model: Any) -> Path:
    torch.manual_seed(0)
    with quiet_frameworks(), torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.save_pretrained(folder)
    return folder
