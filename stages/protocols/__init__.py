"""Published protocols: sequences of this program's own commands, and the tables that come of them."""
