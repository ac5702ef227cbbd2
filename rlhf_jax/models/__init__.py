"""GPT-2, its heads, and the bridge to Hugging Face folders; nothing here knows about RL."""
