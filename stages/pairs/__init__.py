"""The stream of pairs: images and what the teacher said of them, in a fixed order, checked key by key."""
