"""Naming: clusters of a store's embeddings, and names of a large vocabulary that are given to them, one to one (S3A)."""
