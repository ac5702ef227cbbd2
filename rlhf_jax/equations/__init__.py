"""Pure functions of arrays: each equation of RLHF on language has one home here."""
