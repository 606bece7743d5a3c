"""What the bytes on disk mean. Imports nothing else of teachonce; knows nothing of where or when work runs."""
