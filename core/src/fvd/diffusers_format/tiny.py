"""Random pipelines, small enough for a CPU and whole enough for everything fvd does: what tests and first tries run on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from fvd.diffusers_format.loading import quiet
from fvd.families import ClipPlan
from fvd.model_folder import write_json

if TYPE_CHECKING:
    from transformers import T5EncoderModel

VOCABULARY_SIZE = 512
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5

_TEXT = (
    "a red ball rolling left",
    "a blue square moving right over a green field",
    "two yellow circles crossing each other in the middle",
    "the camera pans slowly across a quiet street at night",
    "a cat is sitting on a chair and a dog is running in the garden",
    "waves rolling onto the beach while the sun is going down",
    "a close-up of a white triangle turning clockwise on a black background",
    "bright colours, overexposed, static, blurred details, subtitles, worst quality, low quality",
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止",
    "一个红色的球向左滚动",
)


def write_tiny_pipeline(folder: Path, make_pipeline: Callable[[], Any], *, plan: ClipPlan) -> None:
    """Write what ``make_pipeline`` returns, a diffusers pipeline with random weights, and the clips that suit it, into
    ``folder``. Equal calls write equal weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        make_pipeline().save_pretrained(folder)
    write_json(folder / "fvd.json", {"fps": plan.fps, **asdict(plan.geometry)})


def tiny_t5(text_dim: int) -> tuple[T5EncoderModel, Any]:
    """A random T5 encoder whose embeddings are ``text_dim`` wide, and a tokenizer for it that takes any text."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel  # families import this module, and need none of them

    config = T5Config(
        vocab_size=VOCABULARY_SIZE, d_model=text_dim, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_tokenizer(Path(folder) / "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
    return T5EncoderModel(config), tokenizer


def save_tiny_tokenizer(folder: Path) -> None:
    """Write it into ``folder`` (made here), as transformers' AutoTokenizer reads it: byte-level BPE, trained on a few lines,
    so that any text has tokens and comes back from them."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
