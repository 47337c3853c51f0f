"""Records of the analyses of activations and of what training does to them."""
