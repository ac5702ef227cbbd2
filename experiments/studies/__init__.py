"""What the study scripts are made of: settings and foundation, shared by all, and one room a question."""
