"""How a network is trained: data sets, recipes, the training loop, metrics and the commands over them."""
