"""Aligning GPT-2 conversational recommenders with implicit user feedback, in JAX.

Import the module you need (`from rlhf_jax.equations import gae`); nothing is re-exported here.
"""

__version__ = "0.1.0"
