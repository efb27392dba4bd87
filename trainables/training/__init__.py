"""How stages train: the loop, lanes, losses, views of images, and recipes in two parts. No Ray."""
