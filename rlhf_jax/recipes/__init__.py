"""How the parts combine into the published systems: GPT-2 behind the learners' callables, stage by stage."""
