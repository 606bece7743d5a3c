"""Reading what a user brought: sources, the frozen manifest, image bytes, finished shards."""
