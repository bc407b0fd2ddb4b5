"""How a model is known: its blocks, masks, inputs and the positions that its head reads."""
