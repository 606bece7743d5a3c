"""Growth: what a store lacks of what is wanted of it, room for that in its arrays, and targets that need no teacher."""
