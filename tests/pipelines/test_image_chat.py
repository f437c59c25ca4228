"""Messages of a chat that shows an image, found among the tokens of the processor."""

from __future__ import annotations

import pytest
from vision_language import vision_language_model

from captum_attnflow.pipelines.image_chat import parts_of_chat


@pytest.fixture
def processor():
    """Of LLaVA, whose tokens of rows are special, but not in all_special_tokens."""
    _, processor = vision_language_model("LLaVA")
    processor.tokenizer.add_tokens(["row", "1"])
    processor.tokenizer.add_tokens(["<row_1>"], special_tokens=True)
    assert "<row_1>" not in processor.tokenizer.all_special_tokens
    return processor


def read(processor, text, prompt):
    """Return each token with its part; what the template makes is given."""
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False, return_tensors="pt")
    is_image = ids[0] == tokenizer.image_token_id
    parts = ["image" if image else "prompt" for image in is_image]
    found = parts_of_chat(processor, ids, parts, prompt)
    tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    return list(zip(tokens, found, strict=True))


class WithoutAdded:
    """A tokenizer that does not say what was added to it."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        if name == "added_tokens_decoder":
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("prompt", ["1", "row"])
def test_special_tokens_around_an_image_are_no_text(processor, prompt):
    text = f"user : <row_1> <image> <row_1> <image> {prompt} dog :"
    assert read(processor, text, prompt) == [
        *(("user", "template"), (":", "template")),
        *[("<row_1>", "template"), ("<image>", "image")] * 2,
        *((prompt, "prompt"), ("dog", "template"), (":", "template")),
    ]


@pytest.mark.parametrize("prompt", ["1", "row"])
def test_a_special_token_that_begins_as_another_is_no_text(processor, prompt):
    processor.tokenizer.add_tokens(["<r>", "<r>1", "<r>row"], special_tokens=True)
    text = f"user : <image> {prompt} <r>1 <r>row <r> :"
    processor.chat_template = processor.chat_template.replace("dog", "<r>1 <r>row <r>")
    assert [token for token, part in read(processor, text, prompt) if part == "prompt"]


def test_a_tokenizer_need_not_know_what_was_added_to_it(processor):
    processor.tokenizer = WithoutAdded(processor.tokenizer)
    assert ("a", "prompt") in read(processor, "user : <image> a dog :", "a")


def test_a_tokenizer_that_changes_a_message_is_named(processor):
    # A token stands between spaces, whatever the text has.
    words = "spell the prompt 'a<bos>cat' as often.*the tokenizer changes"
    with pytest.raises(ValueError, match=words):
        read(processor, "user : <image> a<bos>cat dog :", "a<bos>cat")


def test_a_template_that_drops_a_message_is_named(processor):
    processor.chat_template = "user : <image> a dog :"
    with pytest.raises(ValueError, match="the chat template changes or drops the prom"):
        read(processor, "user : <image> a dog :", "a")
