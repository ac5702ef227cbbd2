"""Many devices and many processes: the mesh, the rules that lay arrays out on it, and what processes agree on."""
