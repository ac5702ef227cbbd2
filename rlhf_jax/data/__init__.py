"""From files to token batches: readers, vocabulary, windows, batching."""
