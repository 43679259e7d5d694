"""PaliGemma's grammar: prompts out, answers in."""
