"""PaliGemma's task grammar: rendering prompts, parsing answers, decoding masks."""
