"""What a network is: latent binary layers, networks, the packed file and the xnor engine."""
