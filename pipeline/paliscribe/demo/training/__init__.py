"""Training of the demo checkpoint: rendered scenes, the vision tower under dense heads, then the whole model."""
