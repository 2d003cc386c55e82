"""Validation prompts, in every accepted layout."""

from __future__ import annotations

import pytest

from fvd.errors import DataError
from fvd.validation.prompts import read_prompts


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a ball\n\n  a boat \n"),
        ("p.json", '["a ball", "a boat"]'),
        ("p.json", '{"data": [{"caption": "a ball", "height": 480}, {"caption": "a boat"}]}'),
        ("p.jsonl", '{"prompt": "a ball"}\n{"text": "a boat"}\n'),
        ("p.csv", "caption,other\na ball,1\na boat,2\n"),
    ],
)
def test_layouts(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    prompts = read_prompts(tmp_path / name, first_seed=100)
    assert [(prompt.text, prompt.seed) for prompt in prompts] == [("a ball", 100), ("a boat", 101)]


def test_a_row_may_have_its_own_seed_also_zero(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "seed": 0}\n{"prompt": "b"}\n', encoding="utf-8")
    assert [prompt.seed for prompt in read_prompts(tmp_path / "p.jsonl", first_seed=5)] == [0, 6]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "\n", "no prompt"),
        ("p.json", "{", "not valid json"),
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', "row 2"),
        ("p.csv", "caption,seed\na,x\n", "seed 'x'"),
        ("p.csv", "caption,seed\na,-1\n", "seed -1 must be at least 0"),
        ("p.yaml", "a", "read from"),
    ],
)
def test_errors_name_file_and_row(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words) as caught:
        read_prompts(tmp_path / name, first_seed=0)
    assert name in str(caught.value)
