"""What a user names, opened whatever it is: sources, images with labels, class lists."""
