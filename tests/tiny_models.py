"""Models small enough to make in a second: a random Llama, a reward model and a LoRA adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SPECIALS = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if think %}<think>{% endif %}{% endif %}"
)
TEXTS = ["the quick brown fox jumps over the lazy dog " * 3, "what is the capital of france? paris"]


def save_tokenizer(path: Path, *, bos: bool = False, chat: bool = True) -> Path:
    """A byte-level BPE tokenizer of about 300 tokens; pad is not eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIALS
    )
    backend.train_from_iterator(TEXTS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|system|> $A", special_tokens=[("<|system|>", SPECIALS.index("<|system|>"))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        bos_token="<|system|>" if bos else None,
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )
    if chat:
        made.chat_template = TEMPLATE
    made.save_pretrained(path)
    return path


def llama_config(**fields: Any) -> Any:
    """Two layers of 128; vLLM's attention on CPUs needs head_dim of at least 32."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=SPECIALS.index("<|end|>"),
        pad_token_id=SPECIALS.index("<|pad|>"),
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **fields,
    )


def save_lm(path: Path, tokenizer: Path, *, seed: int = 0, dtype: str = "float32") -> Path:
    """A language model whose answers are about ten tokens long."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config())
    with torch.no_grad():  # a long row wins often: random answers would hardly ever end
        model.get_input_embeddings().weight[SPECIALS.index("<|end|>")] *= 2.5
    model.to(getattr(torch, dtype)).save_pretrained(path)
    shutil.copytree(tokenizer, path, dirs_exist_ok=True)
    return path


def save_reward_model(path: Path, tokenizer: Path) -> Path:
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(1)
    LlamaForSequenceClassification(llama_config(num_labels=1)).save_pretrained(path)
    shutil.copytree(tokenizer, path, dirs_exist_ok=True)
    return path


def save_gpt2_reward_model(path: Path, tokenizer: Path) -> Path:
    """One of other layers than all models here."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=320, n_embd=64, n_layer=2, n_head=2, n_positions=512, num_labels=1, bos_token_id=None,
        eos_token_id=SPECIALS.index("<|end|>"), pad_token_id=SPECIALS.index("<|pad|>"),
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(path)
    shutil.copytree(tokenizer, path, dirs_exist_ok=True)
    return path


def save_adapter(path: Path, lm: Path) -> Path:
    """A LoRA adapter that changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(2)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(lm), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero as peft makes it
                weight.normal_(std=0.2)
    model.save_pretrained(path)
    return path
