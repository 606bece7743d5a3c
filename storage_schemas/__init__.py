"""What the bytes on disk mean. Imports nothing else of teachonce; independent of where and when work runs."""
