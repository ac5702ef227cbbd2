"""`cross_domain.py`: trained in one domain, tested in both."""
