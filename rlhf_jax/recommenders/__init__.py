"""Recommenders in closed form: counted on the training split, no gradient; scores of all items for given contexts."""
