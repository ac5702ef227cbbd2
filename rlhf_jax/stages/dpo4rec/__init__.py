"""Stages of DPO4Rec (arXiv:2410.05939): a writer of preference texts, the re-ranker that reads them, and pairs for DPO.

In the order of their box, docs/algorithms/dpo4rec.md.
"""
