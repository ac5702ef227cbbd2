"""Implicit user feedback: engagement, relevance, sentiment, and the weak labels made of them."""
