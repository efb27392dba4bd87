"""The models that a space may name, and pretrained weights for them."""
