"""Reading a user's corpus: sources, the frozen manifest, image bytes, finished shards."""
