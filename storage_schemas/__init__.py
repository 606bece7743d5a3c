"""What the bytes on disk mean. Imports nothing else of teachonce; knows nothing of where or when work runs."""

#: Version of everything written to disk. Part of every fingerprint, so files of another version are refused.
SCHEMA_VERSION = 1
