"""Text on its way into the model: tokenizer, prompts, passages and packing."""
