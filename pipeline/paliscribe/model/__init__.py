"""PaliGemma itself: weights, layers, the cache of keys and values, and the sizes of its products."""
