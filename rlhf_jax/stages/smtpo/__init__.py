"""Stages of SMTPO (arXiv:2604.03671): retriever, reasoning recommender, simulated seeker, conversations of several turns.

In the order of their box, docs/algorithms/smtpo.md.
"""
