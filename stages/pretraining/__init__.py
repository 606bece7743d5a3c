"""Training a teacher's prompts on a few labeled images, before it is frozen."""
