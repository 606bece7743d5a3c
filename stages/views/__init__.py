"""Views: how boxes and colours of images are drawn and rendered."""
