"""How the demo checkpoint is made: pools of rendered scenes, a tower under dense heads, then the whole model."""
