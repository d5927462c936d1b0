"""The small model and the character tokenizer made from nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from laurel.model.chat import encode_prompt, ensure_template
from laurel.model.scratch import ALPHABET, char_tokenizer, save_scratch, small_model

TOKENIZER = char_tokenizer()
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@settings(max_examples=50, deadline=None)
@given(
    st.text(st.sampled_from(ALPHABET)).filter(
        lambda text: not any(token in text for token in TOKENIZER.all_special_tokens)
    )
)
def test_one_id_per_character_and_back(text):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text) and TOKENIZER.decode(ids) == text
    assert encode_prompt(TOKENIZER, text) == (TOKENIZER.bos_token_id, *ids)


def test_special_tokens_are_distinct_and_unknown_characters_unknown():
    special = (
        TOKENIZER.pad_token_id,
        TOKENIZER.bos_token_id,
        TOKENIZER.eos_token_id,
        TOKENIZER.unk_token_id,
    )
    assert special == (0, 1, 2, 3) and len(TOKENIZER) == 4 + len(ALPHABET) == 100
    assert TOKENIZER("a日é", add_special_tokens=False).input_ids == [
        TOKENIZER.convert_tokens_to_ids("a"),
        3,
        3,
    ]
    assert TOKENIZER.decode([1, 14, 2], skip_special_tokens=True) == TOKENIZER.decode([14])
    assert len(char_tokenizer("0011+=")) == 4 + 4


def test_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (small_model(TOKENIZER, seed=seed, **TINY) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_the_default_shape():
    """Worked by hand: 4 * (4 * 128^2 + 3 * 128 * 384 + 2 * 128) + 128 + 100 * 128 = 865,920; tied,
    float32.
    """
    model = small_model(TOKENIZER)
    assert sum(p.numel() for p in model.parameters()) == 865_920
    assert model.lm_head.weight is model.model.embed_tokens.weight and {
        p.dtype for p in model.parameters()
    } == {torch.float32}


@pytest.mark.parametrize("alphabet", [ALPHABET, "0123456789+= \n"])
def test_the_folder_is_an_ordinary_hugging_face_folder(tmp_path, alphabet):
    folder = save_scratch(tmp_path, alphabet=alphabet, seed=3, **TINY)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    made = char_tokenizer(alphabet)
    ids = tokenizer("12 + 3\n= 15", return_tensors="pt").input_ids
    assert ids.tolist() == made("12 + 3\n= 15", return_tensors="pt").input_ids.tolist()
    assert tokenizer.get_vocab() == made.get_vocab() and tokenizer.chat_template is not None
    assert ensure_template(tokenizer, None) == ensure_template(made, None)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, small_model(made, seed=3, **TINY)(ids).logits)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
