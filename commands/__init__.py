"""The commands of the program: their options, and how what they did is printed. One file a command."""
