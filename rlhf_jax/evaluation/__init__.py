"""Protocols with names: ranking, text metrics, satisfaction, bootstrap intervals."""
