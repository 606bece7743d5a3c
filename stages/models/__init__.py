"""Models: what teachers and students share: names, weights, preprocessing, and how a model is built."""
