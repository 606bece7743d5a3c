"""The built-in demonstration: a compositional image set and two tiny CLIP models trained for it."""
