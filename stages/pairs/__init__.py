"""The stream of pairs: images and the teacher's targets, in a fixed order, checked key by key."""
