"""The tiny model's tokenizer: byte-level BPE trained on a few lines, so that any text has tokens and comes back from them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 512
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in UMT5

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


def save_tiny_tokenizer(folder: Path) -> None:
    """Write the tokenizer into ``folder`` (made here), as transformers' AutoTokenizer reads it."""
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
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
